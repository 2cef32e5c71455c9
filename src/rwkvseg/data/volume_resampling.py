"""Resampling of volumes: voxel centres aligned, smoothed before shrinking, slab by slab.

Sizes n -> m along every axis; the centre of voxel x lies at (x + 0.5) * m / n - 0.5.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from rwkvseg.data.preprocessing import FloatImage

ANISOTROPY = 3.0
"""Slices this many times as far apart as voxels within them are not interpolated (as nnU-Net's rule)."""
SLAB_VOXELS = 2**24


def wanted_spacing(spacing: Sequence[float], wanted: Sequence[float | None] | None) -> list[float]:
    """Spacing of the network's grid: `wanted`, where that is None the file's."""
    asked = wanted or (None,) * len(spacing)
    return [old if new is None else new for old, new in zip(spacing, asked, strict=True)]


def network_shape(
    shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float | None] | None
) -> tuple[int, int, int]:
    """Voxels along each axis when `spacing` becomes `wanted` mm, rounded, at least 1.

    >>> network_shape((256, 216, 10), (1.5625, 1.5625, 9.9), (1.5, 1.5, None))
    (267, 225, 10)
    """
    lengths = zip(shape, spacing, wanted_spacing(spacing, wanted), strict=True)
    i, j, k = (max(1, round(n * mm / new)) for n, mm, new in lengths)
    return i, j, k


def through_plane_axis(spacing: Sequence[float], wanted: Sequence[float | None] | None) -> int | None:
    """Axis whose spacing, the file's or the wanted one, is more than 3 times both others'; None if none is.

    >>> through_plane_axis((1.5, 1.5, 10.0), (1.0, 1.0, 1.0)), through_plane_axis((1.0, 1.0, 2.5), None)
    (2, None)
    """
    for lengths in (list(spacing), wanted_spacing(spacing, wanted)):
        longest = max(lengths)
        if longest > ANISOTROPY * sorted(lengths)[1]:
            return lengths.index(longest)
    return None


def resample_image(
    image: FloatImage, shape: tuple[int, int, int], through_plane: int | None, interpolation: str = "linear"
) -> FloatImage:
    """Resample (C, i, j, k) to (C, *shape).

    In plane and, without a `through_plane` axis, along every axis: "linear" or "cubic", with a kernel as wide
    as the step when shrinking. Along `through_plane`: the nearest slice.
    """
    axis = 0 if through_plane is None else through_plane
    mode = {"linear": "bilinear", "cubic": "bicubic"}[interpolation]
    slices = shape[axis]
    rows, columns = (length for other, length in enumerate(shape) if other != axis)
    planes = np.moveaxis(image, axis + 1, 1)  # (C, slices, rows, columns)
    if through_plane is not None:
        planes = planes[:, _nearest(planes.shape[1], slices)]
    planes = _in_slabs(planes, (rows, columns), mode)
    if through_plane is None:  # of each row of the volume, a picture of slices and columns
        planes = _in_slabs(planes.transpose(0, 2, 1, 3), (slices, columns), mode).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(np.moveaxis(planes, 1, axis + 1))


def resample_label(label: NDArray[np.integer[Any]], shape: Sequence[int]) -> NDArray[np.integer[Any]]:
    """Resample (i, j, k) to `shape` by the nearest voxel; a contiguous copy of the same type."""
    nearest = np.ix_(*(_nearest(n, m) for n, m in zip(label.shape, shape, strict=True)))
    return np.ascontiguousarray(label[nearest])


def _nearest(n: int, m: int) -> NDArray[np.int64]:
    """Voxel 0..n-1 nearest to each of m centres; of two equally near ones the latter."""
    return ((2 * np.arange(m) + 1) * n) // (2 * m)


def _in_slabs(pictures: NDArray[Any], size: tuple[int, int], mode: str) -> FloatImage:
    """Resize the last two axes of (C, n, rows, columns), as many n at a time as memory allows."""
    channels, number = pictures.shape[:2]
    if pictures.shape[2:] == size:
        return pictures
    resized = np.empty((channels, number, *size), np.float32)
    step = max(1, SLAB_VOXELS // max(1, channels * max(np.prod(pictures.shape[2:]), np.prod(size))))
    for start in range(0, number, int(step)):
        part = torch.from_numpy(np.ascontiguousarray(pictures[:, start : start + step]))
        resized[:, start : start + step] = interpolate(part, size=size, mode=mode, antialias=True).numpy()
    return resized
