"""`rwkvseg data fingerprint`: what a data folder holds, in numbers and plots."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rwkvseg.cli.console import say, show_table, widen
from rwkvseg.cli.options import DataFolderArgument, JsonOption
from rwkvseg.progress import progress_bar
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.data.fingerprint import Fingerprint

SHOWN = 3  # cases that cannot be read
TABLES = {
    "classes": ("label", "name", "voxels", "share", "cases"),
    "intensities": ("channel", "region", "mean", "deviation", "least", "0.5 %", "50 %", "99.5 %", "most"),
}
WORDS = ("name", "channel", "region")


def fingerprint(
    folder: DataFolderArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for fingerprint.json and plots.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sizes, spacings, intensities and classes of a data folder; exit code 1 if cases cannot be read.

    Examples:
        rwkvseg data fingerprint Task04_Hippocampus -o fingerprint

        rwkvseg data fingerprint Kvasir-SEG --json
    """
    from rwkvseg.data.fingerprint_reader import take_fingerprint

    with progress_bar(Console(stderr=True), "reading") as advance:
        found = take_fingerprint(folder, on_case=advance)
    if as_json:
        typer.echo(json.dumps(found.as_object(), indent=2))
    else:
        _print(found)
    if out is not None:
        _write(found, out, quiet=as_json)
    if found.unreadable:
        for case in found.unreadable[:SHOWN]:
            typer.echo(f"not read: {case.why}", err=True)
        what = f"{counted(len(found.unreadable), 'case')} could not be read"
        typer.echo(f"{what}; `rwkvseg data verify {shlex.quote(str(folder))}` tells more.", err=True)
        sys.exit(1)


def _print(found: "Fingerprint") -> None:
    from rwkvseg.data.fingerprint_text import class_rows, intensity_rows, overview

    console = Console()
    widen(console, 140)
    first = Table(title=escape(str(found.folder.root)), title_justify="left", show_header=False)
    for row in overview(found):
        first.add_row(*map(escape, row))
    console.print(first)
    for title, rows in (("classes", class_rows(found)), ("intensities", intensity_rows(found))):
        show_table(console, title, TABLES[title], rows, words=WORDS)


def _write(found: "Fingerprint", out: Path, *, quiet: bool) -> None:
    from rwkvseg.data.fingerprint_plots import draw_plots
    from rwkvseg.output import write_bytes, write_json

    for name, picture in draw_plots(found).items():
        write_bytes(out / name, picture)
    write_json(out / "fingerprint.json", found.as_object())
    if not quiet:
        say(Console(), f"written: {out}")
