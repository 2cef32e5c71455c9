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


def main() -> None:
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
    arguments = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = arguments.cudnn_benchmark
    print(
        f"{name}, torch {torch.__version__}, {arguments.size} x {arguments.size}, batch {arguments.batch}, ",
        end="",
    )
    print(
        "float32" if arguments.float32 else "bfloat16 autocast", "compiled" if arguments.compile else "eager"
    )
    for model in arguments.models:
        torch.manual_seed(0)
        network = create_model(model, num_classes=arguments.classes).to(
            device, memory_format=torch.channels_last
        )
        if arguments.compile:
            network.compile()
        optimizer = torch.optim.AdamW(network.parameters(), fused=device == "cuda")
        image = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
        image = image.to(memory_format=torch.channels_last)
        label = torch.randint(
            arguments.classes, (arguments.batch, arguments.size, arguments.size), device=device
        )

        def forward(network: torch.nn.Module = network, image: torch.Tensor = image) -> torch.Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=not arguments.float32):
                return network(image)

        def train_step(
            forward: Callable[[], torch.Tensor] = forward,
            optimizer: torch.optim.Optimizer = optimizer,
            label: torch.Tensor = label,
        ) -> None:
            loss = torch.nn.functional.cross_entropy(forward().float(), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        started = time.perf_counter()
        training = median_seconds(train_step, device, arguments.repeats)
        first = time.perf_counter() - started - (arguments.repeats) * training
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
        if arguments.profile:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
            with profile(activities=activities) as record:
                train_step()
                synchronise(device)
            key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
            print(record.key_averages().table(sort_by=key, row_limit=22, max_name_column_width=60))
        network.eval()
        with torch.inference_mode():
            inference = median_seconds(forward, device, arguments.repeats)
        print(
            f"{model:20s} training {arguments.batch / training:7.1f} img/s ({1e3 * training:6.1f} ms,"
            f" peak {peak:.2f} GiB, warm-up {first:.0f} s)"
            f"   inference {arguments.batch / inference:7.1f} img/s ({1e3 * inference:6.1f} ms)"
        )


if __name__ == "__main__":
    main()
