"""MONAI's networks: both numbers of axes, their own needs of size, saving, and training by a recipe."""

import importlib.util
from typing import Any

import pytest
import torch
from model_folders import assert_a_folder_restores
from study_cases import images
from test_contract import SMALLER
from test_onnx import ANY_SIZE, EXPORTED
from torch import Tensor, nn

from onnx_files import check_onnx, open_onnx, write_onnx
from rwkvseg.errors import MissingExtraError, ShapeError, UsageError
from rwkvseg.models import create_model, list_models
from rwkvseg.models.baselines import BaselineConfig, PaddedNetwork
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from small import small_recipe

NAMES = [name for name in list_models() if name.startswith("monai_")]
PARAMETERS = {  # 3 channels, 1 class, 2D
    "monai_attention_unet": 31_740_337,
    "monai_basic_unet": 7_783_425,
    "monai_dynunet": 20_611_713,
    "monai_segresnet": 6_299_073,
    "monai_swin_unetr": 6_302_875,
    "monai_unet": 6_500_734,
    "monai_unet_plus_plus": 9_119_233,
    "monai_unetr": 87_708_913,
}


def overrides_of(name: str, spatial_dims: int = 2) -> dict[str, object]:
    overrides = {**SMALLER[name], "spatial_dims": spatial_dims}
    return overrides | {"image_size": 32} if name == "monai_unetr" else overrides


@pytest.mark.parametrize("name", NAMES)
def test_the_default_is_the_stated_size(name: str) -> None:
    assert sum(p.numel() for p in create_model(name).parameters()) == PARAMETERS[name]


SLOW_IN_3D = [
    pytest.param(name, marks=pytest.mark.slow) if name == "monai_swin_unetr" else name for name in NAMES
]


@pytest.mark.parametrize("name", SLOW_IN_3D)
def test_volumes(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, in_channels=2, num_classes=3, **overrides_of(name, 3))
    logits = model(images(1, 2, 9, 21, 32))
    assert logits.shape == (1, 3, 9, 21, 32)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ShapeError, match=r"does not fit \(B, 2, D, H, W\)"):
        model(images(1, 2, 21, 32))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_folder_restores_it(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    overrides = overrides_of(name)
    network = create_model(name, num_classes=2, **overrides).eval()
    assert_a_folder_restores(network, images(1, 3, 20, 30), tmp_path, name=name, overrides=overrides)


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("name", NAMES)
def test_one_changed_line_of_a_recipe_trains_it(name: str, phantom, tmp_path) -> None:
    recipe = small_recipe(phantom, epochs=1, steps_per_epoch=2)
    recipe["model"] = {"name": name, "overrides": overrides_of(name)}
    result = train(Recipe.from_mapping(recipe), tmp_path / "run", device="cpu")
    assert result.summary["model"] == name
    assert "test" in result.evaluations


FEW_LEVELS: dict[str, Any] = {"levels": 3, "features": (4, 6, 8)}
"""For what takes long with each layer: what is ours of a baseline is what it is padded and cropped by."""


@pytest.mark.slow
def test_a_baseline_goes_to_onnx_for_all_sizes(tmp_path) -> None:
    model, path = create_model("monai_unet", **FEW_LEVELS).eval(), tmp_path / "unet.onnx"
    write_onnx(model, (images(*EXPORTED),), ANY_SIZE, path)
    check_onnx(path)
    in_onnxruntime = open_onnx(path)
    with torch.no_grad():
        for shape in (EXPORTED, (1, 3, 37, 53), (2, 3, 1, 1)):
            x = images(*shape)
            torch.testing.assert_close(in_onnxruntime(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_baseline_compiles() -> None:
    model = create_model("monai_unet", **FEW_LEVELS).eval()
    x = images(2, 3, 37, 53)
    with torch.no_grad():
        expected = model(x)
        model.compile(backend="aot_eager")
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


class Several(nn.Module):
    """Two outputs, the finest first, as with deep supervision."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x[..., ::2, ::2]]


def test_of_several_outputs_the_finest_is_given() -> None:
    x = images(1, 3, 5, 9)
    assert torch.equal(PaddedNetwork(Several(), BaselineConfig(), stride=8, smallest=16)(x), x)


def test_sides_are_padded_to_the_stride_and_the_smallest() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape[2:]))
            return x

    network = PaddedNetwork(Spy(), BaselineConfig(), stride=8, smallest=16)
    x = images(2, 3, 5, 17)
    assert torch.equal(network(x), x)
    assert torch.equal(network(images(2, 3, 16, 32)), images(2, 3, 16, 32))
    assert seen == [(16, 24), (16, 32)]


def test_unetr_takes_images_up_to_its_own_size() -> None:
    model = create_model("monai_unetr", features=4, hidden=24, image_size=40).eval()
    with torch.no_grad():
        assert model(images(1, 3, 40, 33)).shape == (1, 1, 40, 33)
    with pytest.raises(ShapeError, match=r"40 x 60 are larger than the 48 .*image_size=60"):
        model(images(1, 3, 40, 60))
    assert create_model("monai_unetr", features=4, hidden=24, spatial_dims=3).largest == 96


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("monai_unet", {"features": (1, 2)}, "Give 5 numbers"),
        ("monai_unet", {"features": 3}, "Give 5 numbers"),
        ("monai_unet", {"features": (4, 4, 4, 4, 0)}, "0 is no number"),
        ("monai_unet", {"spatial_dims": 4}, "Give 2 or 3"),
        ("monai_unet", {"spatial_dims": True}, "Give 2 or 3"),
        ("monai_segresnet", {"features": 12}, "Give a multiple of 8"),
        ("monai_swin_unetr", {"features": 20}, "Give a multiple of 12"),
        ("monai_unetr", {"hidden": 20}, "Give a multiple of the 12 heads"),
        ("monai_unetr", {"image_size": 0}, "image_size: 0"),
    ],
)
def test_impossible_settings_are_refused(name: str, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create_model(name, **wrong)


@pytest.mark.parametrize("name", ["monai_unetr", "monai_swin_unetr"])
def test_without_einops_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"rwkvseg\[baselines\]"):
        create_model(name)
