"""Effective receptive field (Luo et al., arXiv:1701.04128) of the last encoder output.

Of the deepest map's middle pixel, summed over channels, the absolute gradient by every input pixel: where the
network looks from there. Averaged over pictures and summed over colours.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.errors import UsageError

SHARES = (0.2, 0.5, 0.9, 0.99)  # of the whole gradient


def receptive_field(
    network: nn.Module, images: Iterable[Tensor], *, on_image: Callable[[], None] = lambda: None
) -> Tensor:
    """Mean absolute gradient (H, W) float64 on the CPU, of sum 1.

    Args:
        network: one whose `encoder` returns a list of maps, in evaluation mode.
        images: (1, C, H, W) each, all of one size, on the network's device; H and W multiples of 16.
        on_image: called after each image.

    Raises:
        UsageError: no encoder, or no image.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise UsageError(f"{type(network).__name__} has no encoder to look at. Choose an RWKV-UNet.")
    total: Any = 0.0
    for image in images:
        x = image.detach().requires_grad_()
        deepest: Tensor = encoder(x)[-1]
        row, column = deepest.shape[2] // 2, deepest.shape[3] // 2
        (gradient,) = torch.autograd.grad(deepest[:, :, row, column].sum(), x)
        total = total + gradient.double().abs().sum((0, 1)).cpu()
        on_image()
    if not isinstance(total, Tensor):
        raise UsageError("there is no image to look at. Give at least 1.")
    return total / total.sum()


def area_shares(field: Tensor) -> dict[str, float]:
    """Share of the picture's area that the strongest pixels need to hold 20, 50, 90, 99 % of the gradient.

    An even field needs just these shares; a field of one pixel next to nothing.

    >>> area_shares(torch.full((10, 10), 0.01))["50%"]
    0.5
    """
    ordered = field.flatten().sort(descending=True).values.cumsum(0)
    counts = {share: int((ordered < share - 1e-9).sum()) + 1 for share in SHARES}
    return {f"{round(100 * share)}%": min(1.0, count / field.numel()) for share, count in counts.items()}


def share_beyond(field: Tensor, distance: float) -> float:
    """Share of the gradient at pixels farther from the middle than `distance` times the shorter side."""
    rows, columns = field.shape
    y = torch.arange(rows, dtype=torch.float64) - rows / 2
    x = torch.arange(columns, dtype=torch.float64) - columns / 2
    far = torch.hypot(y[:, None], x) > distance * min(rows, columns)
    return float(field[far].sum())


def describe_field(field: Tensor) -> dict[str, Any]:
    """Return the numbers of a field that a figure stands for."""
    return {
        "area_that_holds": area_shares(field),
        "share_beyond_a_quarter_of_the_side": share_beyond(field, 0.25),
        "area_above_a_thousandth_of_the_largest": float((field > field.max() / 1000).double().mean()),
    }
