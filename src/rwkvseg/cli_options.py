"""Options that several commands have."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


DeviceOption = Annotated[Device, typer.Option(help="auto takes CUDA where it works.")]
DataOption = Annotated[Path | None, typer.Option(help="Data folder; wins over the recipe's data.path.")]
RunOption = Annotated[Path | None, typer.Option("-o", "--out", help="Run folder [default: runs/NAME].")]
ChangesOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value that wins over the recipe; repeatable.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the last saved epoch.")]


def changes_of(changes: Sequence[str] | None, data: Path | None) -> list[str]:
    """What a command line changes in a recipe: its --set, and its data folder last."""
    return [
        *(changes or []),
        *([] if data is None else [f"data.path={json.dumps(str(data), ensure_ascii=False)}"]),
    ]
