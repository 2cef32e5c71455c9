"""Spatial shift with RWKV's interpolations: every mix reads the volume and its shifted copy.

B: volumes, C: channels, D, H, W: axes, M: mixes.
"""

import torch
from torch import Tensor

from rwkvseg.errors import BackendError, ShapeError
from rwkvseg.ops.backends import check_floating, choose_backend
from rwkvseg.ops.fused.operators import triton_spatial_shift_and_mix
from rwkvseg.ops.shift import MOST_OF_CHANNELS, check_shift, group_size, spatial_shift

MOST_MIXES = 3


def naive_spatial_shift_and_mix(
    x: Tensor, mixes: Tensor, *, shift: int = 1, gamma: float = MOST_OF_CHANNELS, pad: str = "zeros"
) -> Tensor:
    """Shift and mix by its definition, mix * x + (1 - mix) * spatial_shift(x), in the dtype of x."""
    here = x.permute(0, 2, 3, 4, 1)
    beside = spatial_shift(x, shift=shift, gamma=gamma, pad=pad).permute(0, 2, 3, 4, 1)
    # lerp wants one dtype: under autocast the map is 16 bit and the parameter is not
    return torch.lerp(beside, here, mixes.to(x.dtype).view(len(mixes), 1, 1, 1, 1, -1))


def spatial_shift_and_mix(
    x: Tensor,
    mixes: Tensor,
    *,
    shift: int = 1,
    gamma: float = MOST_OF_CHANNELS,
    pad: str = "zeros",
    backend: str = "auto",
) -> Tensor:
    """Interpolate between each voxel and its neighbour of `spatial_shift`, once for each vector of shares.

    `shift_and_mix` carried over to volumes. The result has the dtype of x whatever autocast says. The same
    input gives the same bits, gradients included.

    Args:
        x: Feature map (B, C, D, H, W), any size >= 1 along every axis; fastest if channels-last.
        mixes: (M, C), M from 1 to 3: the share of the voxel itself, the rest is the neighbour's.
        shift: See `spatial_shift`.
        gamma: As `shift`.
        pad: As `shift`; "triton" knows "zeros" only.
        backend: "auto" takes the fastest for the device; "torch" is the definition; "triton" is one pass
            over memory, without second derivative and vmap.

    Returns:
        (M, B, D, H, W, C), ready for linear layers.

    Raises:
        ShapeError: x does not have five axes of at least 1, or the mixes are not (M, C).
        UsageError: integers, tensors on several devices, or what `spatial_shift` refuses.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> x = torch.arange(1.0, 5.0).view(1, 1, 4, 1, 1).expand(1, 6, 4, 1, 1)  # the fifth looks back in D
        >>> spatial_shift_and_mix(x, torch.full((1, 6), 0.5))[..., 4].flatten()
        tensor([0.5000, 1.5000, 2.5000, 3.5000])
    """
    _check(x, mixes)
    check_shift(shift, gamma, pad)
    if pad != "zeros" and backend == "triton":
        raise BackendError(f"backend 'triton' knows no pad {pad!r}. Use 'torch' or 'auto'")
    if pad != "zeros" and backend == "auto":
        backend = "torch"
    if choose_backend(backend, [x, mixes], available=("torch", "triton"), fallback="torch") == "triton":
        group = group_size(x.shape[1], gamma) if shift else 0
        out: Tensor = triton_spatial_shift_and_mix(x.permute(0, 2, 3, 4, 1), mixes, shift, group)
        return out
    return naive_spatial_shift_and_mix(x, mixes, shift=shift, gamma=gamma, pad=pad)


def _check(x: Tensor, mixes: Tensor) -> None:
    if x.ndim != 5 or 0 in x.shape:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}; give a feature map (B, C, D, H, W), every axis at least 1"
        )
    if mixes.ndim != 2 or not 1 <= len(mixes) <= MOST_MIXES or mixes.shape[1] != x.shape[1]:
        raise ShapeError(
            f"mixes have shape {tuple(mixes.shape)} but x has {x.shape[1]} channels; "
            f"give one to {MOST_MIXES} rows of as many"
        )
    check_floating(x=x, mixes=mixes)
