"""`rwkvseg data ...`: looking at data folders; each command a thin call."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rwkvseg.progress import progress_bar

if TYPE_CHECKING:
    from rwkvseg.data.findings import Finding
    from rwkvseg.data.verify import Verification

EXAMPLES_SHOWN = 3
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}

data_app = typer.Typer(
    help="Look at data folders: what is wrong with them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@data_app.callback()
def _group() -> None:
    pass


@data_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Data folder.")],
    split: Annotated[
        Path | None, typer.Option(help="Split file to look for leaks in [default: the folder's own parts].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects, one a finding.")] = False,
) -> None:
    """Find what is wrong with a data folder and its split, and how to mend it; exit code 1 on errors.

    Examples:
        rwkvseg data verify Kvasir-SEG

        rwkvseg data verify CVC-ClinicDB --split recipes/splits/cvc_clinicdb_seed0.json --json
    """
    from rwkvseg.data.verify import verify_data

    console = Console()
    with progress_bar(Console(stderr=True), "looking") as advance:
        result = verify_data(folder, split, advance)
    if as_json:
        typer.echo(json.dumps([finding.as_object() for finding in result.findings], indent=2))
    else:
        _print_findings(console, result)
    if result.has_errors:
        sys.exit(1)


def _print_findings(console: Console, result: "Verification") -> None:
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in result.findings:
        by_kind[finding.kind].append(finding)
    if by_kind:
        table = Table(show_lines=True)
        for heading in ("", "finding", "number", "what", "cure"):
            table.add_column(heading, justify="right" if heading == "number" else "left")
        for kind, findings in by_kind.items():
            severity = findings[0].severity
            colour = COLOURS[severity]
            row = (kind.replace("_", " "), str(len(findings)), _tell(findings), escape(findings[0].cure))
            table.add_row(f"[{colour}]{severity}[/{colour}]", *row)
        console.print(table)
    _say(console, _summary(result))


def _summary(result: "Verification") -> str:
    """What was looked at, and how many findings of each severity there are."""
    parts = ", ".join(f"{part or 'no part'} {number}" for part, number in result.parts.items())
    held = f"{sum(result.parts.values())} cases" + (f" ({parts})" if set(result.parts) != {None} else "")
    groups = f", {result.groups} groups" if result.groups else ""
    counts = (
        f"{number} {severity}{'' if number == 1 else 's'}" for severity, number in result.counts.items()
    )
    found = ", ".join(counts) if result.findings else "nothing wrong found"
    return f"{result.root}: layout {result.layout}, {held}{groups}; {found}"


def _tell(findings: "list[Finding]") -> str:
    """The first findings of a kind, and how many more there are."""
    lines = []
    for finding in findings[:EXAMPLES_SHOWN]:
        where = finding.file or (finding.cases[0] if len(finding.cases) == 1 else "")
        lines.append(escape(f"{where}: {finding.what}" if where else finding.what))
    more = len(findings) - EXAMPLES_SHOWN
    return "\n".join(lines) + (f"\nand {more} more (--json lists all)" if more > 0 else "")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
