"""Compute, time and memory of a network against the size of its picture or volume."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rwkvseg.models.live_memory import live_bytes


def measure_sizes(
    network: nn.Module,
    sizes: Sequence[int],
    device: torch.device,
    *,
    repeats: int = 5,
    on_size: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """One entry a size: what a forward pass of one square picture, or of one cube, costs.

    Counted as multiply-accumulates are convolutions and matrix products, as torch's FlopCounterMode sees
    them; WKV, norms, activations and resizing are not. Timed are `repeats` passes in float32 after one that
    does not count: median, least and most. Peak memory is the most that lives at a time, input included,
    weights not: measured on CUDA with all that libraries take; elsewhere counted, without what they take.

    Args:
        network: takes (1, C, size, size) or with `spatial_dims` 3 a cube, in evaluation mode on the device.
        sizes: sides in pixels.
        device: of the network.
        repeats: timed passes, at least 1.
        on_size: called after each size.
    """
    dimensions = spatial_dims(network)
    rows = []
    for size in sizes:
        shape = (1, in_channels(network), *[size] * dimensions)
        image = torch.rand(shape, device=device)
        if dimensions == 2:
            image = image.contiguous(memory_format=torch.channels_last)
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
                "peak_bytes": _peak_bytes(network, image, device),
            }
        )
        on_size()
    return rows


def spatial_dims(network: nn.Module) -> int:
    """2 for pictures, 3 for volumes."""
    found: int = getattr(network, "spatial_dims", 2)
    return found


def in_channels(network: Any) -> int:
    """Channels that a network takes; 3 where it does not say."""
    found: int = getattr(getattr(network, "config", network), "in_channels", 3)
    return found


def fit_line(rows: Sequence[Mapping[str, Any]], key: str, dimensions: int) -> dict[str, float]:
    """Straight line through `key` against the pixels of `rows`, and how well it fits.

    Every size counts by its relative deviation, else the largest alone would decide.

    Returns:
        "per_pixel" and "at_zero" in the unit of `key`; "farthest", the largest deviation from the line as a
        share of it; "exponent" p of the best c * pixels^p, 1 for what is proportional. All NaN where fewer
        than two sizes were measured.

    >>> rows = [{"size": n, "ms": 2 * n**3} for n in (4, 6, 10)]
    >>> {name: round(value, 6) for name, value in fit_line(rows, "ms", 3).items()}
    {'per_pixel': 2.0, 'at_zero': 0.0, 'farthest': 0.0, 'exponent': 1.0}
    """
    pixels = np.array([row["size"] ** dimensions for row in rows], float)
    values = np.array([row[key] for row in rows], float)
    if len(set(pixels)) < 2 or values.min() <= 0:
        return dict.fromkeys(("per_pixel", "at_zero", "farthest", "exponent"), math.nan)
    slope, start = np.polyfit(pixels, values, 1, w=1 / values)
    line = slope * pixels + start
    exponent = np.polyfit(np.log(pixels), np.log(values), 1)[0]
    return {
        "per_pixel": float(slope),
        "at_zero": float(start),
        "farthest": float(np.abs(values / line - 1).max()),
        "exponent": float(exponent),
    }


def _peak_bytes(network: nn.Module, image: Tensor, device: torch.device) -> int:
    if device.type != "cuda":
        return live_bytes(network, tuple(image.shape))
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device) - image.nbytes
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        network(image)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


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
