"""The table of both conventions, line by line, from label maps of several classes to means.

Expected values are worked out here from the definitions, not from the code under test.
"""

import math

import numpy as np
import pytest
from medpy.metric.binary import dc as medpy_dice
from medpy.metric.binary import hd95 as medpy_hd95
from scipy.ndimage import binary_erosion, distance_transform_edt

from rwkvseg.evaluation.metrics import hausdorff_95
from rwkvseg.evaluation.protocols import score_case
from rwkvseg.evaluation.summary import summarise

SHAPE, SPACING = (13, 9, 7), (0.7, 1.3, 5.0)
DIAGONAL = math.sqrt(sum((n * s) ** 2 for n, s in zip(SHAPE, SPACING, strict=True)))
LABELS = {"background": 0, "liver": 1, "spleen": 2}
NAN = math.nan


def box(*slices, value=1):
    values = np.zeros(SHAPE, np.uint8)
    values[slices] = value
    return values


LIVER = box(slice(1, 6), slice(2, 8), slice(1, 5))
MOVED = box(slice(3, 8), slice(1, 8), slice(1, 6))
SPLEEN = box(slice(9, 12), slice(1, 4), slice(2, 5), value=2)


def scored(prediction, truth, protocol, case="a"):
    return score_case(case, prediction, truth, labels=LABELS, spacing=SPACING, protocol=protocol)


def spleen(prediction, truth, protocol):
    return scored(prediction, truth, protocol)[1]


@pytest.mark.parametrize(("protocol", "expected"), [("transunet", (0, 0)), ("strict", (NAN, NAN))])
def test_line_1_prediction_empty_truth_empty(protocol, expected):
    score = spleen(MOVED, LIVER, protocol)
    assert (score.dsc, score.hd95) == pytest.approx(expected, nan_ok=True)
    summary = summarise(scored(MOVED, LIVER, protocol), protocol=protocol, unit="mm", resamples=9)
    assert summary.classes[1].outcomes["absent"] == 1  # counted under either


@pytest.mark.parametrize(("protocol", "expected"), [("transunet", (1, 0)), ("strict", (0, NAN))])
def test_line_2_prediction_non_empty_truth_empty(protocol, expected):
    score = spleen(MOVED | SPLEEN, LIVER, protocol)
    assert (score.dsc, score.hd95) == pytest.approx(expected, nan_ok=True)
    summary = summarise(scored(MOVED | SPLEEN, LIVER, protocol), protocol=protocol, unit="mm", resamples=9)
    assert summary.classes[1].outcomes["false_positive"] == 1
    assert summary.classes[1].hd95.excluded == (1 if protocol == "strict" else 0)


@pytest.mark.parametrize(("protocol", "expected"), [("transunet", (0, 0)), ("strict", (0, DIAGONAL))])
def test_line_3_prediction_empty_truth_non_empty(protocol, expected):
    score = spleen(MOVED, LIVER | SPLEEN, protocol)
    assert (score.dsc, score.hd95) == pytest.approx(expected)


def test_line_3_a_second_column_leaves_missed_structures_out_and_counts_them():
    cases = {
        "found": (LIVER | SPLEEN, MOVED | np.roll(SPLEEN, 1, 0)),
        "missed": (LIVER | SPLEEN, MOVED),
        "missed too": (SPLEEN, MOVED),
    }
    scores = [s for case, (truth, found) in cases.items() for s in scored(found, truth, "strict", case)]
    summary = summarise(scores, unit="mm", resamples=9)
    own = medpy_hd95(np.roll(SPLEEN, 1, 0) == 2, SPLEEN == 2, SPACING)
    second = summary.classes[1]
    assert second.hd95.mean == pytest.approx((own + 2 * DIAGONAL) / 3)
    assert second.hd95_found.mean == pytest.approx(own)
    assert (second.hd95_found.cases, second.outcomes["missed"]) == (1, 2)
    liver = medpy_hd95(MOVED == 1, LIVER == 1, SPACING)
    # case means: both classes; liver alone where the spleen is missed; nothing in the third
    assert summary.mean.hd95_found.mean == pytest.approx(((own + liver) / 2 + liver) / 2)
    assert (summary.mean.hd95_found.cases, summary.mean.outcomes["missed"]) == (2, 2)


def test_line_4_distances_are_voxels_or_millimetres_by_the_spacing():
    for protocol, spacing in (("transunet", None), ("strict", SPACING)):
        (liver, _) = scored(MOVED, LIVER, protocol)
        assert liver.hd95 == pytest.approx(medpy_hd95(MOVED == 1, LIVER == 1, spacing), abs=1e-4)
        assert liver.dsc == pytest.approx(medpy_dice(MOVED == 1, LIVER == 1))
    assert scored(MOVED, LIVER, "transunet")[0].hd95 != pytest.approx(scored(MOVED, LIVER, "strict")[0].hd95)


def directed(ours, theirs, spacing):
    """Distances of the surface voxels of one mask to those of the other, by brute force."""
    surface = theirs & ~binary_erosion(theirs)
    return distance_transform_edt(~surface, sampling=spacing)[ours & ~binary_erosion(ours)]


def test_line_5_hd95_is_pooled_and_monais_has_a_name_of_its_own():
    rng = np.random.default_rng(3)
    ours, theirs = rng.random(SHAPE) < 0.1, box(slice(2, 9), slice(2, 7), slice(1, 6)) == 1
    for protocol, spacing in (("transunet", None), ("strict", SPACING)):
        both_ways = directed(ours, theirs, spacing), directed(theirs, ours, spacing)
        pooled = np.percentile(np.concatenate(both_ways), 95)
        larger = max(np.percentile(way, 95) for way in both_ways)
        assert pooled != pytest.approx(larger)
        score, _ = scored(ours.astype(np.uint8), theirs.astype(np.uint8), protocol)
        assert score.hd95 == pytest.approx(pooled, abs=1e-4)
        assert score.hd95_larger == pytest.approx(larger, abs=1e-4)
        assert hausdorff_95(ours, theirs, spacing, method="larger") == pytest.approx(larger, abs=1e-4)


# line 6, resizing: tests/inference/test_predictor.py (what is computed), test_evaluate_both.py (what is said)


TRUTHS = {"a": LIVER | SPLEEN, "b": LIVER, "c": SPLEEN, "d": 0 * LIVER, "e": LIVER | SPLEEN}
FOUND = {"a": MOVED | SPLEEN, "b": LIVER, "c": MOVED | SPLEEN, "d": 0 * LIVER, "e": MOVED}


def table_of(protocol):
    """Dice by the definition of each convention: case to one value a class."""
    rows = {}
    for case, truth in TRUTHS.items():
        row = []
        for value in (1, 2):
            mask, other = FOUND[case] == value, truth == value
            if mask.any() and other.any():
                row.append(medpy_dice(mask, other))
            elif protocol == "transunet":
                row.append(1.0 if mask.any() else 0.0)
            else:
                row.append(0.0 if mask.any() or other.any() else NAN)
        rows[case] = row
    return rows


@pytest.mark.parametrize("protocol", ["strict", "transunet"])
def test_line_7_averages_and_the_interval(protocol):
    scores = [s for case in TRUTHS for s in scored(FOUND[case], TRUTHS[case], protocol, case)]
    summary = summarise(scores, protocol=protocol, unit="mm", resamples=2000, seed=5)
    rows = np.array(list(table_of(protocol).values()))
    by_class = [np.nanmean(rows[:, column]) for column in (0, 1)]
    assert [row.dsc.mean for row in summary.classes] == pytest.approx(by_class)
    of_cases = np.array([np.nanmean(row) for row in rows if not np.isnan(row).all()])
    if protocol == "transunet":
        assert len(of_cases) == 5
        assert summary.mean.dsc.mean == pytest.approx(np.mean(by_class))
    else:
        assert len(of_cases) == 4  # "d" holds nothing
        assert summary.mean.dsc.mean == pytest.approx(np.mean(of_cases))
        assert summary.mean.dsc.mean != pytest.approx(np.mean(by_class))
    drawn = np.random.default_rng(5).integers(len(of_cases), size=(2000, len(of_cases)))
    low, high = np.quantile(of_cases[drawn].mean(axis=1), [0.025, 0.975])
    assert (summary.mean.dsc.low, summary.mean.dsc.high) == pytest.approx((low, high))
