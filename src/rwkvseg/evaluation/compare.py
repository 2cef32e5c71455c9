"""Several evaluations of the same cases: how far each is from the first, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rwkvseg.errors import DataError
from rwkvseg.evaluation.evaluations import Evaluated
from rwkvseg.evaluation.signed_rank import SignedRankTest, holm, signed_rank_test
from rwkvseg.evaluation.statistics import PairedTest, paired_permutation_test
from rwkvseg.evaluation.summary import without_nan

Metric = Literal["dsc", "hd95"]

METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True, slots=True)
class Difference:
    """One run minus the first, in one metric, over the means of the cases."""

    run: str
    """Label of the run."""
    metric: Metric
    """"dsc" (0 to 1, higher is better) or "hd95" (in the unit of the evaluations, lower is better)."""
    permutation: PairedTest
    """The difference with its interval, and the permutation test."""
    signed_rank: SignedRankTest
    """Wilcoxon's test and its effect size."""
    p_holm: float
    """The permutation test's p, corrected for the number of tests of this comparison."""

    @property
    def smallest_p(self) -> float:
        """What the permutation test's p cannot fall below with so few independent cases: 2 of 2^n signs."""
        return min(1.0, 2.0 ** (1 - self.signed_rank.units))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several evaluations of the same cases, and what each but the first is against the first."""

    runs: tuple[Evaluated, ...]
    differences: tuple[Difference, ...]
    grouped: bool
    """True when whole patients or videos, not cases, were resampled, flipped and ranked."""
    remarks: tuple[str, ...] = ()
    """What else a reader must know of the figures."""

    def to_json(self) -> dict[str, Any]:
        """The same numbers as plain dictionaries and lists, None for NaN."""
        unit = self.runs[0].unit
        content = {
            "protocol": self.runs[0].protocol,
            "unit": unit,
            "cases": len(self.runs[0].cases),
            "grouped": self.grouped,
            "remarks": list(self.remarks),
            "runs": [_run(run) for run in self.runs],
            "differences": [
                {"minus": self.runs[0].label, **asdict(difference), "metric": column(difference.metric, unit)}
                for difference in self.differences
            ],
        }
        cleaned: dict[str, Any] = without_nan(content)
        return cleaned


def compare(
    runs: Sequence[Evaluated], *, remarks: Sequence[str] = (), resamples: int = 20_000, seed: int = 0
) -> Comparison:
    """Test every run against the first, in DSC and HD95, one number a case: its mean over the classes.

    Args:
        runs: of `read_evaluations`, which has made sure that they can be compared.
        remarks: what else a reader must know, printed below the tables.
        resamples: of each permutation test and bootstrap.
        seed: of both.

    Raises:
        DataError: a run was scored by patients or videos that its files do not name.
    """
    first = runs[0]
    names = list(first.cases)
    groups = _groups(runs, names)
    pairs = [(run, metric) for run in runs[1:] for metric in METRICS]
    tests = []
    for run, metric in pairs:
        a, b = ([getattr(which.cases[name], metric) for name in names] for which in (run, first))
        permutation = paired_permutation_test(a, b, groups=groups, resamples=resamples, seed=seed)
        tests.append((permutation, signed_rank_test(a, b, groups=groups)))
    corrected = holm([permutation.p_value for permutation, _ in tests])
    differences = [
        Difference(run.label, metric, *both, p)
        for (run, metric), both, p in zip(pairs, tests, corrected, strict=True)
    ]
    return Comparison(tuple(runs), tuple(differences), groups is not None, tuple(remarks))


def spread_cases(run: Evaluated, number: int) -> list[str]:
    """Ids of `number` cases at even steps through the ranking of a run, from its worst to its best case.

    One case is the median, three are worst, median and best. Cases that are not scored are left out; of
    fewer cases than asked for all are taken.

    Example:
        >>> spread_cases(run, 3)  # doctest: +SKIP
        ['the worst', 'the median', 'the best']
    """
    scored = {name: case.dsc for name, case in run.cases.items() if not math.isnan(case.dsc)}
    ranked = sorted(scored, key=lambda name: (scored[name], name))
    count = min(number, len(ranked))
    if count == 1:
        return [ranked[(len(ranked) - 1) // 2]]
    return [ranked[round(place * (len(ranked) - 1) / (count - 1))] for place in range(count)]


def column(metric: str, unit: str) -> str:
    """Name of a metric in files: dsc, hd95_mm or hd95_px."""
    return metric if metric == "dsc" else f"{metric}_{unit}"


def _groups(runs: Sequence[Evaluated], names: Sequence[str]) -> list[str] | None:
    """Patient or video of every case, from the first run that knows them."""
    for run in runs:
        groups = [group for name in names if (group := run.cases[name].group) is not None]
        if len(groups) == len(names):
            return groups
    blind = next((run for run in runs if run.grouped), None)
    if blind is not None:
        raise DataError(
            f"{blind.folder} was scored by patients or videos, but does not say which case is whose, as "
            "older versions did not. Score its predictions again: `rwkvseg evaluate`."
        )
    return None


def _run(run: Evaluated) -> dict[str, Any]:
    hd95 = column("hd95", run.unit)
    return {
        "label": run.label,
        "folder": str(run.folder),
        "rows": [
            {"name": row.name, "dsc": asdict(row.dsc), hd95: asdict(row.hd95), "outcomes": dict(row.outcomes)}
            for row in (*run.rows, *run.regions)
        ],
    }
