"""The most that is alive at a time, against networks whose maps can be counted by hand."""

import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from rwkvseg.models import create_model, live_memory
from rwkvseg.models.live_memory import live_bytes, step_bytes
from rwkvseg.training.losses import SegmentationLoss


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


class Two(nn.Module):
    """Two convolutions of one channel each."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)

    def forward(self, x):
        return self.second(self.first(x))


def test_a_step_counted_by_hand():
    """Forward: input and two maps. Backward: input, first map, its gradient. Few numbers more, and labels."""
    pixels = 2 * 50 * 60
    found = step_bytes(Two(), (2, 1, 50, 60), lambda outputs, _: outputs.sum())
    assert 0 <= found - (3 * 4 * pixels + pixels) <= 32
    # a loss that squares: mean's and power's backward hold four more maps beside these three
    found = step_bytes(Two(), (2, 1, 50, 60), lambda outputs, _: outputs.square().mean())
    assert 0 <= found - (7 * 4 * pixels + pixels) <= 32


STEPS = [
    ("rwkv_unet_nano", (2, 3, 64, 32), 2, {}),
    ("rwkv_unet_tiny", (2, 1, 32, 32), 4, {"gradient_checkpointing": True}),
    ("urwkv3d_tiny", (2, 1, 16, 32, 16), 3, {}),
    ("urwkv3d_tiny", (2, 2, 16, 16, 6), 2, {"strides": ((2, 2, 1), (2, 2, 2), (2, 2, 1), (1, 1, 1))}),
]


@pytest.mark.parametrize(("name", "shape", "classes", "overrides"), STEPS, ids=lambda x: str(x)[:24])
def test_a_step_without_content_takes_what_a_real_one_takes(name, shape, classes, overrides):
    """The same count over real tensors on the CPU, and what autograd really kept, found in another way."""
    network = create_model(name, in_channels=shape[1], num_classes=classes, **overrides).train()
    stride = getattr(network, "stride", ())
    loss = SegmentationLoss(stride=stride if isinstance(stride, tuple) else ())
    planned = step_bytes(network, shape, loss)
    counter = live_memory._Live()
    with counter:
        image, label = torch.zeros(shape), torch.zeros((shape[0], *shape[2:]), dtype=torch.uint8)
        loss(network(image), label).backward()
    assert planned == pytest.approx(counter.most, rel=0.005)
    kept = saved_bytes(network, image, label, loss)
    assert kept <= planned
    if not overrides.get("gradient_checkpointing"):
        weights = 4 * sum(parameter.numel() for parameter in network.parameters())
        assert planned <= 1.25 * kept + 2 * weights  # what autograd keeps is nearly all of it


def saved_bytes(network, image, label, loss):
    """Bytes that autograd keeps of a real step, weights left out."""
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(x):
        if x.data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage()  # held, so that no address comes twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = loss(network(image), label)
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def test_a_step_leaves_the_network_as_it_is():
    network = create_model("rwkv_unet_nano", in_channels=1, num_classes=2).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step_bytes(network, (2, 1, 32, 32), SegmentationLoss())
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
