"""Images a second of registered networks, training and inference, on random images.

Prints a table; times are medians of several repeats after warm-up, hardware and precision stated.

    python benchmarks/bench_network.py --models rwkv_unet_tiny --size 256 --batch 16 --profile
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from rwkvseg.models import create_model


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(step: Callable[[], object], device: str, repeats: int) -> float:
    for _ in range(5):
        step()
    times = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["rwkv_unet_tiny"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms first")
    parser.add_argument(
        "--profile", action="store_true", help="print the ten dearest operators of a training step"
    )
    return parser.parse_args()


def steps_of(
    network: torch.nn.Module, options: argparse.Namespace, device: str
) -> tuple[Callable[[], torch.Tensor], Callable[[], None]]:
    """A pass forward of random images, and a step of training on them."""
    optimizer = torch.optim.AdamW(network.parameters(), fused=device == "cuda")
    image = torch.randn(options.batch, 3, options.size, options.size, device=device)
    image = image.to(memory_format=torch.channels_last)
    label = torch.randint(options.classes, (options.batch, options.size, options.size), device=device)

    def forward() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=not options.float32):
            return network(image)

    def train_step() -> None:
        loss = torch.nn.functional.cross_entropy(forward().float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return forward, train_step


def print_dearest(step: Callable[[], None], device: str) -> None:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as record:
        step()
        synchronise(device)
    key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    print(record.key_averages().table(sort_by=key, row_limit=22, max_name_column_width=60))


def measure(model: str, options: argparse.Namespace, device: str) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    network = create_model(model, num_classes=options.classes)
    network = network.to(device, memory_format=torch.channels_last)
    if options.compile:
        network.compile()
    forward, train_step = steps_of(network, options, device)
    started = time.perf_counter()
    training = median_seconds(train_step, device, options.repeats)
    first = time.perf_counter() - started - options.repeats * training
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    if options.profile:
        print_dearest(train_step, device)
    network.eval()
    with torch.inference_mode():
        inference = median_seconds(forward, device, options.repeats)
    return (
        f"{model:20s} training {options.batch / training:7.1f} img/s ({1e3 * training:6.1f} ms,"
        f" peak {peak:.2f} GiB, warm-up {first:.0f} s)"
        f"   inference {options.batch / inference:7.1f} img/s ({1e3 * inference:6.1f} ms)"
    )


def main() -> None:
    options = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    precision = "float32" if options.float32 else "bfloat16 autocast"
    how = "compiled" if options.compile else "eager"
    size = f"{options.size} x {options.size}, batch {options.batch}"
    print(f"{name}, torch {torch.__version__}, {size}, {precision} {how}")
    for model in options.models:
        print(measure(model, options, device))


if __name__ == "__main__":
    main()
