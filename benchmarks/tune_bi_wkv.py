"""Time the Triton kernels of bi_wkv under several tilings: how `ops/wkv/tiled.py::tiling` came by its choice.

    python benchmarks/tune_bi_wkv.py --shape 24,784,576 --dtype bfloat16 --tiling 7,7,16,16,4,128 8,8,16,16,8

A tiling is block, blocks, chunks, channels, warps and, if they are to be limited, registers per thread. All
are first compiled side by side, in as many processes as there are cores. Times are of the device alone: the
median of the replays of a CUDA graph of 20 calls, data in the cache where it fits. Results are compared with
`scan` before anything is timed.
"""

import argparse
import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import report
import timing
import torch

from rwkvseg.ops.wkv import tiled
from rwkvseg.ops.wkv.scan import scan_bi_wkv, scan_bi_wkv_backward

Shape = tuple[int, ...]


def inputs(shape: Shape, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return w, u, k, v and the gradient of the output; w and u as the networks pass them."""
    generator = torch.Generator("cuda").manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, device="cuda")
    w, u = 3 * draw(shape[2]) / shape[1], draw(shape[2]) / shape[1]
    return [w, u, *(draw(shape).to(dtype) for _ in range(3))]


def take(tiling: tiled.Tiling) -> None:
    tiled.tiling = lambda num_tokens, itemsize, *, backward: tiling


def compile_kernels(shape: Shape, dtype: torch.dtype, tiling: tiled.Tiling) -> None:
    """Fill Triton's cache on disk."""
    take(tiling)
    w, u, k, v, g = inputs((1, *shape[1:]), dtype)
    states = tiled.triton_bi_wkv(w, u, k, v)[1]
    tiled.triton_bi_wkv_backward(w, u, k, v, g, states)
    torch.cuda.synchronize()


def row(shape: Shape, dtype: torch.dtype, tiling: tiled.Tiling, bandwidth: float) -> str:
    """Return a line of the table; raises where the results are wrong."""
    take(tiling)
    w, u, k, v, g = inputs(shape, dtype)
    y, states = tiled.triton_bi_wkv(w, u, k, v)
    results = (y, *tiled.triton_bi_wkv_backward(w, u, k, v, g, states))
    gw, gu, gk, gv = scan_bi_wkv_backward(w, u, k, v, g)
    truth = (scan_bi_wkv(w, u, k, v), torch.stack([gw, gu]), gk, gv)
    for found, true in zip(results, truth, strict=True):
        limit = (1e-4 if dtype == torch.float32 else 2e-2) * float(true.abs().max())
        torch.testing.assert_close(found, true, rtol=0, atol=limit)
    clock = timing.Clock("cuda", budget=0.05)
    cells = [", ".join(str(x) for x in tiling if x)]
    for passes, call in (
        (3, lambda: tiled.triton_bi_wkv(w, u, k, v)),
        (5, lambda: tiled.triton_bi_wkv_backward(w, u, k, v, g, states)),
    ):
        ms = clock.warm(call)
        cells += [f"{ms:.4f}", f"{100 * passes * k.nbytes / bandwidth * 1e3 / ms:.0f} %"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="24,784,576", metavar="B,T,C")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--tiling", nargs="+", required=True)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "tune_bi_wkv.py times GPU kernels, and there is no CUDA device here\n")
    shape = tuple(int(part) for part in options.shape.split(","))
    dtype = getattr(torch, options.dtype)
    tilings = [tiled.Tiling(*(int(part) for part in text.split(","))) for text in options.tiling]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(tilings), os.cpu_count() or 1), mp_context=context) as pool:
        list(pool.map(functools.partial(compile_kernels, shape, dtype), tilings))
    print("\n".join(report.header("cuda")))
    bandwidth = timing.Clock("cuda", budget=0.05).copy_bandwidth()
    print(f"- {options.dtype}, {shape}; a copy moves {bandwidth / 1e12:.2f} TB/s\n")
    print("| block, blocks, chunks, channels, warps, registers | forward ms | floor | backward ms | floor |")
    print("|---|---|---|---|---|")
    with torch.cuda.stream(torch.cuda.Stream()):
        for tiling in tilings:
            print(row(shape, dtype, tiling, bandwidth), flush=True)


if __name__ == "__main__":
    main()
