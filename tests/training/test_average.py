"""training.ema: a moving average of the weights is what a run validates, exports and tests."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rwkvseg.training.history import History
from rwkvseg.training.module import SegmentationModule
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.recipe_module import RecipeModule, average_of
from rwkvseg.training.run import train
from small import small_recipe

pytestmark = pytest.mark.usefixtures("without_plots")
DECAY = 0.3  # reached after three steps


def recipe_of(data, **training):
    return Recipe.from_mapping(small_recipe(data, epochs=3, **({"ema": DECAY} | training)))


def by_hand(states):
    """The average after each step, numbers that count steps included."""
    average = states[0]
    for n, state in enumerate(states[1:], start=1):
        decay = min(DECAY, (1 + n) / (10 + n))
        average = {
            name: decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
            for name, value in state.items()
        }
    return average


def floats_agree(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture
def seen(monkeypatch):
    """Weights and statistics after every step, and the number of steps after every epoch."""
    steps = []
    original = RecipeModule.on_train_batch_end

    def look(module, *arguments):
        original(module, *arguments)
        steps.append({name: value.clone() for name, value in module.network.state_dict().items()})

    monkeypatch.setattr(RecipeModule, "on_train_batch_end", look)
    return steps


def test_the_exported_model_is_the_average_over_all_steps(tmp_path, phantom, seen):
    train(recipe_of(phantom), tmp_path / "run", device="cpu")
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    floats_agree(exported, by_hand(seen))
    last = max((exported[name] - value).abs().max() for name, value in seen[-1].items())
    assert last > 1e-4


def test_the_start_does_not_stay_in_the_average():
    network = torch.nn.BatchNorm2d(2)
    network.running_var.fill_(1e6)
    average = average_of(network, 0.999)
    for _ in range(100):
        average.update_parameters(network)
        network.running_var.fill_(1.0)
        network.num_batches_tracked += 1
    torch.testing.assert_close(average.module.running_var, torch.ones(2), rtol=1e-5, atol=0)
    assert average.module.num_batches_tracked == 99


def test_validation_runs_the_average_alone(tmp_path, phantom, monkeypatch):
    called = []
    original = SegmentationModule.validation_step

    def look(module, *arguments):
        hooks = [
            part.register_forward_hook(lambda *_, name=name: called.append(name))
            for name, part in (("network", module.network), ("average", module.average.module))
        ]
        original(module, *arguments)
        for hook in hooks:
            hook.remove()

    monkeypatch.setattr(SegmentationModule, "validation_step", look)
    train(recipe_of(phantom), tmp_path / "run", device="cpu")
    assert set(called) == {"average"}
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(value, kept[f"average.module.{name}"]) for name, value in exported.items())


def test_the_best_checkpoint_gives_its_average(tmp_path, phantom):
    train(recipe_of(phantom, report="best"), tmp_path / "run", device="cpu")
    kept = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(value, kept[f"average.module.{name}"]) for name, value in exported.items())


def test_an_interrupted_run_ends_with_the_same_average(tmp_path, phantom, monkeypatch):
    class Stopped(Exception):
        pass

    def failing(self, trainer, module):
        if trainer.current_epoch == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", failing, raising=False)
        with pytest.raises(Stopped):
            train(recipe_of(phantom), tmp_path / "run", device="cpu")
    train(recipe_of(phantom), tmp_path / "run", device="cpu", resume=True)
    train(recipe_of(phantom), tmp_path / "whole", device="cpu")
    ours, theirs = ((tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "whole"))
    assert ours == theirs
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["epochs"] == 3
