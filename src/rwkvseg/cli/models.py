"""`rwkvseg models` and `convert-published`: which networks there are, and the authors' weights of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rwkvseg.cli.console import say
from rwkvseg.cli.options import CountedSizeOption, JsonListOption, Variant
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.models.counting import Cost


def convert_published(
    file: Annotated[Path, typer.Argument(help="Your download of the authors' weights.")],
    variant: Annotated[Variant, typer.Option(help="Which network the file holds.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    num_classes: Annotated[
        int | None, typer.Option(help="Refuse another number [default: as in the file].", min=1)
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Rows and columns [default: 256 for one class, else 224].", min=1)
    ] = None,
) -> None:
    """Convert the authors' published weights: to a model folder, or to an encoder to train from.

    Examples:
        rwkvseg convert-published net_B.pth --variant base --num-classes 9 -o models/synapse

        rwkvseg predict -m models/synapse -i slices -o predictions
    """
    from rwkvseg.inference.convert import LICENCE, convert_published

    done = convert_published(file, out, variant=variant.value, num_classes=num_classes, size=size)
    console = Console()
    if done.num_classes is None:
        say(console, f"encoder: {done.path} ({done.model}; train with model.encoder_weights: {done.path})")
    else:
        classes = counted(done.num_classes, "class", "classes")
        say(console, f"model:   {done.path} ({done.model}, {classes})")
    say(console, f"licence: {LICENCE}")


def models(
    size: CountedSizeOption = None,
    num_classes: Annotated[int, typer.Option(help="Channels of the logits.", min=1)] = 1,
    as_json: JsonListOption = False,
) -> None:
    """List the networks with their parameters, multiply-accumulates and activation memory.

    Examples:
        rwkvseg models

        rwkvseg models --size 224 --num-classes 9 --json

        rwkvseg models --size 48x64x48
    """
    from dataclasses import asdict

    from rwkvseg.models.counting import measure_all

    costs, missing = measure_all(size, num_classes=num_classes)
    if as_json:
        typer.echo(json.dumps([asdict(cost) for cost in costs], indent=2))
    else:
        _print_costs(Console(), costs)
    for reason in missing:
        typer.echo(f"not counted: {reason}", err=True)


def _print_costs(console: Console, costs: "list[Cost]") -> None:
    for size in sorted({cost.size for cost in costs}, key=len):
        of_what = "image" if len(size) == 2 else "volume"
        table = Table(title=f"one {of_what} of {' x '.join(map(str, size))}", title_justify="left")
        table.add_column("network")
        for heading in ("parameters M", "GMAC", "GMAC run", "activations MiB"):
            table.add_column(heading, justify="right")
        for cost in (cost for cost in costs if cost.size == size):
            figures = (cost.parameters / 1e6, cost.macs / 1e9, cost.macs_run / 1e9)
            table.add_row(cost.name, *(f"{x:.2f}" for x in figures), f"{cost.activation_bytes / 2**20:.0f}")
        console.print(table)
    say(console, "GMAC: as the papers count, with norms, activations and resizing, in their order of steps.")
    say(console, "GMAC run: convolutions, matrix products and WKV as they run here.")
    say(console, "activations: what training keeps in float32 for one image.")
