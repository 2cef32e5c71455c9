"""Time bi_wkv, forward and backward apart, against its byte floor and its peers; a wrong kernel is refused.

    python benchmarks/bench_bi_wkv.py [--backend triton] [--device cuda] [--published DIR] [--quick] [-o PATH]

First the gate: accuracy_bi_wkv.py on a few shapes, then every timed shape against `scan` in float64. Then
    floor    3 (forward) or 5 (backward) tensors of B T C numbers over the bandwidth of a copy in the same run
    eager, warm, cold    see timing.py; shares are floor / time (of eager where there is no graph)
    saved    memory kept for the backward pass besides w, u, k, v; peak: most memory taken during the pass
    SDPA     scaled_dot_product_attention of equal size, heads of 64 channels (48 where 64 does not divide C)
The forward pass runs with gradients enabled; the backward pass is torch.autograd.grad on a graph built
before. --published compiles the kernel of a checkout of RWKV-UNet; it is timed last, since it can crash.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import accuracy_bi_wkv as accuracy
import report
import torch
import torch.nn.functional as F
from published_kernel import PublishedKernel, compile_published
from timing import Call, Clock
from torch import Tensor

from rwkvseg.ops import bi_wkv

SHAPES = [
    *((24, 784, 576), (24, 196, 960), (8, 1024, 576), (8, 256, 960), (24, 784, 288), (1, 784, 576)),
    *((8, 4096, 576), (2, 32_768, 256), (1, 262_144, 64)),
]
QUICK = [(2, 63, 48), (1, 196, 64)]
GATE = [(2, 63, 5), (2, 196, 33), (2, 784, 16), (1, 1025, 8), (1, 2050, 3)]
GATE_CASES = [(-8.0, "10"), (0.0, "50"), (3.0, "1"), (300.0, "10"), (-30.0, "one-hot")]
TENSORS = {"forward": 3, "backward": 5}  # moved at least: k, v, y and k, v, g, gk, gv
NAIVE_WEIGHTS = {"cuda": 2**30, "cpu": 2**24}  # B T T C up to which the definition is timed
SDPA_FLOP = {torch.float32: 1e13, torch.bfloat16: 1e14}
CPU_SDPA_FLOP = 1e11

Shape = tuple[int, int, int]
Plan = tuple[Shape, torch.dtype]


class Job(NamedTuple):
    """A shape, a dtype and random arguments of an ordinary size."""

    shape: Shape
    dtype: torch.dtype
    x: accuracy.Inputs

    @property
    def name(self) -> str:
        """First cells of its rows."""
        return f"{', '.join(map(str, self.shape))} | {str(self.dtype).removeprefix('torch.')}"


class Tables(NamedTuple):
    """Rows about the backend alone, and rows (one a pass) of a job beside its peers."""

    own: list[str]
    peers: dict[Plan, list[list[str]]]

    def lines(self, backend: str, titles: list[str]) -> list[str]:
        """Return both as markdown."""
        columns = ["floor", "eager", "warm", "share", "cold", "share", "saved", "peak"]
        return [
            "",
            f"## bi_wkv, backend {backend}: milliseconds, share of the byte floor, MiB",
            "",
            *head(["(B, T, C)", "dtype", "pass", *columns]),
            *self.own,
            "",
            "## Beside its peers: milliseconds, eager / warm",
            "",
            *head(titles),
            *(f"| {' | '.join(row)} |" for rows in self.peers.values() for row in rows),
            "",
        ]


def job(shape: Shape, dtype: torch.dtype, device: str) -> Job:
    x = accuracy.inputs(accuracy.Shape(*shape, shape[2]), [(1.0, "2")], device)
    w = torch.randn(shape[2], generator=torch.Generator(device).manual_seed(0), device=device) / shape[1]
    return Job(shape, dtype, x._replace(w=w).to(dtype, both=False))


def passes(operator: Callable[..., Tensor], leaves: list[Tensor], g: Tensor) -> dict[str, Call]:
    """Return the forward pass and the backward pass as calls."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    y = operator(*leaves)
    backward = partial(torch.autograd.grad, y, leaves, g, retain_graph=True)
    return {"forward": partial(operator, *leaves), "backward": backward}


def refuse_wrong_kernels(backend: str, device: str, quick: bool) -> None:
    examination = accuracy.Examination(backend, device, GATE_CASES)
    for batch, num_tokens, channels in GATE[:2] if quick else GATE:
        examination.examine(accuracy.Shape(batch, num_tokens, channels, channels))
    refuse(examination.broken)


def refuse(broken: list[str]) -> None:
    if broken:
        sys.exit("\n".join(["nothing is timed, the operator is wrong:", *broken[:10]]))


def refuse_wrong_results(backend: str, job: Job) -> None:
    """Compare one job with `scan` in float64: sizes that the gate does not reach."""
    ours = accuracy.run(partial(bi_wkv, backend=backend), job.x)
    exact = accuracy.run(partial(bi_wkv, backend="scan"), job.x.to(torch.float64))
    found = accuracy.errors(ours, exact, job.x).flatten()
    limits = accuracy.limits_of_rounding(ours, exact, job.x, [(1.0, "2")]).flatten()
    each = zip(accuracy.Results._fields, found.tolist(), limits.tolist(), strict=True)
    refuse([f"{name} {e:.1e} > {limit:.1e} at {job.name}" for name, e, limit in each if not e <= limit])


def own_rows(backend: str, job: Job, clock: Clock, bandwidth: float) -> tuple[list[str], list[str]]:
    """Return one row a pass for the table of the backend, and its cells for the table of peers."""
    operator = partial(bi_wkv, backend=backend)
    saved = f"{saved_bytes(operator, list(job.x[:4])) / 2**20:.2f}"
    rows, short = [], []
    for name, call in passes(operator, list(job.x[:4]), job.x.g).items():
        floor = TENSORS[name] * job.x.k.nbytes / bandwidth * 1e3
        eager = clock.eager(call)
        cells = [job.name, name, f"{floor:.4f}", f"{eager:.4f}"]
        short.append(f"{eager:.3f}")
        if graphs(backend, clock.device):
            warm, cold = clock.warm(call), clock.cold(call)
            short[-1] += f" / {warm:.3f}"
            for ms in (warm, cold):
                cells += [f"{ms:.4f}", f"{100 * floor / ms:.0f} %"]
        else:
            cells += ["-", f"{100 * floor / eager:.0f} %", "-", "-"]
        cells += [saved, peak(call, clock.device)]
        rows.append(f"| {' | '.join(cells)} |")
    return rows, short


def graphs(backend: str, device: str) -> bool:
    """Whether a CUDA graph can hold it: `scan` reads its guard on the host."""
    return device == "cuda" and backend != "scan"


def saved_bytes(operator: Callable[..., Tensor], leaves: list[Tensor]) -> int:
    """Return the size of what autograd keeps besides the arguments."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        y = operator(*leaves)
    given = {x.untyped_storage().data_ptr() for x in leaves}
    del y  # it holds what was kept alive until here
    return sum(size for place, size in kept.items() if place not in given)


def peak(call: Call, device: str) -> str:
    if device == "cpu":
        return "-"
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.1f}"


def peer_rows(own: list[str], job: Job, clock: Clock) -> list[list[str]]:
    """Return one row a pass: own cells, scan, naive and SDPA, 'eager / warm' where a graph holds it."""
    batch, num_tokens, channels = job.shape
    weights = batch * num_tokens**2 * channels
    flop = SDPA_FLOP[job.dtype] if clock.device == "cuda" else CPU_SDPA_FLOP
    fits = {"scan": True, "naive": weights <= NAIVE_WEIGHTS[clock.device], "SDPA": 4 * weights <= flop}
    rows = [[job.name, name, cell] for name, cell in zip(TENSORS, own, strict=True)]
    for peer, possible in fits.items():
        cells = ["-", "-"]
        if possible and peer == "SDPA":
            cells = peer_cells(passes(F.scaled_dot_product_attention, *attention(job)), clock, graph=True)
        elif possible:
            calls = passes(partial(bi_wkv, backend=peer), list(job.x[:4]), job.x.g)
            cells = peer_cells(calls, clock, graph=peer != "scan")
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    return rows


def peer_cells(calls: dict[str, Call], clock: Clock, *, graph: bool) -> list[str]:
    cells = []
    for call in calls.values():
        eager = f"{clock.eager(call):.3f}"
        cells.append(f"{eager} / {clock.warm(call):.3f}" if graph and clock.device == "cuda" else eager)
    return cells


def attention(job: Job) -> tuple[list[Tensor], Tensor]:
    """Return q, k, v and the gradient of the output, (B, heads, T, channels of a head)."""
    batch, num_tokens, channels = job.shape
    width = next(width for width in (64, 48, channels) if channels % width == 0)
    size = (batch, channels // width, num_tokens, width)
    q, k, v, g = (torch.randn(size, device=job.x.k.device, dtype=job.dtype) for _ in range(4))
    return [q, k, v], g


def published_cells(kernel: PublishedKernel, job: Job, clock: Clock) -> list[list[str]]:
    """Return, a pass each, its time and how far its results lie from float64."""
    if job.shape[1] > kernel.longest:
        return [["-", "-"]] * 2
    *arguments, g = job.x
    exact = accuracy.run(partial(bi_wkv, backend="scan"), job.x.to(torch.float64))
    ours = accuracy.Results(kernel.forward(*arguments), *kernel.backward(*arguments, g))
    y, *gradients = accuracy.errors(ours, exact, job.x).flatten().tolist()
    forward = clock.eager(partial(kernel.forward, *arguments))
    backward = clock.eager(partial(kernel.backward, *arguments, g))
    return [[f"{forward:.3f}", f"{y:.0e}"], [f"{backward:.3f}", f"{max(gradients):.0e}"]]


def add_published(kernel: PublishedKernel, tables: Tables, plans: list[Plan], clock: Clock) -> None:
    """Lengthen the rows of peers; T = 196, where it reads out of bounds, comes last."""
    crashed = False
    # it knows only the default stream, which does not wait for others
    with torch.cuda.stream(torch.cuda.default_stream() if clock.device == "cuda" else None):
        for shape, dtype in sorted(plans, key=lambda plan: plan[0][1] == 196):
            cells = [["not run", ""]] * 2
            if not crashed:
                try:
                    cells = published_cells(kernel, job(shape, dtype, clock.device), clock)
                except RuntimeError as error:
                    crashed, cells = True, [["crashed", str(error).splitlines()[0][:60]]] * 2
            for row, more in zip(tables.peers[shape, dtype], cells, strict=True):
                row += more


def measure(options: argparse.Namespace) -> list[str]:
    start = time.perf_counter()
    published = compile_published(options.published) if options.published else None
    clock = Clock(options.device, options.budget)
    bandwidth = clock.copy_bandwidth()
    shapes = [options.only] if options.only else QUICK if options.quick else SHAPES
    plans = [(shape, dtype) for shape in shapes for dtype in (torch.float32, torch.bfloat16)]
    tables = Tables([], {})
    for shape, dtype in plans:
        this = job(shape, dtype, options.device)
        refuse_wrong_results(options.backend, this)
        rows, short = own_rows(options.backend, this, clock, bandwidth)
        tables.own.extend(rows)
        tables.peers[shape, dtype] = peer_rows(short, this, clock)
        print(this.name.replace(" | ", ", "), "timed", file=sys.stderr, flush=True)
    titles = ["(B, T, C)", "dtype", "pass", options.backend, "scan", "naive", "SDPA"]
    if published:
        add_published(published, tables, plans, clock)
        titles += ["published", "its error"]
    return [
        f"- copy {bandwidth / 1e12:.3f} TB/s; medians of up to 100 calls (eager), 15 replays (graphs)",
        f"- gate passed: results against float64; {time.perf_counter() - start:.0f} s of measuring",
        *tables.lines(options.backend, titles),
    ]


def head(titles: list[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="triton" if cuda else "scan")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--published", type=Path, metavar="DIR", help="checkout that holds cuda/wkv_op.cpp")
    parser.add_argument("--quick", action="store_true", help="small shapes: seconds on a CPU")
    parser.add_argument("--only", type=lambda text: tuple(map(int, text.split(","))), help="one shape B,T,C")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds of calls for each figure")
    parser.add_argument("-o", "--output", type=Path, help="markdown file, or the folder to write it to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    refuse_wrong_kernels(options.backend, options.device, options.quick)
    if options.device == "cuda":
        with torch.cuda.stream(torch.cuda.Stream()):  # a graph cannot be captured on the default stream
            found = measure(options)
    else:
        found = measure(options)
    text = "\n".join([f"# Speed of bi_wkv, {report.today()}", "", *report.header(options.device), *found])
    print(text)
    if options.output:
        report.save(options.output, "bi_wkv", options.device, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
