"""Time bi_wkv(backend="scan") on the CPU against a loop over the tokens, after checking that it is right.

    python benchmarks/bench_scan_cpu.py [--threads 2] [--repeats 5] [--seconds 0] [--loop FILE]

Prints milliseconds (best of 5 after one warm-up, everything in one process) for the forward pass and for both
passes together, how many times faster than the loop, and the goal. --loop takes the loop from a file that
defines biwkv_loop(w, u, k, v), such as spec/prototypes/ref.py, against which the goals are set. Other work on
the machine spoils the figures: the last line says how busy it was. --seconds 3 goes on calling for that long,
on both sides, to find a quiet moment.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rwkvseg.ops import bi_wkv, naive_bi_wkv

Operator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

SHAPES = [(1, 784, 576), (8, 784, 576), (1, 196, 960), (8, 196, 960)]
GOALS = {1: (14, 25), 8: (5, 15)}  # by B: times faster forward, and forward and backward together


def token_loop(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bi-WKV one token at a time in both directions with a running maximum, tokens taken as k[:, t].

    That indexing makes its backward pass quadratic in T; it is the baseline that the goals are set against.
    """
    order = range(k.shape[1])
    past = walk(w, k, v, order)
    future = walk(w, k, v, order[::-1])[::-1]
    out = []
    for t, (pm, pn, pd), (fm, fn, fd) in zip(order, past, future, strict=True):
        own_scale = u + k[:, t]
        m = torch.maximum(torch.maximum(pm, fm), own_scale)
        p, f, own = torch.exp(pm - m), torch.exp(fm - m), torch.exp(own_scale - m)
        out.append((p * pn + f * fn + own * v[:, t]) / (p * pd + f * fd + own))
    return torch.stack(out, 1)


def walk(w: Tensor, k: Tensor, v: Tensor, order: range) -> list[tuple[Tensor, Tensor, Tensor]]:
    maximum = torch.full_like(k[:, 0], -1e38)
    num = den = torch.zeros_like(maximum)
    before = []
    for t in order:
        before.append((maximum, num, den))
        largest = torch.maximum(maximum - w, k[:, t])
        old, new = torch.exp(maximum - w - largest), torch.exp(k[:, t] - largest)
        maximum, num, den = largest, old * num + new * v[:, t], old * den + new
    return before


def inputs(batch: int, num_tokens: int, channels: int) -> list[Tensor]:
    torch.manual_seed(0)
    w, u = torch.randn(channels) / num_tokens, torch.randn(channels) / num_tokens
    k, v, g = (torch.randn(batch, num_tokens, channels) for _ in range(3))
    return [*(x.requires_grad_() for x in (w, u, k, v)), g]


def load_loop(file: Path) -> Operator:
    specification = importlib.util.spec_from_file_location("loop_of_file", file)
    if not (file.is_file() and specification and specification.loader):
        sys.exit(f"{file.name} is not a Python file; nothing is timed")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if not hasattr(module, "biwkv_loop"):
        sys.exit(f"{file.name} defines no biwkv_loop(w, u, k, v); nothing is timed")
    loop: Operator = module.biwkv_loop
    return loop


def forward(operator: Operator, x: list[Tensor]) -> Tensor:
    return operator(*x[:4])


def train(operator: Operator, x: list[Tensor]) -> tuple[Tensor, ...]:
    y = forward(operator, x)
    return (y, *torch.autograd.grad(y, x[:4], x[4]))


def refuse_wrong_kernels(operators: dict[str, Operator]) -> None:
    for shape in ((2, 63, 5), (1, 196, 33), (1, 784, 3)):
        x = inputs(*shape)
        exact = train(
            naive_bi_wkv, [part.detach().double().requires_grad_(i < 4) for i, part in enumerate(x)]
        )
        for called, operator in operators.items():
            found = train(operator, x)
            for name, ours, truth in zip(("y", "gw", "gu", "gk", "gv"), found, exact, strict=True):
                error = float((ours - truth).detach().abs().max() / truth.detach().abs().max())
                if not error < 1e-4:
                    sys.exit(f"{called} is wrong at {shape}: {name} by {error:.1e}; nothing is timed")


def best_ms(call: Callable[[], object], repeats: int, seconds: float) -> float:
    call()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < repeats or time.perf_counter() < stop:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def row(shape: tuple[int, ...], loop: Operator, repeats: int, seconds: float) -> str:
    x = inputs(*shape)
    cells = [", ".join(map(str, shape))]
    goals = GOALS.get(shape[0], ("", ""))
    for call, goal in zip((forward, train), goals, strict=True):
        with torch.set_grad_enabled(call is train):
            ours, theirs = (best_ms(partial(call, f, x), repeats, seconds) for f in (bi_wkv, loop))
        cells += [f"{ours:.2f}", f"{theirs:.0f}", f"{theirs / ours:.1f}", str(goal)]
    return f"| {' | '.join(cells)} |"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.0, help="call for at least so long")
    parser.add_argument("--loop", type=Path, metavar="FILE", help="Python file that defines biwkv_loop")
    parser.add_argument("--only", type=lambda text: tuple(map(int, text.split(","))), help="one shape B,T,C")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    loop = load_loop(options.loop) if options.loop else token_loop
    refuse_wrong_kernels({"scan": bi_wkv, "the loop": loop})
    called = f"biwkv_loop of {options.loop.name}" if options.loop else "token_loop of this script"
    at_least = f"{options.seconds:g} s and " if options.seconds else ""
    print(
        f"torch {torch.__version__}, {options.threads} threads of {os.cpu_count()}, float32, "
        f"milliseconds (best of {at_least}{options.repeats} calls); loop: {called}"
    )
    print(
        "| (B, T, C) | scan fwd | loop fwd | times | goal | scan fwd+bwd | loop fwd+bwd | times | goal |"
        "\n|---|---|---|---|---|---|---|---|---|"
    )
    for shape in [options.only] if options.only else SHAPES:
        print(row(shape, loop, options.repeats, options.seconds), flush=True)
    print("load average of the last minute:", os.getloadavg()[0])


if __name__ == "__main__":
    main()
