"""Every row of the table of both protocols, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medpy.metric.binary import hd95 as medpy_hd95

from rwkvseg.errors import GeometryError, LabelError, ShapeError, UsageError
from rwkvseg.evaluation.metrics import dice, hausdorff_95
from rwkvseg.evaluation.protocols import distance_unit, score_case

LABELS = {"background": 0, "organ": 1}
SPACING = (0.5, 2.0)


def one(prediction, truth, **options):
    (score,) = score_case("a", prediction, truth, labels=LABELS, **options)
    return score


@pytest.fixture
def maps():
    empty = np.zeros((30, 40), dtype=np.uint8)
    held = empty.copy()
    held[3:9, 5:30] = 1
    moved = np.roll(held, (2, 3), axis=(0, 1))
    return empty, held, moved


@pytest.mark.parametrize(
    ("protocol", "outcome", "dsc", "hd95"),
    [
        ("strict", "absent", math.nan, math.nan),
        ("strict", "false_positive", 0.0, math.nan),
        ("strict", "missed", 0.0, math.hypot(30 * 0.5, 40 * 2.0)),
        ("transunet", "absent", 0.0, 0.0),
        ("transunet", "false_positive", 1.0, 0.0),
        ("transunet", "missed", 0.0, 0.0),
    ],
)
def test_rows_with_an_empty_mask(maps, protocol, outcome, dsc, hd95):
    empty, held, _ = maps
    prediction = held if outcome == "false_positive" else empty
    truth = held if outcome == "missed" else empty
    score = one(prediction, truth, spacing=SPACING, protocol=protocol)
    assert score.outcome == outcome
    assert score.dsc == pytest.approx(dsc, nan_ok=True)
    assert score.hd95 == pytest.approx(hd95, nan_ok=True)


def test_strict_measures_in_millimetres(maps):
    _, truth, prediction = maps
    score = one(prediction, truth, spacing=SPACING)
    assert score.outcome == "scored"
    assert score.dsc == dice(prediction == 1, truth == 1)
    assert score.hd95 == pytest.approx(medpy_hd95(prediction, truth, SPACING), abs=1e-4)
    assert distance_unit("strict", SPACING) == "mm"


def test_strict_measures_in_pixels_without_spacing(maps):
    empty, truth, prediction = maps
    assert one(prediction, truth).hd95 == pytest.approx(medpy_hd95(prediction, truth), abs=1e-4)
    assert one(empty, truth).hd95 == pytest.approx(50.0)
    assert distance_unit("strict", None) == "px"


def test_transunet_ignores_the_spacing(maps):
    _, truth, prediction = maps
    score = one(prediction, truth, spacing=SPACING, protocol="transunet")
    assert score.hd95 == pytest.approx(medpy_hd95(prediction, truth), abs=1e-4)
    assert distance_unit("transunet", SPACING) == "px"


def test_counts(maps):
    _, truth, prediction = maps
    score = one(prediction, truth)
    assert score.tp == np.sum((prediction == 1) & (truth == 1))
    assert score.fp == np.sum((prediction == 1) & (truth == 0))
    assert score.fn == np.sum((prediction == 0) & (truth == 1))
    assert score.tn == np.sum((prediction == 0) & (truth == 0))


@settings(max_examples=60, deadline=None)
@given(st.data(), hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8))
def test_every_class_is_scored_as_its_own_mask(data, shape):
    maps = [data.draw(hnp.arrays(np.int16, shape, elements=st.sampled_from([0, 2, 3, 7]))) for _ in range(2)]
    spacing = (0.7, 1.1, 3.0)[: len(shape)]
    labels = {"far": 7, "background": 0, "near": 2, "middle": 3, "never": 9}
    scores = score_case("a", *maps, labels=labels, spacing=spacing)
    assert [(score.label, score.name) for score in scores] == [
        (2, "near"),
        (3, "middle"),
        (7, "far"),
        (9, "never"),
    ]
    for score in scores:
        masks = [array == score.label for array in maps]
        assert score.dsc == pytest.approx(dice(*masks), nan_ok=True)
        assert score.tp + score.fp + score.fn + score.tn == masks[0].size
        if score.outcome == "scored":
            assert score.hd95 == pytest.approx(hausdorff_95(*masks, spacing), abs=1e-5)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int32, np.uint16, np.int64, np.uint64])
def test_every_integer_type_gives_the_same(maps, kind):
    _, truth, prediction = maps
    assert one(prediction.astype(kind), truth.astype(kind)) == one(prediction, truth)


@pytest.mark.parametrize("value", [255, 2, 60000, -1])
def test_an_unknown_value_is_refused(maps, value):
    _, truth, prediction = (array.astype(np.int32) for array in maps)
    prediction[4, 4] = value
    with pytest.raises(LabelError, match=rf"prediction of case 'a' holds the values {value}, .* 1 \(organ\)"):
        one(prediction, truth)


def test_probabilities_are_refused(maps):
    _, truth, prediction = maps
    with pytest.raises(LabelError, match="float64"):
        one(prediction.astype(float), truth)


def test_what_does_not_fit_is_refused(maps):
    _, truth, prediction = maps
    with pytest.raises(ShapeError, match="case 'a'"):
        one(prediction.T, truth)
    with pytest.raises(GeometryError):
        one(prediction, truth, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="strict, transunet"):
        one(prediction, truth, protocol="loose")
