"""Work on several cases at a time, in threads; what comes of it is what one after the other gives."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 16


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    cost: Callable[[Item], float] = lambda _item: 0.0,
    room: float = math.inf,
) -> Iterator[Result]:
    """Results of `function`, in the order of the items; an error comes at its item's turn.

    Begun and not yet handed over are at most 2 * `threads` items, and as many as cost `room` together, or one
    that alone costs more. With fewer than two threads each item is begun when its result is asked for.

    Args:
        function: has to be safe to call in several threads at once.
        items: are taken as they are begun.
        threads: how many; Python's own work is done in one at a time, that of NumPy and Pillow mostly is not.
        cost: of an item, such as its bytes, asked for before it is begun.
        room: for all costs together.

    Example:
        >>> list(map_in_order(abs, [-2, 3, -1], threads=2))
        [2, 3, 1]
    """
    if threads < 2:
        yield from map(function, items)
        return
    waiting: deque[tuple[Future[Result], float]] = deque()
    with ThreadPoolExecutor(min(threads, MOST_THREADS)) as pool:
        try:
            for item in items:
                price = cost(item)
                while waiting and (
                    len(waiting) >= 2 * threads or sum(paid for _, paid in waiting) + price > room
                ):
                    yield waiting[0][0].result()
                    waiting.popleft()
                waiting.append((pool.submit(function, item), price))
            while waiting:
                yield waiting[0][0].result()
                waiting.popleft()
        finally:  # an error, or nobody asks for more
            pool.shutdown(cancel_futures=True)
