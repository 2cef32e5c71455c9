"""What a reader has to say beside its result, to the log, and what other libraries should not say."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock

_SAYING = Lock()  # `cache` lets two threads that come at once both run the function


def say_once(message: str) -> None:
    """Warn in the log `rwkvseg`, of the same thing once a process however often a file is read."""
    with _SAYING:
        _say(message)


@cache
def _say(message: str) -> None:
    logging.getLogger("rwkvseg").warning(message)


class _Silence:
    """Blocks that want no warnings: how many there are in all threads, and what the last of them undoes."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.undo = Lock(), 0, ExitStack()

    def enter(self) -> None:
        with self.lock:
            if self.blocks == 0:
                self.undo.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            self.blocks += 1

    def leave(self) -> None:
        with self.lock:
            self.blocks -= 1
            if self.blocks == 0:
                self.undo.close()


_SILENCE = _Silence()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore what other libraries warn of; blocks of several threads may overlap.

    With `warnings.catch_warnings` alone the end of one thread's block would end another's, and the filters of
    one that began in between would stay for good.
    """
    _SILENCE.enter()
    try:
        yield
    finally:
        _SILENCE.leave()
