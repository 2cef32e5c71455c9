"""From slabs of logits on the network's grid to a label map on another grid, row by row.

Probabilities are resampled, then the arg-max is taken. Voxel x of m lies at (x + 0.5) * n / m - 0.5 on the
network's axis of n, which is clamped to its ends, as torch's `interpolate` with align_corners=False has it.
"""

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate


def write_labels(
    slabs: Iterable[Tensor], rows: int, labels: NDArray[np.uint8], *, nearest: Collection[int] = ()
) -> None:
    """Fill `labels` with the arg-max of the probabilities resampled to its shape.

    Held are, beside a slab, some five planes of K classes as large as those of `labels`.

    Args:
        slabs: logits (some rows, K, *other axes) each, first rows first; each is used before the next.
        rows: of all slabs together.
        labels: any memory layout, a view too.
        nearest: axes along which the nearest voxel is taken; along the others interpolation is linear.
    """
    planes = enumerate(_planes(slabs, rows, labels.shape, nearest))
    index, plane = next(planes)
    before = plane
    for row in range(len(labels)):
        low, fraction = _place(row, rows, len(labels), is_nearest=0 in nearest)
        while index < low + (fraction > 0):
            before, (index, plane) = plane, next(planes)
        scores = plane if fraction == 0 else torch.lerp(before, plane, fraction)
        # argmax over the slowest axis takes five times as long on a CPU
        labels[row] = scores.max(0).indices.to(torch.uint8).cpu().numpy()


def _planes(
    slabs: Iterable[Tensor], rows: int, shape: tuple[int, ...], nearest: Collection[int]
) -> Iterator[Tensor]:
    """Scores (K, *shape[1:]) of every row: probabilities, or the logits where nothing is resampled."""
    for slab in slabs:
        is_same = (rows, *slab.shape[2:]) == shape
        for logits in slab:
            yield logits if is_same else _resized(logits.softmax(0), shape, nearest)


def _resized(plane: Tensor, shape: tuple[int, ...], nearest: Collection[int]) -> Tensor:
    taken = [shape[axis] if axis in nearest else plane.shape[axis] for axis in (1, 2)]
    if list(plane.shape[1:]) != taken:
        plane = interpolate(plane[None], size=taken, mode="nearest-exact")[0]
    if plane.shape[1:] != shape[1:]:
        plane = interpolate(plane[None], size=shape[1:], mode="bilinear", align_corners=False)[0]
    return plane


def _place(x: int, n: int, m: int, *, is_nearest: bool) -> tuple[int, float]:
    """Voxel of n before the centre of voxel x of m, and how far beyond it, 0 up to 1; in whole numbers."""
    if is_nearest:
        return (2 * x + 1) * n // (2 * m), 0.0
    low, rest = divmod(max(0, (2 * x + 1) * n - m), 2 * m)
    return (low, rest / (2 * m)) if low < n - 1 else (n - 1, 0.0)
