"""Token shift with RWKV's interpolations: every mix reads the map and its shifted copy.

B: images, C: channels, H, W: rows and columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkvseg.errors import ShapeError
from rwkvseg.ops.backends import check_floating, choose_backend
from rwkvseg.ops.fused.operators import triton_shift_and_mix
from rwkvseg.ops.shift import q_shift

MOST_MIXES = 3


def naive_shift_and_mix(x: Tensor, mixes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Shift and mix by its definition, mix * x + (1 - mix) * q_shift(x), in the dtype of x.

    Args:
        x: Feature map (B, C, H, W).
        mixes: Shares (C,) of x itself; 1 gives x, 0 its shifted copy.

    Returns:
        One (B, H, W, C) for each of `mixes`.
    """
    here, beside = x.permute(0, 2, 3, 1), q_shift(x).permute(0, 2, 3, 1)
    # lerp wants one dtype: under autocast the map is 16 bit and the parameter is not
    return tuple(torch.lerp(beside, here, mix.to(x.dtype)) for mix in mixes)


def shift_and_mix(x: Tensor, mixes: Sequence[Tensor], *, backend: str = "auto") -> tuple[Tensor, ...]:
    """Interpolate between each pixel and its neighbour of `q_shift`, once for each vector of shares.

    What RWKV's mixers do before their linear layers (Vision-RWKV, arXiv:2403.02308, section 3.2). The result
    has the dtype of x whatever autocast says. The same input gives the same bits, gradients included.

    Args:
        x: Feature map (B, C, H, W), any size >= 1 along every axis; fastest if channels-last.
        mixes: One to three vectors (C,): the share of the pixel itself, the rest is the neighbour's.
        backend: "auto" takes the fastest for the device; "torch" is the definition; "triton" is one pass
            over memory, without second derivative and vmap.

    Returns:
        One map (B, H, W, C) for each of `mixes`, ready for a linear layer.

    Raises:
        ShapeError: x does not have four axes of at least 1, or a mix is not (C,).
        UsageError: integers, or tensors on several devices.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> x = torch.arange(1.0, 5.0).view(1, 1, 4, 1)  # a single channel looks one row down: 2 3 4 and zero
        >>> (mixed,) = shift_and_mix(x, [torch.tensor([0.5])])
        >>> mixed.flatten()
        tensor([1.5000, 2.5000, 3.5000, 2.0000])
    """
    _check(x, mixes)
    if choose_backend(backend, [x, *mixes], available=("torch", "triton"), fallback="torch") == "triton":
        return tuple(triton_shift_and_mix(x.permute(0, 2, 3, 1), list(mixes)))
    return naive_shift_and_mix(x, mixes)


def _check(x: Tensor, mixes: Sequence[Tensor]) -> None:
    if x.ndim != 4 or 0 in x.shape:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}; give a feature map (B, C, H, W), every axis at least 1"
        )
    if not 1 <= len(mixes) <= MOST_MIXES:
        raise ShapeError(f"got {len(mixes)} mixes; give one to {MOST_MIXES} vectors (C,)")
    for mix in mixes:
        if mix.shape != x.shape[1:2]:
            raise ShapeError(f"a mix has shape {tuple(mix.shape)} but x has {x.shape[1]} channels; give (C,)")
    check_floating(x=x, **{f"mix_{i}": mix for i, mix in enumerate(mixes)})
