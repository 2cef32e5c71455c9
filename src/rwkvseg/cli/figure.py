"""`rwkvseg figure ...`: one command a figure, each a thin call; the numbers go into a JSON file beside it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rwkvseg.cli.console import say
from rwkvseg.cli.options import Device, DeviceOption
from rwkvseg.progress import progress_bar

figure_app = typer.Typer(
    help="Draw receptive fields, cost against resolution, accuracy against size.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

ModelsOption = Annotated[
    list[str],
    typer.Option("-m", "--model", help="[LABEL=]FOLDER or [LABEL=]NAME[:key=value;...]; repeatable."),
]
OutOption = Annotated[
    Path, typer.Option("-o", "--out", help="PNG, SVG or PDF; the numbers go beside it as JSON.")
]
SeedOption = Annotated[int, typer.Option(help="Of fresh weights and random pictures.", min=0)]


@figure_app.command()
def erf(
    model: ModelsOption,
    out: OutOption = Path("erf.png"),
    inputs: Annotated[
        Path | None, typer.Option("-i", "--input", help="Folder of pictures [default: random ones].")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the pictures, a multiple of 16.", min=16)] = 256,
    images: Annotated[int, typer.Option(help="How many to average over.", min=1)] = 16,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Draw where the middle of the last encoder output looks: its gradient by every pixel of the picture.

    Example:
        rwkvseg figure erf -m trained=runs/kvasir -m fresh=rwkv_unet_tiny -i Kvasir-SEG/images -o erf.png
    """
    from rwkvseg.inference.figures import figure_of_fields

    console = Console()
    with progress_bar(console, "looking", len(model) * images) as advance:
        written = figure_of_fields(
            model,
            out,
            inputs=inputs,
            size=size,
            images=images,
            seed=seed,
            device=device.value,
            on_image=advance,
        )
    _say_files(console, out, written)


@figure_app.command()
def resolution(
    model: ModelsOption,
    out: OutOption = Path("resolution.png"),
    sizes: Annotated[
        str | None,
        typer.Option(help="Sides of pictures or cubes [default: 224 to 1024; of volumes 48 to 192]."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed passes of each.", min=1)] = 5,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Count and time networks on pictures or volumes of growing size.

    Examples:
        rwkvseg figure resolution -m rwkv_unet_tiny -m unet=monai_basic_unet -o resolution.svg

        rwkvseg figure resolution -m "tiny=urwkv3d_tiny:in_channels=1;num_classes=14" -o volumes.svg
    """
    from rwkvseg.inference.figures import figure_of_sizes, read_sizes
    from rwkvseg.inference.freed_memory import freed_memory_kept

    chosen = None if sizes is None else read_sizes(sizes)
    console = Console()
    with freed_memory_kept(), progress_bar(console, "measuring") as advance:  # as `predict` keeps it
        written = figure_of_sizes(
            model, out, sizes=chosen, repeats=repeats, seed=seed, device=device.value, on_step=advance
        )
    _say_files(console, out, written)


@figure_app.command()
def pareto(
    runs: Annotated[
        list[str], typer.Argument(help="[LABEL=]RUN: run folders; runs of one label are pooled.")
    ],
    out: OutOption = Path("pareto.png"),
    part: Annotated[str, typer.Option(help="val or test.")] = "test",
) -> None:
    """Draw accuracy against parameters, from finished run folders.

    Example:
        rwkvseg figure pareto runs/tiny0 runs/tiny1 unet=runs/unet0 -o pareto.png
    """
    from rwkvseg.inference.figures import figure_of_runs

    _say_files(Console(), out, figure_of_runs(runs, out, part=part))


def _say_files(console: Console, out: Path, numbers: Any) -> None:
    for name, path in (("figure: ", out), ("numbers:", numbers)):
        say(console, f"{name} {path}")
