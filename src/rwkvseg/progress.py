"""The bar that long work shows on a terminal, and nowhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[..., None]


@contextmanager
def progress_bar(console: Console, title: str, total: int | None = None) -> Iterator[Advance]:
    """Show a bar with an ETA while the block runs; without a terminal nothing is printed.

    Yields:
        A function for each step done: advance() moves the bar on by one; advance(done, total) sets both, for
        work whose length is not known before.
    """
    columns = (TextColumn(escape(title)), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=total)

        def advance(done: int | None = None, total: int | None = None) -> None:
            if done is None:
                progress.advance(task)
            else:
                progress.update(task, completed=done, total=total)

        yield advance
