"""A comparison on paper: one HTML file with tables and pictures, and the pictures alone as one PNG."""

import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvseg.evaluation.compare import METRICS, Comparison
from rwkvseg.evaluation.compare_text import difference_table, notes, result_table
from rwkvseg.evaluation.drawing import draw_side_by_side
from rwkvseg.evaluation.pictures import Picture
from rwkvseg.evaluation.report_html import class_legend, embedded, listed, page, section, table
from rwkvseg.output import write_atomically, write_text
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from PIL.Image import Image

ComparedCase = Sequence[Picture]
"""One case under every run, in their order: the same image, truth and slice."""

_LINE = 22  # pixels of a line of text
_MARGIN = 8


def write_comparison(path: Path, comparison: Comparison, cases: Sequence[ComparedCase]) -> None:
    """Write tables, tests and pictures as one self-contained HTML file.

    Raises:
        OutputError: the file cannot be written.
    """
    first = comparison.runs[0]
    title = " and ".join(run.label for run in comparison.runs)
    names = {row.label: row.name for row in first.rows if isinstance(row.label, int)}
    folders = "".join(
        f'<tr><th scope="row">{escape(run.label)}</th><td>{escape(str(run.folder))}</td></tr>'
        for run in comparison.runs
    )
    body = [
        f"<header><h1>{escape(title)}</h1></header>",
        section("What was compared", f'<table class="context">{folders}</table>'),
        section(f"Results on {counted(len(first.cases), 'case')}", table(*result_table(comparison))),
        section(
            f"Differences from {first.label}",
            "".join(table(*difference_table(comparison, metric)) for metric in METRICS)
            + listed(notes(comparison)),
        ),
    ]
    if cases:
        chosen = f"By the DSC of {first.label}, at even steps from its worst case to its best."
        figures = "".join(_figure(case, comparison) for case in cases)
        content = f'<p class="note">{escape(chosen)}</p>{class_legend(names)}{figures}'
        body.append(section("The same cases under every run", content))
    write_text(path, page(title, body))


def write_sheet(path: Path, comparison: Comparison, cases: Sequence[ComparedCase]) -> None:
    """Write the pictures as one PNG: a row a case; image, truth and a column a run, under their names.

    Raises:
        OutputError: the file cannot be written.
    """
    sheet = draw_sheet([run.label for run in comparison.runs], cases)
    with write_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")


def draw_sheet(labels: Sequence[str], cases: Sequence[ComparedCase]) -> "Image":
    """Rows of panels with the case above and the columns' names and the case's DSC below each."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 14)  # all of Latin
    rows = [draw_side_by_side(case) for case in cases]
    width = max(row.width for row in rows)
    height = sum(row.height + 2 * _LINE + _MARGIN for row in rows)
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    top = 0
    for case, row in zip(cases, rows, strict=True):
        pen.text((0, top), _heading(case[0]), fill=(0, 0, 0), font=font)
        sheet.paste(row, (0, top + _LINE))
        top += _LINE + row.height
        names = _captions(labels, case)
        step = (row.width + 6) / len(names)
        for place, name in enumerate(names):
            pen.text((place * step, top + 2), _fitting(name, font, step), fill=(60, 60, 60), font=font)
        top += _LINE + _MARGIN
    return sheet


def _fitting(text: str, font: Any, width: float) -> str:
    """The end of a text, where paths differ, as far as it fits."""
    while font.getlength(text) > width - _MARGIN:
        text = text[1:]
    return text


def _figure(case: ComparedCase, comparison: Comparison) -> str:
    file = io.BytesIO()
    draw_side_by_side(case).save(file, format="PNG")
    names = _captions([run.label for run in comparison.runs], case)
    panels = "".join(f"<span>{escape(name)}</span>" for name in names)
    return (
        f"<figure><figcaption><b>{escape(_heading(case[0]))}</b></figcaption>"
        f"{embedded(file.getvalue(), f'case {case[0].case} under every run')}"
        f'<div class="panels">{panels}</div></figure>'
    )


def _heading(picture: Picture) -> str:
    return f"{picture.case}, {picture.caption}" if picture.caption else picture.case


def _captions(labels: Sequence[str], case: ComparedCase) -> list[str]:
    scored = [
        f"{label}, " + ("not scored" if math.isnan(picture.dsc) else f"DSC {100 * picture.dsc:.2f} %")
        for label, picture in zip(labels, case, strict=True)
    ]
    return ["image", "truth", *scored]
