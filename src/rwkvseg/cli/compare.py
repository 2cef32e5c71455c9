"""`rwkvseg compare`: runs beside each other, with tests of their differences."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rwkvseg.cli.console import say, show_table, widen
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.evaluation.compare import Comparison


class Part(StrEnum):
    """Parts of a split that runs are evaluated on."""

    val = "val"
    test = "test"


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="[LABEL=]FOLDER: run or evaluation folders, two or more.")
    ],
    part: Annotated[
        Part | None,
        typer.Option(help="Which part of run folders [default: test; val where no run has a test part]."),
    ] = None,
    pictures: Annotated[
        int, typer.Option(help="Show so many cases under every run, worst to best of the first.", min=0)
    ] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the pictures.")] = Path("comparison"),
    images: Annotated[
        Path | None, typer.Option(help="Images behind the pictures [default: where they were].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as one object.")] = False,
) -> None:
    """Compare runs on the same cases: scores with intervals, and paired tests against the first.

    Examples:
        rwkvseg compare runs/unet runs/tiny

        rwkvseg compare unet=runs/unet0 tiny=runs/tiny0 --part val --json

        rwkvseg compare runs/unet runs/tiny --pictures 5 -o comparison
    """
    from rwkvseg.evaluation.compare import compare as run_comparison
    from rwkvseg.evaluation.compare import spread_cases
    from rwkvseg.evaluation.evaluations import find_part, read_evaluations

    chosen, remark = (part.value, "") if part else find_part(runs)
    comparison = run_comparison(read_evaluations(runs, part=chosen), remarks=[remark] if remark else [])
    written = _write_pictures(comparison, spread_cases(comparison.runs[0], pictures), out, images)
    if as_json:
        typer.echo(json.dumps({**comparison.to_json(), "files": list(map(str, written))}, indent=2))
        return
    _print(comparison)
    for path in written:
        say(Console(), f"pictures: {path}")


def _write_pictures(comparison: "Comparison", cases: list[str], out: Path, images: Path | None) -> list[Path]:
    from rwkvseg.evaluation.compare_report import write_comparison, write_sheet
    from rwkvseg.inference.compare import read_compared

    if not cases:
        return []
    drawn = read_compared(comparison.runs, cases, images=images)
    page, sheet = out / "comparison.html", out / "comparison.png"
    write_comparison(page, comparison, drawn)
    write_sheet(sheet, comparison, drawn)
    return [page, sheet]


def _print(comparison: "Comparison") -> None:
    from rwkvseg.evaluation.compare import METRICS
    from rwkvseg.evaluation.compare_text import difference_table, notes, result_table

    console = Console()
    widen(console, 120)
    first = comparison.runs[0]
    tables = {counted(len(first.cases), "case"): result_table(comparison)} | {
        f"{metric.upper()}: difference from {first.label}": difference_table(comparison, metric)
        for metric in METRICS
    }
    for title, (headings, rows) in tables.items():
        show_table(console, title, headings, rows, words=["class", "run"])
    for sentence in notes(comparison):
        console.print(sentence, markup=False, highlight=False)
