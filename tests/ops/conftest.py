"""Every test of this folder runs on poisoned memory: what an operator forgets to write is NaN."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    memory: Any = torch.utils.deterministic  # its property is not in the type stubs
    fill, deterministic = memory.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    assert torch.ones(3).new_empty(3).isnan().all()
    assert torch.empty_like(torch.ones(3)).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)
    memory.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True, scope="session")
def language_replaced_once() -> Iterator[None]:
    """Let Triton's interpreter replace its language once a launch.

    It does so anew for each call of a function that a kernel makes, which takes most of its time.
    """
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    replace: Any = interpreter._patch_lang
    whole = SimpleNamespace(__globals__={"tl": language, "core": language.core})  # what functions may see

    def call(function: Any, *arguments: Any, **named: Any) -> Any:
        return function.rewrite()(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda _kernel: replace(whole))
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
