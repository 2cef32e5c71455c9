"""Token shift: every channel group looks at one neighbour of its pixel or voxel.

B: images, C: channels, D, H, W: axes of a volume; H, W: rows and columns of a picture.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops.backends import is_exporting

PADS = ("zeros", "replicate")
MOST_OF_CHANNELS = 1 / 6  # that each of the six directions may take


def q_shift(x: Tensor) -> Tensor:
    """Shift four channel groups by one pixel to the right, left, down and up; the freed border is zero.

    The groups are cut at C // 4, C // 2 and 3 C // 4, so they differ by at most one channel and the last
    one holds the single channel of C = 1. From Vision-RWKV (arXiv:2403.02308), section 3.2, shift 1.

    Args:
        x: Feature map (B, C, H, W); any size >= 1 along every axis, any floating dtype.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ShapeError: x does not have four axes.

    Example:
        >>> x = torch.arange(1.0, 5.0).repeat(4, 1).view(1, 4, 1, 4)  # four channels of one row 1 2 3 4
        >>> q_shift(x)[0, :, 0]
        tensor([[0., 1., 2., 3.],
                [2., 3., 4., 0.],
                [0., 0., 0., 0.],
                [0., 0., 0., 0.]])
    """
    if x.ndim != 4:
        raise ShapeError(f"q_shift got shape {tuple(x.shape)}; give a feature map (B, C, H, W)")
    c = x.shape[1]
    right, left, down, up = x.tensor_split([c // 4, c // 2, 3 * c // 4], dim=1)
    shifted = [
        F.pad(right, (1, -1, 0, 0)),
        F.pad(left, (-1, 1, 0, 0)),
        F.pad(down, (0, 0, 1, -1)),
        F.pad(up, (0, 0, -1, 1)),
    ]
    return torch.cat(shifted, dim=1)


def group_size(channels: int, gamma: float = MOST_OF_CHANNELS) -> int:
    """Channels that each of the six directions of `spatial_shift` takes: floor(gamma * channels).

    Example:
        >>> [group_size(channels) for channels in (5, 6, 48, 49)]
        [0, 1, 8, 8]
    """
    return int(gamma * channels + 1e-9)  # 1 / 6 is no binary fraction: 54 / 6 must stay 9


def spatial_shift(
    x: Tensor, *, shift: int = 1, gamma: float = MOST_OF_CHANNELS, pad: str = "zeros"
) -> Tensor:
    """Shift six channel groups along the three axes of a volume, forth and back; the rest stays.

    With g = floor(gamma * C) channels each, in this order, a voxel receives what lies `shift` before and
    behind it along W, then along H, then along D; the last C - 6 g channels stay. Along an axis of at most
    `shift` voxels nothing is shifted. `q_shift` carried over to volumes; the paper's own form is not public.

    Args:
        x: Feature map (B, C, D, H, W); any size >= 1 along every axis, any floating dtype.
        shift: How far, in voxels; 0 gives x itself.
        gamma: Share of the channels that each direction takes, at most 1/6.
        pad: What enters at the border: "zeros", or "replicate" for its own value.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        ShapeError: x does not have five axes.
        UsageError: a negative shift, gamma outside (0, 1/6], or an unknown pad.

    Example:
        >>> x = torch.arange(1.0, 5.0).repeat(6, 1).view(1, 6, 1, 1, 4)  # six channels of one row 1 2 3 4
        >>> spatial_shift(x)[0, :3, 0, 0]
        tensor([[0., 1., 2., 3.],
                [2., 3., 4., 0.],
                [1., 2., 3., 4.]])
    """
    if x.ndim != 5:
        raise ShapeError(f"spatial_shift got shape {tuple(x.shape)}; give a feature map (B, C, D, H, W)")
    check_shift(shift, gamma, pad)
    if shift == 0:
        return x
    g = group_size(x.shape[1], gamma)
    if g == 0:
        return x
    *groups, rest = x.tensor_split([g * i for i in range(1, 7)], dim=1)
    move = _move_at_any_size if is_exporting() else _move
    shifted = [move(group, 4 - i // 2, shift * (1 - 2 * (i % 2)), pad) for i, group in enumerate(groups)]
    return torch.cat([*shifted, rest], dim=1)


def check_shift(shift: int, gamma: float, pad: str) -> None:
    """Refuse what `spatial_shift` cannot do.

    Raises:
        UsageError: see there.
    """
    if isinstance(shift, bool) or not isinstance(shift, int) or shift < 0:
        raise UsageError(f"shift is {shift!r}; give a number of voxels, 0 or more")
    if not 0 < gamma <= MOST_OF_CHANNELS:
        raise UsageError(
            f"gamma is {gamma!r}; give a share above 0 and at most 1/6: there are six directions"
        )
    if pad not in PADS:
        raise UsageError(f"pad is {pad!r}; give one of {', '.join(map(repr, PADS))}")


def _move(x: Tensor, axis: int, by: int, pad: str) -> Tensor:
    """Move x (B, C, D, H, W) along one axis, towards its end if `by` is positive."""
    size = x.shape[axis]
    if size <= abs(by):
        return x
    kept = x.narrow(axis, max(-by, 0), size - abs(by))
    sides = [0, 0] * (4 - axis) + [max(by, 0), max(-by, 0)]
    if pad == "replicate":
        # autocast on a CPU would make it float32
        return F.pad(kept, (sides + [0] * 6)[:6], mode="replicate").to(x.dtype)
    return F.pad(kept, sides)


def _move_at_any_size(x: Tensor, axis: int, by: int, pad: str) -> Tensor:
    """Return the same without a branch on the size, which is unknown while a graph is exported."""
    place = torch.arange(x.shape[axis], device=x.device)
    last = place[-1]
    source = place - by * (last >= abs(by)).to(place.dtype)
    moved = x.index_select(axis, torch.minimum(source.clamp_min(0), last))
    if pad == "replicate":
        return moved
    exists = ((source >= 0) & (source <= last)).to(x.dtype)
    return moved * exists.view(-1, *[1] * (4 - axis))
