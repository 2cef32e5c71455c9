"""Mamba's short convolution along tokens, and the SiLU behind it.

B: batch, T: tokens, E: channels, K: tokens that the convolution sees.
"""

import torch.nn.functional as F
from torch import Tensor

from rwkvseg.errors import ShapeError
from rwkvseg.ops.backends import check_floating, choose_backend
from rwkvseg.ops.scan.operators import triton_causal_conv_silu


def causal_conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False, backend: str = "auto"
) -> Tensor:
    """SiLU of a depthwise convolution in which no token sees a later one (arXiv:2312.00752, section 3.4).

    Beyond the ends there are zeros. Autocast may run the plain form in 16 bits; the Triton form computes in
    float32, gives the dtype of x, and keeps the inputs for the backward pass. The same input gives the same
    bits, gradients included.

    Args:
        x: (B, T, E).
        weight: (E, 1, K), the last of K for the token itself.
        bias: (E,).
        reverse: Whether no token sees an earlier one instead.
        backend: "auto" takes the fastest for the device; "torch" is torch's own convolution; "triton" is one
            kernel that reads tokens as they lie, without second derivative and vmap.

    Returns:
        (B, T, E).

    Raises:
        ShapeError: the shapes do not fit together, or an axis is empty.
        UsageError: integers, or tensors on several devices.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> from torch import tensor
        >>> causal_conv_silu(tensor([[[0.0], [30.0], [40.0]]]), tensor([[[2.0, 1.0]]]), tensor([0.0]))
        tensor([[[  0.],
                 [ 30.],
                 [100.]]])
    """
    _check(x, weight, bias)
    chosen = choose_backend(backend, [x, weight, bias], available=("torch", "triton"), fallback="torch")
    if chosen == "triton":
        out: Tensor = triton_causal_conv_silu(x, weight, bias, reverse)
        return out
    ahead = weight.shape[2] - 1
    taps = weight.flip(2) if reverse else weight
    maps = F.conv1d(x.transpose(1, 2), taps, bias, padding=ahead, groups=weight.shape[0])
    return F.silu(maps.narrow(2, ahead if reverse else 0, x.shape[1]).transpose(1, 2))


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.ndim != 3 or 0 in x.shape:
        raise ShapeError(f"x has shape {tuple(x.shape)}; give (B, T, E) with every axis at least 1")
    channels = x.shape[2]
    if weight.ndim != 3 or weight.shape[:2] != (channels, 1) or weight.shape[2] < 1:
        raise ShapeError(
            f"weight has shape {tuple(weight.shape)} but x has {channels} channels; give (E, 1, K)"
        )
    if bias.shape != (channels,):
        raise ShapeError(f"bias has shape {tuple(bias.shape)} but x has {channels} channels; give (E,)")
    check_floating(x=x, weight=weight, bias=bias)
