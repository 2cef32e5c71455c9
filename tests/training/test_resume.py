"""A run that was stopped and goes on must end where an undisturbed one ends, bit for bit on the CPU."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from rwkvseg import cli
from rwkvseg.errors import DataError, ModelFileError, RecipeError, UsageError
from rwkvseg.training import history
from rwkvseg.training import run as run_module
from rwkvseg.training.history import History
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from small import files_below, small_recipe

pytestmark = pytest.mark.usefixtures("without_plots")


class Stopped(Exception):
    """Stands for whatever ends a process."""


def recipe_of(data, **training):
    return Recipe.from_mapping(small_recipe(data, **({"epochs": 4} | training)))


def table(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def without_times(summary):
    timed = ("training_seconds", "total_seconds", "images_per_second")
    return {key: value for key, value in summary.items() if key not in timed}


def assert_same_run(run, other):
    for name in ("model/model.safetensors", "recipe.yaml", "split.json", "cases.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert table(run) == table(other)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, other)]
    assert without_times(summaries[0]) == without_times(summaries[1])
    kept = [torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (run, other)]
    for part in ("state_dict",):
        assert kept[0][part].keys() == kept[1][part].keys()
        assert all(torch.equal(kept[0][part][key], kept[1][part][key]) for key in kept[0][part])
    assert files_below(run) == files_below(other)


def stop_after(monkeypatch, epochs, *, before_saving=False):
    """Make the next training fail in its epoch number `epochs`, before or after its checkpoint."""
    hook = "on_train_epoch_end" if before_saving else "on_train_epoch_start"
    original = getattr(History, hook, None) or (lambda *_: None)

    def failing(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == epochs - (1 if before_saving else 0):
            raise Stopped

    monkeypatch.setattr(History, hook, failing)


def interrupt_and_resume(data, out, monkeypatch, after, *, before_saving=False, **training):
    with monkeypatch.context() as patch:
        stop_after(patch, after, before_saving=before_saving)
        with pytest.raises(Stopped):
            train(recipe_of(data, **training), out, device="cpu")
    assert not (out / "summary.json").exists()
    torch.manual_seed(999)  # what the process did before must not matter
    train(recipe_of(data, **training), out, device="cpu", resume=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, phantom):
    """Run of four epochs."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(recipe_of(phantom), out, device="cpu")
    return out


@pytest.mark.parametrize("epochs", [3])
def test_stopped_between_epochs(tmp_path, phantom, undisturbed, monkeypatch, epochs):
    interrupt_and_resume(phantom, tmp_path / "run", monkeypatch, epochs)
    assert_same_run(tmp_path / "run", undisturbed)


def test_stopped_before_the_checkpoint_was_saved(tmp_path, phantom, undisturbed, monkeypatch):
    interrupt_and_resume(phantom, tmp_path / "run", monkeypatch, 2, before_saving=True)
    assert_same_run(tmp_path / "run", undisturbed)


def test_stopped_in_the_first_epoch(tmp_path, phantom, undisturbed, monkeypatch):
    interrupt_and_resume(phantom, tmp_path / "run", monkeypatch, 1, before_saving=True)
    assert_same_run(tmp_path / "run", undisturbed)


def test_rare_checkpoints_and_validations(tmp_path, phantom, monkeypatch):
    settings = {"checkpoint_every": 2, "validate_every": 3, "epochs": 5}
    interrupt_and_resume(phantom, tmp_path / "run", monkeypatch, 3, **settings)
    train(recipe_of(phantom, **settings), tmp_path / "other", device="cpu")
    assert_same_run(tmp_path / "run", tmp_path / "other")
    assert [bool(row["val_dsc"]) for row in table(tmp_path / "run")] == [False, False, True, False, False]


def test_workers_change_nothing(tmp_path, phantom, undisturbed, monkeypatch):
    interrupt_and_resume(phantom, tmp_path / "run", monkeypatch, 2, workers=2)
    ours = load_file(tmp_path / "run" / "model" / "model.safetensors")
    theirs = load_file(undisturbed / "model" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert table(tmp_path / "run") == table(undisturbed)


def test_the_run_folder_may_move_and_the_best_is_remembered(tmp_path, phantom, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(recipe_of(phantom, report="best"), tmp_path / "here", device="cpu")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = train(recipe_of(phantom, report="best"), tmp_path / "there", device="cpu", resume=True)
    whole = train(recipe_of(phantom, report="best"), tmp_path / "whole", device="cpu")
    assert not (tmp_path / "here").exists()
    assert without_times(moved.summary) == without_times(whole.summary)
    assert_same_run(tmp_path / "there", tmp_path / "whole")


def test_the_best_checkpoint_is_that_of_the_best_epoch(tmp_path, phantom):
    result = train(recipe_of(phantom, report="best"), tmp_path / "run", device="cpu")
    kept = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["epoch"] + 1 == result.summary["best_epoch"]
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(value, kept["state_dict"][f"network.{name}"]) for name, value in exported.items())


WAITING_IN_THE_THIRD_EPOCH = """
import time
from rwkvseg import cli
from rwkvseg.training.recipe_module import RecipeModule

start = RecipeModule.on_train_epoch_start

def wait(module):
    start(module)
    time.sleep(600 if module.current_epoch == 2 else 0)

RecipeModule.on_train_epoch_start = wait
cli.main()
"""


def start_and_kill(recipe, out):
    """Start a training in a process, kill it once its first checkpoint is there: exit code, stderr.

    It cannot end before, however late that is seen.
    """
    program = [sys.executable, "-c", WAITING_IN_THE_THIRD_EPOCH]
    command = [*program, "train", str(recipe), "-o", str(out), "--device", "cpu"]
    environment = dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads()))
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    _, error = process.communicate(timeout=60)
    assert not (out / "summary.json").exists()
    return process.returncode, error


@pytest.mark.slow
def test_a_killed_process_goes_on_by_the_same_command_and_resume(
    tmp_path, phantom, undisturbed, monkeypatch, capsys
):
    recipe, out = tmp_path / "small.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(small_recipe(phantom, epochs=4)))
    assert start_and_kill(recipe, out) == (-signal.SIGKILL, "")
    command = ["rwkvseg", "train", str(recipe), "-o", str(out), "--device", "cpu", "--resume"]
    monkeypatch.setattr(sys, "argv", command)
    cli.main()
    assert capsys.readouterr().err == ""
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (out, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert table(out) == table(undisturbed)


@pytest.fixture
def heeds_control_c():
    """A shell starts background jobs with SIGINT ignored, CI may be one; lightning ignores it afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_control_c")
def test_control_c_says_how_to_go_on(rwkvseg, tmp_path, phantom, monkeypatch):
    recipe, out = tmp_path / "small.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(small_recipe(phantom, epochs=50)))

    def press(self, trainer, module):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(History, "on_train_epoch_start", press)
    code, _, error = rwkvseg("train", recipe, "-o", out, "--device", "cpu")
    assert code == 130
    assert error == "error: stopped. A training goes on with --resume, other commands begin again.\n"
    assert (out / "checkpoints" / "last.ckpt").exists()
    assert not (out / "summary.json").exists()


def nothing_is_left(module, batch, index):
    raise AssertionError("a finished training went on")


def test_killed_after_training_before_the_summary(run_copy, small_run, phantom, monkeypatch):
    for name in ("summary.json", "model/model.json", "evaluation/test/report.html"):
        (run_copy / name).unlink()
    shutil.rmtree(run_copy / "predictions")
    monkeypatch.setattr(run_module.SegmentationModule, "training_step", nothing_is_left)
    train(Recipe.from_mapping(small_recipe(phantom)), run_copy, device="cpu", resume=True)
    assert_same_run(run_copy, small_run)


def test_a_complete_run_is_evaluated_again_and_stays_the_same(run_copy, small_run, phantom):
    train(Recipe.from_mapping(small_recipe(phantom)), run_copy, device="cpu", resume=True)
    assert_same_run(run_copy, small_run)


def test_resume_where_there_is_no_run_starts_one(tmp_path, phantom, undisturbed):
    train(recipe_of(phantom), tmp_path / "run", device="cpu", resume=True)
    assert_same_run(tmp_path / "run", undisturbed)


def unchanged(folder):
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def test_a_changed_recipe_is_refused(run_copy, phantom):
    before = unchanged(run_copy)
    content = small_recipe(phantom, epochs=3)
    content["optimizer"]["learning_rate"] = 1e-2
    with pytest.raises(RecipeError, match=r"optimizer\.learning_rate: 0\.005 there, 0\.01 here") as caught:
        train(Recipe.from_mapping(content), run_copy, device="cpu", resume=True)
    assert "training.epochs: 2 there, 3 here" in str(caught.value)
    assert caught.value.exit_code == 2
    assert unchanged(run_copy) == before


def test_data_that_moved_is_accepted_and_changed_data_refused(run_copy, phantom, tmp_path):
    moved = Path(shutil.copytree(phantom, tmp_path / "moved"))
    train(Recipe.from_mapping(small_recipe(moved)), run_copy, device="cpu", resume=True)
    before = unchanged(run_copy)
    changed = moved / "masks" / "phantom-0003.png"
    shutil.copy(moved / "masks" / "phantom-0004.png", changed)
    with pytest.raises(DataError, match=r"1 case differs .* the first is 'phantom-0003'") as caught:
        train(Recipe.from_mapping(small_recipe(moved)), run_copy, device="cpu", resume=True)
    assert caught.value.exit_code == 1
    assert unchanged(run_copy) == before


def test_another_split_is_refused(run_copy, phantom, tmp_path):
    split = json.loads((run_copy / "split.json").read_text())
    split["train"], split["test"] = split["train"][1:], [*split["test"], split["train"][0]]
    (tmp_path / "split.json").write_text(json.dumps(split))
    content = small_recipe(phantom) | {"split": {"file": str(tmp_path / "split.json")}}
    with pytest.raises(DataError, match="1 case differs"):
        train(Recipe.from_mapping(content), run_copy, device="cpu", resume=True)


def test_an_occupied_folder_is_refused(run_copy, phantom):
    before = unchanged(run_copy)
    with pytest.raises(UsageError, match=r"already holds a run\. Continue it with --resume") as caught:
        train(Recipe.from_mapping(small_recipe(phantom)), run_copy, device="cpu")
    assert caught.value.exit_code == 2
    assert unchanged(run_copy) == before


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("recipe.yaml", b"name: [", DataError),
        ("recipe.yaml", b"", DataError),
        ("recipe.yaml", b"\xff\xff", DataError),
        ("cases.json", b"{", DataError),
        ("cases.json", b"[1, 2]", DataError),
        ("checkpoints/last.ckpt", b"no checkpoint", ModelFileError),
        ("checkpoints/last.ckpt", b"", ModelFileError),
    ],
)
def test_a_damaged_run_folder_is_refused(run_copy, phantom, name, content, error):
    (run_copy / name).write_bytes(content)
    with pytest.raises(error, match=name) as caught:
        train(Recipe.from_mapping(small_recipe(phantom)), run_copy, device="cpu", resume=True)
    assert "\n" not in str(caught.value)


def test_a_training_that_lost_its_weights_ends(fails, phantom, tmp_path):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    content = small_recipe(phantom, epochs=3)
    content["optimizer"] = {"learning_rate": 1e30}
    recipe.write_text(yaml.safe_dump(content))
    told = fails(1, "train", recipe, "-o", out, "--device", "cpu")
    assert "the weights are lost. Start a new run with a lower optimizer.learning_rate" in told
    assert not (out / "model").exists()
    assert not (out / "summary.json").exists()


def test_a_run_takes_nobodys_place(phantom, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "model.json").write_text("mine")
    with pytest.raises(UsageError, match="holds model, and no run that they are of"):
        train(recipe_of(phantom), tmp_path / "mine", device="cpu")
    with pytest.raises(UsageError, match="is the data's own folder"):
        train(recipe_of(phantom), phantom, device="cpu")
    assert files_below(tmp_path) == ["mine/model/model.json"]


def test_resuming_nothing_is_told(rwkvseg, phantom, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(phantom, epochs=1)))
    monkeypatch.setattr(history, "LIFE_SIGN", 0.0)
    code, printed, err = rwkvseg("train", recipe, "-o", tmp_path / "run", "--device", "cpu", "--resume")
    printed = " ".join(printed.split())
    assert code == 0, err
    assert "holds no run to go on with: a new one begins" in printed
    assert "training on cpu, epochs 1 to 1, 4 steps each" in printed
    assert "epoch 1/1 step 2/4" in printed


def test_pictures_of_several_sizes_make_no_batch(phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    for path in (data / "images", data / "masks"):
        name = sorted(path.iterdir())[0]
        Image.open(name).resize((30, 40)).save(name)
    content = small_recipe(data, epochs=1)
    content["preprocessing"]["size"] = None
    with pytest.raises(RecipeError, match=r"several sizes .* they make no batch"):
        train(Recipe.from_mapping(content), tmp_path / "run", device="cpu")


def test_names_that_the_data_gives_to_other_values(phantom_3d, tmp_path):
    content = small_recipe(phantom_3d, epochs=1)
    names = json.loads((phantom_3d / "dataset.json").read_text())["labels"]
    first, second = list(names)[1:3]
    content["data"]["labels"] = names | {first: names[second], second: names[first]}
    with pytest.raises(DataError, match=rf"has {first}: {names[second]}, .* says {names[first]}\. Mend"):
        train(Recipe.from_mapping(content), tmp_path / "run", device="cpu")
