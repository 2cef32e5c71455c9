"""Overlap and surface distance of two boolean masks, and what they are when a mask is empty.

    |                  | truth empty             | truth non-empty         |
    | prediction empty | dice NaN, hd95 NaN      | dice 0, hd95 NaN        |
    | pred. non-empty  | dice 0, hd95 NaN        | both defined            |

NaN means "not defined", never "bad": what an undefined value costs is decided in one place, `protocols.py`.
"""

import math
import os
from collections.abc import Sequence

import edt
import numpy as np
from numpy.typing import NDArray

from rwkvseg.errors import GeometryError, ShapeError, UsageError

Mask = NDArray[np.bool_]

_PARALLEL_FROM = 1_000_000  # voxels; smaller arrays are done before threads have started


def dice(prediction: Mask, truth: Mask) -> float:
    """Dice similarity coefficient 2 |P ∩ T| / (|P| + |T|), without unit, 0 to 1.

    Args:
        prediction: boolean mask, 2 or 3 axes.
        truth: boolean mask of the same shape.

    Returns:
        0 when exactly one mask is empty, NaN when both are.

    Raises:
        ShapeError: the shapes differ or have neither 2 nor 3 axes.
        UsageError: an array is not boolean.

    Example:
        >>> dice(np.array([[True, True]]), np.array([[True, False]]))
        0.6666666666666666
    """
    _check_masks(prediction, truth)
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(prediction & truth)) / total if total else math.nan


def hausdorff_95(prediction: Mask, truth: Mask, spacing: Sequence[float] | None = None) -> float:
    """95th percentile of the pooled surface distances, in mm by `spacing`, in pixels without it.

    The surface of a mask is its voxels with a face neighbour outside the mask or outside the array. Every
    surface voxel of one mask contributes its distance to the nearest surface voxel of the other; both
    directions are pooled and the percentile interpolates linearly. This is the definition of
    `medpy.metric.binary.hd95`; MONAI takes the larger of the two directed percentiles instead.

    Args:
        prediction: boolean mask, 2 or 3 axes.
        truth: boolean mask of the same shape.
        spacing: mm per voxel along each axis, or None for distances in pixels.

    Returns:
        NaN when either mask is empty.

    Raises:
        ShapeError: the shapes differ or have neither 2 nor 3 axes.
        GeometryError: `spacing` has another length or is not positive and finite.
        UsageError: an array is not boolean.

    Example:
        >>> left, right = np.array([[True, False, False]]), np.array([[False, False, True]])
        >>> hausdorff_95(left, right), hausdorff_95(left, right, spacing=(1.0, 0.5))
        (2.0, 1.0)
    """
    _check_masks(prediction, truth)
    spacing = check_spacing(spacing, prediction.ndim)
    if not prediction.any() or not truth.any():
        return math.nan
    box = _joint_box(prediction, truth)
    surfaces = _surface(prediction[box]), _surface(truth[box])
    pooled = [_squared_distance_to(surfaces[1], spacing)[surfaces[0]]]
    pooled += [_squared_distance_to(surfaces[0], spacing)[surfaces[1]]]
    return float(np.percentile(np.sqrt(np.concatenate(pooled), dtype=np.float64), 95))


def check_spacing(spacing: Sequence[float] | None, axes: int) -> tuple[float, ...]:
    """`spacing` as `axes` floats, ones when None; GeometryError unless each is positive and finite."""
    if spacing is None:
        return (1.0,) * axes
    values = tuple(float(value) for value in spacing)
    if len(values) != axes or not all(math.isfinite(value) and value > 0 for value in values):
        raise GeometryError(
            f"spacing {values} does not describe {axes} axes. "
            f"Give {axes} positive, finite numbers in mm, or None."
        )
    return values


def _check_masks(prediction: Mask, truth: Mask) -> None:
    if prediction.shape != truth.shape:
        raise ShapeError(
            f"prediction {prediction.shape} and truth {truth.shape} have different shapes. "
            "Bring the prediction back to the grid of the truth before comparing."
        )
    if prediction.ndim not in (2, 3):
        raise ShapeError(
            f"masks of shape {prediction.shape} have neither 2 nor 3 axes. Compare case by case."
        )
    if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
        raise UsageError(
            f"masks of type {prediction.dtype} and {truth.dtype} are not boolean. "
            "Choose one label, as in `label_map == 1`."
        )


def _joint_box(prediction: Mask, truth: Mask) -> tuple[slice, ...]:
    """Bounding box of both masks together: beyond it there is no surface, so no distance changes."""
    union = prediction | truth
    box = []
    for axis in range(union.ndim):
        # the axis that is narrowed first shrinks what the next ones have to read
        others = tuple(other for other in range(union.ndim) if other != axis)
        held = np.flatnonzero(union.any(axis=others))
        box.append(slice(int(held[0]), int(held[-1]) + 1))
        union = union[(slice(None),) * axis + (box[-1],)]
    return tuple(box)


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
