"""Intensities as 8-bit or 16-bit integers, and the way back: value = offset + step * stored."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 65535


@dataclass(frozen=True, slots=True)
class Scale:
    """How intensities are stored as integers; `exact` says whether the way back leads to the same values."""

    offset: float
    step: float
    dtype: type[np.uint8] | type[np.uint16]
    exact: bool

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """Integers of `values`, what lies outside taken to the nearest."""
        stored = np.rint((values.astype(np.float64) - self.offset) / self.step)
        return stored.clip(0, np.iinfo(self.dtype).max).astype(self.dtype)


def choose_scale(
    values: NDArray[Any], stored: np.dtype[Any], window: tuple[float, float] | None = None
) -> Scale:
    """Scale that keeps whole numbers where 16 bits hold them, else 65536 steps over the range or `window`.

    Fractions within 0..1 take the steps of 0..1, so that slices of one volume (TransUNet's) stay comparable.

    Args:
        values: the intensities.
        stored: their type in the file. Only uint8 becomes 8 bit, since what a network makes of a picture
            depends on it ("unit"), and the volumes of a data set should agree.
        window: intensities to clip to.

    >>> choose_scale(np.array([-1024.0, 3071.0]), np.dtype("<i2"))
    Scale(offset=-1024.0, step=1.0, dtype=<class 'numpy.uint16'>, exact=True)
    """
    low, high = float(values.min()), float(values.max())
    if window is not None:
        return Scale(window[0], (window[1] - window[0]) / MOST, np.uint16, exact=False)
    if high - low <= MOST and bool((values == np.rint(values)).all()):
        if low >= 0 and high <= MOST:
            return Scale(0.0, 1.0, np.uint8 if stored == np.uint8 and high <= 255 else np.uint16, exact=True)
        return Scale(low, 1.0, np.uint16, exact=True)
    if low == high:
        return Scale(low, 1.0, np.uint16, exact=True)
    if low >= 0 and high <= 1:
        return Scale(0.0, 1 / MOST, np.uint16, exact=False)
    return Scale(low, (high - low) / MOST, np.uint16, exact=False)
