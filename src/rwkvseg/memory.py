"""Amounts of memory: what this process may use, in words, and from words."""

import ctypes
import os
import re
from contextlib import suppress
from pathlib import Path

from rwkvseg.errors import UsageError

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def available_memory() -> int:
    """Bytes that this process can hope for: those of the machine, its container or its `ulimit -v`."""
    limits = [_machine_memory()]
    for path in CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such container, or "max"
            continue
    limits += _address_space()
    return min(limits)


def _machine_memory() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    class Status(ctypes.Structure):  # MEMORYSTATUSEX of Windows
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("others", ctypes.c_ulonglong * 6),
        )

    status, windows = Status(ctypes.sizeof(Status)), getattr(ctypes, "windll")  # noqa: B009 - Windows only
    windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.total)


def _address_space() -> list[int]:
    """What `ulimit -v` leaves, if it is set: it counts addresses too that nothing lies at yet."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no limits, macOS no /proc
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY:
            return []
        taken = Path("/proc/self/statm")
        pages = [int(number) for number in taken.read_text().split()[:2]] if taken.exists() else [0, 0]
        return [max(0, soft - (pages[0] - pages[1]) * resource.getpagesize())]
    return []


def parse_size(text: str) -> int:
    """Bytes of an amount such as 8G, 512M or 1.5 GiB; units are powers of 1024.

    Raises:
        UsageError: no such amount.

    >>> parse_size("1.5G")
    1610612736
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if found and not found[2] and 0 < size < 2**20:
        raise UsageError(
            f"'{text}' is {show_size(size)}. Give memory with its unit: {found[1]}G or {found[1]}M."
        )
    if size < 1:
        raise UsageError(f"'{text}' is no amount of memory. Give it as 8G or 512M.")
    return size


def show_size(size: float) -> str:
    """Amount in the largest unit that leaves 1 or more.

    >>> show_size(1610612736)
    '1.5 GiB'
    """
    power = min(4, max(0, int(size).bit_length() - 1) // 10)
    amount, unit = size / 2 ** (10 * power), ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"
