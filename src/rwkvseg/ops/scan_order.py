"""Volumes as token sequences along three axis orders, and back.

B: volumes, D, H, W: their axes, C: channels, T = D*H*W tokens. An order names the axes from the slowest to
the fastest. The three orders are cyclic: every axis is the slowest of one and the fastest of another, so a
decay over token distance is a profile along each axis once. Bi-WKV looks both ways: reversed orders would add
nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError

SCAN_ORDERS = ("dhw", "hwd", "wdh")


def to_tokens(x: Tensor, orders: Sequence[str] = SCAN_ORDERS) -> Tensor:
    """Read a volume in one or more orders, which lie side by side in the channels.

    Args:
        x: (B, D, H, W, C), any strides.
        orders: n of `SCAN_ORDERS`.

    Returns:
        (B, T, n C): channels [i C, (i + 1) C) are the tokens in the i-th order.

    Raises:
        ShapeError: x does not have five axes.
        UsageError: an unknown order, or none.

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 2, 2, 1)  # H and W are rows and columns of 0 1 / 2 3
        >>> to_tokens(x, ["dhw", "wdh"])[0].T
        tensor([[0., 1., 2., 3.],
                [0., 2., 1., 3.]])
    """
    if x.ndim != 5:
        raise ShapeError(f"got a volume of shape {tuple(x.shape)}; give (B, D, H, W, C)")
    read = [x.permute(0, *_axes(order), 4).flatten(1, 3) for order in _check(orders)]
    return read[0] if len(read) == 1 else torch.cat(read, dim=2)


def from_tokens(
    tokens: Tensor, size: tuple[int, int, int], orders: Sequence[str] = SCAN_ORDERS
) -> list[Tensor]:
    """Undo `to_tokens`.

    Args:
        tokens: (B, T, n C).
        size: D, H and W.
        orders: those given to `to_tokens`.

    Returns:
        n views (B, D, H, W, C), one for each order.

    Raises:
        ShapeError: the tokens do not make n volumes of this size.
        UsageError: an unknown order, or none.
    """
    num_orders = len(_check(orders))
    if tokens.ndim != 3 or tokens.shape[2] % num_orders:
        raise ShapeError(
            f"got tokens of shape {tuple(tokens.shape)} for {num_orders} orders; "
            f"give (B, D*H*W, {num_orders} C)"
        )
    volumes = []
    for part, order in zip(tokens.chunk(len(orders), dim=2), orders, strict=True):
        axes = _axes(order)
        volume = part.reshape(part.shape[0], *(size[axis - 1] for axis in axes), part.shape[2])
        volumes.append(volume.permute(0, *(1 + axes.index(axis) for axis in (1, 2, 3)), 4))
    return volumes


def _axes(order: str) -> list[int]:
    """Axes of (B, D, H, W, C), from the slowest to the fastest of this order."""
    return ["dhw".index(letter) + 1 for letter in order]


def _check(orders: Sequence[str]) -> Sequence[str]:
    if not orders or any(order not in SCAN_ORDERS for order in orders):
        raise UsageError(f"got the orders {tuple(orders)}; give one or more of {', '.join(SCAN_ORDERS)}")
    return orders
