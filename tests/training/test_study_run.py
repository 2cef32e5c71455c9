"""Studies of the papers from a recipe to a prediction."""

import torch

from rwkvseg.inference.model_file import load_model
from rwkvseg.models import RWKVUNet
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from small import OVERRIDES, small_recipe


def test_a_study_is_trained_and_read_back_by_its_recipe(tmp_path, phantom):
    study = {"mixer": "bi_mamba", "channel_mix": True, "decoder": "reduced", "decoder_kernel": 3, "skips": 2}
    content = small_recipe(phantom, epochs=1)
    content["model"]["overrides"] = OVERRIDES | study
    train(Recipe.from_mapping(content), tmp_path / "run", device="cpu")
    network, description = load_model(tmp_path / "run")
    assert isinstance(network, RWKVUNet)
    assert description.architecture.overrides == OVERRIDES | study
    assert {name: getattr(network.config, name) for name in study} == study
    with torch.no_grad():
        assert network(torch.rand(1, 1, 32, 32)).isfinite().all()
