"""`rwkvseg train`, `pretrain` and `demo`: networks learn."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rwkvseg.cli.console import say, show_summary
from rwkvseg.cli.options import (
    ChangesOption,
    DataOption,
    Device,
    DeviceOption,
    ResumeOption,
    RunOption,
    changes_of,
)
from rwkvseg.wording import counted

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="YAML file, or a name of `rwkvseg recipes`.")
]


def train(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: RunOption = None,
    device: DeviceOption = Device.auto,
    changes: ChangesOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train a network by a recipe, test it, and write a run folder.

    Examples:
        rwkvseg train kvasir_seg_tiny_scratch --data Kvasir-SEG -o runs/kvasir

        rwkvseg train kvasir_seg_tiny --data Kvasir-SEG --set training.epochs=20

        rwkvseg train mine.yaml --data DATA -o runs/mine --resume

        rwkvseg train mine.yaml --data DATA --set training.devices=2  # GPUs; batch_size is shared out
    """
    from rwkvseg.training.recipe import Recipe
    from rwkvseg.training.run import train as run_training
    from rwkvseg.training.shipped_recipes import find_recipe

    content = Recipe.from_file(find_recipe(recipe), changes=changes_of(changes, data))
    folder = out or Path("runs") / content.name
    console = Console()
    result = run_training(content, folder, device=device.value, resume=resume, console=console)
    for part, evaluation in result.evaluations.items():
        show_summary(
            console, evaluation.summary, title=f"{part} ({counted(len(evaluation.summary.cases), 'case')})"
        )
        say(console, f"report: {evaluation.report}")
    if result.summary:  # which of several processes only the first has
        say(console, f"model:  {folder / 'model'}")


def pretrain(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: RunOption = None,
    device: DeviceOption = Device.auto,
    changes: ChangesOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train an encoder alone, to classify pictures or to paint hidden parts of them, and keep its weights.

    Examples:
        rwkvseg pretrain pretrain_imagenet_tiny --data imagenet -o runs/imagenet

        rwkvseg pretrain pretrain_masked_kvasir_tiny --data Kvasir-SEG --set training.epochs=100
    """
    from rwkvseg.training.pretrain import pretrain as run_pretraining
    from rwkvseg.training.pretrain_recipe import PretrainRecipe
    from rwkvseg.training.shipped_recipes import find_recipe

    content = PretrainRecipe.from_file(find_recipe(recipe), changes=changes_of(changes, data))
    folder = out or Path("runs") / content.name
    console = Console()
    result = run_pretraining(content, folder, device=device.value, resume=resume, console=console)
    for path in result.encoders:
        say(console, f"encoder: {path}")


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
    show_summary(console, evaluation.summary, title=f"{len(evaluation.summary.cases)} unseen test cases")
    say(console, f"pictures: {evaluation.report}")
    say(console, f"model:    {result.folder / 'model'}")
