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
        remember_types(patch)
        yield


def remember_types(patch: pytest.MonkeyPatch) -> None:
    """Let it describe each shape once: it does so for every result, which takes a third of its time."""
    from triton.language import core
    from triton.runtime import interpreter

    first_block, first_tensor = core.block_type.__init__, core.tensor.__init__
    first_types, first_dtype = core._type_for_tuple_values, interpreter._get_np_dtype
    blocks: dict[Any, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    types: dict[Any, Any] = {}
    dtypes: dict[str, Any] = {}

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, tuple(core._unwrap_if_constexpr(size) for size in shape)
        if key not in blocks:
            first_block(self, element_ty, shape)
            blocks[key] = vars(self).copy()
        self.__dict__ = blocks[key].copy()

    def tensor(self: Any, handle: Any, kind: Any) -> None:
        if kind.name not in tensors:
            first_tensor(self, handle, kind)
            tensors[kind.name] = vars(self).copy()
        self.__dict__ = tensors[kind.name] | {"handle": handle, "type": kind, "dtype": kind.scalar}

    def types_of(values: Any, fields: Any = None) -> Any:
        key = tuple(x if type(x) is int else x.value if type(x) is core.constexpr else None for x in values)
        if fields is not None or not all(type(size) is int for size in key):
            return first_types(values, fields)
        key = key, tuple(map(type, values))
        if key not in types:
            types[key] = first_types(values)
        return types[key]

    def dtype_of(kind: Any) -> Any:
        if kind.name not in dtypes:
            dtypes[kind.name] = first_dtype(kind)
        return dtypes[kind.name]

    patch.setattr(core.block_type, "__init__", block)
    patch.setattr(core.tensor, "__init__", tensor)
    patch.setattr(core, "_type_for_tuple_values", types_of)
    patch.setattr(interpreter, "_get_np_dtype", dtype_of)
