"""Networks by name."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from rwkvseg.errors import UsageError
from rwkvseg.models import create_model, list_models, register_model, registry


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    return iter(())


def test_the_list_is_sorted_and_holds_the_networks() -> None:
    names = list_models()
    assert names == sorted(names)
    assert {
        "rwkv_unet_nano",
        "rwkv_unet_tiny",
        "rwkv_unet_small",
        "rwkv_unet_base",
        "monai_basic_unet",
    } <= set(names)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'rwkv_unet_huge'.*monai_basic_unet, .*rwkv_unet_tiny"):
        create_model("rwkv_unet_huge")


def test_the_peer_network_is_the_stated_one() -> None:
    model = create_model("monai_basic_unet")
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_783_425
    assert not any(isinstance(module, nn.InstanceNorm2d) for module in model.modules())
    for features in (4, (1, 2, 3), (8, 8, 8, 8, 8, 0)):
        with pytest.raises(UsageError, match="Give"):
            create_model("monai_basic_unet", features=features)


@pytest.mark.parametrize("name", [name for name in list_models() if not name.startswith("monai_")])
def test_our_networks_can_be_made_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.usefixtures("scratch_registry")
def test_a_registered_factory_is_created_with_its_overrides() -> None:
    @register_model
    def pointwise(*, in_channels: int, num_classes: int, bias: bool = True) -> nn.Module:
        return nn.Conv2d(in_channels, num_classes, 1, bias=bias)

    assert "pointwise" in list_models()
    model = create_model("pointwise", in_channels=2, num_classes=5, bias=False)
    assert isinstance(model, nn.Conv2d)
    assert model.weight.shape == (5, 2, 1, 1)
    assert model.bias is None


@pytest.mark.usefixtures("scratch_registry")
def test_a_taken_name_is_refused() -> None:
    def rwkv_unet_tiny(**overrides: object) -> nn.Module:
        raise AssertionError(overrides)

    with pytest.raises(UsageError, match="already registered"):
        register_model(rwkv_unet_tiny)
