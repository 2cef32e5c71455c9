"""How commands print: lines as they are, tables that files need not break."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rwkvseg.evaluation.summary import Summary


def say(console: Console, line: str) -> None:
    """Print as it is: paths and case ids are no markup, and must not be broken where they are long."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def widen(console: Console, columns: int) -> None:
    """Have room for so many columns where the output goes to a file, which has no edge to break lines at."""
    if not console.is_terminal:
        console.width = max(console.width, columns)


def show_table(
    console: Console, title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[str]
) -> None:
    """Print a table of numbers, which stand to the right but for the columns `words`."""
    table = Table(title=escape(title), title_justify="left")
    for heading in headings:
        table.add_column(escape(heading), justify="left" if heading in words else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def show_summary(console: Console, summary: "Summary", *, title: str) -> None:
    """Print the classes, their mean and the regions as a table."""
    from rwkvseg.evaluation.summary import row_name

    widen(console, 120)
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
