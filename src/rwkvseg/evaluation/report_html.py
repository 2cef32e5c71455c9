"""The parts of a page: sections, tables, legends and pictures inside the file; everything is escaped here."""

import base64
from collections.abc import Iterable, Mapping
from html import escape

from rwkvseg.evaluation.drawing import ERROR_COLOURS, Colour, class_colour
from rwkvseg.evaluation.report_text import STYLE


def page(title: str, body: Iterable[str]) -> str:
    """A whole document with the style inside, from the HTML of its sections."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def section(heading: str, content: str) -> str:
    """A heading and the HTML below it."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]], footing: str = "") -> str:
    """A table whose first column names the rows; `footing` is the HTML of its last rows."""
    body = "".join(table_row(row) for row in rows)
    foot = f"<tfoot>{footing}</tfoot>" if footing else ""
    head = _cells(headings, 'th scope="col"')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"


def table_row(values: Iterable[str]) -> str:
    """A row of a table, named by its first value."""
    name, *rest = values
    return f'<tr><th scope="row">{escape(name)}</th>{_cells(rest)}</tr>'


def listed(sentences: Iterable[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def embedded(png: bytes, description: str) -> str:
    """A picture inside the page."""
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def class_legend(names: Mapping[int, str]) -> str:
    """What the colours of the contours mean: label value to name."""
    keys = [_swatch(class_colour(label), name, "line") for label, name in sorted(names.items())]
    return f'<p class="legend"><b>Contours</b> {"".join(keys)}</p>'


def error_legend(*, several_classes: bool) -> str:
    """What the colours of the errors mean."""
    # one class cannot be mistaken for another
    kinds = [kind for kind in ERROR_COLOURS if several_classes or kind != "wrong class"]
    keys = [_swatch(ERROR_COLOURS[kind], kind, "fill") for kind in kinds]
    keys.append(_swatch((255, 255, 255), "outline of the truth", "line"))
    return f'<p class="legend"><b>Errors</b> {"".join(keys)}</p>'


def _swatch(colour: Colour, name: str, kind: str) -> str:
    shade = "#{:02x}{:02x}{:02x}".format(*colour)
    return f'<span class="key"><i class="{kind}" style="--shade:{shade}"></i>{escape(name)}</span>'


def _cells(values: Iterable[str], tag: str = "td") -> str:
    return "".join(f"<{tag}>{escape(value)}</{tag.split()[0]}>" for value in values)
