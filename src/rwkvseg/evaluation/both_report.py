"""Both protocols side by side as people read them, on screen and on paper."""

import math
from html import escape
from pathlib import Path

from rwkvseg.evaluation.both import REASONS, Both, Reason
from rwkvseg.evaluation.report_html import listed, page, section, table
from rwkvseg.evaluation.statistics import Interval
from rwkvseg.evaluation.summary import row_name
from rwkvseg.output import write_text
from rwkvseg.wording import counted

_DASH = "\N{EN DASH}"
_EFFECT: dict[Reason, str] = {
    "absent": "in neither truth nor prediction: strict does not score it, transunet gives Dice 0 and HD95 0",
    "false_positive": "predicted where the truth has none: strict gives Dice 0 and no HD95, transunet Dice 1 "
    "and HD95 0",
    "missed": "in the truth and not predicted: both give Dice 0; HD95 is the image's diagonal under strict, "
    "0 under transunet",
    "spacing": "voxels are not 1 mm wide: strict measures HD95 in mm, transunet in voxels",
    "resize": "the label maps differ, since each protocol brought its own back to the case's grid",
}


def side_by_side(both: Both) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: lines of the classes, the mean and the regions; columns of strict come first."""
    heads = ["class"]
    for summary in (both.strict, both.transunet):
        name = summary.protocol
        heads += [f"{name}\nDSC %\n[95 % interval]", f"{name}\nHD95 {summary.unit}\n[95 % interval]"]
        heads += [f"{name}\ncases"]
    rows = []
    for ours, theirs in zip(both.strict.rows, both.transunet.rows, strict=True):
        cells = [
            cell
            for row in (ours, theirs)
            for cell in (_with_interval(row.dsc, 100), _with_interval(row.hd95, 1), str(row.dsc.cases))
        ]
        rows.append([row_name(ours.name, ours.label), *cells])
    return heads, rows


def parting_sentences(both: Both, number: int = 8) -> list[str]:
    """Where the protocols part and why; of each reason the first cases by name."""
    cases = {structure.strict.case for structure in both.parted}
    sentences = [
        f"strict and transunet part in {len(both.parted)} of {counted(len(both.structures), 'structure')}, "
        f"in {len(cases)} of {counted(len(both.strict.cases), 'case')}."
    ]
    for reason in REASONS:
        structures = [structure for structure in both.structures if reason in structure.reasons]
        if structures:
            named = both.cases(reason)
            more = f" and {len(named) - number} more" if len(named) > number else ""
            sentences.append(
                f"{reason.replace('_', ' ')}: {counted(len(structures), 'structure')} of "
                f"{counted(len(named), 'case')} ({', '.join(named[:number])}{more}), {_EFFECT[reason]}."
            )
    averages = (
        "strict averages the classes of a case first, and only those that it holds; transunet counts all"
    )
    why = "The means part by these, and since" if both.parted else "Where the means part, it is since"
    return [*sentences, f"{why} {averages}.", *both.notes]


def write_both_report(path: Path, both: Both, reports: dict[str, str]) -> None:
    """Write the page that shows both protocols and leads to the report of each.

    Args:
        path: the HTML file.
        both: of `compare_protocols`.
        reports: protocol to the relative path of its own report.

    Raises:
        OutputError: the file cannot be written.
    """
    heads, rows = side_by_side(both)
    links = " and ".join(f'<a href="{escape(target)}">{escape(name)}</a>' for name, target in reports.items())
    body = [
        "<header><h1>Both protocols, side by side</h1></header>",
        section("Results", table(heads, rows)),
        section("Where they part, and why", listed(parting_sentences(both, number=50))),
        section("Every structure that parts", f'<div class="wide">{table(*_parting_table(both))}</div>'),
        section("The whole reports", f"<p>Each protocol has its own: {links}.</p>"),
    ]
    write_text(path, page("Both protocols", body))


def _parting_table(both: Both) -> tuple[list[str], list[list[str]]]:
    heads = ["case", "class", "why"]
    for summary in (both.strict, both.transunet):
        heads += [f"{summary.protocol} DSC (%)", f"{summary.protocol} HD95 ({summary.unit})"]
    rows = []
    for structure in both.parted:
        ours, theirs = structure.strict, structure.transunet
        why = ", ".join(reason.replace("_", " ") for reason in structure.reasons)
        figures = (100 * ours.dsc, ours.hd95, 100 * theirs.dsc, theirs.hd95)
        rows.append([ours.case, ours.name, why, *map(_number, figures)])
    return heads, rows


def _with_interval(interval: Interval, scale: float) -> str:
    if not interval.defined:
        return _number(scale * interval.mean)
    return f"{_number(scale * interval.mean)} [{scale * interval.low:.2f}, {scale * interval.high:.2f}]"


def _number(value: float) -> str:
    return _DASH if math.isnan(value) else f"{value:.2f}"
