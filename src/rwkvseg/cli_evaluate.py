"""`rwkvseg evaluate`, and the table that every verb with scores prints."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rwkvseg.errors import UsageError
from rwkvseg.progress import progress_bar
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.evaluation.both import Both
    from rwkvseg.evaluation.protocols import Protocol
    from rwkvseg.evaluation.summary import Summary
    from rwkvseg.inference.evaluate import Evaluation


class ScoringRules(StrEnum):
    """Conventions of scoring."""

    strict = "strict"
    transunet = "transunet"
    both = "both"


def evaluate(
    predictions: Annotated[Path, typer.Option("-p", "--predictions", help="Folder of label maps.")],
    truth: Annotated[Path, typer.Option("-t", "--truth", help="Folder of truths, or the data folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for table, CSV, JSON and report.")],
    protocol: Annotated[
        ScoringRules, typer.Option(help="Scoring rules; both shows them side by side.")
    ] = ScoringRules.strict,
    transunet_predictions: Annotated[
        Path | None,
        typer.Option(help="With both: what predict --protocol transunet made, for transunet to score."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Of NSD: mm for volumes, pixels for pictures and transunet.", min=0)
    ] = 2.0,
    images: Annotated[Path | None, typer.Option(help="Images for the report's pictures.")] = None,
    scored: Annotated[
        str | None, typer.Option(help="Structures that count: NAME,NAME [default: all].")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(help="Score a union of labels too: NAME=LABEL+LABEL by names or values; repeatable."),
    ] = None,
) -> None:
    """Score predictions: DSC, HD95 and more, means with 95 % intervals, an HTML report with pictures.

    Examples:
        rwkvseg evaluate -p predictions -t Kvasir-SEG/masks -o evaluation

        rwkvseg evaluate -p predictions -t ACDC/labelsTs -o evaluation --images ACDC/imagesTs

        rwkvseg evaluate -p predictions -t ACDC/labelsTs -o evaluation --protocol both

        rwkvseg evaluate -p predictions -t BraTS/labelsTs -o evaluation --region whole=1+2+3 --region core=2+3
    """
    from rwkvseg.evaluation.regions import parse_regions
    from rwkvseg.inference.evaluate import evaluate as run_evaluation

    names = None if scored is None else [name.strip() for name in scored.split(",")]
    shared: dict[str, Any] = {"images": images, "tolerance": tolerance, "scored": names}
    shared["regions"] = parse_regions(region or ())
    console = Console()
    if protocol is ScoringRules.both:
        _evaluate_both(console, (predictions, truth, out), transunet_predictions, shared)
        return
    if transunet_predictions is not None:
        raise UsageError("--transunet-predictions means something with --protocol both only. Leave it out.")
    with progress_bar(console, "evaluating") as advance:
        rules: Protocol = "strict" if protocol is ScoringRules.strict else "transunet"
        result = run_evaluation(predictions, truth, out, protocol=rules, on_case=advance, **shared)
    print_summary(console, result.summary, title=counted(len(result.summary.cases), "case"))
    _print_ends(console, result, result.report)


def _evaluate_both(
    console: Console, folders: tuple[Path, Path, Path], transunet: Path | None, shared: dict[str, Any]
) -> None:
    from rwkvseg.inference.evaluate_both import evaluate_both

    with progress_bar(console, "evaluating") as advance:
        results = evaluate_both(*folders, transunet_predictions=transunet, on_case=advance, **shared)
    _print_both(console, results.both)
    _print_ends(console, results.strict, results.report, warn=False)


def _print_ends(console: Console, result: "Evaluation", report: Path, *, warn: bool = True) -> None:
    from rwkvseg.data.files import name_some

    if result.not_predicted:
        truths, some = counted(len(result.not_predicted), "truth"), name_some(result.not_predicted)
        _say(console, f"not scored: {truths} without a prediction ({some})")
    for warning in result.context.warnings if warn else ():
        typer.echo(f"warning: {warning}", err=True)
    _say(console, f"report: {report}")


def _print_both(console: Console, both: "Both") -> None:
    from rwkvseg.evaluation.both_report import parting_sentences, side_by_side

    _widen(console, 160)
    table = Table(title=counted(len(both.strict.cases), "case"), title_justify="left")
    heads, rows = side_by_side(both)
    for heading in heads:
        table.add_column(escape(heading), justify="left" if heading == "class" else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for sentence in parting_sentences(both):
        _say(console, sentence)


def print_summary(console: Console, summary: "Summary", *, title: str) -> None:
    """Print the classes, their mean and the regions as a table."""
    from rwkvseg.evaluation.summary import row_name

    _widen(console, 120)
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    hd95 = f"HD95 {summary.unit}"
    for heading in ("DSC %", "95 % interval", hd95, "without missed", "missed", "false positive"):
        table.add_column(heading, justify="right")
    for row in summary.rows:
        if row is summary.mean or row in summary.regions[:1]:
            table.add_section()
        interval = f"{100 * row.dsc.low:.2f} to {100 * row.dsc.high:.2f}"
        if math.isnan(row.dsc.low):  # of a single case
            interval = "none"
        outcomes = (str(row.outcomes["missed"]), str(row.outcomes["false_positive"]))
        distances = (f"{row.hd95.mean:.2f}", f"{row.hd95_found.mean:.2f}")
        table.add_row(
            escape(row_name(row.name, row.label)),
            f"{100 * row.dsc.mean:.2f}",
            interval,
            *distances,
            *outcomes,
        )
    console.print(table)


def _widen(console: Console, columns: int) -> None:
    if not console.is_terminal:  # a file has no edge to break lines at
        console.width = max(console.width, columns)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
