"""Pre-training from recipe to encoder file: by the command line, killed and resumed, on several devices."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pretrain_cases import classify_recipe, masked_recipe, write_tree
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from rwkvseg.errors import DataError, RecipeError, UsageError
from rwkvseg.models import RWKVUNetConfig, create_model
from rwkvseg.training import history
from rwkvseg.training.history import History, Score, draw_curves
from rwkvseg.training.pretrain import build_network, pretrain
from rwkvseg.training.pretrain_module import PretrainModule, hits
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from small import OVERRIDES, files_below

pytestmark = pytest.mark.usefixtures("without_plots")

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("pretrain_*.yaml"))


class Stopped(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


def recipe_of(tree, **training):
    return PretrainRecipe.from_mapping(classify_recipe(**training) | {"data": {"path": str(tree)}})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tree):
    """Run of three epochs."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "draw_curves", lambda _rows, path, *_: path.write_bytes(b""))
        pretrain(recipe_of(tree), out, device="cpu")
    return out


def table(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(run, other):
    assert files_below(run) == files_below(other)
    for name in ("recipe.yaml", "pictures.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("encoder.safetensors", "encoder_ema.safetensors"):
        ours, theirs = load_file(run / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    assert table(run) == table(other)
    kept = [torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, other)]
    assert all(torch.equal(kept[0]["state_dict"][key], value) for key, value in kept[1]["state_dict"].items())


def test_the_command_leaves_an_encoder_that_loads(rwkvseg, tree, tmp_path):
    path, out = tmp_path / "classes.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(classify_recipe()))
    code, text, err = rwkvseg("pretrain", path, "--data", tree, "-o", out, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "18 pictures to train on, 9 to validate, 3 classes" in text
    assert f"encoder: {out / 'encoder.safetensors'}" in text
    network = create_model("rwkv_unet_tiny", **OVERRIDES)
    for name in ("encoder.safetensors", "encoder_ema.safetensors"):
        network.encoder.load_state_dict(load_file(out / name), strict=True)
        started = create_model("rwkv_unet_tiny", num_classes=2, encoder_weights=str(out / name), **OVERRIDES)
        for key, value in started.encoder.state_dict().items():
            assert torch.equal(value, network.encoder.state_dict()[key]), (name, key)
        with safe_open(out / name, "pt") as file:
            metadata = file.metadata()
        assert (metadata["kind"], metadata["model"]) == ("rwkvseg-encoder", "rwkv_unet_tiny")
        config = RWKVUNetConfig(**json.loads(metadata["config"]))
        assert (config.depths, config.widths) == tuple(tuple(OVERRIDES[k]) for k in ("depths", "widths"))
    rows = table(out)
    assert [int(row["step"]) for row in rows] == [3, 6, 9]
    columns = ("val_loss", "val_top1", "val_top5", "ema_top1", "ema_top5")
    assert all(math.isfinite(float(row[name])) for row in rows for name in columns)
    assert all(float(row["val_top5"]) == 1 for row in rows)  # of three classes
    summary = json.loads((out / "summary.json").read_text())
    assert summary["encoder_parameters"] == sum(p.numel() for p in network.encoder.parameters())
    assert summary["results"]["val_top1"] == float(rows[-1]["val_top1"])
    assert json.loads((out / "pictures.json").read_text())["classes"] == ["blue", "green", "red"]


def test_colours_are_learnt(tree, tmp_path):
    rarely = {"epochs": 4, "steps_per_epoch": 15, "validate_every": 4, "checkpoint_every": 4}
    content = classify_recipe(ema=None, **rarely) | {"data": {"path": str(tree)}}
    content["pictures"] = {"size": 32}
    result = pretrain(PretrainRecipe.from_mapping(content), tmp_path / "run", device="cpu")
    assert result.summary["results"]["val_top1"] >= 8 / 9 - 1e-6
    assert "ema_top1" not in result.summary["results"]
    assert [path.name for path in result.encoders] == ["encoder.safetensors"]


def stop_in_epoch(monkeypatch, number, *, before_saving):
    original = History.on_train_epoch_end

    def failing(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == number:
            raise Stopped

    def failing_later(self, trainer, module, *_):
        if trainer.current_epoch == number + 1:
            raise Stopped

    if before_saving:
        monkeypatch.setattr(History, "on_train_epoch_end", failing)
    else:
        monkeypatch.setattr(History, "on_train_epoch_start", failing_later)


@pytest.mark.parametrize(("number", "before_saving"), [(0, True), (1, True), (1, False)])
def test_a_stopped_run_goes_on_bit_for_bit(
    rwkvseg, tree, tmp_path, undisturbed, monkeypatch, number, before_saving
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, number, before_saving=before_saving)
        with pytest.raises(Stopped):
            pretrain(recipe_of(tree), out, device="cpu")
    assert not (out / "summary.json").exists()
    torch.manual_seed(999)  # what the process did before must not matter
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(classify_recipe()))
    command = [
        "pretrain",
        tmp_path / "classes.yaml",
        "--data",
        tree,
        "-o",
        out,
        "--device",
        "cpu",
        "--resume",
    ]
    assert rwkvseg(*command)[0] == 0
    assert_same_run(out, undisturbed)


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(rwkvseg, tree, tmp_path, undisturbed):
    recipe, out = tmp_path / "classes.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(classify_recipe(), sort_keys=False))
    arguments = ["pretrain", str(recipe), "--data", str(tree), "-o", str(out), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rwkvseg.cli", *arguments],
        env=dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads())),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.communicate(timeout=60)[1] == b""
    assert not (out / "summary.json").exists()
    assert rwkvseg(*arguments, "--resume")[0] == 0
    assert_same_run(out, undisturbed)


@pytest.mark.slow
def test_two_processes_share_every_batch(tree, tmp_path):
    recipe, out = tmp_path / "classes.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(classify_recipe(devices=2, epochs=2)))
    arguments = ["pretrain", str(recipe), "--data", str(tree), "-o", str(out), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "rwkvseg.cli", *arguments],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pictures to train on") == 1
    rows = table(out)
    assert [int(row["step"]) for row in rows] == [3, 6]
    top1 = 9 * float(rows[-1]["val_top1"])  # each of the nine pictures counted once
    assert top1 == pytest.approx(round(top1), abs=1e-5)
    kept = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert int(kept["average.n_averaged"]) == 6
    assert json.loads((out / "summary.json").read_text())["devices"] == 2


def test_painting_lowers_its_loss_and_leaves_an_encoder(tree, tmp_path):
    content = masked_recipe(
        {"plain": {"path": str(tree / "train")}}, epochs=20, checkpoint_every=20, ema=None
    )
    result = pretrain(PretrainRecipe.from_mapping(content), tmp_path / "run", device="cpu")
    rows = table(tmp_path / "run")
    assert float(rows[-1]["train_loss"]) < 0.6 * float(rows[0]["train_loss"])
    assert result.summary["results"]["val_loss"] is None
    assert result.summary["pictures"] == {"train": 18, "val": 0}
    network = create_model("rwkv_unet_tiny", **OVERRIDES)
    network.encoder.load_state_dict(load_file(result.encoders[0]), strict=True)


@pytest.mark.parametrize("score", [Score(("val_top1", "val_top5"), "top-1"), Score(())])
def test_curves_are_drawn_of_any_score(tmp_path, score):
    row = {"epoch": 0, "train_loss": 1.0, "val_loss": None} | dict.fromkeys(score.names, 0.5)
    draw_curves([row, row | {"epoch": 1}], tmp_path / "curves.png", score)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_another_recipe_or_other_pictures_cannot_resume(tree, tmp_path, undisturbed):
    with pytest.raises(UsageError, match="already holds a run"):
        pretrain(recipe_of(tree), undisturbed, device="cpu")
    with pytest.raises(RecipeError, match=r"training\.ema: 0\.8 there, 0\.5 here"):
        pretrain(recipe_of(tree, ema=0.5), undisturbed, device="cpu", resume=True)
    other = write_tree(tmp_path / "other", train=7)
    with pytest.raises(DataError, match="the pictures differ"):
        pretrain(recipe_of(other), undisturbed, device="cpu", resume=True)


def test_a_failure_leaves_no_run_behind(rwkvseg, tree, tmp_path):
    path, out = tmp_path / "classes.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(classify_recipe()))
    for code, change, said in (
        (2, "model.name=monai_basic_unet", "depths"),
        (2, "pictures.size=33", "multiple of 16"),
        (2, "training.devices=4", "multiple of devices"),
        (2, "task=masked", "needs a data source"),
        (2, "model.encoder_weights=a.safetensors", "starts from fresh weights"),
        (1, "training.batch_size=40", "18 pictures do not fill one batch of 40"),
    ):
        found, _, err = rwkvseg("pretrain", path, "--data", tree, "-o", out, "--set", change)
        assert (found, said in err) == (code, True), err
    content = classify_recipe() | {"model": {"name": "monai_basic_unet"}}
    path.write_text(yaml.safe_dump(content))
    found, _, err = rwkvseg("pretrain", path, "--data", tree, "-o", out)
    assert (found, "monai_basic_unet has no encoder" in err) == (2, True)
    found, _, err = rwkvseg("pretrain", path, "-o", out)
    assert (found, "names no data. Give --data DIR" in err) == (2, True)
    assert not out.exists()


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_recipes_that_come_along_are_valid(path):
    recipe = PretrainRecipe.from_file(path)
    assert recipe.name == path.stem
    assert recipe.data.licence != "not stated"
    assert all(source.recipe.is_file() for source in recipe.data.sources.values())
    build_network(recipe, 1000)


def test_the_recipe_of_imagenet_is_the_published_one():
    (path,) = (path for path in RECIPES if "imagenet" in path.stem)
    recipe = PretrainRecipe.from_file(path)
    training, optimizer = recipe.training, recipe.optimizer
    assert (training.epochs, training.batch_size, training.ema) == (300, 1024, 0.9998)
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.gradient_clip) == (3e-3, 0.05, 5)
    assert optimizer.warmup_steps == 20 * (1_281_167 // 1024)
    assert recipe.classify.label_smoothing == 0.1
    assert (recipe.pictures.size, recipe.pictures.rand_augment.layers) == (224, 2)


def test_an_unknown_key_of_a_source_names_the_known_ones():
    with pytest.raises(RecipeError, match=r"data\.sources\.a\.pth'; known here: path, recipe, changes"):
        PretrainRecipe.from_mapping(masked_recipe({"a": {"pth": "x"}}))


@pytest.mark.parametrize(
    "source", [{"changes": ["a=1"]}, {"held_out_only": True}, {"recipe": "a", "list": "b"}]
)
def test_sources_whose_keys_do_not_fit_together_are_refused(source):
    with pytest.raises(RecipeError, match="recipe"):
        PretrainRecipe.from_mapping(masked_recipe({"a": source, "b": {"path": "c"}}))


def test_the_average_follows_its_definition(tree):
    recipe = recipe_of(tree, ema=0.25)
    module = PretrainModule(build_network(recipe, 3)[0], recipe)
    expected: dict[str, Any] = {}
    for step in range(4):
        with torch.no_grad():
            for value in module.network.parameters():
                value.add_(torch.randn_like(value))
            for name, buffer in module.network.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(step + 1.0)
        module.on_train_batch_end(None, None, step)
        for name, value in module.network.state_dict().items():
            if value.is_floating_point():
                decay = min(0.25, (1 + step) / (10 + step))
                expected[name] = decay * expected.get(name, value) + (1 - decay) * value
    assert module.average is not None
    averaged = module.average.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value)
    assert not any(parameter.requires_grad for parameter in module.average.parameters())


@given(st.integers(1, 9), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_hits_match_a_sort(rows, classes, seed):
    generator = np.random.default_rng(seed)
    logits = generator.permuted(np.tile(np.arange(classes, dtype=np.float32), (rows, 1)), axis=1)
    label = generator.integers(classes, size=rows)
    ranks = [int((row > row[target]).sum()) for row, target in zip(logits, label, strict=True)]
    found = hits(torch.from_numpy(logits), torch.from_numpy(label))
    assert [int(value) for value in found] == [sum(r < 1 for r in ranks), sum(r < 5 for r in ranks)]


def test_the_loss_of_classification_is_the_smoothed_cross_entropy(tree, monkeypatch):
    recipe = recipe_of(tree, ema=None)
    module = PretrainModule(build_network(recipe, 3)[0], recipe)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    batch = {"image": torch.rand(4, 3, 32, 32), "label": torch.tensor([0, 2, 1, 1])}
    torch.manual_seed(0)
    loss = module.training_step(batch, 0)
    torch.manual_seed(0)
    log_p = F.log_softmax(module.network(batch["image"]), 1)
    wanted = 0.9 * F.one_hot(batch["label"], 3) + 0.1 / 3
    torch.testing.assert_close(loss, -(wanted * log_p).sum(1).mean())
