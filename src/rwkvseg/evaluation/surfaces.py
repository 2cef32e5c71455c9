"""Distances between the surfaces of two masks: one pass, from which every surface metric is read.

The surface of a mask is its voxels with a face neighbour outside the mask or outside the array. Each surface
voxel of one mask has a distance to the nearest surface voxel of the other, in both directions.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import edt
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from rwkvseg.errors import UsageError
from rwkvseg.evaluation.masks import Mask, bounding_box, check_masks, check_spacing

Percentile = Literal["pooled", "larger"]
Distances = NDArray[np.float64]

_PARALLEL_FROM = 1_000_000  # voxels; smaller arrays are done before threads have started
_PIXELS_A_POINT = 32  # of the transform, that take longer than one point's search
_EXACT_BELOW = 2**12  # pixels of a box's diagonal, whose square float32 holds as a whole number


@dataclass(frozen=True, slots=True, eq=False)
class SurfaceDistances:
    """Distances of two masks that both hold something, in the unit of the spacing they were made with."""

    to_truth: Distances
    """(surface voxels of the prediction,): to the surface of the truth."""
    to_prediction: Distances
    """(surface voxels of the truth,): to the surface of the prediction."""

    def hausdorff_95(self, method: Percentile = "pooled") -> float:
        """95th percentile, see `metrics.hausdorff_95`."""
        if method == "pooled":
            return float(np.percentile(self._pooled(), 95))
        if method == "larger":
            return float(max(np.percentile(each, 95) for each in (self.to_truth, self.to_prediction)))
        raise UsageError(f"method {method!r} is unknown. Choose 'pooled' (medpy's) or 'larger' (MONAI's).")

    def average(self) -> float:
        """Mean of all, see `metrics.assd`."""
        return float(self._pooled().mean())

    def within(self, tolerance: float) -> float:
        """Share of all that is at most `tolerance`, see `metrics.nsd`."""
        return float((self._pooled() <= tolerance).mean())

    def _pooled(self) -> Distances:
        return np.concatenate([self.to_truth, self.to_prediction])


def surface_distances(
    prediction: Mask, truth: Mask, spacing: Sequence[float] | None = None
) -> SurfaceDistances | None:
    """Measure both directions; None when either mask is empty.

    Args:
        prediction: boolean mask, 2 or 3 axes.
        truth: boolean mask of the same shape.
        spacing: mm per voxel along each axis, or None for distances in pixels.

    Raises:
        ShapeError: the shapes differ or have neither 2 nor 3 axes.
        GeometryError: `spacing` has another length or is not positive and finite.
        UsageError: an array is not boolean.
    """
    check_masks(prediction, truth)
    spacing = check_spacing(spacing, prediction.ndim)
    if not prediction.any() or not truth.any():
        return None
    box = bounding_box(prediction | truth)  # beyond it there is no surface, so no distance changes
    assert box is not None
    first, second = _surface(prediction[box]), _surface(truth[box])
    if spacing == (1.0, 1.0) and _has_few_points(first, second):
        return _distances_of_points(np.argwhere(first), np.argwhere(second))
    squared = _squared_distance_to(second, spacing)[first], _squared_distance_to(first, spacing)[second]
    return SurfaceDistances(*(np.sqrt(each, dtype=np.float64) for each in squared))


def _has_few_points(first: Mask, second: Mask) -> bool:
    """Whether the search of every point is faster than two transforms of the box, and as exact."""
    points = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return points * _PIXELS_A_POINT < first.size and math.hypot(*first.shape) < _EXACT_BELOW


def _distances_of_points(first: NDArray[np.intp], second: NDArray[np.intp]) -> SurfaceDistances:
    """Distances of pixels (n, 2) and (m, 2), both ways: those of the transform, where contours are short."""
    return SurfaceDistances(_to_nearest(first, second), _to_nearest(second, first))


def _to_nearest(points: NDArray[np.intp], others: NDArray[np.intp]) -> Distances:
    found: Distances = np.asarray(cKDTree(others, compact_nodes=False, balanced_tree=False).query(points)[0])
    return found


def _surface(mask: Mask) -> Mask:
    """Voxels of `mask` with a face neighbour outside it; beyond the array counts as outside."""
    interior = mask.copy()
    for axis in range(mask.ndim):
        line = np.moveaxis(mask, axis, 0)
        inside = np.moveaxis(interior, axis, 0)
        inside[1:] &= line[:-1]
        inside[:-1] &= line[1:]
        inside[[0, -1]] = False
    return mask & ~interior


def _squared_distance_to(surface: Mask, spacing: tuple[float, ...]) -> NDArray[np.float32]:
    """Squared distance of every voxel to the nearest voxel of `surface`, float32."""
    # C order, so that `anisotropy` follows the axes; edt reads bytes a quarter faster than booleans
    background = np.ascontiguousarray(~surface).view(np.uint8)
    threads = min(4, os.cpu_count() or 1) if background.size >= _PARALLEL_FROM else 1
    # with a black border the array's edge would count as surface
    squared: NDArray[np.float32] = edt.edtsq(
        background, anisotropy=spacing, black_border=False, parallel=threads
    )
    return squared
