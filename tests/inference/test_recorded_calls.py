"""When calls of a network are recorded, repeated, dropped and refused: with a recorder that needs no GPU."""

import copy
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwkvseg.inference.recorded_calls import RecordedCalls
from rwkvseg.training.cuda_graphs import graphed


class FakeRecording:
    def __init__(self, recorder: "FakeRecorder", call: Callable[[Tensor], Any], x: Tensor) -> None:
        self.recorder, self.call, self.shape, self.strides = recorder, call, tuple(x.shape), x.stride()

    def __call__(self, x: Tensor) -> Tensor:
        assert tuple(x.shape) == self.shape
        assert x.stride() == self.strides
        self.recorder.log.append(("replay", self.shape))
        y: Tensor = self.call(x)
        return y

    def drop(self) -> None:
        self.recorder.log.append(("drop", self.shape))
        self.recorder.room += self.recorder.given_back


class FakeRecorder:
    """Takes every tensor and writes down what it is asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.log: list[tuple[str, tuple[int, ...]]] = []
        self.error = error
        self.room = 10**9  # elements that a call may have
        self.given_back = 0  # by a recording

    def takes(self, x: Tensor) -> bool:
        return True

    def run(self, call: Callable[[Tensor], Any], x: Tensor) -> Any:
        self.log.append(("run", tuple(x.shape)))
        if x.numel() > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return call(x)

    def record(self, call: Callable[[Tensor], Any], x: Tensor) -> FakeRecording:
        self.log.append(("record", tuple(x.shape)))
        if self.error is not None:
            raise self.error
        return FakeRecording(self, call, x)

    def asked(self) -> list[str]:
        """What it was asked since the last time."""
        names = [name for name, _ in self.log]
        self.log.clear()
        return names


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def made(*, error: Exception | None = None, most: int = 4) -> tuple[RecordedCalls, FakeRecorder]:
    torch.manual_seed(0)
    recorder = FakeRecorder(error)
    with torch.inference_mode(False):
        network = nn.Linear(3, 2).eval()
    return RecordedCalls(network, most=most, recorder=recorder), recorder


def images(number: int) -> Tensor:
    return torch.randn(number, 3)


def test_the_second_call_of_a_shape_is_recorded() -> None:
    calls, recorder = made()
    wanted = [["run"], ["record", "replay"], ["replay"], ["replay"]]
    for expected in wanted:
        x = images(5)
        assert torch.equal(calls(x), calls.network(x))
        assert recorder.asked() == expected
    assert torch.equal(calls(images(1)), calls(images(1))) is False
    assert recorder.asked() == ["run", "record", "replay"]


def test_types_layouts_and_precisions_are_shapes_of_their_own() -> None:
    torch.manual_seed(0)
    recorder = FakeRecorder()
    calls = RecordedCalls(nn.Conv2d(2, 3, 1).eval(), recorder=recorder)
    x = torch.randn(2, 2, 4, 5)
    for _ in range(2):
        plain = calls(x)
    last = x.contiguous(memory_format=torch.channels_last)
    assert recorder.asked() == ["run", "record", "replay"]
    assert calls(last).is_contiguous(memory_format=torch.channels_last)
    assert recorder.asked() == ["run"]
    short = calls(x, torch.bfloat16)
    assert short.dtype == torch.bfloat16
    assert recorder.asked() == ["run"]
    with torch.inference_mode(False), torch.no_grad():
        calls(x.clone())
    assert recorder.asked() == ["run"]
    assert torch.equal(calls(x), plain)
    assert recorder.asked() == ["replay"]


def test_of_more_the_one_not_used_for_longest_is_dropped() -> None:
    calls, recorder = made(most=2)
    for number in (1, 1, 2, 2, 1):
        calls(images(number))
    recorder.asked()
    calls(images(3))
    calls(images(3))
    assert recorder.log == [("run", (3, 3)), ("drop", (2, 3)), ("record", (3, 3)), ("replay", (3, 3))]
    recorder.asked()
    calls(images(1))
    assert recorder.asked() == ["replay"]
    for _ in range(3):  # it was dropped once: it must come four times
        calls(images(2))
        assert recorder.asked() == ["run"]
    calls(images(2))
    assert recorder.asked() == ["drop", "record", "replay"]


def test_all_are_kept_while_there_is_room() -> None:
    calls, recorder = made(most=3)
    for number in (1, 2, 3) * 3:
        calls(images(number))
    assert recorder.asked() == ["run"] * 3 + ["record", "replay"] * 3 + ["replay"] * 3


def test_shapes_that_take_turns_are_not_recorded_again_and_again() -> None:
    calls, recorder = made(most=1)
    for _ in range(64):
        calls(images(1))
        calls(images(2))
    assert recorder.asked().count("record") < 12


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted\nwhen"), AssertionError()])
def test_what_cannot_be_recorded_is_called_as_it_is(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    calls, recorder = made(error=error)
    with caplog.at_level(logging.DEBUG, logger="rwkvseg"):
        for _ in range(4):
            x = images(2)
            assert torch.equal(calls(x), calls.network(x))
    assert recorder.asked() == ["run", "record"]
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage().startswith("Linear is launched kernel by kernel")
    assert record.getMessage().splitlines() == [record.getMessage()]


class Several(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x + 1]


def test_several_results_are_not_recorded() -> None:
    recorder = FakeRecorder()
    calls = RecordedCalls(Several().eval(), recorder=recorder)
    for _ in range(3):
        assert len(calls(images(1))) == 2
    assert recorder.asked() == ["run"]


def test_a_shape_without_room_is_not_recorded_and_others_are() -> None:
    calls, recorder = made(error=torch.cuda.OutOfMemoryError("CUDA out of memory"))
    for _ in range(3):
        calls(images(5))
    assert recorder.asked() == ["run", "record", "run", "run"]
    recorder.error = None
    for number in (2, 2, 5):
        calls(images(number))
    assert recorder.asked() == ["run", "record", "replay", "run"]


def test_recordings_make_room_for_a_large_call() -> None:
    calls, recorder = made()
    for _ in range(2):
        calls(images(1))
    recorder.asked()
    recorder.room, recorder.given_back = 9, 6
    assert calls(images(4)).shape == (4, 2)
    assert recorder.asked() == ["run", "drop", "run"]
    recorder.room = 9
    with pytest.raises(torch.cuda.OutOfMemoryError):  # nothing is left to be dropped
        calls(images(5))
    assert recorder.asked() == ["run"]


def test_errors_of_the_network_are_its_own() -> None:
    calls, _ = made()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="shapes"):
            calls(torch.zeros(2, 7))
    x = images(2)
    assert torch.equal(calls(x), calls.network(x))


def test_where_nothing_is_recorded() -> None:
    calls, recorder = made()
    x = images(2)
    for _ in range(2):
        calls(x)
    recorder.asked()
    network = calls.network
    with torch.inference_mode(False):
        assert calls(x.clone()).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert calls(x).dtype == torch.float32  # the caller's autocast means nothing, as ever
    network.train()
    calls(x)
    network.eval()
    seen = []
    hook = network.register_forward_hook(lambda *_: seen.append(1))
    calls(x)
    hook.remove()
    assert seen == [1]
    assert recorder.asked() == []
    calls(x)
    assert recorder.asked() == ["replay"]
    calls, recorder = made(most=0)
    for _ in range(3):
        calls(x)
    assert recorder.asked() == []


def test_weights_may_change_and_move() -> None:
    calls, recorder = made()
    x = images(2)
    for _ in range(2):
        calls(x)
    recorder.asked()
    with torch.no_grad():
        calls.network.weight.zero_()
    assert torch.equal(calls(x), calls.network.bias.expand(2, 2))
    assert recorder.asked() == ["replay"]
    calls.network.weight.data = torch.ones_like(calls.network.weight)
    assert torch.equal(calls(x), calls.network(x))
    assert recorder.asked() == ["replay", "drop", "run"]
    for _ in range(3):
        calls(x)
    assert recorder.asked() == ["run", "run", "record", "replay"]
    calls.network.double()
    assert calls(x.double()).dtype == torch.float64
    assert recorder.asked() == ["drop", "run"]


def test_copies_record_for_themselves() -> None:
    calls, _ = made()
    x = images(2)
    for _ in range(2):
        calls(x)
    for other in (copy.deepcopy(calls), pickle.loads(pickle.dumps(calls))):
        assert torch.equal(other(x), calls(x))
        assert other.most == calls.most
        assert other.network is not calls.network


def test_exported_graphs_hold_the_network_alone() -> None:
    calls, recorder = made()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = calls.network

        def forward(self, x: Tensor) -> Any:
            return calls(x)

    with torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(Whole(), (torch.randn(2, 3),))
    assert "linear" in str(program.graph)
    assert recorder.asked() == []


def test_nothing_is_recorded_on_a_cpu() -> None:
    calls = RecordedCalls(nn.Linear(3, 2).eval())
    x = images(2)
    for _ in range(3):
        assert torch.equal(calls(x), calls.network(x))
    assert not calls._shapes


def test_training_says_in_one_line_why_it_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    for name in ("graph_pool_handle", "current_stream", "set_stream"):  # of a GPU
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr("rwkvseg.training.cuda_graphs.end_failed_recording", lambda *_: None)
    with torch.inference_mode(False), pytest.warns(UserWarning, match="failed: AssertionError"):
        assert graphed(nn.Linear(3, 2), (torch.zeros(1, 3),)) is None
