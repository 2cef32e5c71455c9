"""Triton kernels compiled side by side before they are needed.

A network's first step meets some forty kernels one after the other, and each takes a second or several to
compile. Gone through once without launching them, a step names them all, and all cores share them.
"""

import json
import os
from collections.abc import Hashable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from rwkvseg.ops.backends import triton_is_installed

MOST_THREADS = 16  # much of compiling is Python, which runs one thread at a time


@contextmanager
def kernels_compiled_ahead() -> Iterator[None]:
    """Compile Triton kernels instead of launching them, several at a time, into Triton's cache on disk.

    At the end all are there. What is computed inside is worthless, and what it writes to may change; kernels
    that are compiled already run. A kernel that cannot be compiled is left for its launch to say so.

    Example:
        >>> with kernels_compiled_ahead():
        ...     pass  # a forward pass, a backward pass; then both again, outside
    """
    if not triton_is_installed():
        yield
        return
    try:
        from triton import knobs

        before = knobs.runtime.jit_cache_hook
    except (ImportError, AttributeError):  # another Triton
        yield
        return
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:  # its end waits for them
        knobs.runtime.jit_cache_hook = partial(_compile_instead, threads, set())
        try:
            yield
        finally:
            knobs.runtime.jit_cache_hook = before


def _compile_instead(threads: Executor, begun: set[Hashable], *, fn: Any, compile: Any, **_: Any) -> bool:
    """Begin to compile the kernel that Triton has met; True: it is neither compiled nor launched now."""
    named = (fn.module, fn.name, compile["key"])
    if named not in begun:
        begun.add(named)
        kernel = fn.jit_function
        target = kernel.device_caches[compile["device"]][2]
        source = kernel.ASTSource(kernel, compile["signature"], compile["constants"], compile["configs"][0])
        options = json.loads(compile["specialization_data"])["options"]
        options = {name: tuple(x) if isinstance(x, list) else x for name, x in options.items()}
        threads.submit(kernel.compile, source, target=target, options=options)
    return True
