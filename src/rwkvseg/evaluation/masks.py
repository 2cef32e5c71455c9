"""What every metric asks of its masks and of the spacing."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rwkvseg.errors import GeometryError, ShapeError, UsageError

Mask = NDArray[np.bool_]


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


def bounding_box(mask: Mask) -> tuple[slice, ...] | None:
    """Smallest box that holds all of a mask; None where it is empty."""
    box = []
    for axis in range(mask.ndim):
        # the axis that is narrowed first shrinks what the next ones have to read
        others = tuple(other for other in range(mask.ndim) if other != axis)
        held = np.flatnonzero(mask.any(axis=others))
        if len(held) == 0:
            return None
        box.append(slice(int(held[0]), int(held[-1]) + 1))
        mask = mask[(slice(None),) * axis + (box[-1],)]
    return tuple(box)


def check_masks(prediction: Mask, truth: Mask) -> None:
    """Raise ShapeError unless the masks have one shape of 2 or 3 axes, UsageError unless they are boolean."""
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
