"""Resampling of volumes: voxel centres aligned, smoothed before shrinking, slab by slab.

Sizes n -> m along every axis; the centre of voxel x lies at (x + 0.5) * m / n - 0.5.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.preprocessing import FloatImage

ANISOTROPY = 3.0
"""Slices this many times as far apart as voxels within them are not interpolated (as nnU-Net's rule)."""
SLAB_VOXELS = 2**22


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
    image: NDArray[Any],
    shape: tuple[int, int, int],
    through_plane: int | None,
    interpolation: str = "linear",
    *,
    prepare: Callable[[FloatImage], None] = lambda _: None,
) -> FloatImage:
    """Resample (C, i, j, k) to (C, *shape) float32.

    In plane and, without a `through_plane` axis, along every axis: "linear" or "cubic", with a kernel as wide
    as the step when shrinking. Along `through_plane`: the nearest slice. `prepare` changes slabs of the image
    (C, ...) before they are resampled; the image itself, which may be a view, is not changed.
    """
    axis = 0 if through_plane is None else through_plane
    resampled = np.empty((len(image), *shape), np.float32)
    # (C, slices, rows, columns)
    planes, target = np.moveaxis(image, axis + 1, 1), np.moveaxis(resampled, axis + 1, 1)
    before, after = planes.shape[1], target.shape[1]
    rows, columns = (kernel_weights(planes.shape[i], target.shape[i], interpolation) for i in (2, 3))
    if through_plane is not None or before == after:
        _resize(planes, target, (rows, columns), nearest_voxels(before, after), prepare)
        return resampled
    between = np.empty((len(image), before, *target.shape[2:]), np.float32)
    _resize(planes, between, (rows, columns), np.arange(before), prepare)
    # of each row of the volume, a picture of slices and columns
    between, target = between.transpose(0, 2, 1, 3), target.transpose(0, 2, 1, 3)
    slices = kernel_weights(before, after, interpolation)
    _resize(between, target, (slices, None), np.arange(target.shape[1]), lambda _: None)
    return resampled


def kernel_weights(n: int, m: int, interpolation: str) -> FloatImage | None:
    """Weights (m, n) of n voxels in m, each row adding up to 1; None where nothing changes.

    The kernel, a triangle or Keys' cubic with a = -0.5, lies about each centre and is as wide as a step of
    the coarser grid, as that of torch's `interpolate` with antialias=True. (Of pictures one column wide torch
    2.13 gives nothing but the first row.) See also `_centre_of_mass`.
    """
    if n == m:
        return None
    centres = (np.arange(m) + 0.5) * n / m - 0.5
    away = (np.arange(n) - centres[:, None]) / max(1.0, n / m)
    x = np.abs(away)
    if interpolation == "cubic":
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
    weights = np.maximum(0, 1 - x)
    weights /= weights.sum(axis=1, keepdims=True)
    if n > m:
        reach = n / m
        inside = (centres - reach >= -1) & (centres + reach <= n)
        weights[inside] *= _centre_of_mass(weights[inside], away[inside])
    return np.asarray(weights, np.float32)


def _centre_of_mass(weights: NDArray[np.float64], away: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors that move the centre of mass of a triangle to its middle, so that a ramp stays a ramp.

    Of a triangle that is no whole number of voxels wide it lies up to 0.07 steps off.
    """
    first = (weights * away).sum(axis=1, keepdims=True)
    second = (weights * away**2).sum(axis=1, keepdims=True)
    factors: NDArray[np.float64] = (second - first * away) / (second - first**2)
    return factors


def resample_label(label: NDArray[np.integer[Any]], shape: Sequence[int]) -> NDArray[np.integer[Any]]:
    """Resample (i, j, k) to `shape` by the nearest voxel; a contiguous copy of the same type."""
    nearest = np.ix_(*(nearest_voxels(n, m) for n, m in zip(label.shape, shape, strict=True)))
    return np.ascontiguousarray(label[nearest])


def nearest_voxels(n: int, m: int) -> NDArray[np.int64]:
    """Voxel 0..n-1 nearest to each of m centres; of two equally near ones the latter.

    >>> nearest_voxels(4, 3).tolist(), nearest_voxels(2, 4).tolist()
    ([0, 2, 3], [0, 0, 1, 1])
    """
    return ((2 * np.arange(m) + 1) * n) // (2 * m)


def _resize(
    pictures: NDArray[Any],
    target: FloatImage,
    weights: tuple[FloatImage | None, FloatImage | None],
    chosen: NDArray[np.int64],
    prepare: Callable[[FloatImage], None],
) -> None:
    """Weigh rows and columns of the `chosen` of pictures (C, n, rows, columns) into target, in slabs."""
    rows, columns = weights
    voxels = len(pictures) * max(pictures[0, 0].size, target[0, 0].size)
    step = max(1, SLAB_VOXELS // voxels)
    for start in range(0, len(chosen), step):
        slab = np.ascontiguousarray(pictures[:, chosen[start : start + step]], np.float32)
        prepare(slab)
        slab = slab if rows is None else rows @ slab
        target[:, start : start + step] = slab if columns is None else slab @ columns.T
