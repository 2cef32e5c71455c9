"""The command line: verbs, each a thin call.

Errors are one or two lines; exit codes are 0 ok, 1 failed, 2 wrong usage.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from rwkvseg import __version__
from rwkvseg.cli_compare import compare
from rwkvseg.cli_data import data_app
from rwkvseg.cli_evaluate import evaluate, print_summary
from rwkvseg.cli_figure import figure_app
from rwkvseg.cli_fingerprint import fingerprint
from rwkvseg.cli_options import (
    ChangesOption,
    CountedSizeOption,
    DataOption,
    Device,
    DeviceOption,
    FormatOption,
    MemoryOption,
    MirrorOption,
    OverlapOption,
    ProtocolName,
    ResultFormat,
    ResumeOption,
    RunOption,
    SeriesOption,
    Variant,
    changes_of,
    volume_options,
)
from rwkvseg.cli_plan import plan
from rwkvseg.errors import RWKVSegError, UsageError
from rwkvseg.progress import CaseProgress, progress_bar
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.models.counting import Cost

app = typer.Typer(
    help="Medical image segmentation with linear-time global context.\n\n"
    "Add --debug to any command for tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(figure_app, name="figure")
data_app.command()(fingerprint)
app.add_typer(data_app, name="data")


INTERRUPTED = 130  # what shells and typer make of Ctrl-C
COMMAND_LINE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]  # click's, or typer's copy of click


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rwkvseg {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; see recipes/.")],
    data: DataOption = None,
    out: RunOption = None,
    device: DeviceOption = Device.auto,
    changes: ChangesOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train a network by a recipe, test it, and write a run folder.

    Examples:
        rwkvseg train recipes/kvasir_seg_tiny_scratch.yaml --data Kvasir-SEG -o runs/kvasir

        rwkvseg train recipes/kvasir_seg_tiny.yaml --data Kvasir-SEG --set training.epochs=20

        rwkvseg train recipes/kvasir_seg_tiny.yaml --data Kvasir-SEG -o runs/kvasir --resume
    """
    from rwkvseg.training.recipe import Recipe
    from rwkvseg.training.run import train as run_training

    content = Recipe.from_file(recipe, changes=changes_of(changes, data))
    folder = out or Path("runs") / content.name
    console = Console()
    result = run_training(content, folder, device=device.value, resume=resume, console=console)
    for part, evaluation in result.evaluations.items():
        print_summary(
            console, evaluation.summary, title=f"{part} ({counted(len(evaluation.summary.cases), 'case')})"
        )
        _say(console, f"report: {evaluation.report}")
    _say(console, f"model:  {folder / 'model'}")


@app.command()
def pretrain(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; see recipes/pretrain_*.yaml.")],
    data: DataOption = None,
    out: RunOption = None,
    device: DeviceOption = Device.auto,
    changes: ChangesOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train an encoder alone, to classify pictures or to paint hidden parts of them, and keep its weights.

    Examples:
        rwkvseg pretrain recipes/pretrain_imagenet_tiny.yaml --data imagenet -o runs/imagenet

        rwkvseg pretrain recipes/pretrain_masked_kvasir_tiny.yaml --data Kvasir-SEG --set training.epochs=100
    """
    from rwkvseg.training.pretrain import pretrain as run_pretraining
    from rwkvseg.training.pretrain_recipe import PretrainRecipe

    content = PretrainRecipe.from_file(recipe, changes=changes_of(changes, data))
    folder = out or Path("runs") / content.name
    console = Console()
    result = run_pretraining(content, folder, device=device.value, resume=resume, console=console)
    for path in result.encoders:
        _say(console, f"encoder: {path}")


@app.command()
def predict(
    model: Annotated[Path, typer.Option("-m", "--model", help="Run or model folder.")],
    inputs: Annotated[
        Path, typer.Option("-i", "--input", help="Image, volume, or a folder of them or of DICOM.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the label maps.")],
    device: DeviceOption = Device.auto,
    protocol: Annotated[
        ProtocolName, typer.Option(help="strict resamples probabilities; transunet resamples labels.")
    ] = ProtocolName.strict,
    part: Annotated[
        str | None, typer.Option(help="Only this part (train, val, test) of the run's split.")
    ] = None,
    wanted: FormatOption = ResultFormat.auto,
    series: SeriesOption = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write pictures of the result.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a machine-readable report (JSON).")] = None,
    overlap: OverlapOption = 0.5,
    mirror: MirrorOption = False,
    max_memory: MemoryOption = None,
) -> None:
    """Predict label maps on the inputs' own grids: PNG for pictures, NIfTI for volumes, or DICOM-SEG.

    Examples:
        rwkvseg predict -m runs/kvasir -i polyp.jpg -o predictions --overlay

        rwkvseg predict -m runs/acdc -i ACDC/imagesTs -o predictions --max-memory 8G --report run.json

        rwkvseg predict -m runs/kvasir -i Kvasir-SEG --part test -o predictions

        rwkvseg predict -m runs/ct -i study --series 3 --format dicom-seg -o predictions
    """
    from rwkvseg.data.layouts import find_inputs
    from rwkvseg.inference.predict import find_part, predict_files, write_report_json
    from rwkvseg.inference.predictor import Predictor

    options = volume_options(overlap, mirror=mirror, max_memory=max_memory)
    if part is not None and series:
        raise UsageError("--part is of a run's split, --series of DICOM. Give one of them.")
    predictor = Predictor.from_file(model, device=device.value, options=options)
    cases = list(find_inputs(inputs, series or ())) if part is None else find_part(inputs, model, part)
    console = Console()
    with progress_bar(console, "predicting", len(cases)) as advance:
        bar = CaseProgress(advance, len(cases))
        done = predict_files(
            predictor,
            cases,
            out,
            protocol=protocol.value,
            wanted=wanted.value,
            overlay=overlay,
            source=str(inputs),
            on_case=bar.on_case,
            on_windows=bar.on_windows,
        )
    if report is not None:
        write_report_json(report, predictor, protocol.value, done)
    seconds = sum(item.seconds for item in done)
    _say(
        console,
        f"{counted(len(done), 'label map')} in {out}, {seconds:.1f} s on {predictor.device}",
    )


app.command()(evaluate)
app.command()(compare)
app.command()(plan)


@app.command()
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
        _say(console, f"encoder: {done.path} ({done.model}; train with model.encoder_weights: {done.path})")
    else:
        classes = counted(done.num_classes, "class", "classes")
        _say(console, f"model:   {done.path} ({done.model}, {classes})")
    _say(console, f"licence: {LICENCE}")


@app.command()
def models(
    size: CountedSizeOption = None,
    num_classes: Annotated[int, typer.Option(help="Channels of the logits.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
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


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for data, run and report.")] = Path("demo"),
    device: DeviceOption = Device.auto,
    seed: Annotated[int, typer.Option(help="Of the data and of the training.", min=0)] = 0,
) -> None:
    """Make the built-in data, train the tiny network for about two minutes, test it, picture the result.

    Example:
        rwkvseg demo -o demo
    """
    from rwkvseg.training.demo import run_demo

    console = Console()
    result = run_demo(out, device=device.value, seed=seed, console=console)
    evaluation = result.evaluations["test"]
    print_summary(console, evaluation.summary, title=f"{len(evaluation.summary.cases)} unseen test cases")
    _say(console, f"pictures: {evaluation.report}")
    _say(console, f"model:    {result.folder / 'model'}")


def _say(console: Console, line: str) -> None:
    """Print as it is: paths and case ids are no markup, and must not be broken where they are long."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


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
    _say(console, "GMAC: as the papers count, with norms, activations and resizing, in their order of steps.")
    _say(console, "GMAC run: convolutions, matrix products and WKV as they run here.")
    _say(console, "activations: what training keeps in float32 for one image.")


def main() -> None:
    """Run the program; the only place where errors become text and exit codes."""
    # threads that wait by spinning slow each other many times over when anything else runs on the machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        interrupted = app(prog_name="rwkvseg", standalone_mode=False) == INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        interrupted = True
    except RWKVSegError as error:
        if debug:
            traceback.print_exc()
        _fail(str(error), error.exit_code)
    except COMMAND_LINE_ERROR as error:
        _explain_usage(error)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _fail(_explain_unexpected(error), 1)
    if interrupted:
        _fail("stopped. The same command goes on, a training with --resume.", INTERRUPTED)


def _explain_usage(error: Any) -> NoReturn:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    command = error.ctx.command_path if error.ctx else "rwkvseg"
    message = " ".join(error.format_message().split())  # a list of choices comes on lines of its own
    _fail(f"{message.rstrip('.')}. See `{command} --help`.", error.exit_code)


def _explain_unexpected(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "the device ran out of memory. "
            "Lower training.batch_size or preprocessing.size, or use --device cpu."
        )
    if isinstance(error, MemoryError):
        return (
            "this machine's memory ran out. End other programs, or give smaller images or a larger machine."
        )
    first = (str(error).splitlines() or [""])[0]
    return (
        f"unexpected {type(error).__name__}: {first}\n"
        "This is a fault of rwkvseg: run again with --debug and report it."
    )


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
