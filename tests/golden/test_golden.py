"""Text files that say how things stand; `make golden` writes them anew, and the difference is reviewed."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer import rich_utils

from rwkvseg import cli
from rwkvseg.training import run
from rwkvseg.training.module import SegmentationModule
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from small import small_recipe

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
LOSS_TOLERANCE = 1e-3  # relative: processors and versions of torch round in different ways
WIDTH = 80


def need_pinned(package, what):
    """Skip the test where another release of the package is installed than wrote the golden file."""
    pinned = re.search(rf"^{package}==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    found = version(package).split("+")[0]
    if pinned is None or pinned[1] != found:
        pytest.skip(f"the golden file is of the {package} of constraints.txt, this is {found}: {what}")


def compare(name, text, regenerate, *, equal=str.__eq__):
    """Check `text` against the golden file, or write it."""
    path = HERE / name
    if regenerate:
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{name} is missing; run `make golden`"
    assert equal(text, path.read_text(encoding="utf-8")), f"differs from tests/golden/{name}:\n{text}"


def close(text, golden):
    """Whether two tables of numbers agree."""
    ours, theirs = ([line.split() for line in table.splitlines()] for table in (text, golden))
    return ours[0] == theirs[0] and [float(row[1]) for row in ours[1:]] == pytest.approx(
        [float(row[1]) for row in theirs[1:]], rel=LOSS_TOLERANCE
    )


def in_float64(monkeypatch):
    """Let a run compute in float64: in float32 Adam makes of each processor's rounding another curve."""
    create = run.create_model

    def wide(*arguments, **options):
        network = create(*arguments, **options).double()
        network.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))
        return network

    monkeypatch.setattr(run, "create_model", wide)


def test_loss_curve(phantom, tmp_path, monkeypatch, regenerate):
    """Twenty steps of the small network, from the recipe to the optimiser."""
    need_pinned("torch", "it draws other weights from the same seed")
    in_float64(monkeypatch)
    losses = []
    step = SegmentationModule.training_step

    def recorded(module, batch, index):
        losses.append(step(module, batch, index))
        return losses[-1]

    monkeypatch.setattr(SegmentationModule, "training_step", recorded)
    recipe = small_recipe(phantom, epochs=5)
    recipe["optimizer"] |= {"weight_decay": 0.05, "warmup_steps": 3, "learning_rate": 1e-3}
    # nothing is turned: rounding decides which of two equally near pixels names another
    recipe["augmentation"] |= {"rotation": 0, "contrast": 0.3, "noise": 0.05}
    train(Recipe.from_mapping(recipe), tmp_path / "run", device="cpu")
    lines = [f"{index:4d} {loss.item():.9f}" for index, loss in enumerate(losses)]
    assert len(lines) == 20
    assert losses[-1] < losses[0]
    compare("loss_curve.txt", "step loss\n" + "\n".join(lines) + "\n", regenerate, equal=close)


def test_logits(regenerate):
    """Statistics of the untrained networks' logits on a fixed picture: initialisation and forward pass."""
    need_pinned("torch", "it draws other weights from the same seed")
    from rwkvseg.models.registry import create_model

    image = torch.sin(torch.arange(3 * 48 * 56, dtype=torch.float32).view(1, 3, 48, 56) * 0.37)
    lines = []
    for size in ("nano", "tiny", "small", "base"):
        torch.manual_seed(0)
        network = create_model(f"rwkv_unet_{size}", num_classes=2).eval()
        with torch.inference_mode():
            logits = network(image)
        for channel in range(2):
            deviation, mean = torch.std_mean(logits[0, channel])
            lines += [f"{size}.{channel}.mean {mean:.6e}", f"{size}.{channel}.deviation {deviation:.6e}"]
    compare("logits.txt", "statistic value\n" + "\n".join(lines) + "\n", regenerate, equal=close)


@pytest.fixture
def help_text(monkeypatch, capsys):
    """What the program prints for `--help` on a terminal of 80 columns, without borders."""
    for name, value in {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", WIDTH)  # typer read the environment when it was imported

    def show(*verb):
        monkeypatch.setattr(sys, "argv", ["rwkvseg", *verb, "--help"])
        capsys.readouterr()
        cli.main()
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize(
    "verb",
    [
        *(
            "rwkvseg",
            "train",
            "pretrain",
            "predict",
            "evaluate",
            "convert-published",
            "models",
            "recipes",
            "demo",
        ),
        *("compare", "figure", "figure erf", "data", "data convert", "data verify", "data list", "data info"),
        *("data download", "data fingerprint", "plan"),
    ],
)
def test_help(verb, help_text, regenerate):
    """The help as a terminal of 80 columns shows it, without borders."""
    need_pinned("typer", "it lays the help out in another way")
    text = help_text(*([] if verb == "rwkvseg" else verb.split()))
    assert max(map(len, text.splitlines())) <= WIDTH
    text = re.sub(r"[─│╭╮╰╯]", " ", text)
    lines = [line.rstrip() for line in text.splitlines()]
    compare(
        f"help_{verb.replace(' ', '_')}.txt", "\n".join(line for line in lines if line) + "\n", regenerate
    )
