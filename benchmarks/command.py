"""One `rwkvseg` command in a process of its own, and what it cost."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a process took until it ended."""

    clock: float
    """Seconds on the clock."""
    processor: float
    """Seconds of processor time, added over all threads."""
    peak: int
    """Most bytes of resident memory (ru_maxrss)."""
    said: str
    """What it printed."""


def run_command(arguments: Sequence[str], *, threads: int) -> Cost:
    """Run `rwkvseg` with these arguments; a failure ends the script and says why."""
    command = [sys.executable, "-m", "rwkvseg.cli", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        actions = [(os.POSIX_SPAWN_DUP2, log.fileno(), stream) for stream in (1, 2)]
        process = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
        _, status, used = os.wait4(process, 0)
        seconds = time.perf_counter() - started
        log.seek(0)
        said = log.read().decode().strip()
    if status:
        raise SystemExit(f"{arguments[0]} failed: {said}")
    return Cost(seconds, used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss, said)
