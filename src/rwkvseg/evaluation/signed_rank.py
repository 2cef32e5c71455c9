"""Wilcoxon's signed-rank test of two methods over the same cases, its effect size, and Holm's correction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, wilcoxon

from rwkvseg.errors import ShapeError


@dataclass(frozen=True, slots=True)
class SignedRankTest:
    """Result of `signed_rank_test`."""

    p_value: float
    """Two-sided; 1 when no pair differs, NaN without pairs."""
    effect: float
    """Matched-pairs rank-biserial correlation of a - b, -1 to 1 (Kerby 2014): the share of the ranks in which
    a is higher minus the share in which b is; 0 when no pair differs, NaN without pairs."""
    higher: int
    """Number of units in which a is higher than b."""
    lower: int
    """Number of units in which a is lower than b."""
    equal: int
    """Number of units in which both are the same; they carry no rank."""

    @property
    def units(self) -> int:
        """Number of independent differences: pairs, or groups of pairs."""
        return self.higher + self.lower + self.equal


def signed_rank_test(a: ArrayLike, b: ArrayLike, *, groups: Sequence[object] | None = None) -> SignedRankTest:
    """Wilcoxon's two-sided signed-rank test of a - b (Wilcoxon 1945), over pairs or over groups of pairs.

    Pairs of one patient are not independent, and ranks cannot be flipped together as sums can: each group
    enters with the mean of its differences, as one. Equal pairs are left out of the ranks (Wilcoxon's own
    rule); p is scipy's, exact for up to 50 differences without ties.

    Args:
        a: one number per case, (n,); NaN in either leaves the pair out.
        b: one number per case in the same order, (n,).
        groups: the patient or video of every case, (n,).

    Raises:
        ShapeError: `a`, `b` and `groups` are not of one length.

    Example:
        >>> signed_rank_test([3.0, 4.0, 5.0, 1.0], [2.0, 2.0, 2.0, 1.5]).effect
        0.8
    """
    difference = _differences(a, b, groups)
    higher, lower = int((difference > 0).sum()), int((difference < 0).sum())
    equal = int(difference.size - higher - lower)
    if difference.size == 0:
        return SignedRankTest(math.nan, math.nan, 0, 0, 0)
    moved = difference[difference != 0]
    if moved.size == 0:
        return SignedRankTest(1.0, 0.0, 0, 0, equal)
    ranks = rankdata(np.abs(moved))
    effect = float((ranks * np.sign(moved)).sum() / ranks.sum())
    return SignedRankTest(float(wilcoxon(moved).pvalue), effect, higher, lower, equal)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); NaN stays NaN and does not count.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected = [math.nan] * len(p_values)
    ranked = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, place) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p))
        corrected[place] = highest
    return corrected


def _differences(a: ArrayLike, b: ArrayLike, groups: Sequence[object] | None) -> NDArray[np.float64]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    names = range(first.size) if groups is None else groups
    if first.ndim != 1 or first.shape != second.shape or len(names) != first.size:
        raise ShapeError(
            f"a {first.shape}, b {second.shape} and {len(names)} groups are not one number per case each. "
            "Compare scores of the same cases, in the same order."
        )
    members: dict[object, list[float]] = {}
    for name, value in zip(names, first - second, strict=True):
        if not math.isnan(value):
            members.setdefault(name, []).append(float(value))
    return np.array([np.mean(values) for values in members.values()], dtype=np.float64)
