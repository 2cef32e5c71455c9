"""Instance norm with weight and bias, and GELU behind it if wanted.

B: images or volumes, C: channels, *spatial: any axes, N: their pixels together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops.backends import check_floating, choose_backend, is_exporting
from rwkvseg.ops.fused.operators import triton_instance_norm


def naive_instance_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, gelu: bool = False
) -> Tensor:
    """Instance norm by its definition, see below."""
    axes = tuple(range(2, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    each = (-1, *[1] * len(axes))
    out = (x - mean) / (variance + eps).sqrt() * weight.to(x.dtype).view(each) + bias.to(x.dtype).view(each)
    return F.gelu(out) if gelu else out


def instance_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    gelu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Normalise each channel of each image over its pixels, then apply GELU if wanted (arXiv:1607.08022).

    Of a single pixel the bias is left. The result has the dtype of x whatever autocast says; the Triton form
    computes in float32, and keeps x and two numbers a channel for the backward pass. The same input gives the
    same bits, gradients included.

    Args:
        x: (B, C, *spatial), any floating dtype.
        weight: (C,), dtype of x, or float32 beside a 16-bit x.
        bias: As `weight`.
        eps: Added to the variance.
        gelu: Whether the exact GELU (with erf) follows.
        backend: "auto" takes the fastest for the device; "torch" is torch's own operators; "triton" is one
            kernel, without second derivative and vmap.

    Returns:
        Shape and dtype of x.

    Raises:
        ShapeError: the shapes do not fit together, or an axis is empty.
        UsageError: integers, or tensors on several devices.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> instance_norm(torch.tensor([[[1.0, 3.0]]]), torch.ones(1), torch.zeros(1), eps=0.0)
        tensor([[[-1.,  1.]]])
    """
    _check(x, weight, bias)
    if (
        choose_backend(backend, [x, weight, bias], available=("torch", "triton"), fallback="torch")
        == "triton"
    ):
        normed: Tensor = triton_instance_norm(x, weight, bias, eps, gelu)[0]
        return normed
    normed = _by_torch(x, weight, bias, eps).to(x.dtype)
    return F.gelu(normed) if gelu else normed


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    # no branch on the size in an exported graph; else torch's function, which refuses a single pixel
    if is_exporting():
        return torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, False)
    if x[0, 0].numel() == 1:
        each = (-1, *[1] * (x.ndim - 2))
        return (x - x) * weight.view(each) + bias.view(each)
    return F.instance_norm(x, weight=weight, bias=bias, eps=eps)


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.ndim < 3 or 0 in x.shape:
        raise ShapeError(f"x has shape {tuple(x.shape)}; give (B, C, *spatial) with every axis at least 1")
    for name, part in (("weight", weight), ("bias", bias)):
        if part.shape != x.shape[1:2]:
            raise ShapeError(
                f"{name} has shape {tuple(part.shape)} but x has {x.shape[1]} channels; give (C,)"
            )
    check_floating(x=x, weight=weight, bias=bias)
    allowed = (x.dtype, torch.float32) if x.dtype.itemsize == 2 else (x.dtype,)
    if weight.dtype not in allowed or bias.dtype != weight.dtype:
        raise UsageError(
            f"x has dtype {x.dtype}, weight {weight.dtype}, bias {bias.dtype}; give one floating dtype, "
            "or float32 weight and bias with a 16-bit x"
        )
