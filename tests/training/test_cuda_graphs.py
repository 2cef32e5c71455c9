"""Recorded training steps against the same steps launched one by one. Needs a GPU, but for the decision."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwkvseg.models import blocks, create_model
from rwkvseg.training.cuda_graphs import graphed
from rwkvseg.training.module import SegmentationModule
from rwkvseg.training.recipe import Recipe

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
pytestmark = pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    small = {"widths": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "expansions": (2.0, 2.0, 2.0, 2.0)}
    network = create_model("rwkv_unet_tiny", in_channels=3, num_classes=2, drop_path_rate=0.0, **small)
    network = network.cuda().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, copy.deepcopy(network)


def images(number: int) -> Tensor:
    x = torch.randn(number, 3, 33, 40, device="cuda")
    return x.contiguous(memory_format=torch.channels_last)


def gradients(
    call: Any, network: nn.Module, batch: Tensor, autocast: torch.dtype | None
) -> tuple[float, Tensor]:
    """Loss, and its gradient by all weights as one vector."""
    for parameter in network.parameters():
        parameter.grad = None
    with torch.autocast("cuda", autocast, autocast is not None):
        loss = call(batch).float().square().mean()
    loss.backward()
    parts = [part.grad for part in network.parameters() if part.grad is not None]
    return loss.item(), torch.cat([part.flatten() for part in parts])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_recorded_steps_are_the_steps(autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if autocast is not None:  # norms as one operator round less often; tests/models/test_norm_act.py has them
        monkeypatch.setattr(blocks, "launches_are_recorded", lambda: False)
    network, twin = networks()
    before = copy.deepcopy(dict(network.named_buffers()))
    tolerance = 5e-2 if autocast else 1e-3
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        call = graphed(network, (images(4),), autocast=autocast)
        assert call is not None
        for name, value in network.named_buffers():
            assert torch.equal(value, before[name]), f"trial runs changed {name}"
        for number in (4, 4, 2, 4):  # the third is launched one by one
            batch = images(number)
            found, wanted = (gradients(*pair, batch, autocast) for pair in ((call, network), (twin, twin)))
            assert found[0] == pytest.approx(wanted[0], rel=tolerance)
            assert (found[1] - wanted[1]).norm() <= tolerance * wanted[1].norm()
            with torch.no_grad():  # the same step of both: their own would drift apart
                for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
                    ours.sub_(step := 0.05 * torch.randn_like(ours).clamp(-1, 1))
                    theirs.sub_(step)
    shared = [name for name in dict(network.named_buffers()) if name.endswith("running_mean")]
    assert shared
    for name in shared:
        assert torch.allclose(network.get_buffer(name), twin.get_buffer(name), atol=2e-2), name
    assert network.eval()(images(3)).shape == (3, 2, 33, 40)


class Asks(nn.Module):
    """A network that looks at a value, which a recording cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if float(x.sum()) > 0 else self.layer(-x)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # where it is the process's first use of it
def test_what_cannot_be_recorded_is_told() -> None:
    network, stream = Asks().cuda(), torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="training runs without CUDA graphs"):
        assert graphed(network, (torch.ones(2, 3, device="cuda"),)) is None
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()  # refused, as random numbers are, where torch believes that it records
    assert network(torch.rand(2, 3, device="cuda")).shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, True),
        ({"training": {"cuda_graphs": False}}, False),
        ({"training": {"compile": True}}, False),
        ({"model": {"overrides": {"gradient_checkpointing": True}}}, False),
        ({"preprocessing": {"size": None}}, False),
    ],
    ids=["by default", "switched off", "compiled", "recomputed", "sizes differ"],
)
def test_when_steps_are_recorded(
    changes: dict[str, Any], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("rwkvseg.training.recipe_module.graphed", lambda *_, **__: asked.append(1))
    monkeypatch.setattr(Tensor, "to", lambda self, *_: self)
    recipe = Recipe.model_validate({"name": "x", **changes})
    module = SegmentationModule(nn.Conv2d(3, 2, 1), recipe, num_classes=2, val_cases=1)
    names = set(module.state_dict())
    monkeypatch.setattr(SegmentationModule, "device", torch.device("cuda"))
    monkeypatch.setattr(SegmentationModule, "trainer", type("", (), {"world_size": 1, "precision": "32"}))
    module.on_train_start()
    assert bool(asked) == wanted
    assert set(module.state_dict()) == names, "the checkpoint would hold the weights twice"
