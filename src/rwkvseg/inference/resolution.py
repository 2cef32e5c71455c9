"""Compute and time of a network against the size of its picture."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def measure_sizes(
    network: nn.Module,
    sizes: Sequence[int],
    device: torch.device,
    *,
    repeats: int = 5,
    on_size: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """One entry a size: multiply-accumulates and milliseconds of a forward pass of one square picture.

    Counted are convolutions and matrix products, as torch's FlopCounterMode sees them; WKV, norms,
    activations and resizing are not. Timed are `repeats` passes after one that does not count: median, least
    and most.

    Args:
        network: takes (1, 3, size, size), in evaluation mode on the device.
        sizes: sides in pixels.
        device: of the network.
        repeats: timed passes, at least 1.
        on_size: called after each size.
    """
    rows = []
    for size in sizes:
        image = torch.rand(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            network(image)
        times = [1e3 * _seconds(network, image, device) for _ in range(repeats)]
        rows.append(
            {
                "size": size,
                "macs": counter.get_total_flops() // 2,
                "milliseconds": statistics.median(times),
                "milliseconds_least": min(times),
                "milliseconds_most": max(times),
            }
        )
        on_size()
    return rows


@torch.inference_mode()
def _seconds(network: nn.Module, image: Tensor, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    network(image)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
