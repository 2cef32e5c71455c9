"""Overlapping windows over a volume, in slabs: never the logits of all classes of the whole volume at once.

Windows of the patch's size lie `patch * (1 - overlap)` apart, the last of every axis flush with the border.
Logits are summed with Gaussian weights and divided by the sum of the weights, as in MONAI's
sliding_window_inference with mode="gaussian"; softmax comes after, once a voxel. Axis 0 comes slowest, so the
rows before the next window are finished and can go. For slabs along another axis see `along_axis`.

Shapes: B windows, C channels, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, pairwise, product

import torch
from torch import Tensor
from torch.nn.functional import pad

Shape = tuple[int, int, int]
Infer = Callable[[Tensor], Tensor]

SIGMA = 1 / 8  # standard deviation of the weights, of the patch's side
LEAST_WEIGHT = 1e-3  # in the corners, so that a sum of weights can be divided by


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Where the windows lie.

    >>> Windows(shape=(10, 9, 4), patch=(4, 4, 8)).starts
    ((0, 2, 4, 6), (0, 2, 4, 5), (0,))
    """

    shape: Shape
    """Of the volume."""
    patch: Shape
    """Of a window. Where it is larger than the volume, zeros are put around, as many before as behind."""
    overlap: float = 0.5
    """Of neighbours, as a share of the patch: at least 0, below 1."""

    @property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """First rows of the windows along every axis."""
        return tuple(_starts(n, side, self.overlap) for n, side in zip(self.shape, self.patch, strict=True))

    @property
    def count(self) -> int:
        """Windows in all."""
        return math.prod(len(starts) for starts in self.starts)

    @property
    def slab_voxels(self) -> int:
        """Voxels of as many rows as are held at once."""
        return min(self.patch[0], self.shape[0]) * self.shape[1] * self.shape[2]

    @property
    def inner(self) -> tuple[slice, ...]:
        """Part of every window that lies in the volume."""
        first = [max(0, side - n) // 2 for n, side in zip(self.shape, self.patch, strict=True)]
        return tuple(
            slice(row, row + min(side, n)) for row, n, side in zip(first, self.shape, self.patch, strict=True)
        )

    @property
    def padding(self) -> list[int]:
        """Zeros around every window, as torch's `pad` takes them: before and behind the last axis first."""
        ends = [(part.start, side - part.stop) for part, side in zip(self.inner, self.patch, strict=True)]
        return [number for pair in reversed(ends) for number in pair]


def gaussian_weights(patch: Sequence[int]) -> Tensor:
    """Weights (*patch) float32 of a window's voxels: Gaussian with sigma = side / 8, at least 0.001."""
    weights = torch.ones(())
    for side in patch:
        distance = torch.arange(side) - (side - 1) / 2
        weights = weights[..., None] * (-(distance**2) / (2 * (SIGMA * side) ** 2)).exp()
    return weights.clamp(min=LEAST_WEIGHT)


def slab_logits(
    image: Tensor,
    infer: Infer,
    windows: Windows,
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    on_windows: Callable[[int], None] = lambda _: None,
) -> Iterator[Tensor]:
    """Yield the logits of a volume as slabs (rows, K, *other axes) float32, first rows first.

    Held are as many rows as a patch has, and one batch. A slab is valid until the next is asked for.

    Args:
        image: (C, *windows.shape), on any device.
        infer: (B, C, *patch) -> logits (B, K, *patch); it takes care of the network's device.
        windows: where they lie.
        batch_size: windows that go through `infer` together.
        device: where logits are summed.
        on_windows: called after each batch with its number of windows.
    """
    weights = gaussian_weights(windows.patch)[windows.inner].to(device).unsqueeze(1)  # (rows, 1, ...)
    totals = torch.zeros(len(weights), 1, *windows.shape[1:], device=device)
    sums: Tensor | None = None
    along, *across = windows.starts
    for start, following in pairwise((*along, windows.shape[0])):
        corners = product((start,), *across)
        while batch := list(islice(corners, batch_size)):
            places = [_place(corner, windows) for corner in batch]
            logits = infer(torch.stack([pad(image[:, *place], windows.padding) for place in places]))
            if sums is None:
                sums = torch.zeros(len(weights), logits.shape[1], *windows.shape[1:], device=device)
            for (_, *columns), window in zip(places, logits[:, :, *windows.inner], strict=True):
                totals[:, :, *columns] += weights
                sums[:, :, *columns].addcmul_(window.to(device, torch.float32).transpose(0, 1), weights)
            on_windows(len(batch))
        assert sums is not None
        done = following - start
        yield sums[:done].div_(totals[:done])
        _drop_rows(sums, done)
        _drop_rows(totals, done)


def along_axis(axis: int, infer: Infer) -> Infer:
    """Return `infer` for windows whose `axis` has been brought to the front of the other two."""
    return lambda windows: infer(windows.movedim(2, 2 + axis)).movedim(2 + axis, 2)


def slab_axis(shape: Sequence[int], patch: Sequence[int]) -> int:
    """Axis along which a slab of one patch holds the fewest voxels; of equal ones the first.

    >>> slab_axis((512, 512, 800), (96, 96, 96))
    2
    """
    shares = [min(side, n) / n for n, side in zip(shape, patch, strict=True)]
    return shares.index(min(shares))


def mirrored(infer: Infer, axes: Sequence[int]) -> Infer:
    """Test-time augmentation: the mean of the logits over all mirrorings along `axes` (0, 1, 2), undone.

    Costs 2 ** len(axes) calls of `infer`.
    """
    flips = [[axis + 2 for axis in chosen] for n in range(len(axes) + 1) for chosen in combinations(axes, n)]

    def infer_mirrored(windows: Tensor) -> Tensor:
        logits = infer(windows)
        for axes_of_flip in flips[1:]:
            logits = logits + infer(windows.flip(axes_of_flip)).flip(axes_of_flip)
        return logits / len(flips)

    return infer_mirrored


def _starts(length: int, side: int, overlap: float) -> tuple[int, ...]:
    if side >= length:
        return (0,)
    step = max(1, int(side * (1 - overlap)))
    return (*range(0, length - side, step), length - side)


def _place(corner: Sequence[int], windows: Windows) -> tuple[slice, ...]:
    return tuple(
        slice(start, start + min(side, n))
        for start, side, n in zip(corner, windows.patch, windows.shape, strict=True)
    )


def _drop_rows(values: Tensor, number: int) -> None:
    """Move what comes after the first rows to the front, in pieces that do not overlap, zeros behind it."""
    left = len(values) - number
    for row in range(0, left, number):
        piece = min(number, left - row)
        values[row : row + piece].copy_(values[row + number : row + number + piece])
    values[left:].zero_()
