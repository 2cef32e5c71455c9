"""The Triton forms as custom operators of torch: shapes for tracing, gradients, refusals.

Maps are (B, H, W, C) or (B, ..., C), those of a convolution (B, C, H, W) or (B, C, D, H, W). The kernels and
Triton itself are imported at the first call.
Saved for the backward pass: the inputs and nothing per pixel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkvseg.ops.backends import refuse_transforms


@torch.library.custom_op("rwkvseg::shift_and_mix", mutates_args=())
def triton_shift_and_mix(x: Tensor, mixes: Sequence[Tensor]) -> list[Tensor]:
    """See `rwkvseg.ops.shift_and_mix`, which checks the arguments. x: (B, H, W, C) -> one map a mix."""
    from rwkvseg.ops.fused import triton_shift

    return triton_shift.forward(x, mixes)


@torch.library.custom_op("rwkvseg::shift_and_mix_backward", mutates_args=())
def triton_shift_and_mix_backward(
    x: Tensor, mixes: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of the mixes as one (len(mixes), C) in float32."""
    from rwkvseg.ops.fused import triton_shift

    return triton_shift.backward(x, mixes, gradients)


@torch.library.custom_op("rwkvseg::spatial_shift_and_mix", mutates_args=())
def triton_spatial_shift_and_mix(x: Tensor, mixes: Tensor, shift: int, group: int) -> Tensor:
    """See `rwkvseg.ops.spatial_shift_and_mix`. x: (B, D, H, W, C), mixes: (M, C) -> (M, B, D, H, W, C)."""
    from rwkvseg.ops.fused import triton_shift3d

    return triton_shift3d.forward(x, mixes, shift, group)


@torch.library.custom_op("rwkvseg::spatial_shift_and_mix_backward", mutates_args=())
def triton_spatial_shift_and_mix_backward(
    x: Tensor, mixes: Tensor, g: Tensor, shift: int, group: int
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of the mixes in float32."""
    from rwkvseg.ops.fused import triton_shift3d

    return triton_shift3d.backward(x, mixes, g, shift, group)


@torch.library.custom_op("rwkvseg::layer_norm", mutates_args=())
def triton_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, squared_relu: bool) -> Tensor:
    """See `rwkvseg.ops.layer_norm`, which checks the arguments."""
    from rwkvseg.ops.fused import triton_norm

    return triton_norm.forward(x, weight, bias, eps, squared_relu)


@torch.library.custom_op("rwkvseg::layer_norm_backward", mutates_args=())
def triton_layer_norm_backward(
    x: Tensor, weight: Tensor, g: Tensor, eps: float, squared_relu: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of weight and bias as one (2, C) in float32."""
    from rwkvseg.ops.fused import triton_norm

    return triton_norm.backward(x, weight, g, eps, squared_relu)


@torch.library.custom_op("rwkvseg::gated_layer_norm", mutates_args=())
def triton_gated_layer_norm(y: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `rwkvseg.ops.gated_layer_norm`, which checks the arguments."""
    from rwkvseg.ops.fused import triton_norm

    return triton_norm.forward_gated(y, r, weight, bias, eps)


@torch.library.custom_op("rwkvseg::gated_layer_norm_backward", mutates_args=())
def triton_gated_layer_norm_backward(
    y: Tensor, r: Tensor, weight: Tensor, bias: Tensor, g: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, of r, and of weight and bias as one (2, C) in float32."""
    from rwkvseg.ops.fused import triton_norm

    return triton_norm.backward_gated(y, r, weight, bias, g, eps)


@torch.library.custom_op("rwkvseg::residual_layer_norm", mutates_args=())
def triton_residual_layer_norm(
    y: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, eps: float
) -> Tensor:
    """See `rwkvseg.ops.residual_layer_norm`, which checks the arguments."""
    from rwkvseg.ops.fused import triton_norm

    return triton_norm.forward_residual(y, residual, weight, bias, scale, eps)


@torch.library.custom_op("rwkvseg::residual_layer_norm_backward", mutates_args=())
def triton_residual_layer_norm_backward(
    y: Tensor, weight: Tensor, scale: Tensor | None, g: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of y, and of weight and bias as one (2, C) in float32; that of the residual is g itself."""
    from rwkvseg.ops.fused import triton_norm

    return triton_norm.backward_residual(y, weight, scale, g, eps)


@torch.library.custom_op("rwkvseg::depthwise_conv", mutates_args=())
def triton_depthwise_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """See `rwkvseg.ops.depthwise_conv2d` and `_conv3d`, which check the arguments; volumes have stride 1."""
    from rwkvseg.ops.fused import triton_depthwise, triton_depthwise2d

    if x.ndim == 5:
        return triton_depthwise.convolve(x, weight, flipped=False)
    return triton_depthwise2d.convolve(x, weight, flipped=False, stride=stride)


@torch.library.custom_op("rwkvseg::depthwise_conv_backward", mutates_args=())
def triton_depthwise_conv_backward(
    x: Tensor, weight: Tensor, g: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of the weight in float32."""
    from rwkvseg.ops.fused import triton_depthwise, triton_depthwise2d, triton_depthwise2d_input

    if x.ndim == 5:
        gx = triton_depthwise.convolve(g, weight, flipped=True)
        return gx, triton_depthwise.gradient_of_weight(x, weight, g)
    of_weight = triton_depthwise2d.gradient_of_weight(x, weight, g, stride=stride)
    if stride == 1:
        return triton_depthwise2d.convolve(g, weight, flipped=True), of_weight
    return triton_depthwise2d_input.gradient_of_input(x, weight, g), of_weight


@torch.library.custom_op("rwkvseg::instance_norm", mutates_args=())
def triton_instance_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool
) -> tuple[Tensor, Tensor]:
    """See `rwkvseg.ops.instance_norm`; also what the backward pass needs, (B, C, 2) in float32."""
    from rwkvseg.ops.fused import triton_instance_norm as kernels

    return kernels.forward(x, weight, bias, eps, gelu)


@torch.library.custom_op("rwkvseg::instance_norm_backward", mutates_args=())
def triton_instance_norm_backward(
    x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, g: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of weight and bias as one (C, 2) in float32."""
    from rwkvseg.ops.fused import triton_instance_norm as kernels

    return kernels.backward(x, weight, bias, stats, g, gelu)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@triton_shift_and_mix.register_fake
def _(x: Tensor, mixes: Sequence[Tensor]) -> list[Tensor]:
    return [_like(x) for _ in mixes]


@triton_shift_and_mix_backward.register_fake
def _(x: Tensor, mixes: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return _like(x), x.new_empty((len(mixes), x.shape[-1]), dtype=torch.float32)


@triton_spatial_shift_and_mix.register_fake
def _(x: Tensor, mixes: Tensor, shift: int, group: int) -> Tensor:
    return x.new_empty((mixes.shape[0], *x.shape))


@triton_spatial_shift_and_mix_backward.register_fake
def _(x: Tensor, mixes: Tensor, g: Tensor, shift: int, group: int) -> tuple[Tensor, Tensor]:
    return _like(x), mixes.new_empty(mixes.shape, dtype=torch.float32)


@triton_layer_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, squared_relu: bool) -> Tensor:
    return _like(x)


@triton_layer_norm_backward.register_fake
def _(x: Tensor, weight: Tensor, g: Tensor, eps: float, squared_relu: bool) -> tuple[Tensor, Tensor]:
    return _like(x), x.new_empty((2, x.shape[-1]), dtype=torch.float32)


@triton_gated_layer_norm.register_fake
def _(y: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _like(y)


@triton_gated_layer_norm_backward.register_fake
def _(
    y: Tensor, r: Tensor, weight: Tensor, bias: Tensor, g: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(y), _like(r), y.new_empty((2, y.shape[-1]), dtype=torch.float32)


@triton_residual_layer_norm.register_fake
def _(y: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    return _like(residual)


@triton_residual_layer_norm_backward.register_fake
def _(y: Tensor, weight: Tensor, scale: Tensor | None, g: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _like(y), y.new_empty((2, y.shape[-1]), dtype=torch.float32)


def _convolved(x: Tensor, stride: int) -> Tensor:
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    size = [(side - 1) // stride + 1 for side in x.shape[2:]]
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout)


@triton_depthwise_conv.register_fake
def _(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return _convolved(x, stride)


@triton_depthwise_conv_backward.register_fake
def _(x: Tensor, weight: Tensor, g: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    return _convolved(x, 1), weight.new_empty(weight.shape, dtype=torch.float32)


@triton_instance_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> tuple[Tensor, Tensor]:
    return _like(x), x.new_empty((x.shape[0], x.shape[1], 2), dtype=torch.float32)


@triton_instance_norm_backward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, g: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    return _like(x), stats.new_empty((x.shape[1], 2))


def _save_shift(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, mixes = inputs
    ctx.save_for_backward(x, *mixes)


def _shift_gradients(ctx: Any, gradients: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    x, *mixes = ctx.saved_tensors
    gx, of_mixes = triton_shift_and_mix_backward(x, mixes, gradients)
    return gx, [g.to(mix.dtype) for g, mix in zip(of_mixes.unbind(), mixes, strict=True)]


def _save_spatial_shift(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mixes, ctx.shift, ctx.group = inputs
    ctx.save_for_backward(x, mixes)


def _spatial_shift_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, mixes = ctx.saved_tensors
    gx, of_mixes = triton_spatial_shift_and_mix_backward(x, mixes, g, ctx.shift, ctx.group)
    return gx, of_mixes.to(mixes.dtype), None, None


def _save_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.eps, ctx.squared_relu = inputs
    ctx.save_for_backward(x, weight)


def _layer_norm_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    gx, of_parameters = triton_layer_norm_backward(x, weight, g, ctx.eps, ctx.squared_relu)
    gw, gb = of_parameters.to(weight.dtype).unbind()
    return gx, gw, gb, None, None


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gated_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    y, r, weight, bias = ctx.saved_tensors
    gy, gr, of_parameters = triton_gated_layer_norm_backward(y, r, weight, bias, g, ctx.eps)
    gw, gb = of_parameters.to(weight.dtype).unbind()
    return gy, gr, gw, gb, None


def _save_residual(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, _, weight, _, scale, ctx.eps = inputs
    ctx.save_for_backward(y, weight, scale)


def _residual_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    y, weight, scale = ctx.saved_tensors
    gy, of_parameters = triton_residual_layer_norm_backward(y, weight, scale, g, ctx.eps)
    gw, gb = of_parameters.to(weight.dtype).unbind()
    return gy, g, gw, gb, None, None


def _save_depthwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.stride = inputs
    ctx.save_for_backward(*tensors)


def _depthwise_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    gx, of_weight = triton_depthwise_conv_backward(x, weight, g, ctx.stride)
    return gx, of_weight.to(weight.dtype), None


def _save_instance_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, _, ctx.gelu = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, bias, output[1])


def _instance_norm_gradients(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, stats = ctx.saved_tensors
    gx, of_parameters = triton_instance_norm_backward(x, weight, bias, stats, g, ctx.gelu)
    gw, gb = of_parameters.to(weight.dtype).unbind(1)
    return gx, gw, gb, None, None


triton_instance_norm.register_autograd(_instance_norm_gradients, setup_context=_save_instance_norm)
triton_shift_and_mix.register_autograd(_shift_gradients, setup_context=_save_shift)
triton_spatial_shift_and_mix.register_autograd(_spatial_shift_gradients, setup_context=_save_spatial_shift)
triton_layer_norm.register_autograd(_layer_norm_gradients, setup_context=_save_layer_norm)
triton_gated_layer_norm.register_autograd(_gated_gradients, setup_context=_save_gated)
triton_residual_layer_norm.register_autograd(_residual_gradients, setup_context=_save_residual)
triton_depthwise_conv.register_autograd(_depthwise_gradients, setup_context=_save_depthwise)
for _forward, _backward, _name in (
    (triton_instance_norm, triton_instance_norm_backward, "instance_norm"),
    (triton_shift_and_mix, triton_shift_and_mix_backward, "shift_and_mix"),
    (triton_spatial_shift_and_mix, triton_spatial_shift_and_mix_backward, "spatial_shift_and_mix"),
    (triton_layer_norm, triton_layer_norm_backward, "layer_norm"),
    (triton_gated_layer_norm, triton_gated_layer_norm_backward, "gated_layer_norm"),
    (triton_residual_layer_norm, triton_residual_layer_norm_backward, "residual_layer_norm"),
    (triton_depthwise_conv, triton_depthwise_conv_backward, "depthwise_conv"),
):
    refuse_transforms(_forward, _backward, name=_name, backend="triton", instead="torch")
