r"""Time the Triton kernels of bi_wkv as they are and in other ways: how ops/wkv/tiled.py came by its choices.

    python benchmarks/tune_bi_wkv.py --tiling 7,7,16,16,4,128 8,8,16,16,8
    python benchmarks/tune_bi_wkv.py --shape 24,784,576 24,1024,576 \
        --variant plain UNROLLED=1 --variant one LONG_IN_ONE=True

A tiling of the general kernels is block, blocks, chunks, channels, warps and, if they are to be limited,
registers per thread. A variant is a name and constants of tiled.py. All are first compiled side by side, in
as many processes as there are cores. Times are of the device alone: the median of the replays of a CUDA graph
of 20 calls, data in the cache where it fits, and out of it. Results are compared with `scan`, and with those
of a second call bit by bit, before anything is timed; what fails says so in its line.
"""

import argparse
import ast
import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import report
import timing
import torch

from rwkvseg.ops.wkv import tiled
from rwkvseg.ops.wkv.scan import scan_bi_wkv, scan_bi_wkv_backward

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """A way to compute: constants of tiled.py, by name."""

    name: str
    constants: dict[str, Any] = field(default_factory=dict)


def as_tiled(tiling: tiled.Tiling) -> Variant:
    """Return the general kernels under a tiling."""
    name = ", ".join(str(x) for x in tiling if x)
    return Variant(name, {"SHARED_MEMORY": False, "tiling": functools.partial(always, tiling)})


def always(tiling: tiled.Tiling, num_tokens: int, itemsize: int, *, backward: bool) -> tiled.Tiling:
    """Stand for tiled.tiling."""
    return tiling


def given(words: list[str]) -> Variant:
    """Read NAME KEY=VALUE ...; raises where tiled.py has no such constant."""
    constants = dict(word.split("=", 1) for word in words[1:])
    unknown = [key for key in constants if not hasattr(tiled, key)]
    if unknown:
        raise SystemExit(f"ops/wkv/tiled.py has no {', '.join(unknown)}")
    return Variant(words[0], {key: literal(value) for key, value in constants.items()})


def literal(text: str) -> Any:
    """Read a number, a truth value, or else a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def inputs(shape: Shape, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return w, u, k, v and the gradient of the output; w and u as the networks pass them."""
    generator = torch.Generator("cuda").manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, device="cuda")
    w, u = 3 * draw(shape[2]) / shape[1], draw(shape[2]) / shape[1]
    return [w, u, *(draw(shape).to(dtype) for _ in range(3))]


class Taken:
    """A variant in force."""

    def __init__(self, variant: Variant) -> None:
        self.constants = variant.constants
        self.before = {name: getattr(tiled, name) for name in self.constants}

    def __enter__(self) -> None:
        for name, value in self.constants.items():
            setattr(tiled, name, value)

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            setattr(tiled, name, value)


def compile_kernels(dtype: torch.dtype, task: tuple[Shape, Variant]) -> None:
    """Fill Triton's cache on disk; what fails fails again, and is reported, when it is timed."""
    shape, variant = task
    with Taken(variant):
        w, u, k, v, g = inputs(shape, dtype)
        try:
            states = tiled.triton_bi_wkv(w, u, k, v)[1]
            tiled.triton_bi_wkv_backward(w, u, k, v, g, states)
            torch.cuda.synchronize()
        except Exception as error:
            print(f"{variant.name}, {shape}: {first_line(error)}", flush=True)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def row(shape: Shape, dtype: torch.dtype, variant: Variant, bandwidth: float) -> str:
    """Return a line of the table; raises where the results are wrong."""
    w, u, k, v, g = inputs(shape, dtype)
    y, states = tiled.triton_bi_wkv(w, u, k, v)
    results = (y, *tiled.triton_bi_wkv_backward(w, u, k, v, g, states))
    gw, gu, gk, gv = scan_bi_wkv_backward(w, u, k, v, g)
    truth = (scan_bi_wkv(w, u, k, v), torch.stack([gw, gu]), gk, gv)
    for found, true in zip(results, truth, strict=True):
        limit = (1e-4 if dtype == torch.float32 else 2e-2) * float(true.abs().max())
        torch.testing.assert_close(found, true, rtol=0, atol=limit)
    again = (tiled.triton_bi_wkv(w, u, k, v)[0], *tiled.triton_bi_wkv_backward(w, u, k, v, g, states))
    if not all(torch.equal(one, other) for one, other in zip(results, again, strict=True)):
        raise AssertionError("other bits the second time")
    clock = timing.Clock("cuda", budget=0.05)
    cells = [variant.name, ", ".join(str(x) for x in shape)]
    for passes, call in (
        (3, lambda: tiled.triton_bi_wkv(w, u, k, v)),
        (5, lambda: tiled.triton_bi_wkv_backward(w, u, k, v, g, states)),
    ):
        for ms in (clock.warm(call), clock.cold(call)):
            cells += [f"{ms:.4f}", f"{100 * passes * k.nbytes / bandwidth * 1e3 / ms:.0f} %"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", default=["24,784,576"], metavar="B,T,C")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--tiling", nargs="+", action="extend", default=[])
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"))
    options = parser.parse_args()
    shapes = [tuple(int(part) for part in text.split(",")) for text in options.shape]
    tilings = [tiled.Tiling(*(int(part) for part in text.split(","))) for text in options.tiling]
    variants = [Variant("as it is"), *map(as_tiled, tilings), *map(given, options.variant)]
    if not torch.cuda.is_available():
        parser.exit(1, "tune_bi_wkv.py times GPU kernels, and there is no CUDA device here\n")
    dtype = getattr(torch, options.dtype)
    tasks = [(shape, variant) for variant in variants for shape in shapes]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(tasks), os.cpu_count() or 1), mp_context=context) as pool:
        list(pool.map(functools.partial(compile_kernels, dtype), tasks))
    print("\n".join(report.header("cuda")))
    bandwidth = timing.Clock("cuda", budget=0.05).copy_bandwidth()
    print(f"- {options.dtype}; a copy moves {bandwidth / 1e12:.2f} TB/s; floor: share of the byte floor\n")
    print(
        "| kernels | B, T, C | forward, warm ms | floor | cold | floor "
        "| backward, warm ms | floor | cold | floor |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with torch.cuda.stream(torch.cuda.Stream()):
        for shape, variant in tasks:
            with Taken(variant):
                try:
                    line = row(shape, dtype, variant, bandwidth)
                except Exception as error:
                    line = f"| {variant.name} | {shape} | {first_line(error)} |"
            print(line, flush=True)


if __name__ == "__main__":
    main()
