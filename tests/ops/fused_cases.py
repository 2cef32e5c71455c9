"""Where the fused operators are tested, and how their values and gradients are compared."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rwkvseg.ops.backends import why_not_triton

Operator = Callable[..., Any]

HAS_CUDA = torch.cuda.is_available()
_why_not = why_not_triton([torch.empty(1)])
interpreted = pytest.mark.skipif(_why_not is not None, reason=f"no interpreted kernels: {_why_not}")
on_gpu = (pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device"))

TRITON = [
    pytest.param("triton", "cpu", marks=interpreted, id="triton-interpreted"),
    pytest.param("triton", "cuda", marks=on_gpu, id="triton-cuda"),
]
PLACES = [pytest.param("torch", "cpu", id="torch-cpu"), *TRITON]
on_every_place = pytest.mark.parametrize(("backend", "device"), PLACES)
with_triton = pytest.mark.parametrize(("backend", "device"), TRITON)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def depthwise_case(
    shape: Sequence[int], kernel: Sequence[int], dtype: torch.dtype, stride: int = 1
) -> tuple[list[Tensor], list[Tensor]]:
    """Map and weights of a depthwise convolution, and the gradient of its result."""
    map_and_weights = [random(*shape, seed=1, dtype=dtype), random(shape[1], 1, *kernel, seed=2)]
    size = [-(-side // stride) for side in shape[2:]]
    return map_and_weights, [random(*shape[:2], *size, seed=3, dtype=dtype)]


def spread(x: Tensor) -> Tensor:
    """Return an equal tensor whose elements lie apart and in another order."""
    return x.repeat_interleave(2, dim=-1).transpose(0, -1).contiguous().transpose(0, -1)[..., ::2]


def run(operator: Operator, leaves: Sequence[Tensor], gs: Sequence[Tensor], device: str) -> list[Tensor]:
    """Return what the operator returns, and the gradient of each leaf from those of the results."""
    leaves = [x.detach().to(device).requires_grad_() for x in leaves]
    outs = operator(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    gradients = torch.autograd.grad(outs, leaves, [g.to(device) for g in gs])
    for x, gradient in zip(leaves, gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (x.dtype, x.shape)
    return [x.detach().cpu() for x in (*outs, *gradients)]


def exact(definition: Operator, leaves: Sequence[Tensor], gs: Sequence[Tensor]) -> list[Tensor]:
    """Run the definition in float64."""
    return run(definition, [x.double() for x in leaves], [g.double() for g in gs], "cpu")


def allowance(dtype: torch.dtype, backend: str, device: str) -> float:
    """How many times the error of the definition run in this precision is allowed."""
    interpreted_bfloat16 = (dtype, backend, device) == (torch.bfloat16, "triton", "cpu")
    return 4.0 if interpreted_bfloat16 else 2.0  # the interpreter truncates to bfloat16; GPUs round


def assert_as_good(
    fused: Operator,
    definition: Operator,
    leaves: Sequence[Tensor],
    gs: Sequence[Tensor],
    *,
    backend: str,
    device: str,
) -> None:
    """Against the definition in float64, values and gradients err as little as it does in their precision."""
    truth = exact(definition, leaves, gs)
    found = run(fused, leaves, gs, device)
    assert found[0].dtype == gs[0].dtype
    times = allowance(gs[0].dtype, backend, device)
    allowed = [max(times * b, 1e-6) for b in errors(run(definition, leaves, gs, "cpu"), truth)]
    ours = errors(found, truth)
    assert all(a <= b for a, b in zip(ours, allowed, strict=True)), (ours, allowed)


def errors(found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Largest error of each result in units of its largest value, or of 1; NaN counts as infinite."""
    return [
        float((a.double() - e).abs().nan_to_num(torch.inf, torch.inf).max()) / max(float(e.abs().max()), 1.0)
        for a, e in zip(found, truth, strict=True)
    ]
