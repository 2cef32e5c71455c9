"""Overlap and surface distance of two boolean masks, and what they are when a mask is empty.

    |                  | truth empty                       | truth non-empty                    |
    | prediction empty | all NaN, volume difference 0      | Dice, IoU, NSD, recall 0; rest NaN |
    | pred. non-empty  | Dice, IoU, NSD, precision 0;      | all defined                        |
    |                  | rest NaN                          |                                    |

The volume difference is always defined. NaN means "not defined", never "bad": what an undefined value costs
is decided in one place, `protocols.py`.
"""

import math
from collections.abc import Sequence

import numpy as np

from rwkvseg.errors import UsageError
from rwkvseg.evaluation.masks import Mask, check_masks, check_spacing
from rwkvseg.evaluation.surfaces import Percentile, surface_distances


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
    check_masks(prediction, truth)
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(prediction & truth)) / total if total else math.nan


def iou(prediction: Mask, truth: Mask) -> float:
    """Intersection over union |P ∩ T| / (|P| + |T| - |P ∩ T|) (Jaccard index), without unit, 0 to 1.

    Arguments and errors as `dice`; 0 when exactly one mask is empty, NaN when both are.

    Example:
        >>> iou(np.array([[True, True]]), np.array([[True, False]]))
        0.5
    """
    check_masks(prediction, truth)
    either = int(np.count_nonzero(prediction | truth))
    return int(np.count_nonzero(prediction & truth)) / either if either else math.nan


def precision(prediction: Mask, truth: Mask) -> float:
    """Share of the prediction that is true, |P ∩ T| / |P|, without unit, 0 to 1.

    Arguments and errors as `dice`; NaN when the prediction is empty, 0 when only the truth is.

    Example:
        >>> precision(np.array([[True, True]]), np.array([[True, False]]))
        0.5
    """
    check_masks(prediction, truth)
    predicted = int(np.count_nonzero(prediction))
    return int(np.count_nonzero(prediction & truth)) / predicted if predicted else math.nan


def recall(prediction: Mask, truth: Mask) -> float:
    """Share of the truth that is predicted (sensitivity), |P ∩ T| / |T|, without unit, 0 to 1.

    Arguments and errors as `dice`; NaN when the truth is empty, 0 when only the prediction is.

    Example:
        >>> recall(np.array([[True, True]]), np.array([[True, False]]))
        1.0
    """
    return precision(truth, prediction)


def hausdorff_95(
    prediction: Mask,
    truth: Mask,
    spacing: Sequence[float] | None = None,
    *,
    method: Percentile = "pooled",
) -> float:
    """95th percentile of the pooled surface distances, in mm by `spacing`, in pixels without it.

    The surface of a mask is its voxels with a face neighbour outside the mask or outside the array. Every
    surface voxel of one mask contributes its distance to the nearest surface voxel of the other; both
    directions are pooled and the percentile interpolates linearly. This is the definition of
    `medpy.metric.binary.hd95`; MONAI takes the larger of the two directed percentiles instead.

    Args:
        prediction: boolean mask, 2 or 3 axes.
        truth: boolean mask of the same shape.
        spacing: mm per voxel along each axis, or None for distances in pixels.
        method: "pooled", or "larger" for MONAI's.

    Returns:
        NaN when either mask is empty.

    Raises:
        ShapeError: the shapes differ or have neither 2 nor 3 axes.
        GeometryError: `spacing` has another length or is not positive and finite.
        UsageError: an array is not boolean, or an unknown method.

    Example:
        >>> left, right = np.array([[True, False, False]]), np.array([[False, False, True]])
        >>> hausdorff_95(left, right), hausdorff_95(left, right, spacing=(1.0, 0.5))
        (2.0, 1.0)
    """
    distances = surface_distances(prediction, truth, spacing)
    return math.nan if distances is None else distances.hausdorff_95(method)


def assd(prediction: Mask, truth: Mask, spacing: Sequence[float] | None = None) -> float:
    """Average symmetric surface distance, in mm by `spacing`, in pixels without it (Heimann et al. 2009).

    The mean of all distances that `hausdorff_95` takes its percentile of, both directions pooled. This is the
    definition of `medpy.metric.binary.assd` and of MONAI's symmetric `compute_average_surface_distance`.
    Arguments and errors as `hausdorff_95`; NaN when either mask is empty.

    Example:
        >>> assd(np.array([[True, False, False]]), np.array([[True, False, True]]))
        0.6666666666666666
    """
    distances = surface_distances(prediction, truth, spacing)
    return math.nan if distances is None else distances.average()


def nsd(prediction: Mask, truth: Mask, spacing: Sequence[float] | None = None, *, tolerance: float) -> float:
    """Normalised surface Dice, without unit, 0 to 1 (Nikolov et al., arXiv:1809.04430).

    The share of the surface voxels of both masks that lie within `tolerance` of the other surface: MONAI's
    `compute_surface_dice` without sub-voxels. Arguments and errors as `hausdorff_95`.

    Args:
        prediction: boolean mask, 2 or 3 axes.
        truth: boolean mask of the same shape.
        spacing: mm per voxel along each axis, or None for distances in pixels.
        tolerance: largest distance that counts as right, in mm by `spacing`, in pixels without it.

    Returns:
        0 when exactly one mask is empty, NaN when both are.

    Raises:
        UsageError: a tolerance that is negative or not finite; otherwise as `hausdorff_95`.

    Example:
        >>> nsd(np.array([[True, False, False]]), np.array([[True, False, True]]), tolerance=1)
        0.6666666666666666
    """
    check_tolerance(tolerance)
    distances = surface_distances(prediction, truth, spacing)
    if distances is None:
        return 0.0 if prediction.any() or truth.any() else math.nan
    return distances.within(tolerance)


def volume_difference(prediction: Mask, truth: Mask, spacing: Sequence[float]) -> float:
    """Volume of the prediction minus that of the truth, in ml; an empty mask has the volume 0.

    Args:
        prediction: boolean mask, 3 axes.
        truth: boolean mask of the same shape.
        spacing: mm per voxel along each axis.

    Raises:
        ShapeError: the shapes differ or have neither 2 nor 3 axes.
        UsageError: pictures, which have no volume, or an array that is not boolean.
        GeometryError: `spacing` does not fit.

    Example:
        >>> volume_difference(np.ones((2, 1, 1), bool), np.zeros((2, 1, 1), bool), (10, 10, 10))
        2.0
    """
    check_masks(prediction, truth)
    if prediction.ndim != 3:
        raise UsageError(f"masks of shape {prediction.shape} have no volume. Give 3 axes and their spacing.")
    voxel = math.prod(check_spacing(spacing, 3)) / 1000
    return (int(np.count_nonzero(prediction)) - int(np.count_nonzero(truth))) * voxel


def check_tolerance(tolerance: float) -> None:
    """Raise UsageError unless a tolerance of NSD is a distance."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UsageError(f"tolerance {tolerance} is no distance. Give mm (pixels without spacing) from 0 on.")
