"""Every metric against the library whose definition it states, on random and on degenerate masks, 2D and 3D.

Masks: noise of three densities, one voxel within and one in a corner, boxes within and at the borders, some
that share only a face or a corner, a hollow one, planes and lines one voxel thin, the whole array; every two
of them, and each with itself; surfaces in voxels each with the two after it. An empty mask has no value in
either library that a figure could rest on.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from medpy.metric import binary as medpy
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)

from rwkvseg.evaluation.metrics import (
    assd,
    dice,
    hausdorff_95,
    iou,
    nsd,
    precision,
    recall,
    volume_difference,
)

SHAPES = [(23, 17), (13, 11, 7)]
SPACING = (0.7, 1.9, 5.3)
TOLERANCES = (0.0, 1.3, 3.1)  # none but 0 is a distance between voxels: rounding would decide

# MONAI calls a function of its own in a way that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")


def box(shape, *bounds):
    """A box between shares of every axis, at least one voxel thick."""
    mask = np.zeros(shape, bool)
    sides = zip(bounds, shape, strict=False)
    mask[tuple(slice(int(a * n), max(int(a * n) + 1, round(b * n))) for (a, b), n in sides)] = True
    return mask


def masks_of(shape):
    generator = np.random.default_rng(len(shape))
    axes = len(shape)
    inner = box(shape, *[(0.3, 0.7)] * axes)
    hollow = box(shape, *[(0.1, 0.9)] * axes) & ~inner
    low, high = (box(shape, *[bounds] * axes) for bounds in ((0.0, 0.5), (0.5, 1.0)))
    found = {f"noise {density}": generator.random(shape) < density for density in (0.03, 0.4, 0.95)}
    middle, corner = (np.zeros(shape, bool) for _ in range(2))
    middle[tuple(n // 2 for n in shape)] = corner[(-1,) * axes] = True
    return found | {
        "a voxel within": middle,
        "a voxel in the corner": corner,
        "box": inner,
        "hollow": hollow,
        "a corner's box": low,
        "meets it in a corner": high,
        "shares its face": box(shape, (0.5, 1.0), *[(0.0, 0.5)] * (axes - 1)),
        "a plane at the border": box(shape, (0.0, 0.01)),
        "a line": box(shape, *[(0.5, 0.51)] * (axes - 1), (0.0, 1.0)),
        "everything": np.ones(shape, bool),
    }


CASES = [
    pytest.param(masks[a], masks[b], id=f"{len(shape)}D: {a}, {b}")
    for shape in SHAPES
    for masks in [masks_of(shape)]
    for a, b in itertools.combinations_with_replacement(masks, 2)
]


NEIGHBOURS = [
    pytest.param(first, second, id=f"{len(shape)}D: {a}, {b}")
    for shape in SHAPES
    for masks in [list(masks_of(shape).items())]
    for step in (1, 2)
    for (a, first), (b, second) in zip(masks, masks[step:] + masks[:step], strict=True)
]


def batch(mask):
    return torch.from_numpy(mask)[None, None]


@pytest.mark.parametrize(("prediction", "truth"), CASES)
def test_overlaps(prediction, truth):
    pair, tensors = (prediction, truth), (batch(prediction), batch(truth))
    assert dice(*pair) == pytest.approx(medpy.dc(*pair), abs=1e-9)
    assert dice(*pair) == pytest.approx(compute_dice(*tensors).item(), abs=1e-6)
    assert iou(*pair) == pytest.approx(medpy.jc(*pair), abs=1e-9)
    assert iou(*pair) == pytest.approx(compute_iou(*tensors).item(), abs=1e-6)
    assert precision(*pair) == pytest.approx(medpy.precision(*pair), abs=1e-9)
    assert recall(*pair) == pytest.approx(medpy.recall(*pair), abs=1e-9)


@pytest.mark.parametrize(("prediction", "truth"), CASES)
def test_surface_distances_in_mm(prediction, truth):
    compare_surfaces(prediction, truth, SPACING[: truth.ndim])


@pytest.mark.parametrize(("prediction", "truth"), NEIGHBOURS)
def test_surface_distances_in_voxels(prediction, truth):
    compare_surfaces(prediction, truth, None)


def compare_surfaces(prediction, truth, spacing):
    pair, tensors = (prediction, truth), (batch(prediction), batch(truth))
    options = {"include_background": True, "spacing": spacing}
    near = {"rel": 1e-5, "abs": 1e-4}
    assert hausdorff_95(*pair, spacing) == pytest.approx(medpy.hd95(*pair, spacing), **near)
    theirs = compute_hausdorff_distance(*tensors, percentile=95, **options).item()
    assert hausdorff_95(*pair, spacing, method="larger") == pytest.approx(theirs, **near)
    assert assd(*pair, spacing) == pytest.approx(medpy.assd(*pair, spacing), **near)
    theirs = compute_average_surface_distance(*tensors, symmetric=True, **options).item()
    assert assd(*pair, spacing) == pytest.approx(theirs, **near)
    for tolerance in TOLERANCES:
        theirs = compute_surface_dice(*tensors, [tolerance], **options).item()
        assert nsd(*pair, spacing, tolerance=tolerance) == pytest.approx(theirs, abs=1e-6)


def test_the_two_definitions_of_hd95_are_two():
    """Where they agreed, comparing with both would prove nothing."""
    masks = masks_of(SHAPES[1])
    pair = masks["box"], masks["a corner's box"]
    pooled, larger = hausdorff_95(*pair), hausdorff_95(*pair, method="larger")
    assert pooled < larger - 0.1
    assert pooled == pytest.approx(medpy.hd95(*pair), abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_empty_masks(shape):
    """Ours by the table in metrics.py; the libraries give 0, infinity, NaN or an error there."""
    empty, full = np.zeros(shape, bool), box(shape, (0.2, 0.6))
    for metric in (dice, iou):
        assert [metric(empty, full), metric(full, empty)] == [0, 0]
        assert math.isnan(metric(empty, empty))
    assert recall(empty, full) == precision(full, empty) == 0
    assert math.isnan(precision(empty, full))
    assert math.isnan(recall(full, empty))
    assert nsd(empty, full, tolerance=1) == nsd(full, empty, tolerance=1) == 0
    assert math.isnan(nsd(empty, empty, tolerance=1))
    for pair in itertools.product((empty, full), (empty, full)):
        if not all(mask.any() for mask in pair):
            for value in (hausdorff_95(*pair), hausdorff_95(*pair, method="larger"), assd(*pair)):
                assert math.isnan(value)
            with pytest.raises(RuntimeError, match="binary object"):
                medpy.hd95(*pair)
    if len(shape) == 3:
        voxels = np.count_nonzero(full)
        assert volume_difference(empty, full, (1, 2, 5)) == pytest.approx(-voxels / 100)
        assert volume_difference(empty, empty, (1, 2, 5)) == 0
