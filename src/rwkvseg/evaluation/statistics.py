"""How sure a mean is, and whether two methods differ: bootstrap interval and paired test over cases.

Both take one number per case. NaN (a case that was not scored) never enters a mean; the result says how many
there were. Cases of one patient or video are not independent: give their `groups`, and whole groups are
resampled.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.wording import counted

Vector = NDArray[np.float64]

EXACT_UP_TO = 12
"""Number of pairs (or groups of pairs) up to which all 2^n sign patterns are enumerated."""

_CELLS_AT_ONCE = 2_000_000  # bounds the memory of a resampling step to about 50 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over cases and its bootstrap interval, in the unit of the values."""

    mean: float
    """Mean of the values that are not NaN; NaN without any."""
    low: float
    """Lower end; NaN when undefined, see `defined`."""
    high: float
    """Upper end; NaN when undefined."""
    cases: int = 0
    """Number of values in the mean."""
    excluded: int = 0
    """Number of NaN values, left out."""
    confidence: float = 0.95
    """Share of resamples within the interval."""

    @property
    def defined(self) -> bool:
        """False when fewer than two independent cases leave nothing to resample."""
        return not math.isnan(self.low)

    def __str__(self) -> str:
        if not self.defined:
            return f"{self.mean:.4f} (no interval, n = {self.cases})"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Result of `paired_permutation_test`: the effect first, the p-value second."""

    difference: float
    """Mean of a - b over the pairs, in the unit of the values."""
    low: float
    """Lower end of the bootstrap interval of the difference; NaN with fewer than two independent pairs."""
    high: float
    """Upper end of the interval."""
    p_value: float
    """Two-sided; the share of sign patterns whose mean difference is at least as large."""
    cases: int
    """Number of pairs compared."""
    excluded: int = 0
    """Number of pairs left out because one of the two is NaN."""
    exact: bool = False
    """True when every sign pattern was enumerated."""


def bootstrap_interval(
    values: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean over cases (Efron & Tibshirani 1993, chapter 13).

    Args:
        values: one number per case, (n,); NaN is left out and counted.
        groups: the patient or video of every case, (n,): whole groups are drawn; the mean stays over cases.
        confidence: share of the resampled means inside the interval, between 0 and 1.
        resamples: number of resamples.
        seed: the same seed gives the same interval.

    Returns:
        The interval; `low` and `high` are NaN when fewer than two cases (or groups) are left.

    Raises:
        ShapeError: `values` is not one-dimensional, or `groups` has another length.
        UsageError: `confidence` or `resamples` cannot be meant.

    Example:
        >>> bootstrap_interval([0.9, 0.8, float("nan"), 0.7]).cases
        3
    """
    data, clusters = _checked(values, groups)
    _check_settings(confidence, resamples)
    scored = ~np.isnan(data)
    count, excluded = int(scored.sum()), int((~scored).sum())
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, 0, excluded, confidence)
    data = data[scored]
    sums, sizes = _per_group(data, None if clusters is None else clusters[scored])
    mean = float(data.mean())
    if sums.size < 2:
        return Interval(mean, math.nan, math.nan, count, excluded, confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(sums, sizes, resamples, seed), [tail, 1 - tail])
    return Interval(mean, float(low), float(high), count, excluded, confidence)


def paired_permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 20_000,
    seed: int = 0,
) -> PairedTest:
    """Two-sided sign-flip test of mean(a - b) = 0 over the same cases, with the difference and its interval.

    Were the two methods exchangeable, the sign of every case's difference would be a coin's (Fisher 1935).
    All patterns are enumerated up to 12 pairs; beyond, they are drawn and the p-value is
    (hits + 1) / (resamples + 1), which never is 0 (Phipson & Smyth 2010).

    Args:
        a: one number per case, (n,).
        b: one number per case in the same order, (n,).
        groups: the patient or video of every case, (n,): the differences of a group flip together.
        confidence: of the bootstrap interval of the difference.
        resamples: number of sign patterns drawn, and of bootstrap resamples.
        seed: the same seed gives the same result.

    Raises:
        ShapeError: `a`, `b` and `groups` differ in length.
        UsageError: `confidence` or `resamples` cannot be meant.

    Example:
        >>> paired_permutation_test([3.0, 4.0, 5.0, 6.0], [2.0, 2.0, 2.0, 2.0]).p_value
        0.125
    """
    first, clusters = _checked(a, groups)
    second, _ = _checked(b, None)
    if first.shape != second.shape:
        raise ShapeError(
            f"a has {first.size} and b has {second.size} cases. "
            "Compare scores of the same cases, in the same order."
        )
    difference = first - second
    interval = bootstrap_interval(
        difference, groups=groups, confidence=confidence, resamples=resamples, seed=seed
    )
    if interval.cases == 0:
        return PairedTest(math.nan, math.nan, math.nan, math.nan, 0, interval.excluded)
    paired = ~np.isnan(difference)
    sums, _ = _per_group(difference[paired], None if clusters is None else clusters[paired])
    exact = sums.size <= EXACT_UP_TO
    p_value = _exact_p_value(sums) if exact else _sampled_p_value(sums, resamples, seed)
    return PairedTest(
        interval.mean, interval.low, interval.high, p_value, interval.cases, interval.excluded, exact
    )


def _checked(values: ArrayLike, groups: Sequence[object] | None) -> tuple[Vector, NDArray[np.intp] | None]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ShapeError(
            f"values of shape {data.shape} are not one number per case. Average over classes first."
        )
    if groups is None:
        return data, None
    if len(groups) != data.size:
        raise ShapeError(
            f"{counted(len(groups), 'group')} for {counted(data.size, 'case')}. Name the group of every case."
        )
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    return data, np.array([number[group] for group in groups], dtype=np.intp)


def _check_settings(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence} is not between 0 and 1. Use 0.95 for a 95 % interval.")
    if resamples < 1:
        raise UsageError(f"{resamples} resamples are none. Use 10000.")


def _per_group(data: Vector, clusters: NDArray[np.intp] | None) -> tuple[Vector, Vector]:
    """Sum and size of every group; without groups each case is its own."""
    if clusters is None:
        return data, np.ones_like(data)
    _, index = np.unique(clusters, return_inverse=True)
    sums: Vector = np.bincount(index, weights=data).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def _resampled_means(sums: Vector, sizes: Vector, resamples: int, seed: int) -> Vector:
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CELLS_AT_ONCE // sums.size)
    for start in range(0, resamples, step):
        part = means[start : start + step]
        drawn = generator.integers(sums.size, size=(part.size, sums.size))
        part[:] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def _exact_p_value(sums: Vector) -> float:
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=sums.size)))
    return float(_at_least_as_large(signs @ sums, sums).mean())


def _sampled_p_value(sums: Vector, resamples: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    hits = 0
    step = max(1, _CELLS_AT_ONCE // sums.size)
    for start in range(0, resamples, step):
        signs = (
            generator.integers(0, 2, size=(min(step, resamples - start), sums.size), dtype=np.int8) * 2.0
            - 1.0
        )
        hits += int(_at_least_as_large(signs @ sums, sums).sum())
    return (hits + 1) / (resamples + 1)


def _at_least_as_large(flipped: Vector, sums: Vector) -> NDArray[np.bool_]:
    # a pattern that repeats the observed one must count, although rounding may put it a hair below
    tolerance = 1e-12 * float(np.abs(sums).sum())
    return np.asarray(np.abs(flipped) >= abs(float(sums.sum())) - tolerance)
