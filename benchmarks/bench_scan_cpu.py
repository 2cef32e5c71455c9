"""Time bi_wkv(backend="scan") on the CPU against a loop over the tokens, after checking that it is right.

    python benchmarks/bench_scan_cpu.py [--threads 2] [--seconds 2] [--only B,T,C]

Prints milliseconds (best of all calls within the given seconds, everything in one process) for the forward
pass and for forward and backward together, and how many times faster than the loop. Other work on the machine
spoils the figures: the last line says how busy it was.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rwkvseg.ops import bi_wkv, naive_bi_wkv

SHAPES = [(1, 784, 576), (8, 784, 576), (1, 196, 960), (8, 196, 960)]


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


def forward(operator: Callable[..., Tensor], x: list[Tensor]) -> Tensor:
    return operator(*x[:4])


def train(operator: Callable[..., Tensor], x: list[Tensor]) -> tuple[Tensor, ...]:
    y = forward(operator, x)
    return (y, *torch.autograd.grad(y, x[:4], x[4]))


def refuse_wrong_kernels() -> None:
    for shape in ((2, 63, 5), (1, 196, 33), (1, 784, 3)):
        x = inputs(*shape)
        exact = train(
            naive_bi_wkv, [part.detach().double().requires_grad_(i < 4) for i, part in enumerate(x)]
        )
        for operator in (bi_wkv, token_loop):
            for name, found, truth in zip(
                ("y", "gw", "gu", "gk", "gv"), train(operator, x), exact, strict=True
            ):
                error = float((found - truth).detach().abs().max() / truth.detach().abs().max())
                if not error < 1e-4:
                    sys.exit(
                        f"{operator.__name__} is wrong at {shape}: {name} by {error:.1e}; nothing is timed"
                    )


def best_ms(call: Callable[[], object], seconds: float) -> float:
    call()
    best, stop = float("inf"), time.perf_counter() + seconds
    repeats = 0
    while repeats < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        repeats += 1
    return 1e3 * best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="per figure; at least three calls")
    parser.add_argument("--only", type=lambda text: tuple(map(int, text.split(","))), help="one shape B,T,C")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    refuse_wrong_kernels()
    print(
        f"torch {torch.__version__}, {arguments.threads} threads of {os.cpu_count()}, float32, milliseconds"
    )
    print("| (B, T, C) | scan fwd | loop fwd | times | scan fwd+bwd | loop fwd+bwd | times |")
    print("|---|---|---|---|---|---|---|")
    for shape in [arguments.only] if arguments.only else SHAPES:
        x = inputs(*shape)
        row: list[str] = []
        for call, needs_gradients in ((forward, False), (train, True)):
            with torch.set_grad_enabled(needs_gradients):
                ours, loop = (best_ms(partial(call, f, x), arguments.seconds) for f in (bi_wkv, token_loop))
            row += [f"{ours:.2f}", f"{loop:.0f}", f"{loop / ours:.1f}"]
        print(f"| {', '.join(map(str, shape))} | {' | '.join(row)} |", flush=True)
    print("load average of the last minute:", os.getloadavg()[0])


if __name__ == "__main__":
    main()
