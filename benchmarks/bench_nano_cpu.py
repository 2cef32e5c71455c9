"""Images a second of small networks on CPU cores: random images, evaluation mode, float32, eager.

    python benchmarks/bench_nano_cpu.py [--models rwkv_unet_nano rwkv_unet_tiny] [--threads 2] [--seconds 20]
        [--when-idle] [--profile] [-o benchmarks/results]

Prints images a second at each batch size: the best and the median of all calls made within --seconds, after
two warm-up calls. Images are channels-last, as the Predictor hands them over. Other work on the machine
spoils the median and can spoil the best: the last line says how busy it was. --when-idle makes each call only
after a fifth of a second in which the processors were at least 90 % idle (Linux), so that other work spoils
less. --profile adds the dearest operators.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import report
import torch
from torch.profiler import ProfilerActivity, profile

from rwkvseg.models import create_model

GOAL = 20  # images a second of nano at 256 x 256 on 2 cores


def busy_share(seconds: float = 0.2) -> float:
    """Share of the processors' time that was not idle, of all processes together, from now on."""
    before, _, after = _ticks(), time.sleep(seconds), _ticks()
    spent = [late - early for early, late in zip(before, after, strict=True)]
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))  # idle, and waiting for a disk


def _ticks() -> list[int]:
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]


def call_seconds(call: Callable[[], object], budget: float, *, when_idle: bool) -> list[float]:
    """Time calls until the budget in seconds is spent, three at least, after two that do not count."""
    for _ in range(2):
        call()
    times: list[float] = []
    until = time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < until:
        while when_idle and busy_share() > 0.1 and time.perf_counter() < until:
            pass
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def measure(model: str, batch: int, options: argparse.Namespace) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    network = create_model(model).eval()
    image = torch.randn(batch, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        times = call_seconds(lambda: network(image), options.seconds, when_idle=options.when_idle)
        if options.profile:
            with profile(activities=[ProfilerActivity.CPU]) as record:
                network(image)
            print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    best, median = batch / min(times), batch / statistics.median(times)
    return f"| {model} | {parameters:.2f} | {batch} | {best:.1f} | {median:.1f} | {len(times)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["rwkv_unet_nano", "rwkv_unet_tiny"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each row")
    parser.add_argument("--when-idle", action="store_true", help="only while nothing else computes")
    parser.add_argument("--profile", action="store_true", help="print the dearest operators of one call")
    parser.add_argument("-o", "--out", type=Path, help="folder or .md file for the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    lines = [
        f"# Images a second on the CPU, {options.size} x {options.size}, float32, eager, no_grad",
        "",
        *report.header("cpu"),
        "",
        "| network | parameters (M) | batch | best (images/s) | median (images/s) | calls |",
        "|---|---|---|---|---|---|",
    ]
    lines += [measure(model, batch, options) for model in options.models for batch in options.batches]
    lines += ["", f"- {report.load()}", f"- goal of nano: {GOAL} images a second"]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        report.save(options.out, "nano_cpu", "cpu", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
