"""The most that is alive at a time, against networks whose maps can be counted by hand."""

import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from rwkvseg.models import create_model
from rwkvseg.models.live_memory import live_bytes


class Skip(nn.Module):
    """Input 2, first 6, second 10 channels; first lives until it is added."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv3d(2, 6, 1), nn.Conv3d(6, 10, 1), nn.Conv3d(10, 6, 1)

    def forward(self, x):
        first = self.first(x)
        second = self.second(first)
        second = relu(second)  # 2 + 6 + 10 + 10
        third = self.third(second)
        del second
        return third.add_(first)


def test_counted_by_hand():
    assert live_bytes(Skip(), (3, 2, 4, 5, 6)) == 4 * 3 * 4 * 5 * 6 * (2 + 6 + 10 + 10)
    assert live_bytes(nn.Sequential(nn.Identity(), nn.Flatten()), (1, 2, 4, 4, 4)) == 4 * 128  # views
    assert live_bytes(nn.Conv2d(3, 5, 1), (1, 3, 8, 8)) == 4 * 64 * 8


def test_the_network_stays_as_it_is():
    network = Skip().train()
    live_bytes(network, (1, 2, 3, 3, 3))
    assert network.training
    assert network(torch.zeros(1, 2, 3, 3, 3)).device.type == "cpu"


@pytest.mark.parametrize("name", ["urwkv3d_tiny"])
def test_grows_with_the_voxels(name):
    network = create_model(name, in_channels=1, num_classes=14)
    small, large = (live_bytes(network, (1, 1, n, 32, 32)) for n in (32, 64))
    assert large / small == pytest.approx(2, rel=0.01)
