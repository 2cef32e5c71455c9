"""Recorded calls of networks against the same kernels launched one by one. Needs a GPU."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rwkvseg.data.case import Case
from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.inference.model_file import Architecture, ModelDescription
from rwkvseg.inference.predictor import Predictor
from rwkvseg.inference.recorded_calls import RecordedCalls
from rwkvseg.models import create_model
from rwkvseg.ops.backends import launches_recorded
from small import OVERRIDES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),
    pytest.mark.filterwarnings(
        "ignore:Attempting to run cuBLAS"
    ),  # where it is the process's first use of it
]
SMALL_3D = {"widths": (4, 8, 8, 16, 16), "depths": (1, 1, 1, 1)}


@pytest.fixture(autouse=True)
def same_kernels() -> Iterator[None]:
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False), torch.inference_mode():
        yield


def network_2d() -> nn.Module:
    torch.manual_seed(0)
    with torch.inference_mode(False):
        network = create_model("rwkv_unet_tiny", in_channels=3, num_classes=3, **OVERRIDES)
        return network.cuda().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def network_3d() -> nn.Module:
    torch.manual_seed(0)
    with torch.inference_mode(False):
        return create_model("urwkv3d_tiny", in_channels=1, num_classes=3, **SMALL_3D).cuda().eval()


def directly(network: nn.Module, x: Tensor, autocast: torch.dtype | None) -> Tensor:
    with launches_recorded(), torch.autocast("cuda", autocast, enabled=autocast is not None):
        y: Tensor = network(x)
    return y


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dims", [2, 3])
def test_recorded_calls_give_the_same_bits(dims: int, autocast: torch.dtype | None) -> None:
    network = network_2d() if dims == 2 else network_3d()
    shapes = [(1, 3, 64, 64), (3, 3, 33, 40), (2, 3, 48, 32)]
    if dims == 3:
        shapes = [(1, 1, 32, 32, 16), (2, 1, 32, 16, 32), (1, 1, 16, 16, 16)]
    for most in (4, 2):  # the second time recordings are dropped and made anew
        calls = RecordedCalls(network, most)
        kept: list[tuple[Tensor, Tensor]] = []
        for turn in range(12):
            for shape in shapes[: 1 + turn % 3]:
                x = torch.randn(shape, device="cuda")
                if dims == 2:
                    x = x.contiguous(memory_format=torch.channels_last)
                kept.append((calls(x, autocast), directly(network, x, autocast)))
        assert sum(shape.recording is not None for shape in calls._shapes.values()) == min(most, 3)
        for found, wanted in kept:  # compared at the end: no later call may write into an earlier result
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)


def test_recordings_see_weights_that_change() -> None:
    calls = RecordedCalls(network_2d())
    x = torch.randn(1, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    before = [calls(x) for _ in range(3)]
    with torch.no_grad():
        for parameter in calls.network.parameters():
            parameter.mul_(1.5)
    after = calls(x)
    assert not torch.equal(after, before[-1])
    assert torch.equal(after, directly(calls.network, x, None))


class Asks(nn.Module):
    """A network that looks at a value, which a recording cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) if float(x.sum()) > 0 else self.layer(-x)
        return y


class Waits(Asks):
    """One that waits for the device in a way that torch does not notice before it records."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        torch.cuda.synchronize()
        return y


@pytest.mark.parametrize("kind", [Asks, Waits])
def test_what_cannot_be_recorded_is_called_directly(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    with torch.inference_mode(False):
        calls = RecordedCalls(kind().cuda().eval())
    stream, debug = torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
    with caplog.at_level(logging.DEBUG, logger="rwkvseg"):
        for number in (1, 1, 1, 2, 2):
            x = torch.randn(number, 3, 8, 8, device="cuda")
            assert torch.equal(calls(x), calls.network(x))
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == debug
    assert len([record for record in caplog.records if record.name == "rwkvseg"]) == 1
    torch.cuda.empty_cache()  # which torch refuses where it takes a recording to be under way
    # others are recorded after it
    other = RecordedCalls(network_2d())
    x = torch.randn(1, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    results = [other(x) for _ in range(3)]
    assert all(torch.equal(y, directly(other.network, x, None)) for y in results)


def test_another_stream_is_called_directly() -> None:
    calls = RecordedCalls(network_2d())
    x = torch.randn(1, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    wanted = [calls(x) for _ in range(3)][-1]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    assert calls.recorder.takes(x)
    with torch.cuda.stream(stream):
        assert not calls.recorder.takes(x)
        found = calls(x)
    torch.cuda.synchronize()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)  # other operators


def test_memory_of_dropped_recordings_comes_back() -> None:
    calls = RecordedCalls(network_2d(), 1)
    peaks = []
    for turn in range(3):
        for side in (64, 80, 96):
            x = torch.randn(1, 3, side, side, device="cuda").contiguous(memory_format=torch.channels_last)
            for _ in range(2 ** (turn + 1)):
                calls(x)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        peaks.append(torch.cuda.memory_reserved())
    assert peaks[-1] <= 1.5 * peaks[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_predictor_records(precision: Any) -> None:
    description = ModelDescription(
        rwkvseg_version="0.1.0",
        architecture=Architecture(name="rwkv_unet_tiny", in_channels=3, num_classes=3),
        labels={"background": 0, "one": 1, "two": 2},
        preprocessing=Preprocessing(channels=3, size=(32, 32)),
    )
    device = torch.device("cuda")
    predictor = Predictor(network_2d(), description, device, precision=precision)
    plain = Predictor(predictor.network, description, device, precision=precision, record_calls=False)
    numbers = np.random.default_rng(0)
    for _ in range(4):
        case = Case(id="case", image=numbers.integers(0, 256, (3, 40, 36)).astype(np.uint8))
        images = predictor.prepare(case)
        with launches_recorded():
            wanted = plain.logits(images)
        assert torch.equal(predictor.logits(images), wanted)
        assert predictor.predict(case).shape == (40, 36)
    assert any(shape.recording is not None for shape in predictor._calls._shapes.values())
    assert not plain._calls._shapes
