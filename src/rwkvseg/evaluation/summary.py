"""From the scores of all cases to the figures of a table; score_files.py keeps them.

Averages: `strict` counts a class in a case if truth or prediction holds it, averages the classes of a case
first and the cases second; `transunet` averages over cases, then over classes. Since `transunet` scores every
class of every case the two orders agree there, so one bootstrap over case means serves both.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from rwkvseg.errors import DataError, UsageError
from rwkvseg.evaluation.further import Mean, mean_of_cases, mean_of_class
from rwkvseg.evaluation.protocols import TOLERANCE, ClassScore, Outcome, Protocol, check_protocol
from rwkvseg.evaluation.statistics import Interval, bootstrap_interval
from rwkvseg.wording import counted

Unit = Literal["mm", "px"]

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """One row of the table: a class, or the mean over classes."""

    name: str
    """Name of the class; "mean" for the mean over classes."""
    label: int | str | None
    """Value of the class; "1+2+3" for the region of these values, None for the mean."""
    dsc: Interval
    """Dice, 0 to 1, under the protocol."""
    hd95: Interval
    """HD95 under the protocol: `strict` counts a missed structure with the image's diagonal."""
    hd95_found: Interval
    """HD95 of what both prediction and truth hold, so without the missed structures."""
    outcomes: Mapping[str, int]
    """How often the class was scored, absent, a false_positive, missed; for the mean, over all classes."""
    further: Mapping[str, Mean] = field(default_factory=dict)
    """Means of the other metrics by their names in the files, see `further_metrics`."""


@dataclass(frozen=True, slots=True)
class CaseMean:
    """The mean over the classes that count in one case; NaN when none does."""

    case: str
    dsc: float
    hd95: float
    hd95_found: float
    group: str | None = None
    """Patient or video, where whole groups were resampled."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that a table says about a set of cases."""

    protocol: Protocol
    """Convention of the scores."""
    unit: Unit
    """Unit of every HD95: "mm", or "px" for pixels and voxels."""
    classes: tuple[ClassSummary, ...]
    """One row a class, in the order of the label values."""
    mean: ClassSummary
    """The row of the mean."""
    cases: tuple[CaseMean, ...]
    """One entry a case, in the order of the scores."""
    confidence: float
    """Share of resamples within each interval."""
    resamples: int
    """Number of bootstrap resamples."""
    grouped: bool
    """True when whole groups (patients, videos) were resampled."""
    regions: tuple[ClassSummary, ...] = ()
    """One row a region, a union of classes; no mean over classes counts it."""

    @property
    def rows(self) -> tuple[ClassSummary, ...]:
        """All rows as tables have them: the classes, their mean, and the regions below it."""
        return (*self.classes, self.mean, *self.regions)

    def to_json(self) -> dict[str, Any]:
        """The same numbers as plain dictionaries and lists, None for NaN, so that JSON can hold them."""
        content = asdict(self)
        unit = f"hd95_{self.unit}"
        rows = [*content["classes"], content["mean"], *content["regions"]]
        for row in rows:
            row.update(row.pop("further"))
        for row in [*rows, *content["cases"]]:
            row[unit] = row.pop("hd95")
            row[f"{unit}_without_missed"] = row.pop("hd95_found")
        cleaned: dict[str, Any] = without_nan(content)
        return cleaned


def summarise(
    scores: Sequence[ClassScore],
    *,
    protocol: Protocol = "strict",
    unit: Unit = "px",
    tolerance: float = TOLERANCE,
    groups: Mapping[str, object] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Summary:
    """Average the scores of all cases, with bootstrap intervals over cases.

    Args:
        scores: what `score_case` returned for every case, joined; every case with the same classes.
        protocol: the protocol the scores were made under.
        unit: unit of their HD95, see `protocols.distance_unit`; scores in mm and in pixels may not be mixed.
        tolerance: with which their NSD was made.
        groups: case id to patient or video, for all cases; whole groups are then resampled.
        confidence: of every interval.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        DataError: no scores, a class scored twice or not at all in a case, or a case without group.
        UsageError: unknown protocol or unit, or settings of the interval that cannot be meant.

    Example:
        >>> from rwkvseg.evaluation.protocols import score_case
        >>> maps = {"a": np.array([[0, 1, 1]]), "b": np.array([[1, 1, 0]])}
        >>> labels = {"organ": 1}
        >>> scores = [s for case, m in maps.items() for s in score_case(case, m, m, labels=labels)]
        >>> summarise(scores).mean.dsc.mean
        1.0
    """
    check_protocol(protocol)
    check_unit(unit)
    names = _class_names(scores)
    cases = list(dict.fromkeys(score.case for score in scores))
    clusters = None if groups is None else _clusters(cases, groups)

    def interval(values: Iterable[float]) -> Interval:
        return bootstrap_interval(
            list(values), groups=clusters, confidence=confidence, resamples=resamples, seed=seed
        )

    by_label = [[score for score in scores if score.label == label] for label in sorted(names)]
    rows, regions = (
        [
            _row(members, interval, mean_of_class(members, unit, tolerance))
            for members in by_label
            if bool(members[0].region) is of_regions
        ]
        for of_regions in (False, True)
    )
    classes = classes_only(scores)
    case_means = _case_means(classes, groups)
    mean = _mean_row(classes, case_means, interval, mean_of_cases(classes, unit, tolerance))
    settings = (confidence, resamples, groups is not None)
    return Summary(protocol, unit, tuple(rows), mean, tuple(case_means), *settings, tuple(regions))


def classes_only(scores: Sequence[ClassScore]) -> list[ClassScore]:
    """The scores without those of regions, which no mean over classes counts."""
    return [score for score in scores if not score.region]


def _row(members: Sequence[ClassScore], interval: Any, further: Mapping[str, Mean]) -> ClassSummary:
    name, label = members[0].name, members[0].written_label
    found = (score.hd95 if score.outcome == "scored" else math.nan for score in members)
    dsc = interval(score.dsc for score in members)
    hd95 = interval(score.hd95 for score in members)
    return ClassSummary(name, label, dsc, hd95, interval(found), _outcomes(members), further)


def _mean_row(
    classes: Sequence[ClassScore], cases: Sequence[CaseMean], interval: Any, further: Mapping[str, Mean]
) -> ClassSummary:
    dsc, hd95 = interval(case.dsc for case in cases), interval(case.hd95 for case in cases)
    found = interval(case.hd95_found for case in cases)
    return ClassSummary("mean", None, dsc, hd95, found, _outcomes(classes), further)


def _case_means(scores: Sequence[ClassScore], groups: Mapping[str, object] | None) -> list[CaseMean]:
    by_case: dict[str, list[ClassScore]] = {}
    for score in scores:
        by_case.setdefault(score.case, []).append(score)
    return [
        CaseMean(
            case,
            mean_of_scored([score.dsc for score in members]),
            mean_of_scored([score.hd95 for score in members]),
            mean_of_scored([score.hd95 for score in members if score.outcome == "scored"]),
            None if groups is None else str(groups[case]),
        )
        for case, members in by_case.items()
    ]


def _outcomes(scores: Sequence[ClassScore]) -> dict[str, int]:
    counted = Counter(score.outcome for score in scores)
    return {outcome: counted[outcome] for outcome in OUTCOMES}


def mean_of_scored(values: Sequence[float]) -> float:
    """Mean of what is not NaN; NaN without any."""
    scored = [value for value in values if not math.isnan(value)]
    return float(np.mean(scored)) if scored else math.nan


def _class_names(scores: Sequence[ClassScore]) -> dict[int, str]:
    """Label to name; refuses scores from which no honest mean follows."""
    if not classes_only(scores):
        raise DataError("there are no scores to summarise. Check that predictions and truth share case ids.")
    twice = [key for key, number in Counter((s.case, s.label) for s in scores).items() if number > 1]
    if twice:
        raise DataError(
            f"case {twice[0][0]!r} has several scores of label {twice[0][1]}. Score every case once."
        )
    names = {score.label: score.name for score in scores}
    held = Counter(score.case for score in scores)
    lacking = [case for case, number in held.items() if number < len(names)]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {counted(len(held), 'case')} without one of the {len(names)} classes, "
            f"the first is {lacking[0]!r}. "
            "Score every case with the same labels; a class that a case does not hold is scored as absent."
        )
    return names


def _clusters(cases: Sequence[str], groups: Mapping[str, object]) -> list[object]:
    lacking = [case for case in cases if case not in groups]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {counted(len(cases), 'case')} without a group, the first is {lacking[0]!r}. "
            "Give every case its patient or video, or no groups at all."
        )
    return [groups[case] for case in cases]


def row_name(name: str, label: int | str | None) -> str:
    """Name of a row in tables; a region says which values it joins."""
    return f"{name} ({label})" if isinstance(label, str) else name


def check_unit(unit: str) -> None:
    """Raise UsageError unless `unit` is "mm" or "px"."""
    if unit not in get_args(Unit):
        raise UsageError(f"unit {unit!r} is unknown. Choose one of {', '.join(get_args(Unit))}.")


def without_nan(content: Any) -> Any:
    """Copy of nested mappings, lists and tuples with None for NaN and infinity, which JSON lacks."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
