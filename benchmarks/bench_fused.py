"""Time Bi-WKV's fused neighbours on a GPU: Triton against plain torch, after checking that they are right.

    python benchmarks/bench_fused.py [--compile] [--cold] [--repeats 100] [--only gated,residual]

Operators on maps are timed at the sizes of RWKV-UNet base at 224, batch 24, their convolutions at those of
tiny at 256, batch 32, batch norm with its activation at those of base at 256, batch 32; those on volumes at
the sizes of U-RWKV (3D) tiny at 48 x 64 x 48, batch 8. A convolution computes more than it moves: its share
says little.

Prints microseconds (medians) of the forward and the backward pass, the bytes that the pass cannot avoid (each
map read or written once), and which share of the time those bytes need at the speed of a copy measured in the
same run. --cold flushes the second-level cache before every call, as a large network does.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkvseg.ops import (
    batch_norm_act,
    depthwise_conv2d,
    depthwise_conv3d,
    gated_layer_norm,
    layer_norm,
    residual_layer_norm,
    shift_and_mix,
    spatial_shift_and_mix,
)

SHAPES = [(24, 28, 28, 576), (24, 14, 14, 960)]  # (B, H, W, C)
ODD = ((2, 13, 9, 70), (3, 1, 7, 33), (2, 28, 28, 576), (2, 14, 14, 960))
NORM_SHAPES = [(32, 128, 128, 96), (32, 64, 64, 180), (32, 32, 32, 576), (32, 16, 16, 960)]
OWN_SHAPES = {  # (B, H, W, C) or (B, D, H, W, C)
    "layer norm": [(24, 28, 28, 144), (24, 14, 14, 240)],
    "squared layer norm": [(24, 112, 112, 288), (8, 6, 8, 6, 960)],
    "batch norm relu": [(32, 256, 256, 3), (32, 128, 128, 240), *NORM_SHAPES],
    "batch norm silu": NORM_SHAPES,
    "batch norm silu add": NORM_SHAPES,
    "map depthwise 9": [(32, 128, 128, 64), (32, 64, 64, 96), (32, 32, 32, 192), (32, 16, 16, 160)],
    "map depthwise 5": [(32, 128, 128, 64), (32, 32, 32, 288)],
    "volume shift 3": [(8, 12, 16, 12, 48), (8, 6, 8, 6, 120)],
    "depthwise 3": [(8, 48, 64, 48, 32), (8, 24, 32, 24, 64)],
    "depthwise 5": [(8, 24, 32, 24, 64), (8, 6, 8, 6, 240)],
}
ODD_VOLUMES = ((2, 5, 3, 7, 34), (1, 1, 9, 2, 13), (2, 12, 16, 12, 48))
# maps that a pass must read or write, forward and backward; batch norm reads its own twice, first for sums
MAPS = {
    "shift 3": (4, 5),
    "shift 2": (3, 4),
    "layer norm": (2, 3),
    "squared layer norm": (2, 3),
    "gated": (3, 5),
    "residual": (3, 3),
    "batch norm relu": (3, 5),
    "batch norm silu": (3, 5),
    "batch norm silu add": (4, 5),
    "volume shift 3": (4, 5),
    "map depthwise 9": (2, 3),
    "map depthwise 5": (2, 3),
    "depthwise 3": (2, 3),
    "depthwise 5": (2, 3),
}
FLUSH_BYTES = 2**28
PAUSE = 2_000_000  # cycles, about a millisecond, in which the host launches the whole call


class Case(NamedTuple):
    """What is called, and the gradients of what it returns."""

    operator: Callable[..., Any]
    leaves: list[Tensor]
    gs: list[Tensor]


def shift(x: Tensor, *mixes: Tensor, backend: str) -> tuple[Tensor, ...]:
    return shift_and_mix(x.permute(0, 3, 1, 2), mixes, backend=backend)


def gated(*x: Tensor, backend: str) -> tuple[Tensor, ...]:
    return (gated_layer_norm(*x, backend=backend),)


def residual(*x: Tensor, scale: Tensor, backend: str) -> tuple[Tensor, ...]:
    return (residual_layer_norm(*x, scale=scale, backend=backend),)


def normed(*x: Tensor, squared_relu: bool, backend: str) -> tuple[Tensor, ...]:
    return (layer_norm(*x, squared_relu=squared_relu, backend=backend),)


def volume_shift(x: Tensor, mixes: Tensor, backend: str) -> tuple[Tensor, ...]:
    return tuple(spatial_shift_and_mix(x.permute(0, 4, 1, 2, 3), mixes, backend=backend).unbind())


def depthwise(x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, ...]:
    return (depthwise_conv3d(x, weight, backend=backend),)


def map_depthwise(x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, ...]:
    return (depthwise_conv2d(x, weight, backend=backend),)


def norm_act(*x: Tensor, activation: str, statistics: dict[torch.dtype, list[Tensor]], backend: str) -> Any:
    x, weight, bias, *residual = x
    options = {"activation": activation, "residual": residual[0] if residual else None, "backend": backend}
    return (batch_norm_act(x, weight, bias, *statistics[weight.dtype], training=True, **options),)


def build(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    torch.manual_seed(0)
    maps = [torch.randn(shape, device="cuda", dtype=dtype) for _ in range(5)]
    vectors = [torch.rand(shape[-1], device="cuda") for _ in range(3)]
    if name.startswith("batch norm"):
        maps = [x.permute(0, 3, 1, 2) for x in maps[:3]]
        both = (torch.float32, torch.float64)
        statistics = {kind: [torch.ones(shape[-1], device="cuda", dtype=kind) for _ in "mv"] for kind in both}
        operator = partial(norm_act, activation=name.split()[2], statistics=statistics)
        leaves = [maps[0], *vectors[:2], *(maps[1:2] if name.endswith("add") else [])]
        wide = [part.double() for part in leaves[:3]]
        z = norm_act(*wide, activation="identity", statistics=statistics, backend="torch")[0]
        gs = [maps[2] * (z.abs() > 1e-3)]  # on which side of ReLU's corner rounding puts a number is no fault
    elif name.startswith("map"):
        maps = [x.permute(0, 3, 1, 2) for x in maps[:2]]
        kernel = torch.randn(shape[-1], 1, *[int(name[-1])] * 2, device="cuda")
        leaves, gs, operator = [maps[0], kernel], maps[1:], map_depthwise
    elif name.startswith("depthwise"):
        maps = [x.permute(0, 4, 1, 2, 3).contiguous() for x in maps[:2]]
        kernel = torch.randn(shape[-1], 1, *[int(name[-1])] * 3, device="cuda")
        leaves, gs, operator = [maps[0], kernel], maps[1:], depthwise
    elif name.startswith("volume"):
        leaves, gs, operator = [maps[0], torch.stack(vectors)], maps[1:4], volume_shift
    elif name.startswith("shift"):
        number = int(name[-1])
        leaves, gs, operator = [maps[0], *vectors[:number]], maps[1 : 1 + number], shift
    elif name.endswith("layer norm"):
        leaves, gs = [maps[0], *vectors[:2]], maps[2:3]
        operator = partial(normed, squared_relu=name.startswith("squared"))
    else:
        leaves, gs = [*maps[:2], *vectors[:2]], maps[2:3]
        scale = torch.rand(shape[0], device="cuda")
        operator = gated if name == "gated" else partial(residual, scale=scale)
    return Case(operator, [x.requires_grad_() for x in leaves], gs)


def results(case: Case, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in case.leaves]
    outs = case.operator(*leaves, backend=backend)
    gradients = torch.autograd.grad(outs, leaves, [g.to(dtype or g.dtype) for g in case.gs])
    return [x.detach().double() for x in (*outs, *gradients)]


def refuse_wrong_kernels(name: str, dtype: torch.dtype) -> None:
    volumes = any(len(shape) == 5 for shape in OWN_SHAPES.get(name, []))
    for shape in ODD_VOLUMES if volumes else ODD:
        case = build(name, shape, dtype)
        exact = results(case, "torch", torch.float64)
        found, plain = results(case, "triton"), results(case, "torch")
        for index, (a, b, e) in enumerate(zip(found, plain, exact, strict=True)):
            ours, allowed = (float((x - e).abs().max() / e.abs().max()) for x in (a, b))
            if not ours <= max(2 * allowed, 1e-5):
                sys.exit(
                    f"{name} is wrong at {shape}, {dtype}, result {index}: by {ours:.1e}, plain torch by "
                    f"{allowed:.1e}; nothing is timed"
                )


def median_us(call: Callable[[], object], repeats: int, flush: Tensor | None) -> float:
    """Median of the device's time over `repeats` calls, without the host's time to launch them."""
    for _ in range(10):
        call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        if flush is not None:
            flush.zero_()
        torch.cuda._sleep(PAUSE)
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(start.elapsed_time(end) for start, end in pairs)


def copy_speed() -> float:
    """Bytes a microsecond of a copy within the device, read and written."""
    source = torch.empty(2**29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_us(lambda: target.copy_(source), 20, None)


def times(
    case: Case, operator: Callable[..., Any], repeats: int, flush: Tensor | None
) -> tuple[float, float]:
    """Microseconds of the forward and of the backward pass."""
    outs = operator(*case.leaves)
    backward = partial(torch.autograd.grad, outs, case.leaves, case.gs, retain_graph=True)
    with torch.no_grad():
        forward = median_us(lambda: operator(*case.leaves), repeats, flush)
    return forward, median_us(backward, repeats, flush)


def row(name: str, case: Case, speed: float, arguments: argparse.Namespace) -> str:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if arguments.cold else None
    size = case.gs[0].numel() * case.gs[0].element_size()

    def plain(*x: Tensor) -> tuple[Tensor, ...]:
        return case.operator(*x, backend="torch")

    operators = [partial(case.operator, backend="triton"), plain]
    if arguments.compile:
        operators.append(torch.compile(plain))
    measured: Sequence[tuple[float, float]] = [times(case, f, arguments.repeats, flush) for f in operators]
    cells = [name]
    for direction in range(2):
        num_bytes = MAPS[name][direction] * size
        ours, *others = (times_of[direction] for times_of in measured)
        cells += [f"{num_bytes / 1e6:.1f}", f"{ours:.1f}", f"{100 * num_bytes / speed / ours:.0f} %"]
        cells += [f"{other:.1f} ({other / ours:.1f}x)" for other in others]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile", action="store_true", help="also plain torch through torch.compile")
    parser.add_argument("--cold", action="store_true", help="flush the second-level cache before every call")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--only", help="operators, comma-separated: " + ", ".join(MAPS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: this benchmark times GPU kernels. Run it on a machine with one.")
    names = [name for name in MAPS if not arguments.only or name in arguments.only.split(",")]
    if not names:
        sys.exit(f"--only {arguments.only} names no operator. Give some of {', '.join(MAPS)}.")
    for name in names:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            refuse_wrong_kernels(name, dtype)
    speed = copy_speed()
    others = ["torch us", *(["compiled us"] if arguments.compile else [])]
    head = [
        "operator",
        *(f"{d} {c}" for d in ("fwd", "bwd") for c in ("MB", "triton us", "of floor", *others)),
    ]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {speed / 1e6:.2f} TB/s, ", end="")
    print("cold" if arguments.cold else "warm", "second-level cache")
    for shape in (*SHAPES, *dict.fromkeys(shape for shapes in OWN_SHAPES.values() for shape in shapes)):
        at_this = [name for name in names if shape in OWN_SHAPES.get(name, SHAPES)]
        for dtype in (torch.bfloat16, torch.float32) if at_this else ():
            print(f"\n{shape} {str(dtype).removeprefix('torch.')}\n")
            print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
            for name in at_this:
                print(row(name, build(name, shape, dtype), speed, arguments), flush=True)


if __name__ == "__main__":
    main()
