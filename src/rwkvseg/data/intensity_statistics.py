"""Intensities of many cases, in bounded memory: exact moments, percentiles of samples."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.volume_intensity import VOXELS_PER_CASE, take_evenly

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
SAMPLES = 2_000_000
"""Values that are kept of one region of one channel, over all cases."""
BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class IntensitySummary:
    """Intensities of a region, in the file's units."""

    voxels: int
    mean: float
    deviation: float
    least: float
    most: float
    percentiles: dict[str, float]
    """By the percentile as text; of values evenly taken from each case."""

    def as_object(self) -> dict[str, Any]:
        """Fields for JSON, six digits."""
        numbers = {key: _six(getattr(self, key)) for key in ("mean", "deviation", "least", "most")}
        percentiles = {key: _six(value) for key, value in self.percentiles.items()}
        return {"voxels": self.voxels, **numbers, "percentiles": percentiles}


@dataclass(slots=True)
class IntensityStatistics:
    """Takes up the values of one region, case by case.

    Number, range, mean and deviation are exact, up to rounding in float64; percentiles come from at most
    `per_case` values of each case.
    """

    per_case: int = VOXELS_PER_CASE
    voxels: int = 0
    mean: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    _squares: float = 0.0
    _taken: list[NDArray[Any]] = field(default_factory=list)

    def add(self, values: NDArray[Any]) -> None:
        """Take up the values (n,) of one case."""
        if len(values) == 0:
            return
        self._taken.append(take_evenly(values, self.per_case).astype(np.float32))
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))
        for start in range(0, len(values), BLOCK):  # a float64 copy of a block, not of a volume
            self._merge(values[start : start + BLOCK].astype(np.float64))

    def _merge(self, block: NDArray[np.float64]) -> None:
        """Join the moments of a block to those so far (Chan, Golub, LeVeque 1983)."""
        mean = float(block.mean())
        squares = float(np.square(block - mean).sum())
        total, apart = self.voxels + len(block), mean - self.mean
        self._squares += squares + apart**2 * self.voxels * len(block) / total
        self.mean += apart * len(block) / total
        self.voxels = total

    def summary(self) -> IntensitySummary | None:
        """What was found; None of no values."""
        if self.voxels == 0:
            return None
        found = np.percentile(np.concatenate(self._taken), PERCENTILES)
        named = {f"{at:g}": float(value) for at, value in zip(PERCENTILES, found, strict=True)}
        deviation = math.sqrt(self._squares / self.voxels)
        return IntensitySummary(self.voxels, self.mean, deviation, self.least, self.most, named)


def values_per_case(cases: int) -> int:
    """How many values of each case are kept, so that all cases together have at most `SAMPLES`."""
    return max(1, min(VOXELS_PER_CASE, SAMPLES // max(1, cases)))


def _six(value: float) -> float:
    return float(f"{value:.6g}")
