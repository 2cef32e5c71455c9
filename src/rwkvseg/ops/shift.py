"""Token shift: every channel group looks at one neighbour of its pixel.

B: images, C: channels, H, W: rows and columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvseg.errors import ShapeError


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
