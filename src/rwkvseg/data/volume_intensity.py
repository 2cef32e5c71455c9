"""Intensities of volumes, changed in place: a 512 x 512 x 800 volume is 0.84 GB in float32."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.case import Case
from rwkvseg.data.preprocessing import FloatImage, Intensity, Preprocessing
from rwkvseg.errors import DataError

VOXELS_PER_CASE = 10_000


def normalise_in_place(image: FloatImage, preprocessing: Preprocessing, case_id: str) -> None:
    """As `rwkvseg.data.preprocessing.normalise`, and "ct"; image: (C, i, j, k) float32, contiguous.

    "unit" takes the whole range to 0..1 whatever the file's type is.

    Raises:
        DataError: "ct" whose intensity is not known.
    """
    kind = preprocessing.normalisation
    if kind == "ct":
        intensity = preprocessing.intensity
        if intensity is None:
            raise DataError(
                f"case {case_id} cannot be normalised by 'ct': preprocessing.intensity is not known. "
                "Training fills it in; give low, high, mean and std where there is none."
            )
        np.clip(image, intensity.low, intensity.high, out=image)
        image -= np.float32(intensity.mean)
        image /= np.float32(intensity.std)
    elif kind == "unit":
        _stretch(image, float(image.min()), float(image.max()))
    else:
        for channel in image:
            if kind == "zscore":
                _standardise(channel)
            else:
                low, high = np.percentile(channel, (0.5, 99.5))
                _stretch(channel, float(low), float(high))


def foreground_intensity(cases: Iterable[Case]) -> Intensity:
    """Percentiles 0.5 and 99.5, mean and deviation of labelled voxels, evenly taken, at most 10,000 a case.

    Raises:
        DataError: no case has any foreground, or all of it is one value.
    """
    taken: list[NDArray[Any]] = []
    for case in cases:
        assert case.label is not None, case.id
        found = np.flatnonzero(case.label)
        if len(found) > VOXELS_PER_CASE:
            found = found[np.linspace(0, len(found) - 1, VOXELS_PER_CASE).astype(np.int64)]
        taken.append(case.image[0].ravel()[found].astype(np.float64))
    values = np.concatenate(taken) if taken else np.zeros(0)
    if len(values) == 0 or values.std() == 0:
        raise DataError(
            f"{len(values)} foreground voxels of the training part hold no range of intensities, which "
            "'ct' needs. Give preprocessing.intensity, or choose another normalisation."
        )
    low, high = np.percentile(values, (0.5, 99.5))
    return Intensity(low=float(low), high=float(high), mean=float(values.mean()), std=float(values.std()))


def _stretch(values: FloatImage, low: float, high: float) -> None:
    if not high > low:
        values[...] = 0
        return
    np.clip(values, low, high, out=values)
    # halves first: the range of float32 intensities may overflow float32
    values *= np.float32(0.5)
    values -= np.float32(low / 2)
    values /= np.float32(high / 2 - low / 2)


def _standardise(values: FloatImage) -> None:
    if values.min() == values.max():
        values[...] = 0
        return
    mean = values.mean(dtype=np.float64)
    values -= np.float32(mean)
    # plane by plane: `std` would make a float64 copy of the volume
    squares = sum(float(np.square(plane, dtype=np.float64).sum()) for plane in values)
    rest = values.mean(dtype=np.float64)  # what float32 has left of the mean
    values -= np.float32(rest)
    values /= np.float32(np.sqrt(squares / values.size - rest**2))
