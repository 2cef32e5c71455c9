"""What the report says in words, and how it looks."""

import math
from collections.abc import Iterable, Sequence

from rwkvseg.evaluation.protocols import ClassScore
from rwkvseg.evaluation.summary import Summary, classes_only, row_name
from rwkvseg.wording import counted

_NAMED = 12  # cases that a sentence names; the table of every case has them all

STYLE = """
:root { --ink: #1b2330; --soft: #5b6676; --line: #dfe4ea; --ground: #f5f7f9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 1120px; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.4rem 0 .7rem; padding-bottom: .3rem; font-size: 1.2rem; border-bottom: 2px solid var(--line); }
h3 { margin: 1.6rem 0 .5rem; font-size: 1.05rem; color: var(--accent); }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; }
.tile { flex: 1 1 12rem; padding: .9rem 1.1rem; border-radius: 8px; background: var(--ground); }
.tile span { display: block; }
.tile .name, .tile .range { color: var(--soft); font-size: .9rem; }
.tile .value { font-size: 2rem; font-weight: 650; line-height: 1.25; }
.tile small { font-size: 1rem; font-weight: 400; color: var(--soft); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { min-width: 7rem; text-align: left; overflow-wrap: anywhere; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
td { white-space: nowrap; }
tfoot tr:first-child > * { font-weight: 700; border-top: 2px solid var(--ink);
  border-bottom: 2px solid var(--ink); }
tfoot th { font-weight: 500; }
.context { width: auto; }
.context th { color: var(--soft); font-weight: 500; white-space: nowrap; padding-right: 2rem; }
.context td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.note { margin: .5rem 0; color: var(--soft); font-size: .88rem; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
li { margin: .25rem 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure { margin: 0 0 1.3rem; break-inside: avoid; }
figure img { width: 100%; }
figcaption { margin-bottom: .3rem; font-size: .92rem; overflow-wrap: anywhere; }
.panels { display: flex; margin-top: .2rem; color: var(--soft); font-size: .82rem; }
.panels span { flex: 1; text-align: center; }
.legend { margin: .3rem 0; }
.legend b { display: inline-block; min-width: 5.5rem; font-weight: 600; }
.key { display: inline-block; margin-right: 1.2rem; }
.key i { display: inline-block; width: 1.1rem; height: .8rem; margin-right: .4rem; vertical-align: -.05rem;
  border-radius: 2px; }
.key .fill { background: var(--shade); }
.key .line { background: #4a4f57; border: 3px solid var(--shade); outline: 1px solid #333; }
.wide { overflow-x: auto; font-size: .85rem; margin-top: .6rem; }
.wide th:first-child { min-width: 9rem; }
summary { cursor: pointer; color: var(--accent); }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  h2, h3, .legend { break-after: avoid; }
  tr, .tiles, section > table, li { break-inside: avoid; }
  thead { display: table-header-group; }
  tfoot { display: table-row-group; }
  table { font-size: 8.5pt; }
  th, td { padding: .3rem .35rem; }
  section:has(details:not([open])) { display: none; }
}
@page { margin: 15mm; }
"""
"""Style sheet of the page: system fonts, colours that print."""


def further_heading(name: str) -> str:
    """A further metric as people know it, from its name in the files: "NSD at 2 mm (%)" of "nsd_2mm"."""
    metric, _, rest = name.partition("_")
    known = {"iou": "IoU (%)", "precision": "precision (%)", "recall": "recall (%)"}
    if metric == "nsd":
        return f"NSD at {rest[:-2]} {rest[-2:]} (%)"
    if metric == "hd95":
        return f"HD95, larger of both directions ({rest[-2:]})"
    if metric == "volume":
        return "volume difference (ml)"
    return known.get(metric, f"{metric.upper()} ({rest})")


def exclusions(summary: Summary, scores: Sequence[ClassScore]) -> list[str]:
    """How many structures of which cases were empty, and what that did to the figures."""
    structures = sum(summary.mean.outcomes.values())
    classes = classes_only(scores)
    sentences = [
        f"{counted(structures, 'structure was', 'structures were')} looked at: "
        f"{counted(len(summary.cases), 'case')} with {counted(len(summary.classes), 'class', 'classes')}. "
        f"{counted(summary.mean.outcomes['scored'], 'was', 'were')} held by prediction and truth both."
    ]
    strict = summary.protocol == "strict"
    effects = {
        "absent": "in neither truth nor prediction: "
        + ("left out of both means" if strict else "scored with Dice 0 and HD95 0"),
        "false_positive": "predicted where the truth has none: "
        + ("Dice 0, left out of the HD95" if strict else "scored with Dice 1 and HD95 0"),
        "missed": "in the truth and not predicted: Dice 0, HD95 "
        + ("the diagonal of the image" if strict else "0"),
    }
    for outcome, effect in effects.items():
        number = summary.mean.outcomes[outcome]
        where = ", ".join(
            f"{row.name} {row.outcomes[outcome]}" for row in summary.classes if row.outcomes[outcome]
        )
        named = f" ({where})" if number and len(summary.classes) > 1 else ""
        cases = _cases(score.case for score in classes if score.outcome == outcome)
        sentences.append(f"{number} {outcome.replace('_', ' ')}{named}, {effect}.{cases}")
    for row in summary.regions:
        empty = ", ".join(f"{outcome.replace('_', ' ')} {row.outcomes[outcome]}" for outcome in effects)
        sentences.append(
            f"Region {row_name(row.name, row.label)}, in no mean: {empty} of "
            f"{counted(len(summary.cases), 'case')}."
        )
    unscored = [case.case for case in summary.cases if math.isnan(case.dsc)]
    if unscored:
        what = counted(len(unscored), "case holds", "cases hold")
        verb = "enters" if len(unscored) == 1 else "enter"
        sentences.append(f"{what} none of the classes and {verb} no mean.{_cases(unscored)}")
    without = [case.case for case in summary.cases if math.isnan(case.hd95)]
    if without:
        told = f"{len(without)} of {counted(len(summary.cases), 'case')}"
        sentences.append(f"No HD95: {told}.{_cases(without)}")
    return sentences


def _cases(cases: Iterable[str]) -> str:
    names = list(dict.fromkeys(cases))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" Cases: {', '.join(names[:_NAMED])}{more}." if names else ""


def conventions(summary: Summary) -> list[str]:
    """The definitions behind the figures of this report."""
    unit = {"mm": "millimetres, by the spacing of the case", "px": "pixels or voxels, whatever their size"}
    sentences = [
        "DSC: Dice similarity coefficient 2 |P ∩ T| / (|P| + |T|) of prediction P and truth T, in %.",
        "HD95: 95th percentile of the distances from each surface voxel of one mask to the nearest surface "
        f"voxel of the other, both directions pooled, in {unit[summary.unit]}.",
        "Further metrics: HD95, larger of both directions, is MONAI's definition: the 95th percentile of "
        "each, then the larger. ASSD is the mean of those distances, NSD the share of them within the "
        "tolerance in its name. Each mean is over the cases in which the metric is defined: precision needs "
        "a prediction, recall a truth. A missed structure has the diagonal as both distances under strict.",
    ]
    if summary.protocol == "strict":
        return [
            *sentences,
            "Protocol strict: a class counts in a case if truth or prediction holds it. A false positive has "
            "Dice 0 and no HD95; a missed structure has Dice 0 and the diagonal of the image as HD95, and a "
            "second column gives the HD95 without those.",
            "Mean: over the classes of a case first, then over the cases.",
        ]
    return [
        *sentences,
        "Protocol transunet: what the published 2D code computes. A false positive has Dice 1 and HD95 0, a "
        "missed structure and one that is in neither map Dice 0 and HD95 0: a low HD95 may mean that a "
        "structure was not found.",
        "Mean: over cases, then over classes. Compare only with figures of the same protocol.",
    ]
