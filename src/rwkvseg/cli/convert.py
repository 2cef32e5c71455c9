"""`rwkvseg data convert`: a thin call."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rwkvseg.cli.console import say
from rwkvseg.cli.options import FoldOption
from rwkvseg.errors import UsageError
from rwkvseg.progress import progress_bar
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.data.convert import Converted


class TargetLayout(StrEnum):
    """Layouts that can be written."""

    nnunet = "nnunet"
    msd = "msd"
    images = "images"
    transunet = "transunet"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Data folder of any known layout.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to be made.")],
    to: Annotated[TargetLayout, typer.Option(help="Layout of the result.")],
    layout: Annotated[str, typer.Option(help="Layout of SRC, where it is not to be guessed.")] = "auto",
    split: Annotated[
        Path | None, typer.Option(help="Split file that gives the parts [default: those of SRC].")
    ] = None,
    fold: FoldOption = None,
    label: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, repeatable [default: as SRC names them].")
    ] = None,
    channel: Annotated[
        list[str] | None, typer.Option(help="Name of each channel, repeatable, such as CT or T1.")
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH", help="Intensities to clip to, for images and transunet.", show_default=False
        ),
    ] = None,
) -> None:
    """Convert a data folder: cases, labels, geometry and parts are kept; what is lost is said.

    DST appears when it is whole; DST/conversion.json says what was lost and where the cases came from.
    After an interruption the same command goes on.

    Examples:
        rwkvseg data convert Task04_Hippocampus Dataset004_Hippocampus --to nnunet

        rwkvseg data convert Synapse Dataset050_BTCV --to nnunet --channel CT

        rwkvseg data convert Dataset050_BTCV Synapse --to transunet --split split.json --window -125 275

        rwkvseg data convert Dataset_BUSI_with_GT BUSI --to images --label background=0 --label tumor=1
    """
    from rwkvseg.data.convert import Options, convert_data

    options = Options(
        to=to.value,
        layout=layout,
        split=split,
        fold=fold,
        labels=_labels(label),
        channels=tuple(channel) if channel else None,
        window=window,
    )
    with progress_bar(Console(stderr=True), "converting") as advance:
        result = convert_data(source, target, options, advance)
    _tell(Console(), result)


def _tell(console: Console, result: "Converted") -> None:
    """Print what was made and what was lost."""
    parts = ", ".join(f"{part} {number}" for part, number in result.parts.items() if part)
    resumed = f", {result.resumed} of them before" if result.resumed else ""
    say(console, f"{result.folder}: {counted(result.cases, 'case')}{f' ({parts})' if parts else ''}{resumed}")
    for line in result.lost:
        say(console, f"lost in {line}")
    for line in result.notes:
        say(console, f"note: {line}")
    if not result.lost:
        say(console, "nothing was lost")


def _labels(texts: list[str] | None) -> dict[str, int] | None:
    """Read NAME=VALUE, background 0 added where it is missing.

    Raises:
        UsageError: something else, or a value twice.
    """
    if not texts:
        return None
    labels = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name or not value.strip().isdecimal():
            raise UsageError(f"{text!r} is no label. Write --label NAME=VALUE, such as --label tumor=1.")
        labels[name] = int(value)
    if labels.get("background", 0) != 0:
        raise UsageError(f"background is {labels['background']}, and must be 0. Renumber the labels.")
    if 0 not in labels.values():
        labels = {"background": 0} | labels
    if len(set(labels.values())) < len(labels):
        raise UsageError(f"two labels share a value: {labels}. Give each its own.")
    return dict(sorted(labels.items(), key=lambda item: item[1]))
