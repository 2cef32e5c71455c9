"""A call of a network as a CUDA graph: recorded on a stream of its own, repeated on the caller's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from rwkvseg.data.notices import without_warnings
from rwkvseg.ops.backends import launches_recorded


class CudaGraph:
    """What was recorded for inputs of one shape."""

    def __init__(self, graph: torch.cuda.CUDAGraph, x: Tensor, y: Tensor) -> None:
        self.graph: Any = graph
        self.x, self.y = x, y

    def __call__(self, x: Tensor) -> Tensor:
        """Run the recorded kernels on the numbers of x."""
        self.x.copy_(x)
        self.graph.replay()
        return self.y.clone()

    def drop(self) -> None:
        """Give the memory back."""
        torch.cuda.synchronize(self.x.device)
        self.graph.reset()
        del self.graph, self.x, self.y


class CudaRecorder:
    """Records calls on the device and for the stream that it is first used with.

    All recordings share one memory pool, so they must not run at the same time: neither from two threads nor
    on two streams.
    """

    def __init__(self) -> None:
        self._home: torch.cuda.Stream | None = None  # of the callers
        self._aside: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._graphs: WeakSet[CudaGraph] = WeakSet()

    def takes(self, x: Tensor) -> bool:
        """Whether x is on a GPU, and on the stream of earlier calls, which nobody else records."""
        if not x.is_cuda or torch.cuda.is_current_stream_capturing():
            return False
        here = torch.cuda.current_stream(x.device)
        self._home = self._home or here
        return here == self._home

    def run(self, call: Callable[[Tensor], Any], x: Tensor) -> Any:
        """Return call(x), run on the stream of the recordings: the trial that each of them needs before.

        It takes the operators that a recording takes, so that both give the same bits.
        """
        here, aside = self._streams(x)
        aside.wait_stream(here)
        try:
            with torch.cuda.stream(aside), launches_recorded():
                y = call(x)
        finally:
            here.wait_stream(aside)
        # in memory of the caller's stream: that of `y` is used again without a look at what it does
        return y.clone() if isinstance(y, Tensor) else y

    def record(self, call: Callable[[Tensor], Any], x: Tensor) -> CudaGraph:
        """Record call(x), which `run` has run before.

        Raises:
            RuntimeError: the call asks the device for a number, or does something else that no graph can.
            TypeError: it returns more than one tensor.
            torch.cuda.OutOfMemoryError: memory does not suffice.
        """
        here, aside = self._streams(x)
        held = x.clone()
        with _no_waiting():  # found here, it need not be found by a recording that fails
            self.run(call, held)
        if not self._graphs:  # no pool outlives its graphs
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(graph, self._pool, aside, capture_error_mode="thread_local")
        try:
            # `here` again: where a recording fails, torch does not go back to it
            with torch.cuda.device(x.device), torch.cuda.stream(here), launches_recorded(), recording:
                y = call(held)
        except BaseException:
            end_failed_recording(x.device, self._pool)
            raise
        if not isinstance(y, Tensor):
            raise TypeError(f"it returns {type(y).__name__}")
        recorded = CudaGraph(graph, held, y)
        self._graphs.add(recorded)
        return recorded

    def _streams(self, x: Tensor) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        if self._aside is None:
            self._aside = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        return torch.cuda.current_stream(x.device), self._aside


def end_failed_recording(device: torch.device, pool: Any) -> None:
    """Let allocator and random numbers of a device go on after a recording that failed.

    torch before 2.12 leaves both within it (pytorch/pytorch#180395): memory cannot be given back, and the
    next random number raises. pool: the recording's, from torch.cuda.graph_pool_handle.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(index, pool)
    generator: Any = torch.cuda.default_generators[index]
    with suppress(RuntimeError):  # the same numbers, outside of any recording
        generator.graphsafe_set_state(generator.clone_state())


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Within it what waits for the device raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with without_warnings():  # that it does not find all that waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
