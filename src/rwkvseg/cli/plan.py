"""`rwkvseg plan`: a recipe for a data folder, with a reason for each choice."""

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rwkvseg.cli.console import say, widen
from rwkvseg.cli.options import DataFolderArgument, JsonOption
from rwkvseg.progress import progress_bar

if TYPE_CHECKING:
    from rwkvseg.training.plan import Plan

DEFAULT_MEMORY = "8G"


class PlannedVariant(StrEnum):
    """Sizes of the networks; nano is for pictures only."""

    nano = "nano"
    tiny = "tiny"
    small = "small"
    base = "base"


def plan(
    folder: DataFolderArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Recipe to write.")] = Path("recipe.yaml"),
    gpu_memory: Annotated[
        str | None, typer.Option(help="Of the GPU to train on [default: that of the GPU here, else 8G].")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="Split file to keep to [default: the folder's parts, or a new one].")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(min=2, max=3, help="2 sees volumes slice by slice [default: by the data].")
    ] = None,
    variant: Annotated[PlannedVariant | None, typer.Option(help="Of the network [default: tiny].")] = None,
    seed: Annotated[int, typer.Option(help="Of split and training.", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Propose a recipe for a data folder: network, grid, patch, batch, split; `train` takes it as it is.

    Examples:
        rwkvseg plan Task04_Hippocampus -o hippocampus.yaml --gpu-memory 8G

        rwkvseg train hippocampus.yaml
    """
    from rwkvseg.data.fingerprint_reader import take_fingerprint
    from rwkvseg.memory import parse_size
    from rwkvseg.training.plan import make_plan, write_plan
    from rwkvseg.training.plan_choices import PlanOptions

    memory = _memory_here() if gpu_memory is None else parse_size(gpu_memory)
    options = PlanOptions(memory, dimensions, variant.value if variant else None, seed)
    with progress_bar(Console(stderr=True), "reading") as advance:
        found = take_fingerprint(folder, on_case=advance)
    planned = make_plan(found, out, options, split)
    files = write_plan(planned, out, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(_object(planned, files), indent=2))
    else:
        _print(planned, files)


def _memory_here() -> int:
    import torch

    from rwkvseg.memory import parse_size

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return parse_size(DEFAULT_MEMORY)


def _object(planned: "Plan", files: list[Path]) -> dict[str, object]:
    return {
        "recipe": planned.content,
        "choices": [{"key": c.key, "value": c.value, "why": c.sentence} for c in planned.choices],
        "memory_bytes": {**planned.fitted.memory.as_object(), "limit": planned.fitted.limit},
        "files": [str(path) for path in files],
    }


def _print(planned: "Plan", files: list[Path]) -> None:
    console = Console()
    widen(console, 140)
    table = Table(show_lines=False)
    for heading in ("key", "value", "why"):
        table.add_column(heading, overflow="fold")
    for choice in planned.choices:
        value = choice.value if isinstance(choice.value, str) else json.dumps(choice.value)
        table.add_row(*map(escape, (choice.key, value, choice.sentence)))
    console.print(table)
    for line in (
        f"memory on a GPU, bfloat16: {planned.fitted.told} ({planned.fitted.memory})",
        *(f"written: {path}" for path in files),
        f"now: rwkvseg train {shlex.quote(str(files[-1]))}",
    ):
        say(console, line)
