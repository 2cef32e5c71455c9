"""Maps for batch_norm_act, and how its forms are called."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from fused_cases import random
from torch import Tensor

from rwkvseg.ops import batch_norm_act
from rwkvseg.ops.backends import why_not_triton
from rwkvseg.ops.fused.batch_norm import naive_batch_norm_act

EPS = 1e-6


def shrink_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let maps have several strips, strips several tiles, and parts be put together in several steps."""
    if why_not_triton([torch.empty(1)]) is None:
        for name, value in {"WARPS": 1, "PARTS": 16}.items():
            monkeypatch.setattr(f"rwkvseg.ops.fused.triton_lines.{name}", value)
        for file in ("triton_batch_norm", "triton_batch_norm_backward"):
            for name in ("PROGRAMS", "PROGRAMS_OF_SUMS"):
                monkeypatch.setattr(f"rwkvseg.ops.fused.{file}.{name}", 3)


def laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def case(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, *, residual: bool = True, mean: float = 0.5
) -> tuple[list[Tensor], list[Tensor]]:
    """x, weight, bias and if wanted a residual; and the gradient of the result."""
    maps = [
        laid_out(random(*shape, seed=seed).add(mean).to(dtype)) for seed in ((1, 2) if residual else (1,))
    ]
    vectors = [random(shape[1], seed=seed) for seed in (3, 4)]
    return [maps[0], *vectors, *maps[1:]], [laid_out(random(*shape, seed=5, dtype=dtype))]


def off_the_corner(leaves: list[Tensor], gs: list[Tensor], training: bool) -> list[Tensor]:
    """Gradients of the result, zero where ReLU's own hangs on rounding."""
    z = definition(training=training)(*(part.double() for part in leaves[:3]))
    return [g * (z.abs() > 1e-4) for g in gs]


def kept(channels: int) -> tuple[Tensor, Tensor]:
    """Running mean and variance."""
    return torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels)


def call(function: Any, *leaves: Tensor, training: bool = True, **options: Any) -> Tensor:
    """Run with copies of the same running statistics, in the type of the weight."""
    x, weight, bias, *residual = leaves
    statistics = [part.to(x.device, weight.dtype, copy=True) for part in kept(x.shape[1])]
    added = residual[0] if residual else None
    out: Tensor = function(
        x, weight, bias, *statistics, training=training, eps=EPS, residual=added, **options
    )
    return out


def fused(backend: str, **options: Any) -> Any:
    return partial(call, batch_norm_act, backend=backend, **options)


def definition(**options: Any) -> Any:
    return partial(call, naive_batch_norm_act, **options)
