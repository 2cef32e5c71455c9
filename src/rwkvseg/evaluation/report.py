"""One HTML file that shows what a model did: figures, what they leave out, how they were made, and pictures.

Everything is inside the file (style, plots and pictures), it runs no script, and it prints.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rwkvseg.evaluation.drawing import PANELS, draw_overlay
from rwkvseg.evaluation.pictures import Picture
from rwkvseg.evaluation.plots import distribution_plot
from rwkvseg.evaluation.protocols import ClassScore
from rwkvseg.evaluation.report_html import (
    class_legend,
    embedded,
    error_legend,
    listed,
    page,
    section,
    table,
    table_row,
)
from rwkvseg.evaluation.report_text import conventions, exclusions, further_heading
from rwkvseg.evaluation.statistics import Interval
from rwkvseg.evaluation.summary import ClassSummary, Summary, classes_only, row_name
from rwkvseg.output import write_text
from rwkvseg.parallel import available_cores, map_in_order
from rwkvseg.wording import counted

_EMPTY = ("missed", "false_positive", "absent")
_DASH = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Section:
    """What else a report shows: a heading, a plot as PNG, a table (heads first), and what is to be seen."""

    heading: str
    note: str
    table: Sequence[Sequence[str]]
    png: bytes


def write_report(
    path: Path,
    summary: Summary,
    scores: Sequence[ClassScore],
    pictures: Mapping[str, Sequence[Picture]],
    *,
    context: Mapping[str, str],
    excluded: Sequence[str] = (),
    sections: Sequence[Section] = (),
) -> None:
    """Write the report of an evaluation as one self-contained HTML file.

    Args:
        path: the HTML file.
        summary: of `summarise`.
        scores: the scores that were summarised.
        pictures: heading ("best", "median", "worst") to the pictures below it.
        context: what a reader must know, name to value: data, checkpoint, date, version. "title" is the
            heading of the page.
        excluded: sentences that say what no figure counts, and why.
        sections: what else is to be shown, after the pictures.

    Raises:
        OutputError: the file cannot be written.
    """
    title = context.get("title", "Segmentation report")
    body = [
        f"<header><h1>{escape(title)}</h1>{_headline(summary)}</header>",
        section("What was evaluated", _context_table(summary, context)),
        section("Result", _summary_table(summary) + _table_note(summary)),
        section("Further metrics", _further_table(summary)),
        section(
            "What was excluded, and what empty structures did to the figures",
            listed([*excluded, *exclusions(summary, scores)]),
        ),
        section("Spread over cases", _plot(summary, scores)),
        *_picture_sections(scores, pictures),
        *(section(part.heading, _shown(part)) for part in sections),
        section("How the figures are defined", listed(conventions(summary))),
        section("Every case", _case_table(summary, scores)),
    ]
    write_text(path, page(title, body))


def _shown(part: Section) -> str:
    heads, *rows = part.table
    note = f'<p class="note">{escape(part.note)}</p>'
    return f"{embedded(part.png, part.heading)}{table(heads, rows)}{note}"


def _headline(summary: Summary) -> str:
    share = f"{100 * summary.confidence:g} % interval"
    dsc, hd95 = summary.mean.dsc, summary.mean.hd95
    figures = (
        ("Mean DSC", _percent(dsc), "%", f"{share} {_interval(dsc, 100)}"),
        ("Mean HD95", _number(hd95.mean), summary.unit, f"{share} {_interval(hd95, 1)}"),
        ("Cases", str(len(summary.cases)), "", f"protocol {escape(summary.protocol)}"),
    )
    tiles = "".join(
        f'<div class="tile"><span class="name">{name}</span>'
        f'<span class="value">{value}<small> {unit}</small></span><span class="range">{detail}</span></div>'
        for name, value, unit, detail in figures
    )
    return f'<div class="tiles">{tiles}</div>'


def _context_table(summary: Summary, context: Mapping[str, str]) -> str:
    entries = {
        **{name: value for name, value in context.items() if name != "title"},
        "metric protocol": summary.protocol,
        "cases": str(len(summary.cases)),
    }
    rows = (
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in entries.items()
    )
    return f'<table class="context">{"".join(rows)}</table>'


def _summary_table(summary: Summary) -> str:
    unit, share = summary.unit, f"{100 * summary.confidence:g} % interval"
    heads = [
        "class",
        "DSC (%)",
        share,
        "cases",
        f"HD95 ({unit})",
        share,
        "cases",
        f"without missed ({unit})",
        *(outcome.replace("_", " ") for outcome in _EMPTY),
    ]
    rows = [_summary_row(row) for row in summary.classes]
    below = "".join(table_row(_summary_row(row)) for row in (summary.mean, *summary.regions))
    return table(heads, rows, below)


def _summary_row(row: ClassSummary) -> list[str]:
    return [
        row_name(row.name, row.label),
        _percent(row.dsc),
        _interval(row.dsc, 100),
        str(row.dsc.cases),
        _number(row.hd95.mean),
        _interval(row.hd95, 1),
        str(row.hd95.cases),
        _number(row.hd95_found.mean),
        *(str(row.outcomes[outcome]) for outcome in _EMPTY),
    ]


def _further_table(summary: Summary) -> str:
    # pictures have no volume: a column without a value says nothing
    names = [name for name in summary.mean.further if any(row.further[name].cases for row in summary.rows)]
    heads = [f"{further_heading(name)} / cases" for name in names]
    *rows, mean = [_further_row(row, names) for row in (*summary.classes, summary.mean)]
    below = [mean, *(_further_row(row, names) for row in summary.regions)]
    return table(["class", *heads], rows, "".join(map(table_row, below)))


def _further_row(row: ClassSummary, names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        scale = 1 if name.startswith(("assd", "hd95", "volume")) else 100
        cells.append(f"{_number(scale * row.further[name].mean)} / {row.further[name].cases}")
    return [row_name(row.name, row.label), *cells]


def _table_note(summary: Summary) -> str:
    drawn = "patients or videos" if summary.grouped else "cases"
    text = (
        f"Intervals hold {100 * summary.confidence:g} % of {summary.resamples} bootstrap means over {drawn}. "
        "They say how the mean would move with other cases, not with another training."
    )
    if summary.regions:
        text += " Regions join classes and stand below the mean, which does not count them."
    if not summary.mean.dsc.defined:
        text += " With fewer than two of them there is no interval."
    return f'<p class="note">{escape(text)}</p>'


def _plot(summary: Summary, scores: Sequence[ClassScore]) -> str:
    png = distribution_plot(scores, summary.unit)
    names = [row.name for row in (*summary.classes, *summary.regions)]
    note = (
        "Box: quartiles and median. Blue points: cases in which prediction and truth both hold the class. "
        "Vermilion crosses: one of the two is empty, scored as the protocol says."
    )
    description = f"Spread of DSC and HD95 over cases, a row each for {', '.join(names)}"
    return f'{embedded(png, description)}<p class="note">{escape(note)}</p>'


def _picture_sections(scores: Sequence[ClassScore], pictures: Mapping[str, Sequence[Picture]]) -> list[str]:
    shown = {heading: group for heading, group in pictures.items() if group}
    if not shown:
        return []
    sections = [section("Cases in pictures", _legend(scores))]
    for heading, group in shown.items():
        figures = "".join(map_in_order(_figure, group, threads=available_cores()))
        sections.append(f'<section class="cases"><h3>{escape(heading.capitalize())}</h3>{figures}</section>')
    return sections


def _figure(picture: Picture) -> str:
    file = io.BytesIO()
    draw_overlay(picture).save(file, format="PNG")
    score = "not scored" if math.isnan(picture.dsc) else f"DSC {100 * picture.dsc:.2f} %"
    detail = f" · {escape(picture.caption)}" if picture.caption else ""
    description = f"{picture.case}, {score}: {', '.join(PANELS)} beside each other"
    panels = "".join(f"<span>{panel}</span>" for panel in PANELS)
    return (
        f"<figure><figcaption><b>{escape(picture.case)}</b> · {score}{detail}</figcaption>"
        f"{embedded(file.getvalue(), description)}"
        f'<div class="panels">{panels}</div></figure>'
    )


def _legend(scores: Sequence[ClassScore]) -> str:
    names = {score.label: score.name for score in classes_only(scores)}
    return class_legend(names) + error_legend(several_classes=len(names) > 1)


def _case_table(summary: Summary, scores: Sequence[ClassScore]) -> str:
    names = {score.label: score.name for score in sorted(scores, key=lambda score: score.label)}
    unit = summary.unit
    heads = ["case", "mean DSC (%)", f"mean HD95 ({unit})"]
    heads += [f"{name}: {metric}" for name in names.values() for metric in ("DSC (%)", f"HD95 ({unit})")]
    by_key = {(score.case, score.label): score for score in scores}
    rows = []
    for case in summary.cases:
        cells = [case.case, _number(100 * case.dsc), _number(case.hd95)]
        for label in names:
            score = by_key[case.case, label]
            empty = "" if score.outcome == "scored" else f" ({score.outcome.replace('_', ' ')})"
            cells += [_number(100 * score.dsc) + empty, _number(score.hd95)]
        rows.append(cells)
    hint = f"<summary>Show {counted(len(summary.cases), 'case')}</summary>"
    return f'<details>{hint}<div class="wide">{table(heads, rows)}</div></details>'


def _percent(interval: Interval) -> str:
    return _number(100 * interval.mean)


def _number(value: float) -> str:
    return _DASH if math.isnan(value) else f"{value:.2f}"


def _interval(interval: Interval, scale: float) -> str:
    if not interval.defined:
        return "undefined"
    return f"{scale * interval.low:.2f} {_DASH} {scale * interval.high:.2f}"
