"""How commands print: lines as they are, tables that files need not break."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


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


def told_cases(number: int) -> str:
    """Number of cases, in words."""
    return f"{number} case{'s' * (number != 1)}"
