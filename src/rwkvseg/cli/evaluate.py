"""`rwkvseg evaluate`: label maps scored against truths."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rwkvseg.cli.console import say, show_summary, show_table, widen
from rwkvseg.errors import UsageError
from rwkvseg.progress import progress_bar
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.evaluation.both import Both
    from rwkvseg.evaluation.protocols import Protocol
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
    show_summary(console, result.summary, title=counted(len(result.summary.cases), "case"))
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
        say(console, f"not scored: {truths} without a prediction ({some})")
    for warning in result.context.warnings if warn else ():
        typer.echo(f"warning: {warning}", err=True)
    say(console, f"report: {report}")


def _print_both(console: Console, both: "Both") -> None:
    from rwkvseg.evaluation.both_report import parting_sentences, side_by_side

    widen(console, 160)
    headings, rows = side_by_side(both)
    show_table(console, counted(len(both.strict.cases), "case"), headings, rows, words=["class"])
    for sentence in parting_sentences(both):
        say(console, sentence)
