"""The bar that long work shows on a terminal, and nowhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[..., None]


class CaseProgress:
    """Moves a bar over cases; over the windows of a single one, or by parts of each of several."""

    def __init__(self, advance: Advance, cases: int) -> None:
        self.advance, self.cases, self.done = advance, cases, 0

    def on_case(self, _case: object = None) -> None:
        """Note that a case is done."""
        self.done += 1
        if self.cases > 1:
            self.advance(self.done, self.cases)

    def on_windows(self, done: int, total: int) -> None:
        """Note how many windows of the present case are done."""
        if self.cases > 1:
            self.advance(self.done + done / total, self.cases)
        else:
            self.advance(done, total)


@contextmanager
def progress_bar(console: Console, title: str, total: int | None = None) -> Iterator[Advance]:
    """Show a bar with an ETA while the block runs; without a terminal nothing is printed.

    Yields:
        A function for each step done: advance() moves the bar on by one; advance(done, total) sets both, for
        work whose length is not known before, or that is done in parts of a step.
    """
    columns = (TextColumn(escape(title)), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        transient=True,
        speed_estimate_period=300,  # seconds: a step may take many
    ) as progress:
        task = progress.add_task("", total=total)

        def advance(done: float | None = None, total: int | None = None) -> None:
            if done is None:
                progress.advance(task)
            else:
                progress.update(task, completed=done, total=total)

        yield advance
