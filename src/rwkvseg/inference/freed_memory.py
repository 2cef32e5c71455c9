"""Freed memory that stays with the process, on Linux with glibc, so that a CPU predicts faster.

glibc gives a freed block of more than 32 MiB, and the free end of its heap, back to the system. A network
asks for such blocks again at every operator, and the system fills every page anew with zeros: up to half the
time of a pass. Kept instead, blocks are used again, at the price of gaps between them.

The setting is the whole process's, its other threads included. So the library leaves it alone unless asked
(`Predictor(..., keep_memory=True)`, `freed_memory_kept`), `predict` and `figure resolution` ask, and what the
user chose in the environment stands. Elsewhere nothing happens: other systems, musl, another malloc in front.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from rwkvseg.memory import available_memory

VARIABLE = "RWKVSEG_KEEP_MEMORY"
"""In the environment: 0 leaves the process's setting alone whoever asks."""
LARGEST_KEPT = 512 * 2**20
SHARE_KEPT = 32
"""A kept block is at most this part of the memory there is: gaps amount to a few of the largest blocks."""

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # the names of malloc.h, as mallopt takes them
NEVER = -1
GLIBC_MMAP_THRESHOLD, GLIBC_TRIM_THRESHOLD = 2**25, 2**26  # where glibc by itself ends up once such are freed
GLIBC_MMAP_MAX = 65536
CHOICES = ("mmap_max", "mmap_threshold", "trim_threshold", "top_pad")

_lock = threading.Lock()
_holders = 0


def can_keep() -> bool:
    """Whether glibc serves this process, and neither the user nor `RWKVSEG_KEEP_MEMORY=0` chose otherwise."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    chosen = any(
        f"MALLOC_{choice.upper()}_" in os.environ or f"glibc.malloc.{choice}=" in tunables
        for choice in CHOICES
    )
    return os.environ.get(VARIABLE) != "0" and not chosen and _glibc() is not None


def is_kept() -> bool:
    """Whether a block of `freed_memory_kept` runs and could have its way."""
    return _holders > 0


@contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Within the block freed memory stays with the process; at its end all of it is given back.

    Blocks may lie within each other and in several threads: the last one to end gives back. Where memory
    cannot be kept (`can_keep`), or is not `wanted` so, nothing is changed.

    Example:
        >>> with freed_memory_kept():  # doctest: +SKIP
        ...     predictions = [predictor.predict(case) for case in cases]
    """
    if not (wanted and can_keep()):
        yield
        return
    _hold(1)
    try:
        yield
    finally:
        _hold(-1)


def _hold(change: int) -> None:
    global _holders
    glibc = _glibc()
    assert glibc is not None
    with _lock:
        before, _holders = _holders, _holders + change
        if before == 0:
            _keep(glibc)
        elif _holders == 0:
            _give_back(glibc)


def _keep(glibc: Any) -> None:
    glibc.mallopt(TRIM_THRESHOLD, NEVER)
    if not glibc.mallopt(MMAP_THRESHOLD, min(LARGEST_KEPT, available_memory() // SHARE_KEPT)):
        glibc.mallopt(MMAP_MAX, 0)  # some versions take no threshold above 32 MiB, but this


def _give_back(glibc: Any) -> None:
    glibc.mallopt(MMAP_THRESHOLD, GLIBC_MMAP_THRESHOLD)
    glibc.mallopt(MMAP_MAX, GLIBC_MMAP_MAX)
    glibc.mallopt(TRIM_THRESHOLD, GLIBC_TRIM_THRESHOLD)
    glibc.malloc_trim(0)


@cache
def _glibc() -> Any | None:
    """The C library where it is glibc and its own malloc is the process's."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(None)
        functions = library.gnu_get_libc_version, library.malloc, library.mallopt, library.malloc_trim
    except (OSError, AttributeError):  # musl has none of the first, third and fourth
        return None
    return library if len({_library_of(function, library) for function in functions}) == 1 else None


class _Symbol(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _library_of(function: Any, library: Any) -> int | None:
    """Address at which the shared library lies that `function` is in."""
    found = _Symbol()
    library.dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(found))
    base: int | None = found.base
    return base
