"""Images a second of registered networks, training and inference, on random images or volumes.

Prints a table; times are medians of several repeats after warm-up, hardware and precision stated.

    python benchmarks/bench_network.py --models rwkv_unet_tiny --size 256 --batch 16 --profile
    python benchmarks/bench_network.py --models rwkv_unet_base --batch 32 --recorded --separate-norms
    python benchmarks/bench_network.py --models rwkv_unet_tiny rwkv_unet_base --size 224 --inference 1 24
    python benchmarks/bench_network.py --models urwkv3d_tiny --size 48 64 48 --batch 8 --set mixer=bi_mamba
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import yaml
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rwkvseg.inference.recorded_calls import RecordedCalls
from rwkvseg.models import blocks, create_model
from rwkvseg.ops.backends import launches_recorded
from rwkvseg.training.cuda_graphs import graphed
from rwkvseg.training.recipe_module import laid_out


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
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="of a square, or of a volume")
    parser.add_argument("--channels", type=int, help="of the images; default 3, of volumes 1")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides of the networks"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recorded", action="store_true", help="launch CUDA graphs, as training does")
    parser.add_argument(
        "--inference",
        type=int,
        nargs="+",
        metavar="BATCH",
        help="no training: calls as a predictor makes them, eager and recorded, at each of these batches",
    )
    parser.add_argument(
        "--separate-norms",
        action="store_true",
        help="batch norm, activation and residual one by one where launches are recorded, too",
    )
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms first")
    parser.add_argument(
        "--profile", action="store_true", help="print the ten dearest operators of a training step"
    )
    options = parser.parse_args()
    if len(options.size) not in (1, 3):
        parser.error("--size takes one side of squares or three of volumes")
    options.sides = 2 * options.size if len(options.size) == 1 else options.size
    options.channels = options.channels or (3 if len(options.sides) == 2 else 1)
    options.overrides = {key: yaml.safe_load(value) for key, value in (x.split("=", 1) for x in options.set)}
    return options


def random_images(options: argparse.Namespace, device: str) -> Tensor:
    return laid_out(torch.randn((options.batch, options.channels, *options.sides), device=device))


def build(model: str, options: argparse.Namespace, device: str) -> torch.nn.Module:
    """The network with the weights of a seed, channels-last in memory where it is for pictures."""
    torch.manual_seed(0)
    network = create_model(
        model, num_classes=options.classes, in_channels=options.channels, **options.overrides
    )
    if len(options.sides) == 3:
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last)


def training_step(network: torch.nn.Module, options: argparse.Namespace, device: str) -> Callable[[], None]:
    """A step of training on random images."""
    optimizer = torch.optim.AdamW(network.parameters(), fused=device == "cuda")
    image = random_images(options, device)
    label = torch.randint(options.classes, (options.batch, *options.sides), device=device)
    autocast = None if options.float32 else torch.bfloat16
    call = (graphed(network, (image,), autocast=autocast) if options.recorded else None) or network

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=not options.float32):
            outputs = call(image)
        heads = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]  # the finest first
        loss = torch.nn.functional.cross_entropy(heads[0].float(), label)
        loss = loss + sum(head.float().square().mean() for head in heads[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def forward_pass(network: torch.nn.Module, options: argparse.Namespace, device: str) -> Callable[[], object]:
    """A pass forward of random images."""
    image = random_images(options, device)

    def forward() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=not options.float32, cache_enabled=False):
            return network(image)

    if not options.recorded:
        return forward
    graph = torch.cuda.CUDAGraph()
    with launches_recorded():
        for _ in range(3):
            forward()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            forward()
    return graph.replay


def print_inference(model: str, options: argparse.Namespace, device: str) -> None:
    """Two rows for each batch: calls launched kernel by kernel, and recorded."""
    network = build(model, options, device).eval()
    autocast = None if options.float32 else torch.bfloat16
    for batch in options.inference:
        options.batch = batch
        image = random_images(options, device)
        for name, most in (("eager", 0), ("recorded", 1)) if device == "cuda" else (("eager", 0),):
            calls = RecordedCalls(network, most)
            with torch.inference_mode():
                seconds = median_seconds(partial(calls, image, autocast), device, options.repeats)
            print(
                f"{model:20s} batch {batch:3d} {name:8s} {1e3 * seconds:8.2f} ms {batch / seconds:8.1f} img/s"
            )


def print_dearest(step: Callable[[], None], device: str) -> None:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as record:
        step()
        synchronise(device)
    key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    print(record.key_averages().table(sort_by=key, row_limit=22, max_name_column_width=60))


def measure(model: str, options: argparse.Namespace, device: str) -> str:
    """One row of the table."""
    network = build(model, options, device)
    if options.compile:
        network.compile()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    train_step = training_step(network, options, device)
    training = median_seconds(train_step, device, options.repeats)
    first = time.perf_counter() - started - options.repeats * training
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    if options.profile:
        print_dearest(train_step, device)
    network.eval()
    with torch.no_grad():
        inference = median_seconds(forward_pass(network, options, device), device, options.repeats)
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
    how = "compiled" if options.compile else "recorded" if options.recorded else "eager"
    if options.separate_norms:
        blocks.launches_are_recorded = lambda: False
        how += ", norms by themselves"
    size = ", ".join([" x ".join(map(str, options.sides)), *options.set])
    if options.inference:
        print(f"{name}, torch {torch.__version__}, {size}, {precision}, inference")
        for model in options.models:
            print_inference(model, options, device)
        return
    size += f", batch {options.batch}"
    print(f"{name}, torch {torch.__version__}, {size}, {precision} {how}")
    for model in options.models:
        print(measure(model, options, device))


if __name__ == "__main__":
    main()
