"""Runs Gluon kernels' own source on the CPU: torch stands for their language, one program follows another.

Programs that wait for each other ("_long_kernel") are threads instead.

Triton's interpreter knows no Gluon. Here a module of kernels is imported anew while `gl` is a table of
torch's functions; layouts mean nothing, shared memory is a tensor full of NaN, a copy to it takes place at
once, and a pointer is a tensor with offsets, all of which must lie in it. What it cannot show: races, and
copies that are still on their way.
"""

import importlib
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

GLUON = "triton.experimental.gluon"
LAYOUTS = ("DistributedLinearLayout", "SliceLayout", "SwizzledSharedLayout")
PATIENCE = 60.0  # seconds that a program waits for another one at most
program = threading.local()  # number, numbers
failed = threading.Event()
INSTRUCTIONS: dict[str, Callable[..., Tensor]] = {
    "rcp.approx.ftz.f32 $0, $1;": torch.reciprocal,
    "nanosleep.u32 $1; mov.u32 $0, $1;": lambda x: x,
    "mov.b32 $0, $1;": lambda x: x,
    "griddepcontrol.launch_dependents; mov.u32 $0, $1;": lambda x: x,
    "griddepcontrol.wait; mov.u32 $0, $1;": lambda x: x,
}


class Pointer:
    """Numbers of a tensor in memory at some offsets."""

    def __init__(self, memory: Tensor, offsets: Any = 0) -> None:
        self.memory, self.offsets = memory, offsets
        self.dtype = SimpleNamespace(element_ty=memory.dtype)

    def __add__(self, offsets: Any) -> "Pointer":
        return Pointer(self.memory, self.offsets + offsets)

    def to(self, dtype: torch.dtype) -> "Pointer":
        assert dtype == torch.int64, "a pointer is wide"
        return self

    def places(self, mask: Any = True) -> Tensor:
        """Return the offsets, 0 of what is masked."""
        places = torch.as_tensor(self.offsets).long()
        mask = torch.as_tensor(mask)
        places = torch.where(mask, places, 0)
        assert places.amin() >= 0, "before the tensor"
        assert places.amax() < self.memory.numel(), "beyond the tensor"
        return places


class Shared:
    """Shared memory; `rows`: what it is a row of, and the number of that row."""

    def __init__(self, memory: Tensor, rows: "tuple[Tensor, int] | None" = None) -> None:
        self.memory, self.rows = memory, rows
        self.dtype, self.shape = memory.dtype, list(memory.shape)

    def index(self, i: int) -> "Shared":
        assert 0 <= i < self.shape[0], (i, self.shape)
        return Shared(self.memory[i], (self.memory, i))

    def _reinterpret(self, dtype: torch.dtype, shape: list[int], _layout: Any) -> "Shared":
        assert self.rows is not None, "only rows that follow one another"
        memory, first = self.rows
        assert dtype == self.dtype
        assert first + shape[0] <= memory.shape[0], "beyond the memory"
        assert shape[1:] == self.shape
        return Shared(memory[first : first + shape[0]])

    def load(self, _layout: Any) -> Tensor:
        return self.memory.clone()

    def store(self, x: Tensor) -> None:
        self.memory.copy_(x)


class Kernel:
    """A kernel as one launches it: `kernel[grid](*arguments)`."""

    def __init__(self, run: Callable[..., None], *, together: bool = False) -> None:
        self.run, self.together = run, together

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, maxnreg: int | None = None, **constants: Any) -> None:
            pointers = [Pointer(x) if isinstance(x, Tensor) else x for x in arguments]

            def one(number: int) -> None:
                program.number, program.numbers = number, grid[0]
                self.run(*pointers, **constants)

            if self.together:
                _at_once(one, grid[0])
            else:
                for number in range(grid[0]):
                    one(number)

        return launch


def _at_once(run: Callable[[int], None], number: int) -> None:
    """Run so many programs in threads, the last one first; raise what one of them does."""
    errors: list[BaseException] = []
    failed.clear()

    def one(i: int) -> None:
        try:
            with torch.no_grad():  # a thread's own setting
                run(i)
        except BaseException as error:
            errors.append(error)
            failed.set()

    threads = [threading.Thread(target=one, args=(i,)) for i in reversed(range(number))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _put_four(p: Pointer, *numbers: Tensor) -> Tensor:
    for i, x in enumerate(numbers):
        _store(p + i, torch.where(x == 0, -0.0, x))
    return torch.tensor(0)


def _get_four(p: Pointer) -> tuple[Tensor, ...]:
    end = time.monotonic() + PATIENCE
    while True:
        rows = [_load(p + i) for i in range(4)]
        if all(bool(x.view(torch.int32).all()) for x in rows):
            return tuple(rows)
        assert not failed.is_set(), "another program failed"
        assert time.monotonic() < end, "nobody comes"
        time.sleep(0.002)


def _assembly(code: str, _constraints: str, x: list[Any], **_options: Any) -> Any:
    """Do as some instructions; those of several words are known by the most telling of them."""
    if "st.relaxed.gpu.global.v4.b32 [$1]" in code:
        return _put_four(*x)
    if "ld.relaxed.gpu.global.v4.b32" in code:
        return _get_four(*x)
    if "prefetch.global.L2" in code:
        return x[0].places()  # which must lie in the tensor
    return INSTRUCTIONS[code](*x)


def _load(p: Pointer, mask: Any = True, other: Any = 0.0, cache_modifier: str = "") -> Tensor:
    x = p.memory.reshape(-1)[p.places(mask)]
    return torch.where(torch.as_tensor(mask), x, torch.as_tensor(other, dtype=x.dtype))


def _store(p: Pointer, x: Any, mask: Any = True) -> None:
    assert p.memory.is_contiguous()
    x = torch.as_tensor(x).to(p.memory.dtype)
    if mask is True:
        p.memory.view(-1)[p.places()] = x
        return
    there = torch.as_tensor(mask).expand(torch.broadcast_shapes(torch.as_tensor(mask).shape, x.shape))
    if there.any():
        offsets = torch.as_tensor(p.offsets).expand(there.shape)
        _store(Pointer(p.memory, offsets[there]), x.expand(there.shape)[there])


def _scan(rows: tuple[Tensor, ...], axis: int, join: Callable[..., Any], reverse: bool = False) -> Any:
    assert axis == 0
    order = range(len(rows[0]))
    sums: list[Any] = [tuple(x[i] for x in rows) for i in (reversed(order) if reverse else order)]
    for i in range(1, len(sums)):
        sums[i] = join(*sums[i - 1], *sums[i])
    sums = sums[::-1] if reverse else sums
    return tuple(torch.stack(parts) for parts in zip(*sums, strict=True))


def _reduce(parts: tuple[Tensor, ...], axis: int, join: Callable[..., Any]) -> Any:
    rows = list(zip(*(x.unbind(axis) for x in parts), strict=True))
    total = rows[0]
    for row in rows[1:]:
        total = join(*total, *row)
    return total


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 0], x[..., 1]


def _allocate(dtype: torch.dtype, shape: list[int], _layout: Any, value: Tensor | None = None) -> Shared:
    return Shared(torch.full(shape, torch.nan, dtype=dtype) if value is None else value.clone())


def _of_two(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    return lambda a, b: f(a, torch.as_tensor(b, dtype=a.dtype))


def _language() -> ModuleType:
    layouts: dict[str, Any] = {name: lambda *_: None for name in LAYOUTS}
    layouts["BlockedLayout"] = lambda each, *_: SimpleNamespace(size_per_thread=each)
    dtypes = {name: getattr(torch, name) for name in ("float32", "bfloat16", "int16", "int32", "int64")}
    language = ModuleType(f"{GLUON}.language")
    vars(language).update(
        **layouts,
        **dtypes,
        constexpr=lambda x: x,
        program_id=lambda _axis: torch.tensor(program.number),
        num_programs=lambda _axis: program.numbers,
        static_range=range,
        arange=lambda first, end, _layout=None: torch.arange(first, end),
        full=lambda shape, x, dtype, _layout=None: torch.full(shape, x, dtype=dtype),
        load=_load,
        store=_store,
        allocate_shared_memory=_allocate,
        inline_asm_elementwise=_assembly,
        convert_layout=lambda x, _layout, assert_trivial=False: x,
        permute=lambda x, order: x.permute(order),
        split=_split,
        thread_barrier=lambda: None,
        exp2=torch.exp2,
        rsqrt=torch.rsqrt,
        abs=torch.abs,
        where=torch.where,
        maximum=_of_two(torch.maximum),
        minimum=_of_two(torch.minimum),
        gather=lambda x, i, axis: torch.gather(x, axis, i.long()),
        associative_scan=_scan,
        reduce=_reduce,
        sum=lambda x, axis: x.sum(axis),
        max=lambda x, axis: x.amax(axis),
    )
    return language


def _decorator(function: Any = None, **_options: Any) -> Any:
    return (lambda f: f) if function is None else function


@contextmanager
def _gluon_replaced() -> Iterator[None]:
    gluon, copies, ampere = ModuleType(GLUON), SimpleNamespace(), ModuleType("ampere")
    gluon.jit = gluon.constexpr_function = _decorator  # type: ignore[attr-defined]
    gluon.language = _language()  # type: ignore[attr-defined]
    copies.async_copy_global_to_shared = lambda to, p: to.memory.copy_(_load(p))
    copies.commit_group = lambda: None
    copies.wait_group = lambda _pending: None
    ampere.async_copy = copies  # type: ignore[attr-defined]
    parents = ("triton", "triton.experimental", f"{GLUON}.language.nvidia")
    fakes = {GLUON: gluon, f"{GLUON}.language": gluon.language, f"{GLUON}.language.nvidia.ampere": ampere}
    fakes |= {name: ModuleType(name) for name in parents}
    before = {name: sys.modules.get(name) for name in fakes}
    vars(fakes["triton.experimental"])["gluon"] = gluon
    sys.modules.update(fakes)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def emulated(*names: str) -> dict[str, Kernel]:
    """Return the kernels of some modules, each importing only from those before it and from Gluon."""
    known = {name: sys.modules.get(name) for name in names}
    try:
        with _gluon_replaced():
            modules = [_imported(name) for name in names]
    finally:
        for name, module in known.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
    functions = {name: f for module in modules for name, f in vars(module).items() if callable(f)}
    return {
        name: Kernel(f, together=name.endswith("_long_kernel"))
        for name, f in functions.items()
        if name.endswith("_kernel")
    }


def _imported(name: str) -> ModuleType:
    package, file = name.rsplit(".", 1)
    folder = Path(importlib.import_module(package).__path__[0])
    spec = importlib.util.spec_from_file_location(name, folder / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
