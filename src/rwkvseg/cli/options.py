"""Options that several commands have."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rwkvseg.inference.volume_plan import VolumeOptions


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class PrecisionName(StrEnum):
    """What networks compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class ProtocolName(StrEnum):
    """Conventions of resizing and scoring."""

    strict = "strict"
    transunet = "transunet"


class ResultFormat(StrEnum):
    """Files of label maps."""

    auto = "auto"
    nifti = "nifti"
    png = "png"
    dicom_seg = "dicom-seg"


class Variant(StrEnum):
    """Published sizes of RWKV-UNet."""

    tiny = "tiny"
    small = "small"
    base = "base"


DataFolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Data folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one object.")]
JsonListOption = Annotated[bool, typer.Option("--json", help="Print a list of objects.")]
DeviceOption = Annotated[Device, typer.Option(help="auto takes CUDA where it works.")]
PrecisionOption = Annotated[
    PrecisionName,
    typer.Option(help="bfloat16 is mostly faster where the device has it, and less exact."),
]
DataOption = Annotated[Path | None, typer.Option(help="Data folder; wins over the recipe's data.path.")]
RunOption = Annotated[Path | None, typer.Option("-o", "--out", help="Run folder [default: runs/NAME].")]
ChangesOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value that wins over the recipe; repeatable.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the last saved epoch.")]
FoldOption = Annotated[
    int | None, typer.Option(help="Which fold, where the split file is nnU-Net's splits_final.json.", min=0)
]
OverlapOption = Annotated[
    float, typer.Option(help="Of windows over a volume, as a share of the patch; 0 to below 1.")
]
FormatOption = Annotated[
    ResultFormat,
    typer.Option("--format", help="Of the label maps; png of slices and dicom-seg need DICOM input."),
]
SeriesOption = Annotated[
    list[str] | None,
    typer.Option(help="Of a DICOM folder, only this series: its number, UID or case id; repeatable."),
]
LargestOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-largest",
        help="Of this label (name, value or all) keep only the largest connected part; repeatable.",
    ),
]
MirrorOption = Annotated[
    bool, typer.Option("--mirror/--no-mirror", help="Mean over all mirrorings of a volume: 8 times the work.")
]
MemoryOption = Annotated[
    str | None, typer.Option(help="Refuse volumes that would take more, such as 8G [default: all there is].")
]


def read_size(text: str) -> tuple[int, ...] | int:
    """Read "256" or "48x64x48".

    >>> read_size("48x64x48")
    (48, 64, 48)
    """
    try:
        sides = tuple(int(side) for side in text.split("x"))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no size. Write 256, 224x320 or 48x64x48.") from None
    return sides[0] if len(sides) == 1 else sides


CountedSizeOption = Annotated[
    Any,
    typer.Option(
        parser=read_size,
        metavar="N|RxC|DxHxW",
        help="Pixels of what is counted, along every axis or along each: then only networks with as many "
        "axes [default: 256 for pictures, 96 for volumes].",
    ),
]


def changes_of(changes: Sequence[str] | None, data: Path | None) -> list[str]:
    """What a command line changes in a recipe: its --set, and its data folder last."""
    return [
        *(changes or []),
        *([] if data is None else [f"data.path={json.dumps(str(data), ensure_ascii=False)}"]),
    ]


def volume_options(overlap: float, *, mirror: bool, max_memory: str | None) -> "VolumeOptions":
    """Options of the prediction of whole volumes.

    Raises:
        UsageError: values that cannot be meant.
    """
    from rwkvseg.inference.volume_plan import VolumeOptions
    from rwkvseg.memory import parse_size

    return VolumeOptions(
        overlap=overlap,
        mirror=(0, 1, 2) if mirror else (),
        max_memory=None if max_memory is None else parse_size(max_memory),
    )
