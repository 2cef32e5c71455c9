"""Measure how exact bi_wkv is, forward and every gradient; exits 1 where a result breaks its limit.

    python benchmarks/accuracy_bi_wkv.py --backend triton --device cuda [--quick] [-o FILE]

The grid: w T from -300 to 5000, keys constant, one-hot and up to +-50, T from 1 to 262,144, C from 1 to 576.
Truth: the definition in float64, one block of channels at a time, on the same device; beyond 4096 tokens
`scan` in float64. Error: the largest difference over max(largest true value, 1e-3 of the natural size), the
natural size being |v| for y, |g| for gv, |g||v| for gk, times B T for gu and B T^2 for gw. Limits:

    float32             y 1e-5, gradients 1e-4
    float32, w T < -30  y 1e-4, gradients 1e-3, or 4 times the error of the definition in float32
    16 bit              twice the error of backend="naive" on the same inputs, 1e-6 at least, and for gw and
                        gu, which stay float32, the limits of float32; beyond 4096 tokens twice the rounding
                        of the truth, or the limits of float32 if larger

Every call is made twice and must give the same bits; memory that it allocates is filled with NaN beforehand.
The (decay, keys) cases of one T and C are channels of one truth; the operator gets one call a case, and for
C = 5 one more that holds all cases, neighbours of different kinds.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import report
import torch
from torch import Tensor

from rwkvseg.ops import bi_wkv, naive_bi_wkv

Operator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Case = tuple[float, str]  # w T, and the keys: constant, one-hot, or how far they reach to both sides of zero

DECAYS = (-300.0, -30.0, -8.0, 0.0, 3.0, 30.0, 300.0, 5000.0)
KEYS = ("constant", "one-hot", "1", "10", "50")
SHORT = (1, 2, 3, 5, 31, 32, 33, 63, 196)
MEDIUM = (784, 1000, 4096)
LONG = (16_384, 65_536, 262_144)
COMPARED = 8  # channels of 576 where T is one of MEDIUM
MIXED = 5  # the C at which one call holds all cases as well
LONGEST_TRUTH = 4096  # tokens up to which the definition in float64 is the truth
BLOCK = {"cpu": 2**22, "cuda": 2**27}  # weights (B T T C) of the definition at a time
FLOOR = 1e-6  # a float32 gradient of 16-bit inputs may owe its small error to luck


class Inputs(NamedTuple):
    """Arguments of bi_wkv, and g, the gradient of its output."""

    w: Tensor
    u: Tensor
    k: Tensor
    v: Tensor
    g: Tensor

    def channels(self, index: Any) -> "Inputs":
        """Take some of the channels."""
        return Inputs(*(x[..., index].contiguous() for x in self))

    def to(self, dtype: torch.dtype, *, both: bool = True) -> "Inputs":
        """Round k, v, g, and w, u as well if `both`."""
        w, u = (x.to(dtype) if both else x for x in (self.w, self.u))
        return Inputs(w, u, *(x.to(dtype) for x in (self.k, self.v, self.g)))


class Results(NamedTuple):
    """What an operator returns, and the gradients of w, u, k, v."""

    y: Tensor
    gw: Tensor
    gu: Tensor
    gk: Tensor
    gv: Tensor


class Shape(NamedTuple):
    """A point of the grid; of the channels of a call, so many are compared with the truth."""

    batch: int
    num_tokens: int
    channels: int
    compared: int


class Finding(NamedTuple):
    """One error and the case it was found in."""

    share: float  # of the limit
    error: float
    case: str


def grid(quick: bool) -> tuple[list[Shape], list[Case]]:
    if quick:
        shapes = [Shape(2, t, c, c) for t, c in itertools.product((1, 33), (1, MIXED))]
        return [*shapes, Shape(1, LONGEST_TRUTH + 1, 1, 1)], list(itertools.product((-300.0, 3.0), KEYS))
    shapes = [Shape(2, t, c, c) for t, c in itertools.product(SHORT, (1, 5, 16, 33, 576))]
    for t, c in itertools.product(MEDIUM, (1, 5, 33, 576)):
        shapes.append(Shape(1 if t == LONGEST_TRUTH else 2, t, c, min(c, COMPARED) if c == 576 else c))
    return shapes + [Shape(1, t, 3, 3) for t in LONG], list(itertools.product(DECAYS, KEYS))


def inputs(shape: Shape, cases: list[Case], device: str) -> Inputs:
    """Random float32 inputs; the channels are those of the first case, then those of the second, ..."""
    batch, num_tokens, channels, _ = shape
    generator = torch.Generator(device).manual_seed(1000 * num_tokens + channels)
    random = partial(torch.randn, generator=generator, device=device)
    size = (batch, num_tokens, len(cases), channels)
    k = 2 * torch.rand(size, generator=generator, device=device) - 1
    for i, (_, keys) in enumerate(cases):
        if keys == "constant":
            k[:, :, i] = 7.0
        elif keys == "one-hot":
            k[:, :, i] = 0.0
            k[:, num_tokens // 3, i] = 30.0
        else:
            k[:, :, i] *= float(keys)
    w = torch.tensor([decay / num_tokens for decay, _ in cases], device=device).repeat_interleave(channels)
    v, g = (random(size).flatten(2) for _ in range(2))
    return Inputs(w, random(len(w)), k.flatten(2), v, g)


def run(operator: Operator, x: Inputs) -> Results:
    leaves = [part.detach().clone().requires_grad_() for part in x[:4]]
    y = operator(*leaves)
    return Results(y.detach(), *torch.autograd.grad(y, leaves, x.g))


def in_blocks(operator: Operator, x: Inputs, block: int) -> Results:
    """Run operator on so many channels at a time; they know nothing of each other."""
    parts = [run(operator, x.channels(slice(i, i + block))) for i in range(0, len(x.w), block)]
    return _join(parts)


def by_definition(operator: Operator, x: Inputs) -> Results:
    batch, num_tokens, _ = x.k.shape
    return in_blocks(operator, x, max(1, BLOCK[x.k.device.type] // (batch * num_tokens**2)))


def truth(x: Inputs, channels: int) -> Results:
    """Return the results in float64 of inputs that have so many channels a case."""
    if x.k.shape[1] <= LONGEST_TRUTH:
        return by_definition(naive_bi_wkv, x.to(torch.float64))
    return in_blocks(partial(bi_wkv, backend="scan"), x.to(torch.float64), channels)


def errors(actual: Results, exact: Results, x: Inputs, num_cases: int = 1) -> Tensor:
    """Return the error of each result for each case, (5, cases); NaN where there is one."""

    def largest(values: Tensor) -> Tensor:
        return (
            values.detach().abs().double().reshape(-1, num_cases, values.shape[-1] // num_cases).amax((0, 2))
        )

    batch, num_tokens, _ = x.k.shape
    v, g = largest(x.v), largest(x.g)
    natural = (v, batch * num_tokens**2 * g * v, batch * num_tokens * g * v, g * v, g)
    found = [
        largest(a.double() - e) / torch.maximum(largest(e), 1e-3 * size)
        for a, e, size in zip(actual, exact, natural, strict=True)
    ]
    return torch.stack(found)


def float32_limits(cases: list[Case], device: str) -> Tensor:
    limits = [[1e-5, *[1e-4] * 4] if decay >= -30 else [1e-4, *[1e-3] * 4] for decay, _ in cases]
    return torch.tensor(limits, dtype=torch.float64, device=device).T


def limits_of_rounding(ours: Results, exact: Results, x: Inputs, cases: list[Case]) -> Tensor:
    """Return limits for where the definition is out of reach: of float32, or twice the truth's rounding."""
    rounded = Results(*(e.to(a.dtype) for a, e in zip(ours, exact, strict=True)))
    limits = 2 * errors(rounded, exact, x, len(cases))
    return torch.maximum(limits, float32_limits(cases, x.k.device.type))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill with NaN what is allocated: what an operator forgets to write shows."""
    memory: Any = torch.utils.deterministic  # its property is not in the type stubs
    fill, deterministic = memory.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        memory.fill_uninitialized_memory = fill


class Examination:
    """Runs one backend over shapes and keeps the worst finding of each kind."""

    def __init__(self, backend: str, device: str, cases: list[Case], *, floor: float = FLOOR) -> None:
        # read when cuBLAS starts, and asked for by deterministic algorithms
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.operator: Operator = partial(bi_wkv, backend=backend)
        self.device, self.cases, self.floor = device, cases, floor
        self.worst: dict[tuple[int, str], list[Finding]] = {}
        self.broken: list[str] = []

    def examine(self, shape: Shape) -> None:
        """Run all cases at one shape, in float32 and both 16-bit formats."""
        everything = inputs(shape, self.cases, self.device)
        picked = self._picked(shape)
        x = everything.channels(picked)
        self._float32(shape, everything, x, picked)
        # what both 16-bit formats hold exactly, so that they share a truth
        rounded = everything.to(torch.float16, both=False).to(torch.bfloat16, both=False)
        self._sixteen_bit(shape, rounded, rounded.channels(picked), picked)

    def _picked(self, shape: Shape) -> Tensor:
        """Return the channels to look at, the same few of every case."""
        generator = torch.Generator().manual_seed(shape.num_tokens)
        few = torch.randperm(shape.channels, generator=generator)[: shape.compared].sort().values
        starts = shape.channels * torch.arange(len(self.cases)).unsqueeze(1)
        return (starts + few).flatten().to(self.device)

    def _float32(self, shape: Shape, everything: Inputs, x: Inputs, picked: Tensor) -> None:
        exact = truth(x, shape.compared)
        limits = float32_limits(self.cases, self.device)
        found = {f"C {shape.channels}": self._ours(shape, everything, picked)}
        if shape.channels == MIXED:
            found["all cases in one call"] = self._mixed(everything)
        for label, ours in found.items():
            error = errors(ours, exact, x, len(self.cases))
            if shape.num_tokens <= LONGEST_TRUTH and not bool((error <= limits).all()):
                limits = self._limits_of_definition(limits, exact, x)
            self._note(shape.num_tokens, "float32", label, error, limits)

    def _limits_of_definition(self, limits: Tensor, exact: Results, x: Inputs) -> Tensor:
        below = torch.tensor([decay < -30 for decay, _ in self.cases], device=self.device)
        channels = below.repeat_interleave(len(x.w) // len(self.cases)).nonzero().flatten()
        if not len(channels):
            return limits
        part, true = x.channels(channels), Results(*(e[..., channels] for e in exact))
        definition = errors(by_definition(naive_bi_wkv, part), true, part, int(below.sum()))
        wider = limits.clone()
        wider[:, below] = torch.maximum(limits[:, below], 4 * definition.nan_to_num(0.0, posinf=0.0))
        return wider

    def _sixteen_bit(self, shape: Shape, everything: Inputs, x: Inputs, picked: Tensor) -> None:
        exact = truth(x.to(torch.float32), shape.compared)
        for dtype in (torch.bfloat16, torch.float16):
            ours = self._ours(shape, everything.to(dtype, both=False), picked)
            low = x.to(dtype, both=False)
            if shape.num_tokens <= LONGEST_TRUTH:
                naive = by_definition(partial(bi_wkv, backend="naive"), low)
                limits = (2 * errors(naive, exact, x, len(self.cases))).clamp_min(self.floor)
                # gw and gu are float32 whatever k and v are
                limits[1:3] = torch.maximum(limits[1:3], float32_limits(self.cases, self.device)[1:3])
            else:
                limits = limits_of_rounding(ours, exact, x, self.cases)
            error = errors(ours, exact, x, len(self.cases))
            self._note(shape.num_tokens, str(dtype).split(".")[1], f"C {shape.channels}", error, limits)

    def _ours(self, shape: Shape, x: Inputs, picked: Tensor) -> Results:
        """Run every case twice, in a call of its own, and return the picked channels of all."""
        few = picked[: shape.compared]
        parts = []
        for i, (decay, keys) in enumerate(self.cases):
            case = x.channels(slice(i * shape.channels, (i + 1) * shape.channels))
            with poisoned_memory():
                first, second = run(self.operator, case), run(self.operator, case)
            self._same_bits(first, second, f"{shape} {x.k.dtype} w T {decay:g}, keys {keys}")
            parts.append(Results(*(part[..., few] for part in first)))
        return _join(parts)

    def _mixed(self, x: Inputs) -> Results:
        """Run all cases in one call, channels of different cases side by side."""
        order = torch.arange(len(x.w), device=self.device).view(len(self.cases), -1).T.flatten()
        with poisoned_memory():
            mixed = run(self.operator, x.channels(order))
        back = order.argsort()
        return Results(*(part[..., back] for part in mixed))

    def _same_bits(self, first: Results, second: Results, called: str) -> None:
        for name, a, b in zip(Results._fields, first, second, strict=True):
            # NaN differs from itself, and is reported as an error anyway
            if not torch.equal(a.nan_to_num(), b.nan_to_num()):
                self.broken.append(f"{name} has other bits the second time: {called}")

    def _note(self, num_tokens: int, kind: str, label: str, error: Tensor, limits: Tensor) -> None:
        for (decay, keys), found, allowed in zip(
            self.cases, error.T.tolist(), limits.T.tolist(), strict=True
        ):
            called = f"{label}, w T {decay:g}, keys {keys}"
            group = f"{kind}, w T < -30" if kind == "float32" and decay < -30 else kind
            worst = self.worst.setdefault((num_tokens, group), [Finding(-1.0, 0.0, "")] * 5)
            for i, (name, e, limit) in enumerate(zip(Results._fields, found, allowed, strict=True)):
                share = e / limit if e == e else float("inf")
                worst[i] = max(worst[i], Finding(share, e, called))
                if not share <= 1:
                    self.broken.append(f"{name} {e:.1e} > {limit:.1e}: T {num_tokens}, {group}, {called}")

    def table(self) -> list[str]:
        """Return the worst findings as a markdown table."""
        lines = ["| T | inputs | " + " | ".join(Results._fields) + " |", "|---|---|---|---|---|---|---|"]
        for (num_tokens, group), findings in self.worst.items():
            cells = [
                f"{f.error:.1e} = {100 * f.share:.0f} % ({f.case})" if f.error else "0" for f in findings
            ]
            lines.append(f"| {num_tokens} | {group} | {' | '.join(cells)} |")
        return lines


def _join(parts: list[Results]) -> Results:
    return Results(*(torch.cat(each, -1) for each in zip(*parts, strict=True)))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few shapes and decays: seconds on a CPU")
    parser.add_argument("--tokens", type=int, nargs="+", metavar="T", help="only these T of the grid")
    parser.add_argument("--channels", type=int, nargs="+", metavar="C", help="only these C of the grid")
    parser.add_argument("--floor", type=float, default=FLOOR, help="error that 16-bit inputs always allow")
    parser.add_argument("-o", "--output", type=Path, help="markdown file, or the folder to write it to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    start = time.perf_counter()
    shapes, cases = grid(options.quick)
    if options.tokens:
        shapes = [shape for shape in shapes if shape.num_tokens in options.tokens]
    if options.channels:
        shapes = [shape for shape in shapes if shape.channels in options.channels]
    examination = Examination(options.backend, options.device, cases, floor=options.floor)
    for shape in shapes:
        examination.examine(shape)
        print(f"{shape}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    broken = examination.broken
    lines = [
        f"# Accuracy of bi_wkv, backend {options.backend}, {report.today()}",
        "",
        *report.header(options.device),
        f"- {len(shapes)} shapes x {len(cases)} cases x 3 dtypes in {time.perf_counter() - start:.0f} s",
        "",
        "Worst error of each kind against float64, as a share of its limit, and the case it was found in.",
        "",
        *examination.table(),
        "",
        f"{len(broken)} results break a limit:" if broken else "Every result is within its limit.",
        *(f"- {line}" for line in broken[:40]),
        "",
    ]
    print("\n".join(lines))
    if options.output:
        report.save(options.output, "bi_wkv_accuracy", options.device, "\n".join(lines))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
