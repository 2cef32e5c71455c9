"""The Triton forms of Mamba's two operators, as operators of torch: shapes for tracing, gradients, refusals.

Saved for the backward pass: the inputs, and nothing per state. The kernels are imported at the first call.
"""

from typing import Any

import torch
from torch import Tensor

from rwkvseg.ops.backends import refuse_transforms


@torch.library.custom_op("rwkvseg::selective_scan", mutates_args=())
def triton_selective_scan(
    x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, reverse: bool
) -> Tensor:
    """See `rwkvseg.ops.selective_scan.selective_scan`, which checks the arguments."""
    from rwkvseg.ops.scan import triton_launch

    return triton_launch.forward(x, step, rate, b, c, skip, reverse)


@torch.library.custom_op("rwkvseg::selective_scan_backward", mutates_args=())
def triton_selective_scan_backward(
    x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, g: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, step, rate, b and c, each in its dtype, and that of skip in float32, or (0,)."""
    from rwkvseg.ops.scan import triton_launch

    return triton_launch.backward(x, step, rate, b, c, skip, g, reverse)


@torch.library.custom_op("rwkvseg::causal_conv_silu", mutates_args=())
def triton_causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """See `rwkvseg.ops.token_conv.causal_conv_silu`, which checks the arguments."""
    from rwkvseg.ops.scan import triton_conv

    return triton_conv.forward(x, weight, bias, reverse)


@torch.library.custom_op("rwkvseg::causal_conv_silu_backward", mutates_args=())
def triton_causal_conv_silu_backward(
    x: Tensor, weight: Tensor, bias: Tensor, g: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, and of weight and bias in float32."""
    from rwkvseg.ops.scan import triton_conv

    return triton_conv.backward(x, weight, bias, g, reverse)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@triton_selective_scan.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _like(x)


@triton_selective_scan_backward.register_fake
def _(
    x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, g: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gskip = x.new_empty(0 if skip is None else x.shape[2], dtype=torch.float32)
    return _like(x), _like(step), _like(rate), _like(b), _like(c), gskip


@triton_causal_conv_silu.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _like(x)


@triton_causal_conv_silu_backward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, g: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    gw, gb = (part.new_empty(part.shape, dtype=torch.float32) for part in (weight, bias))
    return _like(x), gw, gb


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    skip = ctx.saved_tensors[5]
    *gradients, gskip = triton_selective_scan_backward(*ctx.saved_tensors, g, ctx.reverse)
    return *gradients, None if skip is None else gskip.to(skip.dtype), None


def _conv_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    gx, gw, gb = triton_causal_conv_silu_backward(x, weight, bias, g, ctx.reverse)
    return gx, gw.to(weight.dtype), gb.to(bias.dtype), None


triton_causal_conv_silu.register_autograd(_conv_gradients, setup_context=_save)
refuse_transforms(
    triton_causal_conv_silu,
    triton_causal_conv_silu_backward,
    name="causal_conv_silu",
    backend="triton",
    instead="torch",
)
triton_selective_scan.register_autograd(_gradients, setup_context=_save)
refuse_transforms(
    triton_selective_scan,
    triton_selective_scan_backward,
    name="selective_scan",
    backend="triton",
    instead="torch",
)
