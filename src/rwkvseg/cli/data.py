"""`rwkvseg data ...`: data folders and public data sets; each command a thin call."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rwkvseg.cli.console import say, widen
from rwkvseg.cli.convert import convert
from rwkvseg.cli.options import DataFolderArgument, FoldOption, JsonListOption
from rwkvseg.progress import progress_bar
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.data.findings import Finding
    from rwkvseg.data.verify import Verification

EXAMPLES_SHOWN = 3
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A data set of `rwkvseg data list`.")]

data_app = typer.Typer(
    help="Look at data folders, convert them, and tell what is known of public data sets.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@data_app.command()
def verify(
    folder: DataFolderArgument,
    split: Annotated[
        Path | None, typer.Option(help="Split file to look for leaks in [default: the folder's own parts].")
    ] = None,
    fold: FoldOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects, one a finding.")] = False,
) -> None:
    """Find what is wrong with a data folder and its split, and how to mend it; exit code 1 on errors.

    Examples:
        rwkvseg data verify Kvasir-SEG

        rwkvseg data verify CVC-ClinicDB --split recipes/splits/cvc_clinicdb_seed0.json --json

        rwkvseg data verify Dataset027_ACDC --split splits_final.json --fold 0
    """
    from rwkvseg.data.verify import verify_data

    console = Console()
    with progress_bar(Console(stderr=True), "looking") as advance:
        result = verify_data(folder, split, advance, fold=fold)
    if as_json:
        typer.echo(json.dumps([finding.as_object() for finding in result.findings], indent=2))
    else:
        widen(console, 160)
        _print_findings(console, result)
    if result.has_errors:
        sys.exit(1)


@data_app.command("list")
def list_datasets(as_json: JsonListOption = False) -> None:
    """List the public data sets whose labels, layout and split are known here.

    Example:
        rwkvseg data list
    """
    from dataclasses import asdict

    from rwkvseg.data.datasets import DATASETS

    if as_json:
        typer.echo(json.dumps([asdict(dataset) for dataset in DATASETS.values()], indent=2))
        return
    table = Table("name", "what", "axes", "train / val / test", "split files")
    for dataset in DATASETS.values():
        what = f"{dataset.title}; {dataset.modality}"
        files = str(len(dataset.split_files) or "none")
        table.add_row(dataset.name, escape(what), str(dataset.dimensions), dataset.told("parts"), files)
    console = Console()
    console.print(table)
    say(console, "rwkvseg data info NAME tells the rest.")


@data_app.command()
def info(
    name: NameArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object; null: not verified.")] = False,
) -> None:
    """Tell labels, layout, split, citation and licence of a public data set, and where to get it.

    Examples:
        rwkvseg data info kvasir_seg

        rwkvseg data info synapse --json
    """
    from dataclasses import asdict, fields

    from rwkvseg.data.datasets import get_dataset

    dataset = get_dataset(name)
    if as_json:
        typer.echo(json.dumps(asdict(dataset), indent=2))
        return
    console = Console()
    for field in fields(dataset):
        if field.name != "unverified":
            say(console, f"{field.name.replace('_', ' ') + ':':<12} {dataset.told(field.name)}")


@data_app.command()
def download(
    name: NameArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to put the data's folder in.")],
) -> None:
    """Fetch a public data set from its owners' open link, where there is one; a broken download goes on.

    Example:
        rwkvseg data download hippocampus -o data
    """
    from rwkvseg.data.datasets import get_dataset
    from rwkvseg.data.downloads import fetch
    from rwkvseg.errors import DataError

    dataset = get_dataset(name)
    if dataset.download is None:
        where = dataset.told("citation" if dataset.source is None else "source")
        raise DataError(
            f"there is no open link to {dataset.name} whose checksum is known. Get it from its owners: "
            f"{where}. Licence: {dataset.told('licence')}. Lay it out: {dataset.prepare}. "
            "Then look at it: rwkvseg data verify DIR."
        )
    console = Console()
    for field in ("licence", "citation"):
        say(console, f"{field + ':':<9} {dataset.told(field)}")
    with progress_bar(Console(stderr=True), f"fetching {dataset.name}") as advance:
        folder = fetch(dataset.download, out, advance)
    say(console, f"data:     {folder}")


data_app.command()(convert)


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
            row = (kind.replace("_", " "), str(len(findings)), _tell(findings), _cures(findings))
            table.add_row(f"[{colour}]{severity}[/{colour}]", *row)
        console.print(table)
    say(console, _summary(result))


def _summary(result: "Verification") -> str:
    """What was looked at, and how many findings of each severity there are."""
    parts = ", ".join(f"{part or 'no part'} {number}" for part, number in result.parts.items())
    held = counted(sum(result.parts.values()), "case") + (
        f" ({parts})" if set(result.parts) != {None} else ""
    )
    groups = f", {counted(result.groups, 'group')}" if result.groups else ""
    counts = (counted(number, severity) for severity, number in result.counts.items())
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


def _cures(findings: "list[Finding]") -> str:
    return "\n".join(dict.fromkeys(escape(finding.cure) for finding in findings[:EXAMPLES_SHOWN]))
