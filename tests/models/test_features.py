"""The encoder alone, for other frameworks."""

import pytest
import torch

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.models import RWKVUNet, create_model

SMALL = {"depths": (1, 1, 2, 2), "widths": (4, 5, 6, 7), "stem_width": 4}


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (37, 53), (64, 40)], ids=str)
def test_maps_lie_at_the_stated_strides_and_widths(size: tuple[int, int]) -> None:
    features = create_model("rwkv_unet_tiny", features_only=True, in_channels=2, **SMALL).eval()
    with torch.no_grad():
        maps = features(torch.randn(2, 2, *size))
    assert features.channels == (4, 5, 6, 7)
    assert features.strides == (2, 4, 8, 16)
    expected = [
        (2, width, -(-size[0] // stride), -(-size[1] // stride))
        for width, stride in zip(features.channels, features.strides, strict=True)
    ]
    assert [tuple(feature.shape) for feature in maps] == expected


def test_they_are_the_networks_own_maps_and_weights() -> None:
    torch.manual_seed(0)
    network = create_model("rwkv_unet_tiny", **SMALL).eval()
    torch.manual_seed(0)
    features = create_model("rwkv_unet_tiny", features_only=True, **SMALL).eval()
    assert isinstance(network, RWKVUNet)
    assert features.state_dict().keys() == {f"encoder.{name}" for name in network.encoder.state_dict()}
    x = torch.randn(1, 1, 32, 48)
    with torch.no_grad():
        for ours, theirs in zip(features(x), network.encoder(x.expand(-1, 3, -1, -1)), strict=True):
            assert torch.equal(ours, theirs)


def test_every_weight_gets_a_gradient() -> None:
    features = create_model("rwkv_unet_tiny", features_only=True, **SMALL)
    torch.stack([m.square().mean() for m in features(torch.randn(2, 3, 64, 80))]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in features.parameters())


def test_what_does_not_fit_is_refused() -> None:
    features = create_model("rwkv_unet_tiny", features_only=True, **SMALL)
    with pytest.raises(ShapeError, match="in_channels"):
        features(torch.randn(1, 4, 32, 32))
    with pytest.raises(UsageError, match="PaddedNetwork has no encoder that gives maps"):
        create_model("monai_basic_unet", features=(4, 4, 4, 4, 4, 4), features_only=True)
