"""A comparison as people read it: two tables and the sentences below, alike on screen and on paper."""

import math

from rwkvseg.evaluation.compare import Comparison, Difference, Metric
from rwkvseg.evaluation.evaluations import Row
from rwkvseg.evaluation.statistics import Interval
from rwkvseg.evaluation.summary import row_name
from rwkvseg.wording import counted

Table = tuple[list[str], list[list[str]]]

_DASH = "\N{EN DASH}"
_SHARE = "[95 % interval]"


def result_table(comparison: Comparison) -> Table:
    """Headings and rows: every class and the mean, one line a run; headings say where they may break."""
    unit = comparison.runs[0].unit
    heads = ["class", "run", f"DSC %\n{_SHARE}", f"HD95 {unit}\n{_SHARE}", "cases", "missed,\nfalse +"]
    rows = []
    for place, row in enumerate(_rows(comparison, 0)):
        for number, run in enumerate(comparison.runs):
            ours = _rows(comparison, number)[place]
            rows.append(
                [
                    row_name(row.name, row.label),
                    run.label,
                    _with_interval(ours.dsc, 100),
                    _with_interval(ours.hd95, 1),
                    str(ours.dsc.cases),
                    f"{ours.outcomes['missed']}, {ours.outcomes['false_positive']}",
                ]
            )
    return heads, rows


def _rows(comparison: Comparison, number: int) -> list[Row]:
    """Rows of a run: classes, mean, and the regions that every run was scored on."""
    regions = [{(row.name, row.label): row for row in run.regions} for run in comparison.runs]
    shared = [key for key in regions[0] if all(key in found for found in regions)]
    return [*comparison.runs[number].rows, *(regions[number][key] for key in shared)]


def difference_table(comparison: Comparison, metric: Metric) -> Table:
    """Headings and rows: every other run minus the first, in one metric."""
    unit = "DSC points" if metric == "dsc" else f"HD95 {comparison.runs[0].unit}"
    heads = ["run", f"{unit}\n{_SHARE}", "higher/\nequal/\nlower", "effect\nr"]
    heads += ["p\nperm.", "p\nHolm", "p\nsigned\nrank"]
    return heads, [_difference(entry) for entry in comparison.differences if entry.metric == metric]


def notes(comparison: Comparison) -> list[str]:
    """What the figures are and what they leave out."""
    units = "patients or videos" if comparison.grouped else "cases"
    first = comparison.runs[0]
    sentences = [
        *comparison.remarks,
        f"Differences are of each run minus {first.label}, in the mean over the classes of a case; a higher "
        "DSC and a lower HD95 are better.",
        f"Protocol {first.protocol}. Intervals are bootstrapped over {units}; p: of the paired permutation "
        f"test, by Holm's correction of it for {counted(len(comparison.differences), 'test')}, and of "
        f"Wilcoxon's signed-rank test, whose ranks give higher/equal/lower and the effect r "
        f"(rank-biserial, -1 to 1), all over {units}.",
        "They speak of other cases of this kind, not of another training: for that, take several seeds.",
    ]
    if not comparison.grouped:
        sentences.append(
            "Each case counts as independent, since the evaluations name no patients or videos. If cases "
            "share one, the intervals are too narrow and p too small."
        )
    for difference in comparison.differences:
        sentences += _cautions(difference, units)
    return sentences


def _cautions(difference: Difference, units: str) -> list[str]:
    what = f"{difference.metric.upper()} of {difference.run}"
    sentences = []
    excluded = difference.permutation.excluded
    if excluded:
        told = counted(excluded, "case is", "cases are")
        sentences.append(f"{what}: {told} not scored in both runs and left out of the test.")
    if 0 < difference.signed_rank.units < 6:
        sentences.append(
            f"{what}: with {difference.signed_rank.units} {units} p cannot be below "
            f"{difference.smallest_p:.3g}, and the interval is too narrow."
        )
    return sentences


def _difference(difference: Difference) -> list[str]:
    test, ranks = difference.permutation, difference.signed_rank
    effect = Interval(test.difference, test.low, test.high)
    return [
        difference.run,
        _with_interval(effect, 100 if difference.metric == "dsc" else 1, sign="+"),
        f"{ranks.higher}/{ranks.equal}/{ranks.lower}",
        _DASH if math.isnan(ranks.effect) else f"{ranks.effect:+.2f}",
        *(_p_value(p) for p in (test.p_value, difference.p_holm, ranks.p_value)),
    ]


def _p_value(p: float) -> str:
    if math.isnan(p):
        return _DASH
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _with_interval(interval: Interval, scale: float, sign: str = "") -> str:
    if math.isnan(interval.mean):
        return _DASH
    mean, low, high = (f"{scale * x:{sign}.2f}" for x in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]" if interval.defined else f"{mean} [undefined]"
