"""Time the depthwise convolutions of networks on a GPU: ours against torch's, which is cuDNN.

    python benchmarks/bench_depthwise.py
    python benchmarks/bench_depthwise.py --models rwkv_unet_tiny --sides 5 --no-torch --set ROWS=2 COLS=8
    python benchmarks/bench_depthwise.py --strides 2 --set ROWS_OF_INPUT=2 COLS_OF_INPUT=16
    TRITON_INTERPRET=1 python benchmarks/bench_depthwise.py --device cpu --sides 5

Takes every depthwise convolution of stride 1 or 2 that runs in the networks (found by running them without
numbers), checks values and both gradients against torch's in float64, then prints milliseconds of the forward
pass, of the gradient of the input and of that of the weight, which share of our time reading and writing the
maps once takes at the speed of a copy measured in the same run, and the sums over each network. Times are of
the device alone, from CUDA graphs, data not in the cache (--warm: in it where it fits); cuDNN tries its
algorithms first. On a CPU kernels are interpreted: small maps are checked and nothing is timed.
"""

import argparse
import functools
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import report
import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkvseg.models import create_model

PASSES = ("forward", "of input", "of weight")
ALLOWED = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}  # error in units of the largest value
SMALL = (1, 6, 9, 17)  # (B, C, H, W) of a check on a CPU


class Convolution(NamedTuple):
    """A depthwise convolution of maps (channels, height, width) by kernels of side x side."""

    channels: int
    height: int
    width: int
    side: int
    stride: int


def convolutions(model: str, size: int) -> Counter[Convolution]:
    """Return what a network computes from a picture of size x size, and how often."""
    network = create_model(model, num_classes=2).to("meta")
    found: Counter[Convolution] = Counter()

    def note(module: nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        sides = {*module.kernel_size}
        depthwise = module.groups == module.in_channels == module.out_channels > 1
        if depthwise and module.stride in ((1, 1), (2, 2)) and len(sides) == 1 and max(sides) > 1:
            found[Convolution(*inputs[0].shape[1:], max(sides), module.stride[0])] += 1

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    network(torch.empty(2, 3, size, size, device="meta"))
    return found


def kernels() -> Any:
    from rwkvseg.ops.fused import triton_depthwise2d

    return triton_depthwise2d


def gradient_of_input(x: Tensor, weight: Tensor, g: Tensor, stride: int) -> Tensor:
    from rwkvseg.ops.fused import triton_depthwise2d_input

    if stride == 1:
        gx: Tensor = kernels().convolve(g, weight, flipped=True)
        return gx
    return triton_depthwise2d_input.gradient_of_input(x, weight, g)


def choose(settings: Sequence[str]) -> None:
    """Set constants of the kernels, each as NAME=NUMBER."""
    for setting in settings:
        name, _, number = setting.partition("=")
        if not isinstance(getattr(kernels(), name, None), int) or not number.isdigit():
            raise SystemExit(f"--set {setting}: give NAME=NUMBER, a constant of triton_depthwise2d.py")
        setattr(kernels(), name, int(number))


def inputs(batch: int, case: Convolution, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, weight and the gradient of the result."""
    generator = torch.Generator(device).manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, device=device)
    size = [-(-side // case.stride) for side in (case.height, case.width)]
    shapes = (case.channels, case.height, case.width), (case.channels, *size)
    x, g = (draw(batch, *shape).to(dtype, memory_format=torch.channels_last) for shape in shapes)
    return x, draw(case.channels, 1, case.side, case.side), g


def our_passes(x: Tensor, weight: Tensor, g: Tensor, stride: int) -> list[Callable[[], Tensor]]:
    ours = kernels()
    return [
        lambda: ours.convolve(x, weight, flipped=False, stride=stride),
        lambda: gradient_of_input(x, weight, g, stride),
        lambda: ours.gradient_of_weight(x, weight, g, stride=stride),
    ]


def torch_passes(x: Tensor, weight: Tensor, g: Tensor, stride: int) -> list[Callable[[], Tensor]]:
    padding, groups = weight.shape[2] // 2, x.shape[1]
    weight = weight.to(x.dtype)

    def gradient(which: int) -> Tensor:
        mask = [which == 0, which == 1, False]
        gradients = torch.ops.aten.convolution_backward(
            g, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, mask
        )
        result: Tensor = gradients[which]
        return result

    forward = functools.partial(F.conv2d, x, weight, stride=stride, padding=padding, groups=groups)
    return [forward, functools.partial(gradient, 0), functools.partial(gradient, 1)]


def errors(x: Tensor, weight: Tensor, g: Tensor, stride: int) -> list[float]:
    """Largest error of each pass in units of its largest value; NaN counts as infinite."""
    exact = torch_passes(x.double(), weight.double(), g.double(), stride)
    found = []
    for ours, theirs in zip(our_passes(x, weight, g, stride), exact, strict=True):
        truth = theirs()
        error = (ours().double() - truth).abs().nan_to_num(torch.inf).max()
        found.append(float(error / truth.abs().max()))
    return found


def refuse_wrong_kernels(cases: Iterable[tuple[int, Convolution]], dtype: torch.dtype, device: str) -> None:
    name = str(dtype).removeprefix("torch.")
    for batch, case in cases:
        found = errors(*inputs(batch, case, dtype, device), case.stride)
        if max(found) > ALLOWED[name]:
            raise SystemExit(f"wrong at {case}, batch {batch}, {name}: errors {found}; nothing is timed")


def compile_kernels(case: Convolution, batch: int, dtype: torch.dtype, settings: Sequence[str]) -> None:
    """Fill Triton's cache on disk."""
    choose(settings)
    for call in our_passes(*inputs(batch, case, dtype, "cuda"), case.stride):
        call()
    torch.cuda.synchronize()


def compile_side_by_side(
    cases: Iterable[Convolution], batch: int, dtype: torch.dtype, settings: Sequence[str]
) -> None:
    """Compile what the cases need, every variant in a process of its own."""
    ours, variants = kernels(), {}
    for case in cases:
        x = torch.empty(batch, *case[:3], device="meta")
        patch = (ours.ROWS, ours.COLS) if case.stride == 1 else (ours.ROWS_OF_INPUT, ours.COLS_OF_INPUT)
        rows = [ours.rows_and_programs(x, *patch)[0]]
        if case.stride == 2:
            y = x[..., ::2, ::2]
            rows.append(ours.rows_and_programs(y, ours.ROWS_STRIDED, ours.COLS_STRIDED)[0])
        variants[case.side, *rows, *ours.lanes_over(case.channels, ours.WARPS)] = case
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(variants), os.cpu_count() or 1), mp_context=context) as pool:
        compiled = functools.partial(compile_kernels, batch=batch, dtype=dtype, settings=settings)
        list(pool.map(compiled, variants.values()))


class Row(NamedTuple):
    """Milliseconds of each pass, and of reading and writing its maps."""

    ours: list[float]
    torch: list[float]
    floor: float


def measured(
    case: Convolution,
    batch: int,
    dtype: torch.dtype,
    clock: Callable[[Any], float],
    speed: float,
    *,
    beside: bool,
) -> Row:
    x, weight, g = inputs(batch, case, dtype, "cuda")
    ours = [clock(call) for call in our_passes(x, weight, g, case.stride)]
    theirs = [clock(call) for call in torch_passes(x, weight, g, case.stride)] if beside else []
    return Row(ours, theirs, 1e3 * (x.nbytes + g.nbytes) / speed)


def line(name: str, number: int, row: Row) -> str:
    cells = [name, str(number)]
    for i, ours in enumerate(row.ours):
        cells += [f"{ours:.3f}", f"{100 * row.floor / ours:.0f} %"]
        cells += [f"{row.torch[i]:.3f} ({row.torch[i] / ours:.2f}x)"] if row.torch else []
    return f"| {' | '.join(cells)} |"


def total(found: Counter[Convolution], rows: dict[Convolution, Row]) -> Row:
    """Add up what a network takes, as often as it computes each."""
    cases = [case for case in found if case in rows]

    def summed(which: Callable[[Row], list[float]]) -> list[float]:
        columns = zip(*([found[case] * x for x in which(rows[case])] for case in cases), strict=True)
        return [sum(column) for column in columns]

    return Row(
        summed(lambda row: row.ours),
        summed(lambda row: row.torch),
        sum(found[c] * rows[c].floor for c in cases),
    )


def table(networks: dict[str, Counter[Convolution]], rows: dict[Convolution, Row], batch: int) -> list[str]:
    """Every convolution with its times, then the sums over each network, each side and stride of kernels."""
    beside = all(row.torch for row in rows.values())
    columns = [f"{name}{what}" for name in PASSES for what in (" ms", " floor", " torch")[: 2 + beside]]
    head = ["(B, C, H, W), kernel, stride", "times", *columns]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for case, row in rows.items():
        times = " + ".join(str(found[case]) for found in networks.values())
        shape = f"({batch}, {case.channels}, {case.height}, {case.width})"
        lines.append(line(f"{shape}, {case.side} x {case.side}, {case.stride}", times, row))
    for model, found in networks.items():
        present = Counter({case: number for case, number in found.items() if case in rows})
        for kind in sorted({(case.side, case.stride) for case in present}):
            part = Counter({case: n for case, n in present.items() if (case.side, case.stride) == kind})
            label = f"{model}, all {kind[0]} x {kind[0]}, {kind[1]}"
            lines.append(line(label, part.total(), total(part, rows)))
        if present:
            lines.append(line(f"{model}, all", present.total(), total(present, rows)))
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["rwkv_unet_tiny", "rwkv_unet_base"])
    parser.add_argument("--size", type=int, default=256, help="of the pictures")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=tuple(ALLOWED), default="bfloat16")
    parser.add_argument(
        "--sides", type=int, nargs="+", help="of the kernels that are timed; all if not given"
    )
    parser.add_argument(
        "--strides", type=int, nargs="+", default=[1, 2], choices=(1, 2), help="those that are timed"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--warm", action="store_true", help="leave data in the second-level cache")
    parser.add_argument("--no-torch", action="store_true", help="time ours alone")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=NUMBER",
        help="constants of triton_depthwise2d.py",
    )
    parser.add_argument("--seconds", type=float, default=85, help="after so many no further row is begun")
    parser.add_argument("--output", type=Path, help="a folder or a .md file for the table")
    return parser.parse_args()


def main() -> None:
    started = time.perf_counter()
    options = parse()
    dtype = getattr(torch, options.dtype)
    networks = {model: convolutions(model, options.size) for model in options.models}
    cases = dict.fromkeys(case for found in networks.values() for case in found)
    cases = [case for case in cases if not options.sides or case.side in options.sides]
    cases = [case for case in cases if case.stride in options.strides]
    if not cases:
        raise SystemExit(
            f"these networks have no kernels of sides {options.sides}, strides {options.strides}"
        )
    if options.device == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise SystemExit("a CPU runs the kernels interpreted: set TRITON_INTERPRET=1 in the environment")
        choose(options.set)
        batch, *shape = SMALL
        kinds = sorted({(case.side, case.stride) for case in cases})
        refuse_wrong_kernels(((batch, Convolution(*shape, *kind)) for kind in kinds), dtype, "cpu")
        print(f"right at {SMALL} for kernels of (side, stride) {kinds}; nothing is timed on a CPU")
        return
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: give --device cpu to check the kernels, interpreted")
    choose(options.set)
    compile_side_by_side(cases, options.batch, dtype, options.set)
    refuse_wrong_kernels(((options.batch, case) for case in cases), dtype, "cuda")
    print(f"compiled and checked after {time.perf_counter() - started:.0f} s", flush=True)
    torch.backends.cudnn.benchmark = True
    clock = timing.Clock("cuda", budget=0.005)
    rows: dict[Convolution, Row] = {}
    with torch.cuda.stream(torch.cuda.Stream()):
        speed = clock.copy_bandwidth()
        for case in cases:
            if time.perf_counter() - started < options.seconds:
                take = clock.warm if options.warm else clock.cold
                beside = not options.no_torch
                rows[case] = measured(case, options.batch, dtype, take, speed, beside=beside)
    lines = [
        "# Depthwise convolutions of maps: ours beside torch's",
        "",
        *report.header("cuda"),
        f"- {options.dtype}, channels-last, {'warm' if options.warm else 'cold'} cache; a copy moves "
        f"{speed / 1e12:.2f} TB/s; {len(cases) - len(rows)} of {len(cases)} convolutions left out for time",
        "- times: how often in " + ", ".join(networks),
        "",
        *table(networks, rows, options.batch),
    ]
    print("\n".join(lines))
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.output:
        report.save(options.output, "depthwise", "cuda", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
