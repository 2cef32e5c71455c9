"""IoU, precision, recall, ASSD, NSD and volume difference against their definitions, medpy and MONAI."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medpy.metric import binary as medpy
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)

from rwkvseg.errors import GeometryError, ShapeError, UsageError
from rwkvseg.evaluation.metrics import assd, hausdorff_95, iou, nsd, precision, recall, volume_difference
from rwkvseg.evaluation.protocols import score_case
from rwkvseg.evaluation.surfaces import surface_distances

SPACING = (0.7, 2.3, 5.0)
SHAPE = (17, 13, 9)


def ball(centre, radius, shape=SHAPE):
    grid = np.indices(shape)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


SOLIDS = {
    "ball": ball((8, 6, 4), 4),
    "moved": ball((9, 5, 3), 3),
    "at the border": ball((0, 0, 0), 5),
    "one voxel": ball((16, 12, 8), 0),
    "one voxel inside": ball((4, 4, 4), 0),
    "everything": np.ones(SHAPE, bool),
    "noise": np.random.default_rng(0).random(SHAPE) < 0.2,
}
PAIRS = [pytest.param(SOLIDS[a], SOLIDS[b], id=f"{a}, {b}") for a, b in itertools.combinations(SOLIDS, 2)]


def as_batch(mask):
    return torch.from_numpy(mask)[None, None]


# MONAI calls a function of its own in a way that it deprecates
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("spacing", [None, SPACING], ids=str)
@pytest.mark.parametrize(("prediction", "truth"), PAIRS)
def test_surface_metrics_equal_medpys_and_monais(prediction, truth, spacing):
    batch, options = (as_batch(prediction), as_batch(truth)), {"include_background": True, "spacing": spacing}
    distance = assd(prediction, truth, spacing)
    assert distance == pytest.approx(medpy.assd(prediction, truth, spacing), abs=1e-4)
    theirs = compute_average_surface_distance(*batch, symmetric=True, **options)
    assert distance == pytest.approx(theirs.item(), rel=1e-5, abs=1e-4)
    larger = hausdorff_95(prediction, truth, spacing, method="larger")
    theirs = compute_hausdorff_distance(*batch, percentile=95, **options)
    assert larger == pytest.approx(theirs.item(), rel=1e-5, abs=1e-4)
    for tolerance in (0.0, 1.6, 4.1):  # none but 0 is a distance between voxels: rounding would decide
        theirs = compute_surface_dice(*batch, [tolerance], **options)
        assert nsd(prediction, truth, spacing, tolerance=tolerance) == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize(("prediction", "truth"), PAIRS)
def test_overlaps_equal_medpys_and_monais(prediction, truth):
    assert iou(prediction, truth) == pytest.approx(medpy.jc(prediction, truth))
    assert iou(prediction, truth) == pytest.approx(compute_iou(as_batch(prediction), as_batch(truth)).item())
    assert precision(prediction, truth) == pytest.approx(medpy.precision(prediction, truth))
    assert recall(prediction, truth) == pytest.approx(medpy.recall(prediction, truth))


@settings(max_examples=60)
@given(hnp.arrays(bool, (3, 5)), hnp.arrays(bool, (3, 5)), st.floats(0.3, 4.0))
def test_definitions_and_empty_masks(prediction, truth, step):
    both, only_first, only_second = (
        int(np.count_nonzero(mask)) for mask in (prediction & truth, prediction & ~truth, truth & ~prediction)
    )

    def share(part, whole):
        return part / whole if whole else math.nan

    assert iou(prediction, truth) == pytest.approx(share(both, both + only_first + only_second), nan_ok=True)
    assert precision(prediction, truth) == pytest.approx(share(both, both + only_first), nan_ok=True)
    assert recall(prediction, truth) == pytest.approx(share(both, both + only_second), nan_ok=True)
    spacing = (step, 1.0)
    distance, near = assd(prediction, truth, spacing), nsd(prediction, truth, spacing, tolerance=1.5)
    if prediction.any() and truth.any():
        assert distance <= math.hypot(2 * step, 4)
        assert 0 <= near <= 1
        assert distance == pytest.approx(assd(truth, prediction, spacing))
        assert nsd(prediction, truth, spacing, tolerance=math.hypot(2 * step, 4) + 1e-3) == 1
    else:
        assert math.isnan(distance)
        assert near == 0 if prediction.any() or truth.any() else math.isnan(near)


def test_volumes_are_in_millilitres():
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[:10, :10, :5] = True
    second[:3, :1, :1] = True
    assert volume_difference(first, second, (1, 2, 0.5)) == pytest.approx((500 - 3) * 1e-3)
    assert volume_difference(second, first, (1, 2, 0.5)) == pytest.approx((3 - 500) * 1e-3)
    assert volume_difference(second & False, second & False, (1, 1, 1)) == 0


def test_what_cannot_be_meant_is_refused():
    mask = np.ones((3, 4), bool)
    with pytest.raises(UsageError, match="no volume"):
        volume_difference(mask, mask, (1, 1))
    for tolerance in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="no distance"):
            nsd(mask, mask, tolerance=tolerance)
        with pytest.raises(UsageError, match="no distance"):
            score_case("a", mask, mask, labels={"x": 1}, tolerance=tolerance)
    with pytest.raises(UsageError, match="'pooled'"):
        hausdorff_95(mask, mask, method="mean")
    with pytest.raises(GeometryError):
        assd(mask, mask, (1.0, 0.0))
    for metric in (iou, precision, recall, assd):
        with pytest.raises(ShapeError, match="different shapes"):
            metric(mask, mask[:2])
        with pytest.raises(UsageError, match="not boolean"):
            metric(mask.astype(int), mask)


def score(prediction, truth, **options):
    maps = (mask.astype(np.uint8) for mask in (prediction, truth))
    (found,) = score_case("a", *maps, labels={"organ": 1}, **options)
    return found


def test_a_case_holds_the_metrics_of_its_masks():
    prediction, truth = SOLIDS["ball"], SOLIDS["moved"]
    found = score(prediction, truth, spacing=SPACING, tolerance=1.6)
    assert (found.iou, found.precision, found.recall) == (
        iou(prediction, truth), precision(prediction, truth), recall(prediction, truth),
    )  # fmt: skip
    assert found.hd95 == hausdorff_95(prediction, truth, SPACING)
    assert found.hd95_larger == hausdorff_95(prediction, truth, SPACING, method="larger") != found.hd95
    assert found.assd == assd(prediction, truth, SPACING)
    assert found.nsd == nsd(prediction, truth, SPACING, tolerance=1.6)
    assert found.volume_difference == pytest.approx(volume_difference(prediction, truth, SPACING))
    voxels = score(prediction, truth, spacing=SPACING, protocol="transunet")
    assert voxels.assd == assd(prediction, truth)
    assert voxels.hd95_larger == hausdorff_95(prediction, truth, method="larger")
    assert math.isnan(voxels.volume_difference)


@pytest.mark.parametrize("protocol", ["strict", "transunet"])
def test_the_costs_of_an_empty_mask(protocol):
    held = SOLIDS["ball"]
    empty = np.zeros_like(held)
    volume = np.count_nonzero(held) * math.prod(SPACING) / 1000
    diagonal = math.hypot(*(n * s for n, s in zip(SHAPE, SPACING, strict=True)))
    strict = protocol == "strict"
    expected = {  # iou, precision, recall, assd, nsd, volume difference
        "absent": (math.nan,) * 6,
        "false_positive": (0, 0, math.nan, math.nan, 0, volume if strict else math.nan),
        "missed": (0, math.nan, 0, diagonal if strict else math.nan, 0, -volume if strict else math.nan),
    }
    masks = {"absent": (empty, empty), "false_positive": (held, empty), "missed": (empty, held)}
    for outcome, (prediction, truth) in masks.items():
        found = score(prediction, truth, spacing=SPACING, protocol=protocol)
        assert found.outcome == outcome
        values = (found.iou, found.precision, found.recall, found.assd, found.nsd, found.volume_difference)
        assert values == pytest.approx(expected[outcome], nan_ok=True)
        assert found.hd95_larger == pytest.approx(found.assd, nan_ok=True)


def test_both_directions_are_measured_once():
    found = surface_distances(SOLIDS["one voxel"], SOLIDS["ball"])
    assert found.to_truth.shape == (1,)
    assert found.to_prediction.size > 100
    assert surface_distances(SOLIDS["ball"], np.zeros(SHAPE, bool)) is None
