"""Layer norm and what RWKV's blocks do around it: rectify and square, gate, or add to a residual.

B: images, C: channels, ...: any axes between them, tokens or rows and columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops.backends import check_floating, choose_backend
from rwkvseg.ops.fused.operators import (
    triton_gated_layer_norm,
    triton_layer_norm,
    triton_residual_layer_norm,
)

_BACKENDS = ("torch", "triton")


def naive_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, squared_relu: bool = False
) -> Tensor:
    """Layer norm by its definition, of x or of relu(x)**2, see below."""
    return F.layer_norm(x.relu().square() if squared_relu else x, weight.shape, weight, bias, eps)


def naive_gated_layer_norm(y: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Gated layer norm by its definition: layer_norm(y) * sigmoid(r), see below."""
    return r.sigmoid() * F.layer_norm(y, weight.shape, weight, bias, eps)


def naive_residual_layer_norm(
    y: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, *, scale: Tensor | None = None
) -> Tensor:
    """Residual layer norm by its definition: residual + scale * layer_norm(y), see below."""
    normed = F.layer_norm(y, weight.shape, weight, bias, eps)
    if scale is not None:
        normed = normed * scale.to(normed.dtype).view(-1, *[1] * (y.ndim - 1))
    return residual + normed


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    squared_relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Normalise x, or relu(x)**2, over its last axis (arXiv:1607.06450).

    The result has the dtype of x whatever autocast says, where torch's own widens a map on GPUs; the Triton
    form computes in float32. The same input gives the same bits, gradients included.

    Args:
        x: (B, ..., C), any floating dtype.
        weight: (C,), dtype of x, or float32 beside a 16-bit x.
        bias: As `weight`.
        eps: Added to the variance.
        squared_relu: Normalise relu(x)**2, the activation in RWKV's channel mix, instead of x.
        backend: "auto" takes the fastest for the device; "torch" is the definition; "triton" is one pass
            over memory, without second derivative and vmap.

    Returns:
        (B, ..., C) in the dtype of x.

    Raises:
        ShapeError: the shapes do not fit together, or an axis is empty.
        UsageError: dtypes that do not go together, or tensors on several devices.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> layer_norm(torch.tensor([[-3.0, 2.0]]), torch.ones(2), torch.zeros(2), eps=0.0, squared_relu=True)
        tensor([[-1.,  1.]])
    """
    _check(weight, bias, x=x)
    tensors = [x, weight, bias]
    if choose_backend(backend, tensors, available=_BACKENDS, fallback="torch") == "triton":
        out: Tensor = triton_layer_norm(x, weight, bias, eps, squared_relu)
        return out
    return naive_layer_norm(_as_torch_wants(x, weight), weight, bias, eps, squared_relu=squared_relu).to(
        x.dtype
    )


def gated_layer_norm(
    y: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, backend: str = "auto"
) -> Tensor:
    """Normalise y over its last axis and gate it by the receptance: layer_norm(y) * sigmoid(r).

    The result has the dtype of y whatever autocast says; the Triton form computes in float32. The same input
    gives the same bits, gradients included.

    Args:
        y: (B, ..., C), any floating dtype.
        r: Receptance before its sigmoid, shape of y.
        weight: (C,), dtype of y, or float32 beside a 16-bit y.
        bias: As `weight`.
        eps: Added to the variance.
        backend: "auto" takes the fastest for the device; "torch" is the definition; "triton" is one pass
            over memory, without second derivative and vmap.

    Returns:
        (B, ..., C) in the dtype of y.

    Raises:
        ShapeError: the shapes do not fit together, or an axis is empty.
        UsageError: dtypes that do not go together, or tensors on several devices.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> y, open_gate = torch.tensor([[1.0, 3.0]]), torch.full((1, 2), 40.0)
        >>> gated_layer_norm(y, open_gate, torch.ones(2), torch.zeros(2), eps=0.0)
        tensor([[-1.,  1.]])
    """
    _check(weight, bias, y=y, r=r)
    tensors = [y, r, weight, bias]
    if choose_backend(backend, tensors, available=_BACKENDS, fallback="torch") == "triton":
        out: Tensor = triton_gated_layer_norm(y, r, weight, bias, eps)
        return out
    return naive_gated_layer_norm(_as_torch_wants(y, weight), r, weight, bias, eps).to(y.dtype)


def residual_layer_norm(
    y: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Normalise y over its last axis and add it to a residual: residual + scale * layer_norm(y).

    The result has the dtype of the residual whatever autocast says; the Triton form computes in float32. The
    same input gives the same bits, gradients included.

    Args:
        y: (B, ..., C), any floating dtype.
        residual: What y is added to, shape of y.
        weight: (C,), dtype of y, or float32 beside a 16-bit y.
        bias: As `weight`.
        eps: Added to the variance.
        scale: (B,), a factor for each image's y: that of stochastic depth. It gets no gradient. None: 1.
        backend: "auto" takes the fastest for the device; "torch" is the definition; "triton" is one pass
            over memory, without second derivative and vmap.

    Returns:
        (B, ..., C) in the dtype of the residual.

    Raises:
        ShapeError: the shapes do not fit together, or an axis is empty.
        UsageError: dtypes that do not go together, several devices, or a scale that wants a gradient.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> y, residual = torch.tensor([[1.0, 3.0]]), torch.tensor([[10.0, 20.0]])
        >>> residual_layer_norm(y, residual, torch.ones(2), torch.zeros(2), eps=0.0)
        tensor([[ 9., 21.]])
    """
    _check(weight, bias, y=y, residual=residual)
    tensors = [y, residual, weight, bias]
    if scale is not None:
        _check_scale(scale, y)
        tensors.append(scale)
    if choose_backend(backend, tensors, available=_BACKENDS, fallback="torch") == "triton":
        out: Tensor = triton_residual_layer_norm(y, residual, weight, bias, scale, eps)
        return out
    y = _as_torch_wants(y, weight)
    return naive_residual_layer_norm(y, residual, weight, bias, eps, scale=scale).to(residual.dtype)


def _as_torch_wants(y: Tensor, weight: Tensor) -> Tensor:
    # only the CPU's layer_norm takes 32-bit weights with a 16-bit map; autocast on GPUs widens as well
    return y if y.device.type == "cpu" else y.to(weight.dtype)


def _check(weight: Tensor, bias: Tensor, **maps: Tensor) -> None:
    """Refuse what does not fit the first of the maps, which is the one to be normalised."""
    (first, y), *others = maps.items()
    if y.ndim < 2 or 0 in y.shape:
        raise ShapeError(f"{first} has shape {tuple(y.shape)}; give (B, ..., C) with every axis at least 1")
    for name, x in others:
        if x.shape != y.shape:
            raise ShapeError(
                f"{name} has shape {tuple(x.shape)} and {first} {tuple(y.shape)}; give one shape"
            )
    for name, x in (("weight", weight), ("bias", bias)):
        if x.shape != y.shape[-1:]:
            raise ShapeError(
                f"{name} has shape {tuple(x.shape)} but {first} has {y.shape[-1]} channels; give (C,)"
            )
    check_floating(**maps, weight=weight, bias=bias)
    allowed = (y.dtype, torch.float32) if y.dtype.itemsize == 2 else (y.dtype,)
    if weight.dtype not in allowed or bias.dtype != weight.dtype:
        raise UsageError(
            f"{first} has dtype {y.dtype}, weight {weight.dtype}, bias {bias.dtype}; give one floating "
            f"dtype, or float32 weight and bias with a 16-bit {first}"
        )


def _check_scale(scale: Tensor, y: Tensor) -> None:
    if scale.shape != y.shape[:1]:
        raise ShapeError(f"scale has shape {tuple(scale.shape)} but y holds {y.shape[0]} images; give (B,)")
    check_floating(y=y, scale=scale)
    if scale.requires_grad:
        raise UsageError(
            "scale requires a gradient and gets none; detach it, or multiply weight and bias by it"
        )
