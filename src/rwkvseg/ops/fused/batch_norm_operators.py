"""The Triton forms of batch norm as custom operators of torch: shapes for tracing, gradients, refusals.

Two, since torch gives no gradient to operators that change an argument: one has the statistics and changes
the running ones, one has norm, activation and residual, and gradients that know whose statistics it got.
Saved for the backward pass: x and what is one number a channel. The kernels are imported at the first call.
"""

from typing import Any

import torch
from torch import Tensor

from rwkvseg.ops.backends import refuse_transforms, refuse_vmap


@torch.library.custom_op(
    "rwkvseg::batch_statistics", mutates_args=("running_mean", "running_var", "num_batches_tracked")
)
def triton_batch_statistics(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of x (B, C, H, W) in float32; counts x among the running ones."""
    from rwkvseg.ops.fused import triton_batch_norm as kernels

    return kernels.statistics(x, running_mean, running_var, num_batches_tracked, momentum)


@torch.library.custom_op("rwkvseg::batch_norm_act", mutates_args=())
def triton_batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    residual: Tensor | None,
    eps: float,
    activation: str,
    of_x: bool,
) -> Tensor:
    """See `rwkvseg.ops.batch_norm_act`. of_x: whether mean and variance are those of x, or fixed."""
    from rwkvseg.ops.fused import triton_batch_norm as kernels

    return kernels.forward(x, (mean, variance, weight, bias), residual, eps, activation)


@torch.library.custom_op("rwkvseg::batch_norm_act_backward", mutates_args=())
def triton_batch_norm_act_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    g: Tensor,
    eps: float,
    activation: str,
    of_x: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of weight and bias as one (2, C) in float32; that of the residual is g itself."""
    from rwkvseg.ops.fused import triton_batch_norm_backward as kernels

    return kernels.backward(x, (mean, variance, weight, bias), g, eps, activation, of_x)


def _per_channel(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float32)


def _map_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@triton_batch_statistics.register_fake
def _(
    x: Tensor, running_mean: Tensor, running_var: Tensor, num_batches_tracked: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    return _per_channel(x), _per_channel(x)


@triton_batch_norm_act.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _map_like(x)


@triton_batch_norm_act_backward.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _map_like(x), x.new_empty((2, x.shape[1]), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, ctx.eps, ctx.activation, ctx.of_x = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, variance = ctx.saved_tensors
    gx, of_parameters = triton_batch_norm_act_backward(
        x, weight, bias, mean, variance, g, ctx.eps, ctx.activation, ctx.of_x
    )
    gw, gb = of_parameters.to(weight.dtype).unbind()
    residual = g if ctx.needs_input_grad[5] else None
    return gx, gw, gb, None, None, residual, None, None, None


triton_batch_norm_act.register_autograd(_gradients, setup_context=_save)
refuse_vmap(triton_batch_statistics, name="batch_norm_act", backend="triton", instead="torch")
refuse_transforms(
    triton_batch_norm_act,
    triton_batch_norm_act_backward,
    name="batch_norm_act",
    backend="triton",
    instead="torch",
)
