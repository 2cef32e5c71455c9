"""Intensities of volumes: measured on views, changed in place; 512 x 512 x 800 float32 voxels are 0.84 GB."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.case import Case
from rwkvseg.data.preprocessing import FloatImage, Intensity, Preprocessing
from rwkvseg.errors import DataError

VOXELS_PER_CASE = 10_000


@dataclass(frozen=True, slots=True)
class Scaling:
    """Clip to low..high, then (x - offset) / scale; a scale of 0 makes zeros."""

    low: float
    high: float
    offset: float
    scale: float

    def apply(self, values: FloatImage) -> None:
        """Change `values` in place."""
        if self.scale == 0:
            values[...] = 0
            return
        if np.isfinite(self.low) or np.isfinite(self.high):
            np.clip(values, self.low, self.high, out=values)
        # halves: the range of float32 intensities may overflow float32
        values *= np.float32(0.5)
        values -= np.float32(self.offset / 2)
        values /= np.float32(self.scale / 2)


def measure_scalings(image: NDArray[Any], preprocessing: Preprocessing, case_id: str) -> list[Scaling]:
    """What `preprocessing.normalisation` does to each channel of image (C, i, j, k).

    As `rwkvseg.data.preprocessing.normalise`, and "ct"; "unit" takes the whole range to 0..1 whatever the
    file's type is.

    Raises:
        DataError: "ct" whose intensity is not known.
    """
    kind, intensity = preprocessing.normalisation, preprocessing.intensity
    if kind == "ct":
        if intensity is None:
            raise DataError(
                f"case {case_id} cannot be normalised by 'ct': preprocessing.intensity is not known. "
                "Training fills it in; give low, high, mean and std where there is none."
            )
        return [Scaling(intensity.low, intensity.high, intensity.mean, intensity.std)] * len(image)
    if kind == "none":
        return [Scaling(-np.inf, np.inf, 0.0, 1.0)] * len(image)
    if kind == "zscore":
        return [_standard(channel) for channel in image]
    if kind == "percentile":
        return [_range(*np.percentile(channel, (0.5, 99.5))) for channel in image]
    return [_range(image.min(), image.max())] * len(image)


def apply_scalings(image: FloatImage, scalings: Sequence[Scaling]) -> None:
    """Change image (C, ...) in place, channel by channel."""
    for channel, scaling in zip(image, scalings, strict=True):
        scaling.apply(channel)


def _range(low: Any, high: Any) -> Scaling:
    return Scaling(float(low), float(high), float(low), max(0.0, float(high) - float(low)))


def _standard(values: NDArray[Any]) -> Scaling:
    if values.min() == values.max():
        return Scaling(-np.inf, np.inf, 0.0, 0.0)
    mean = float(values.mean(dtype=np.float64))
    # plane by plane: `std` would make a float64 copy of the volume
    squares = sum(float(np.square(plane - mean, dtype=np.float64).sum()) for plane in values)
    return Scaling(-np.inf, np.inf, mean, float(np.sqrt(squares / values.size)))


def take_evenly(values: NDArray[Any], most: int) -> NDArray[Any]:
    """At most so many of `values` (n,), at even distances from the first to the last.

    >>> take_evenly(np.arange(10), 4)
    array([0, 3, 6, 9])
    """
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]


def foreground_intensity(cases: Iterable[Case]) -> Intensity:
    """Percentiles 0.5 and 99.5, mean and deviation of labelled voxels, evenly taken, at most 10,000 a case.

    Raises:
        DataError: no case has any foreground, or all of it is one value.
    """
    taken: list[NDArray[Any]] = []
    for case in cases:
        assert case.label is not None, case.id
        found = take_evenly(np.flatnonzero(case.label), VOXELS_PER_CASE)
        taken.append(case.image[0].ravel()[found].astype(np.float64))
    values = np.concatenate(taken) if taken else np.zeros(0)
    if len(values) == 0 or values.std() == 0:
        raise DataError(
            f"{len(values)} foreground voxels of the training part hold no range of intensities, which "
            "'ct' needs. Give preprocessing.intensity, or choose another normalisation."
        )
    low, high = np.percentile(values, (0.5, 99.5))
    return Intensity(low=float(low), high=float(high), mean=float(values.mean()), std=float(values.std()))
