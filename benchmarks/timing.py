"""Clocks for calls on a GPU or the CPU; all return the median in milliseconds.

eager: each call by itself, what a user waits for. On a GPU a 256 MB buffer is written before each call, which
    empties the second-level cache, and CUDA events stand around the call (as in triton.testing.do_bench), so
    the host's part counts where it is longer.
warm: the device's time alone, from a CUDA graph that repeats the call, its data in the cache where it fits.
cold: the same with the buffer written before each call, less the time of writing it alone.
"""

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]

FLUSHED = 64 * 2**20  # float32 numbers: 256 MB, four times the cache of an H200
REPLAYS = 15  # of a graph, whose median is taken


class Clock:
    """Times calls that run on the current stream; a budget in seconds bounds the calls of each figure."""

    def __init__(self, device: str, budget: float) -> None:
        self.device, self.budget = device, budget
        self._buffer = torch.empty(FLUSHED if device == "cuda" else 0, device=device)

    def eager(self, call: Call) -> float:
        """Return what one call takes when it is made from Python."""
        repeats = self._repeats(call, least=5, most=100)
        if self.device == "cpu":
            return statistics.median(_seconds(call) for _ in range(repeats)) * 1e3
        marks = []
        for _ in range(repeats):
            self._flush()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            marks.append((start, end))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in marks)

    def warm(self, call: Call) -> float:
        """Return the device time of one of many calls in a row."""
        repeats = self._repeats(call, least=1, most=20)
        return _replay_ms([call] * repeats) / repeats

    def cold(self, call: Call) -> float:
        """Return the device time of a call that finds nothing in the cache."""
        repeats = self._repeats(call, least=1, most=20)
        return (_replay_ms([self._flush, call] * repeats) - _replay_ms([self._flush] * repeats)) / repeats

    def copy_bandwidth(self) -> float:
        """Return bytes per second, read and written, of a copy on the device."""
        source = torch.ones(2**28 if self.device == "cuda" else 2**24, device=self.device)
        target = torch.empty_like(source)
        ms = self.eager(lambda: target.copy_(source))
        return 2 * source.nbytes / ms * 1e3

    def _flush(self) -> None:
        self._buffer.fill_(1.0)  # a kernel, which goes through the cache; zero_ would be a memset

    def _repeats(self, call: Call, *, least: int, most: int) -> int:
        call()
        once = _seconds(call)
        return max(least, min(most, int(self.budget / once)))


def _seconds(call: Call) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _replay_ms(calls: list[Call]) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in times)
