"""`rwkvseg evaluate`, and the table that every verb with scores prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rwkvseg.cli_options import ProtocolName
from rwkvseg.progress import progress_bar

if TYPE_CHECKING:
    from rwkvseg.evaluation.summary import Summary


def evaluate(
    predictions: Annotated[Path, typer.Option("-p", "--predictions", help="Folder of label maps.")],
    truth: Annotated[Path, typer.Option("-t", "--truth", help="Folder of truths, or the data folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for table, CSV, JSON and report.")],
    protocol: Annotated[ProtocolName, typer.Option(help="Scoring rules.")] = ProtocolName.strict,
    tolerance: Annotated[
        float, typer.Option(help="Of NSD: mm for volumes, pixels for pictures and transunet.", min=0)
    ] = 2.0,
    images: Annotated[Path | None, typer.Option(help="Images for the report's pictures.")] = None,
    scored: Annotated[
        str | None, typer.Option(help="Structures that count: NAME,NAME [default: all].")
    ] = None,
) -> None:
    """Score predictions: DSC, HD95 and more, means with 95 % intervals, an HTML report with pictures.

    Examples:
        rwkvseg evaluate -p predictions -t Kvasir-SEG/masks -o evaluation

        rwkvseg evaluate -p predictions -t ACDC/labelsTs -o evaluation --images ACDC/imagesTs
    """
    from rwkvseg.inference.evaluate import evaluate as run_evaluation

    console = Console()
    with progress_bar(console, "evaluating") as advance:
        result = run_evaluation(
            predictions,
            truth,
            out,
            images=images,
            protocol=protocol.value,
            tolerance=tolerance,
            scored=None if scored is None else [name.strip() for name in scored.split(",")],
            on_case=advance,
        )
    print_summary(console, result.summary, title=f"{len(result.summary.cases)} cases")
    if result.not_predicted:
        some = ", ".join(result.not_predicted[:5])
        _say(console, f"not scored: {len(result.not_predicted)} truths without a prediction ({some})")
    if result.recorded_protocol not in (None, protocol.value):
        _say(console, f"note: predicted under '{result.recorded_protocol}', scored under '{protocol.value}'")
    _say(console, f"report: {result.report}")


def print_summary(console: Console, summary: "Summary", *, title: str) -> None:
    """Print the classes and their mean as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for heading in ("DSC %", "95 % interval", f"HD95 {summary.unit}", "missed", "false positive"):
        table.add_column(heading, justify="right")
    for row in (*summary.classes, summary.mean):
        interval = f"{100 * row.dsc.low:.2f} to {100 * row.dsc.high:.2f}"
        outcomes = (str(row.outcomes["missed"]), str(row.outcomes["false_positive"]))
        table.add_row(
            escape(row.name), f"{100 * row.dsc.mean:.2f}", interval, f"{row.hd95.mean:.2f}", *outcomes
        )
    console.print(table)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
