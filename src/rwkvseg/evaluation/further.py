"""The metrics beside DSC and HD95: their names in the files, and their means."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rwkvseg.evaluation.protocols import ClassScore


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over the cases in which a metric is defined."""

    mean: float
    """In the unit that the metric's name says; NaN without cases."""
    cases: int
    """Number of cases in the mean."""


def further_metrics(score: ClassScore, unit: str, tolerance: float) -> dict[str, float]:
    """Name in files, with unit, to value; NaN where not defined or not scored.

    Args:
        score: of one class in one case.
        unit: of its distances, "mm" or "px".
        tolerance: with which its NSD was made.
    """
    return {
        "iou": score.iou,
        "precision": score.precision,
        "recall": score.recall,
        f"hd95_larger_{unit}": score.hd95_larger,
        f"assd_{unit}": score.assd,
        f"nsd_{tolerance:g}{unit}": score.nsd,
        "volume_difference_ml": score.volume_difference,
    }


def mean_of_class(scores: Sequence[ClassScore], unit: str, tolerance: float) -> dict[str, Mean]:
    """Mean over the cases of one class."""
    values = [further_metrics(score, unit, tolerance) for score in scores]
    return {name: _mean(entry[name] for entry in values) for name in values[0]}


def mean_of_cases(scores: Sequence[ClassScore], unit: str, tolerance: float) -> dict[str, Mean]:
    """Mean over the classes of a case first, then over the cases."""
    by_case: dict[str, list[ClassScore]] = {}
    for score in scores:
        by_case.setdefault(score.case, []).append(score)
    means = [mean_of_class(members, unit, tolerance) for members in by_case.values()]
    return {name: _mean(entry[name].mean for entry in means) for name in means[0]}


def _mean(values: Iterable[float]) -> Mean:
    defined = [value for value in values if not math.isnan(value)]
    return Mean(math.fsum(defined) / len(defined) if defined else math.nan, len(defined))
