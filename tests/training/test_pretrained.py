"""Runs that start from encoder weights: from the recipe, resumed, and with the encoder frozen."""

import hashlib
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rwkvseg.data import read_case
from rwkvseg.errors import ModelFileError, RecipeError
from rwkvseg.models import create_model
from rwkvseg.models.encoder_files import save_encoder
from rwkvseg.training.freezing import freeze_encoder
from rwkvseg.training.module import SegmentationModule
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from rwkvseg.training.run_folder import (
    TrainingFingerprint,
    check_run,
    describe_run,
    open_recipe_data,
    part_files,
)
from small import OVERRIDES, small_recipe

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture
def encoder():
    torch.manual_seed(11)
    network = create_model("rwkv_unet_tiny", in_channels=1, **OVERRIDES)
    network(torch.randn(4, 1, 32, 32))  # statistics of its own
    return network.encoder.state_dict()


@pytest.fixture
def recipe_file(tmp_path, phantom, encoder):
    """A recipe that starts from encoder.safetensors beside it."""
    save_encoder(tmp_path / "encoder.safetensors", encoder, model="rwkv_unet_tiny", config={}, licence="CC0")
    content = small_recipe(phantom, epochs=1)
    content["model"]["encoder_weights"] = "encoder.safetensors"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def encoder_of(run):
    state = load_file(run / "model" / "model.safetensors")
    return {n.removeprefix("encoder."): v for n, v in state.items() if n.startswith("encoder.")}


def equal(first, second):
    assert first.keys() == second.keys()
    return [name for name in first if torch.equal(first[name], second[name])]


def test_the_path_is_relative_to_the_recipe_and_kept_absolute(recipe_file, tmp_path):
    recipe = Recipe.from_file(recipe_file)
    assert recipe.model.encoder_weights == (tmp_path / "encoder.safetensors").resolve()
    assert Recipe.from_mapping(yaml.safe_load(recipe.to_yaml())) == recipe


def test_a_run_starts_from_the_weights_and_is_resumed_without_the_file(recipe_file, encoder, tmp_path):
    run = tmp_path / "run"
    slow = ["optimizer.learning_rate=1e-12", "optimizer.weight_decay=0"]
    train(Recipe.from_file(recipe_file, changes=slow), run, device="cpu")
    found = encoder_of(run)
    for name, value in encoder.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
    description = json.loads((run / "model" / "model.json").read_text())
    started = description["protocol"]["encoder_weights"]
    assert (started["file"], started["licence"]) == ("encoder.safetensors", "CC0")
    content = (tmp_path / "encoder.safetensors").read_bytes()
    assert started["sha256"] == hashlib.sha256(content).hexdigest()
    assert "encoder_weights" not in description["architecture"]["overrides"]

    changed = {name: value + 1 if value.is_floating_point() else value for name, value in encoder.items()}
    save_encoder(tmp_path / "encoder.safetensors", changed, model="rwkv_unet_tiny", config={}, licence="CC0")
    with pytest.raises(RecipeError, match=r"not those that the run began with \(SHA-256 \w{12}, there"):
        train(Recipe.from_file(recipe_file, changes=slow), run, device="cpu", resume=True)

    (tmp_path / "encoder.safetensors").unlink()
    recipe = Recipe.from_file(recipe_file, changes=[*slow, "model.encoder_weights=elsewhere.safetensors"])
    train(recipe, run, device="cpu", resume=True)
    assert json.loads((run / "model" / "model.json").read_text())["protocol"] == description["protocol"]
    with pytest.raises(RecipeError, match=r"model\.encoder_weights"):
        train(Recipe.from_file(recipe_file, changes=[*slow, "model.encoder_weights="]), run, resume=True)


def test_a_run_names_its_weights_from_where_it_lies(recipe_file, tmp_path):
    recipe = Recipe.from_file(recipe_file)
    folder, _, split = open_recipe_data(recipe)
    seen = TrainingFingerprint(folder, split)
    for files in part_files(folder, split, "train"):
        seen.take(files, read_case(files))
    run = tmp_path / "all" / "runs" / "mine"
    describe_run(run, recipe, folder, split, torch.device("cpu"), fingerprint=seen)
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    assert written["model"]["encoder_weights"] == "../../../encoder.safetensors"
    assert Recipe.from_file(run / "recipe.yaml").model.encoder_weights == recipe.model.encoder_weights
    check_run(run, recipe, folder, split, resume=True)
    moved = tmp_path / "all" / "there" / "deeper" / "mine"
    moved.parent.mkdir(parents=True)
    run.rename(moved)
    check_run(moved, recipe, folder, split, resume=True)


def test_a_missing_file_is_told_before_a_run_is_made(recipe_file, tmp_path):
    recipe = Recipe.from_file(recipe_file, changes=["model.encoder_weights=absent.safetensors"])
    with pytest.raises(ModelFileError, match=r"there is no weights file .*absent\.safetensors"):
        train(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_frozen_encoder_comes_out_as_it_went_in(recipe_file, encoder, tmp_path):
    recipe = Recipe.from_file(recipe_file, changes=["model.freeze_encoder=true", "training.epochs=2"])
    train(recipe, tmp_path / "run", device="cpu")
    assert len(equal(encoder_of(tmp_path / "run"), encoder)) == len(encoder)
    protocol = json.loads((tmp_path / "run" / "model" / "model.json").read_text())["protocol"]
    assert protocol["frozen_encoder"] is True


def test_without_freezing_every_weight_and_statistic_moves(recipe_file, encoder, tmp_path):
    train(Recipe.from_file(recipe_file), tmp_path / "run", device="cpu")
    assert equal(encoder_of(tmp_path / "run"), encoder) == []


def test_frozen_parameters_are_not_in_the_optimiser(recipe_file, monkeypatch):
    recipe = Recipe.from_file(recipe_file, changes=["model.freeze_encoder=true"])
    network = create_model("rwkv_unet_tiny", in_channels=1, num_classes=6, **OVERRIDES)
    freeze_encoder(network)
    module = SegmentationModule(network, recipe, num_classes=6, val_cases=1)

    class FakeTrainer:
        estimated_stepping_batches = 10

    monkeypatch.setattr(SegmentationModule, "trainer", FakeTrainer())
    optimized = [p for g in module.configure_optimizers()["optimizer"].param_groups for p in g["params"]]
    frozen = {id(p) for p in network.encoder.parameters()}
    assert len(optimized) == len(list(network.parameters())) - len(frozen)
    assert frozen.isdisjoint(map(id, optimized))
    module.train()
    assert network.decoder.training
    assert not any(part.training for part in network.encoder.modules())


def test_freezing_needs_weights_and_an_encoder(recipe_file):
    with pytest.raises(RecipeError, match="freeze_encoder is set without encoder_weights"):
        Recipe.from_file(recipe_file, changes=["model.freeze_encoder=true", "model.encoder_weights="])
    with pytest.raises(RecipeError, match="Linear has no encoder"):
        freeze_encoder(torch.nn.Linear(2, 2))
    with pytest.raises(RecipeError, match="encoder_weights is a key of model itself"):
        Recipe.from_file(recipe_file, changes=["model.overrides.encoder_weights=a.safetensors"])
