"""Effective receptive field (Luo et al., arXiv:1701.04128) of the last encoder output.

Of the deepest map's middle pixel, summed over channels, the absolute gradient by every input pixel: where the
network looks from there. Averaged over pictures and summed over colours.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.errors import UsageError
from rwkvseg.inference.resolution import in_channels
from rwkvseg.models.blocks import SqueezeExcite
from rwkvseg.models.blocks3d import InstanceNorm3d

_POOLING = (nn.InstanceNorm2d, nn.InstanceNorm3d, InstanceNorm3d, SqueezeExcite)

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


def reach(network: nn.Module, size: Sequence[int], *, axis: int = 0, stride: int = 16) -> int:
    """How many pixels away along `axis` a pixel's logits look, beside what is pooled.

    Found as the pixels whose gradient is not exactly zero, in double precision, of pixels at all places of a
    cell of `stride` in the middle. Instance norms and squeeze-excite, by which all pixels depend on all
    others through a few means, are left out. A network without limit gives about half the length.

    Args:
        network: (1, in_channels, *size) -> logits on the same grid; it is not changed.
        size: of the image; the middle should be farther from its ends than what is looked for.
        axis: along which.
        stride: of the network's deepest map.
    """
    plain = _without_pooling(copy.deepcopy(network)).double().eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, in_channels(network), *size, dtype=torch.double, generator=generator)
    x.requires_grad_()
    logits = plain(x)
    farthest = 0
    for place in range(size[axis] // 2, min(size[axis], size[axis] // 2 + stride)):
        index = [slice(None), slice(None), *(length // 2 for length in size)]
        index[2 + axis] = place
        (gradient,) = torch.autograd.grad(logits[tuple(index)].sum(), x, retain_graph=True)
        seen = gradient.abs().movedim(2 + axis, 0).flatten(1).amax(1).nonzero().flatten()
        farthest = max(farthest, int((seen - place).abs().max()))
    return farthest


def _without_pooling(network: nn.Module) -> nn.Module:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _POOLING):
                setattr(module, name, nn.Identity())
    return network
