"""A U-Net of fewer levels: shallow on purpose, still for any size."""

import pytest
import torch

from rwkvseg.errors import UsageError
from rwkvseg.models import create_model


@pytest.mark.parametrize(("levels", "spatial_dims"), [(2, 2), (3, 3), (4, 2)])
def test_fewer_levels_take_any_size_and_pad_less(levels, spatial_dims):
    features = [4] * levels
    network = create_model(
        "monai_unet",
        in_channels=1,
        num_classes=3,
        levels=levels,
        features=features,
        spatial_dims=spatial_dims,
    )
    assert network.stride == 2 ** (levels - 1)
    size = (9, 17, 11)[:spatial_dims]
    logits = network(torch.rand(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("monai_unet", {"levels": 1, "features": [4]}, "levels is 1"),
        ("monai_unet", {"levels": 3}, "Give 3 numbers of channels"),
        ("monai_unet", {"levels": True, "features": [4]}, "levels is True"),
        ("monai_basic_unet", {"levels": 3, "features": [4, 4, 4]}, "6 features are what"),
    ],
)
def test_levels_that_cannot_be(name, overrides, told):
    with pytest.raises(UsageError, match=told):
        create_model(name, **overrides)
