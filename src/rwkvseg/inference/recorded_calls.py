"""Calls of a network on a GPU, recorded once for each shape and launched as one: when, and what is kept.

A small network is bound by the host, which launches hundreds of kernels that take microseconds each. How a
call is recorded says cuda_recorder.py.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from rwkvseg.inference.cuda_recorder import CudaRecorder
from rwkvseg.ops.backends import is_exporting

MOST_RECORDINGS = 4  # each holds the maps of a call, though they share what one does not need at the time
MOST_SHAPES = 512  # of which it is known how often they came

Call = Callable[[Tensor], Any]


class Recording(Protocol):
    """A call that can be repeated for inputs of one shape."""

    def __call__(self, x: Tensor) -> Tensor:
        """What the call returns for x, in memory of its own."""

    def drop(self) -> None:
        """Give the memory back; it is not called again."""


class Recorder(Protocol):
    """What can record calls, see `CudaRecorder`."""

    def takes(self, x: Tensor) -> bool:
        """Whether calls with x can be recorded here and now."""

    def run(self, call: Call, x: Tensor) -> Any:
        """call(x), by the operators that a recording takes."""

    def record(self, call: Call, x: Tensor) -> Recording:
        """Record call(x), which `run` has run before."""


@dataclass(slots=True)
class _Shape:
    """What is known of inputs of one shape."""

    calls: int = 0
    wanted: int = 2  # at this call it is recorded
    recording: Recording | None = None


def first_line(reason: object) -> str:
    """What an error says in one line; its name where it says nothing.

    >>> first_line(AssertionError())
    'AssertionError'
    """
    return (str(reason).strip() or type(reason).__name__).splitlines()[0]


class RecordedCalls:
    """Calls a network in evaluation mode; on a GPU it records the second call of each shape and repeats that.

    x: (B, C, ...) -> what the network returns, the same bits whether a call is recorded or not: all take the
    operators that recordings take. Called as it is: on a CPU, with gradients, under the caller's autocast, in
    an exported or compiled graph, with hooks on its modules, in training mode. A network that asks the device
    for a number, or returns more than one tensor, is recorded never; a shape that memory does not suffice for
    no more.

    What is recorded holds torch's settings of that moment (TF32, determinism) and the places of the weights.
    Weights may be changed in place and moved; whoever exchanges parameters or parts of the network makes a
    new object.

    Args:
        network: on the device of the inputs.
        most: recordings that are kept; of more the one that was not used for longest is dropped, and recorded
            again only when its shape has come twice as often as it took before.
        recorder: what records; None: CUDA graphs.
    """

    def __init__(
        self, network: nn.Module, most: int = MOST_RECORDINGS, *, recorder: Recorder | None = None
    ) -> None:
        self.network = network
        self.most = most
        self.recorder = recorder or CudaRecorder()
        self._shapes: OrderedDict[Hashable, _Shape] = OrderedDict()  # last used last
        self._refused = False
        self._lock = Lock()
        parts = list(network.modules())
        self._hooks = [
            modules._global_forward_hooks,
            modules._global_forward_pre_hooks,
            *(hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)),
        ]
        self._weights = list(chain(network.parameters(), network.buffers()))
        self._addresses: tuple[int, ...] = ()
        self._held: list[Tensor] = []  # the weights where they lay: not freed under a recording

    def __reduce__(self) -> Any:
        # copies record for themselves
        return RecordedCalls, (self.network, self.most)

    def __call__(self, x: Tensor, autocast: torch.dtype | None = None) -> Any:
        """Run the network on x, in the type `autocast` if there is one."""

        def call(inputs: Tensor) -> Any:
            with torch.autocast(inputs.device.type, autocast, enabled=autocast is not None):
                return self.network(inputs)

        if self._refused or not self._may_record(x):
            return call(x)
        key = (x.shape, x.stride(), x.dtype, x.device, autocast, torch.is_inference_mode_enabled())
        with self._lock:
            return self._call(key, call, x)

    def _may_record(self, x: Tensor) -> bool:
        if self.most == 0 or not self.recorder.takes(x) or torch.is_grad_enabled() or self.network.training:
            return False
        if torch.compiler.is_compiling() or is_exporting() or torch.is_autocast_enabled(x.device.type):
            return False
        return not any(self._hooks)

    def _call(self, key: Hashable, call: Call, x: Tensor) -> Any:
        shape = self._shapes.setdefault(key, _Shape())
        self._shapes.move_to_end(key)
        y = None if shape.recording is None else shape.recording(x)
        # asked while the device works: to look at hundreds of weights takes a tenth of a millisecond
        if not self._notice_moved_weights() and y is not None:
            return y
        shape.calls += 1
        if shape.calls == shape.wanted:
            self._make_room()
            shape.recording = self._record(call, x)
            if shape.recording is not None:
                return shape.recording(x)
        return call(x) if self._refused else self._run(call, x)

    def _record(self, call: Call, x: Tensor) -> Recording | None:
        try:
            return self.recorder.record(call, x)
        except torch.cuda.OutOfMemoryError:
            return None  # its calls are past the one to be recorded, for good
        except (RuntimeError, AssertionError, TypeError) as error:
            self._refuse(error)
            return None

    def _run(self, call: Call, x: Tensor) -> Any:
        try:
            y = self.recorder.run(call, x)
        except torch.cuda.OutOfMemoryError:
            if not any(shape.recording for shape in self._shapes.values()):
                raise
            # what the recordings hold may be what is missing
            self._forget()
            y = self.recorder.run(call, x)
        if not isinstance(y, Tensor):
            self._refuse(f"it returns {type(y).__name__}")
        return y

    def _refuse(self, why: object) -> None:
        self._refused = True
        self._forget()
        name = type(self.network).__name__
        logging.getLogger("rwkvseg").debug(
            "%s is launched kernel by kernel, since it cannot be recorded: %s", name, first_line(why)
        )

    def _make_room(self) -> None:
        recorded = [shape for shape in self._shapes.values() if shape.recording is not None]
        for shape in recorded[: max(0, len(recorded) - self.most + 1)]:
            self._drop(shape)
        while len(self._shapes) > MOST_SHAPES:
            self._drop(self._shapes.popitem(last=False)[1])

    def _drop(self, shape: _Shape) -> None:
        if shape.recording is not None:
            shape.recording.drop()
            # where many shapes take turns, to record them again and again would cost more than it saves
            shape.recording, shape.calls, shape.wanted = None, 0, 2 * shape.wanted

    def _forget(self) -> None:
        for shape in self._shapes.values():
            self._drop(shape)

    def _notice_moved_weights(self) -> bool:
        """Drop all recordings if weights lie elsewhere than before."""
        addresses = tuple(map(Tensor.data_ptr, self._weights))
        if addresses == self._addresses:
            return False
        self._forget()
        self._addresses, self._held = addresses, [weight.detach() for weight in self._weights]
        return True
