"""What to show of a case: a picture whole, of a volume one slice; and which cases to show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.errors import ShapeError
from rwkvseg.evaluation.masks import check_spacing
from rwkvseg.evaluation.protocols import ClassScore

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One slice or picture of a case, with what should be and what was predicted on it."""

    case: str
    """Id of the case."""
    image: Pixels
    """(H, W) or (H, W, 3), uint8."""
    truth: NDArray[Any]
    """(H, W), label values."""
    prediction: NDArray[Any]
    """(H, W), label values."""
    dsc: float
    """Dice of the whole case, 0 to 1, for the caption."""
    spacing: tuple[float, float] = (1.0, 1.0)
    """Distance between rows and between columns; only their ratio matters here."""
    caption: str = ""
    """Which part of the case is shown, such as "slice 7 of axis 2"; empty for the whole picture."""


def make_picture(
    case_id: str,
    image: NDArray[Any],
    truth: NDArray[Any],
    prediction: NDArray[Any],
    dsc: float,
    *,
    spacing: Sequence[float] | None = None,
    affine: NDArray[np.float64] | None = None,
    index: int | None = None,
) -> Picture:
    """Choose what to show of a case: a picture whole, of a volume the slice with the most wrong voxels.

    Volumes are cut along the axis with the largest spacing (the last of equals). Without a wrong voxel the
    slice with the most structure is taken. With an `affine` the slice is turned as radiologists hang it:
    anterior or superior on top, the patient's right on the left.

    Args:
        case_id: id of the case.
        image: (C, *spatial), any range; scaled to 0..255 between its 0.5 and 99.5 percentiles unless it is
            uint8. Three channels of a picture are red, green and blue, otherwise the first channel is shown.
        truth: (*spatial), label values.
        prediction: (*spatial), label values.
        dsc: Dice of the whole case, 0 to 1.
        spacing: mm per voxel along each axis, or None.
        affine: (4, 4), voxel to RAS+ mm, or None.
        index: of the slice of a volume, where it is not to be chosen; see `most_wrong_slice`.

    Raises:
        ShapeError: the shapes do not belong together or have neither 2 nor 3 spatial axes.
        GeometryError: `spacing` does not fit.
    """
    if (
        truth.ndim not in (2, 3)
        or not image.shape[1:] == truth.shape == prediction.shape
        or image.shape[0] < 1
    ):
        raise ShapeError(
            f"image {image.shape}, truth {truth.shape} and prediction {prediction.shape} of case "
            f"{case_id!r} are not (channels, *spatial), (*spatial) and (*spatial). "
            "Give all three on the same grid."
        )
    steps = check_spacing(spacing, truth.ndim)
    if truth.ndim == 2:
        pixels = image if image.shape[0] == 3 else image[:1]
        return Picture(case_id, _to_pixels(pixels, image), truth, prediction, dsc, (steps[0], steps[1]))
    axis = _cut_axis(steps)
    if index is None:
        index = most_wrong_slice(truth, [prediction], steps)
    shown = [np.take(array, index, axis=axis) for array in (image[0], truth, prediction)]
    rows, columns = (step for other, step in enumerate(steps) if other != axis)
    if affine is not None:
        shown, swapped = _hang(shown, affine, axis)
        rows, columns = (columns, rows) if swapped else (rows, columns)
    pixels = _to_pixels(shown[0][None], image[:1])
    caption = f"slice {index} of axis {axis}"
    return Picture(case_id, pixels, shown[1], shown[2], dsc, (rows, columns), caption)


def representative_cases(scores: Sequence[ClassScore], number: int = 3) -> dict[str, list[str]]:
    """Ids of the best, median and worst cases by mean Dice over the classes that count in each.

    No case appears twice: of n cases each list takes at most n // 3; of two, one is best and one worst.
    Cases without any score are left out. Best and worst start with the extreme one.
    """
    by_case: dict[str, list[float]] = {}
    for score in scores:
        if not (score.region or math.isnan(score.dsc)):
            by_case.setdefault(score.case, []).append(score.dsc)
    ranked = sorted(by_case, key=lambda case: (-sum(by_case[case]) / len(by_case[case]), case))
    if len(ranked) < 3:
        return {"best": ranked[:1], "median": [], "worst": ranked[1:]}
    count = max(1, min(number, len(ranked) // 3))
    middle = (len(ranked) - count) // 2
    return {
        "best": ranked[:count],
        "median": ranked[middle : middle + count],
        "worst": ranked[: -count - 1 : -1],
    }


def most_wrong_slice(
    truth: NDArray[Any], predictions: Sequence[NDArray[Any]], spacing: Sequence[float] | None = None
) -> int:
    """Slice of a volume in which the predictions together hold the most wrong voxels.

    Args:
        truth: (i, j, k), label values.
        predictions: of one or several networks, each (i, j, k).
        spacing: mm per voxel along each axis, or None.
    """
    axis = _cut_axis(check_spacing(spacing, 3))
    others = tuple(other for other in range(3) if other != axis)
    wrong = sum(np.count_nonzero(truth != prediction, axis=others) for prediction in predictions)
    for count in (np.asarray(wrong), np.count_nonzero(truth, axis=others)):
        if count.any():
            return int(np.argmax(count))
    return int(truth.shape[axis]) // 2


def _cut_axis(steps: Sequence[float]) -> int:
    return max(range(3), key=lambda candidate: (steps[candidate], candidate))


def _hang(
    shown: list[NDArray[Any]], affine: NDArray[np.float64], axis: int
) -> tuple[list[NDArray[Any]], bool]:
    """Turn slices so that rows run to inferior or posterior and columns to left or posterior."""
    kept = [other for other in range(3) if other != axis]
    columns = np.asarray(affine, dtype=np.float64)[:3, kept]
    world = np.abs(columns).argmax(axis=0)
    # in RAS+ these are the falling directions; the higher world axis (A over R, S over A) is upright
    rising = tuple(i for i in range(2) if columns[world[i], i] > 0)
    turned = [np.flip(array, rising) for array in shown]
    swapped = bool(world[0] < world[1])
    return [array.T if swapped else array for array in turned], swapped


def _to_pixels(channels: NDArray[Any], whole: NDArray[Any]) -> Pixels:
    """(1 or 3, H, W) -> (H, W) or (H, W, 3) uint8, on the grey scale of the whole image."""
    moved = np.moveaxis(channels, 0, -1) if channels.shape[0] == 3 else channels[0]
    if moved.dtype == np.uint8:
        return np.ascontiguousarray(moved)
    finite = whole[np.isfinite(whole)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    shown = np.nan_to_num(moved.astype(np.float64), nan=float(low))
    scaled = (shown - low) / max(float(high - low), 1e-12)
    return np.ascontiguousarray(np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8))
