"""Depthwise convolution of maps and volumes: every channel with a kernel of its own.

B: images or volumes, C: channels, D, H, W: axes. cuDNN and torch take most of their time for it in the
gradients, and for large kernels even forward many times what reading and writing the maps takes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops.backends import check_floating, choose_backend, gluon_was_tried
from rwkvseg.ops.fused.operators import triton_depthwise_conv

_LARGE = 5 if gluon_was_tried() else 7  # smaller ones are as fast by cuDNN


def naive_depthwise_conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolve by torch, in the dtype of x: zeros outside.

    x: (B, C, H, W) or (B, C, D, H, W), weight: (C, 1, one odd side an axis) -> as x, every axis after the
    second divided by the stride and rounded up.
    """
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    padding = [side // 2 for side in weight.shape[2:]]
    y = convolve(x, weight.to(x.dtype), stride=stride, padding=padding, groups=x.shape[1])
    return y.to(x.dtype)  # autocast may have convolved in 16 bit


def depthwise_conv2d(x: Tensor, weight: Tensor, *, stride: int = 1, backend: str = "auto") -> Tensor:
    """Convolve every channel of maps with its own kernel: zeros outside, sizes kept at stride 1.

    Under autocast it computes in autocast's type, as torch's convolutions do. With "triton" sums are float32,
    the result is channels-last, and the same input gives the same bits, gradients included.

    Args:
        x: Maps (B, C, H, W), any size >= 1 along every axis; best channels-last.
        weight: Kernels (C, 1, odd, odd).
        stride: 1, or 2 for the pixels at even rows and columns alone.
        backend: "auto" takes the fastest for the device, torch's own for kernels below 5 x 5
            (7 x 7 where they are not in Gluon); "torch" is torch's own convolution; "triton" is without
            second derivative and vmap.

    Returns:
        A map (B, C, ceil(H / stride), ceil(W / stride)) in the dtype of x.

    Raises:
        ShapeError: x does not have four axes of at least 1, or the weight is not (C, 1, odd, odd).
        UsageError: integers, tensors on several devices, or another stride.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> import torch
        >>> depthwise_conv2d(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 3)).flatten()
        tensor([2., 3., 3., 2.])
    """
    _check(x, weight, axes=2)
    if stride not in (1, 2):
        raise UsageError(f"stride is {stride}; give 1 or 2")
    if backend == "auto" and max(weight.shape[2:]) < _LARGE:
        backend = "torch"
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    return _convolve(x, weight, backend, stride)


def depthwise_conv3d(x: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    """Convolve every channel of volumes with its own kernel: zeros outside, stride 1, sizes kept.

    The result has the dtype of x whatever autocast says. With "triton" sums are float32, and the same input
    gives the same bits, gradients included.

    Args:
        x: Volumes (B, C, D, H, W), any size >= 1 along every axis.
        weight: Kernels (C, 1, odd, odd, odd).
        backend: "auto" takes the fastest for the device; "torch" is torch's own convolution; "triton" is
            without second derivative and vmap.

    Returns:
        A map like x.

    Raises:
        ShapeError: x does not have five axes of at least 1, or the weight is not (C, 1, odd, odd, odd).
        UsageError: integers, or tensors on several devices.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> import torch
        >>> x = torch.ones(1, 1, 1, 1, 4)
        >>> depthwise_conv3d(x, torch.ones(1, 1, 1, 1, 3)).flatten()
        tensor([2., 3., 3., 2.])
    """
    _check(x, weight, axes=3)
    return _convolve(x, weight, backend)


def _convolve(x: Tensor, weight: Tensor, backend: str, stride: int = 1) -> Tensor:
    if choose_backend(backend, [x, weight], available=("torch", "triton"), fallback="torch") == "triton":
        y: Tensor = triton_depthwise_conv(x, weight, stride)
        return y
    return naive_depthwise_conv(x, weight, stride)


def _check(x: Tensor, weight: Tensor, *, axes: int) -> None:
    if x.ndim != 2 + axes or 0 in x.shape:
        wanted = "maps (B, C, H, W)" if axes == 2 else "volumes (B, C, D, H, W)"
        raise ShapeError(f"x has shape {tuple(x.shape)}; give {wanted}, every axis at least 1")
    even = any(side % 2 == 0 for side in weight.shape[2:])
    if weight.ndim != 2 + axes or weight.shape[:2] != (x.shape[1], 1) or even:
        raise ShapeError(
            f"the weight has shape {tuple(weight.shape)}; "
            f"give ({', '.join([str(x.shape[1]), '1', *['odd'] * axes])}), one kernel a channel"
        )
    check_floating(x=x, weight=weight)
