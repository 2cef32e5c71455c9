"""Small evaluations to set beside each other."""

import numpy as np

from rwkvseg.evaluation.protocols import distance_unit, score_case
from rwkvseg.evaluation.score_files import write_summary_json
from rwkvseg.evaluation.summary import summarise

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def truth_map(index):
    """11 x 13 with both classes, another one for every index."""
    truth = np.zeros((11, 13), np.uint8)
    truth[1 : 4 + index % 3, 1:6] = 1
    truth[7:10, 5 : 9 + index % 4] = 2
    return truth


def truths(number=5):
    """Case id to label map."""
    return {f"case{index}": truth_map(index) for index in range(number)}


def shifted(maps, *steps):
    """Predictions that miss by so many columns, in turn over the cases."""
    return {name: np.roll(m, steps[i % len(steps)], 1) for i, (name, m) in enumerate(maps.items())}


def write_evaluation(
    folder, predictions, maps, *, protocol="strict", spacing=None, groups=None, labels=None, regions=None
):
    """Write a folder as `rwkvseg evaluate` does, without report; label maps are not written."""
    rules = {"labels": labels or LABELS, "spacing": spacing, "protocol": protocol, "regions": regions}
    scores = [
        score for name in predictions for score in score_case(name, predictions[name], maps[name], **rules)
    ]
    unit = distance_unit(protocol, spacing)
    summary = summarise(scores, protocol=protocol, unit=unit, groups=groups, resamples=50)
    write_summary_json(folder / "summary.json", summary, scores)
    return summary
