"""A comparison as people read it: two tables and the sentences below, alike on screen and on paper."""

import math

from rwkvseg.evaluation.compare import Comparison, Difference
from rwkvseg.evaluation.statistics import Interval

Table = tuple[list[str], list[list[str]]]

_DASH = "\N{EN DASH}"


def result_table(comparison: Comparison) -> Table:
    """Headings and rows: every class and the mean, one line a run."""
    unit = comparison.runs[0].unit
    share = "95 % interval"
    heads = ["class", "run", "DSC %", share, f"HD95 {unit}", share, "cases", "missed", "false positive"]
    rows = []
    for place, row in enumerate(comparison.runs[0].rows):
        for run in comparison.runs:
            ours = run.rows[place]
            rows.append(
                [
                    row.name,
                    run.label,
                    _number(100 * ours.dsc.mean),
                    _range(ours.dsc, 100),
                    _number(ours.hd95.mean),
                    _range(ours.hd95, 1),
                    str(ours.dsc.cases),
                    str(ours.outcomes["missed"]),
                    str(ours.outcomes["false_positive"]),
                ]
            )
    return heads, rows


def difference_table(comparison: Comparison) -> Table:
    """Headings and rows: every run minus the first, in DSC and in HD95."""
    heads = [
        *("run", "metric", "difference", "95 % interval", "higher/equal/lower", "effect r"),
        *("p permutation", "p corrected", "p Wilcoxon", "cases"),
    ]
    return heads, [_difference(difference, comparison.runs[0].unit) for difference in comparison.differences]


def notes(comparison: Comparison) -> list[str]:
    """What the figures are and what they leave out."""
    units = "patients or videos" if comparison.grouped else "cases"
    first = comparison.runs[0]
    sentences = [
        f"Differences are of each run minus {first.label}, in the mean over the classes of a case; a higher "
        "DSC and a lower HD95 are better.",
        f"Protocol {first.protocol}. Intervals are bootstrapped over {units}; p: paired permutation test, "
        f"Holm's correction of it for the {len(comparison.differences)} tests here, and Wilcoxon's "
        f"signed-rank test, whose ranks give higher/equal/lower and the effect r (rank-biserial, -1 to 1), "
        f"all over {units}.",
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
        sentences.append(f"{what}: {excluded} cases are not scored in both runs and left out of the test.")
    if 0 < difference.signed_rank.units < 6:
        sentences.append(
            f"{what}: with {difference.signed_rank.units} {units} p cannot be below "
            f"{difference.smallest_p:.3g}, and the interval is too narrow."
        )
    return sentences


def _difference(difference: Difference, unit: str) -> list[str]:
    test, ranks = difference.permutation, difference.signed_rank
    dsc = difference.metric == "dsc"
    scale, name = (100, "DSC points") if dsc else (1, f"HD95 {unit}")
    defined = not math.isnan(test.low)
    return [
        difference.run,
        name,
        _DASH if math.isnan(test.difference) else f"{scale * test.difference:+.2f}",
        f"{scale * test.low:+.2f} to {scale * test.high:+.2f}" if defined else "undefined",
        f"{ranks.higher}/{ranks.equal}/{ranks.lower}",
        _DASH if math.isnan(ranks.effect) else f"{ranks.effect:+.2f}",
        *(_p_value(p) for p in (test.p_value, difference.p_holm, ranks.p_value)),
        str(test.cases),
    ]


def _p_value(p: float) -> str:
    if math.isnan(p):
        return _DASH
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _number(value: float) -> str:
    return _DASH if math.isnan(value) else f"{value:.2f}"


def _range(interval: Interval, scale: float) -> str:
    if not interval.defined:
        return "undefined"
    return f"{scale * interval.low:.2f} to {scale * interval.high:.2f}"
