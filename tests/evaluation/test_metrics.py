"""Dice and HD95 against their definitions written out, against medpy, and by their properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medpy.metric.binary import hd95 as medpy_hd95

from rwkvseg.errors import GeometryError, ShapeError, UsageError
from rwkvseg.evaluation.metrics import dice, hausdorff_95

SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9)
SPACINGS = st.lists(st.floats(0.2, 8.0), min_size=3, max_size=3)


@st.composite
def mask_pairs(draw):
    shape = draw(SHAPES)
    return draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape))


def surface_points(mask):
    """Voxels of the mask with a face neighbour outside, one voxel at a time."""
    points = []
    for point in zip(*np.nonzero(mask), strict=True):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            beside = list(point)
            beside[axis] += step
            inside = all(0 <= index < size for index, size in zip(beside, mask.shape, strict=True))
            if not inside or not mask[tuple(beside)]:
                points.append(point)
                break
    return points


def naive_hausdorff_95(prediction, truth, spacing):
    a, b = (np.array(surface_points(mask)) * np.array(spacing) for mask in (prediction, truth))
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return np.percentile(np.concatenate([distances.min(axis=1), distances.min(axis=0)]), 95)


@settings(max_examples=120, deadline=None)
@given(mask_pairs(), SPACINGS)
def test_both_metrics_follow_their_definitions(masks, spacing):
    prediction, truth = masks
    spacing = spacing[: truth.ndim]
    held, expected = [{tuple(p) for p in np.argwhere(m)} for m in masks], math.nan
    if held[0] or held[1]:
        expected = 2 * len(held[0] & held[1]) / (len(held[0]) + len(held[1]))
    assert dice(prediction, truth) == pytest.approx(expected, nan_ok=True)
    distance = hausdorff_95(prediction, truth, spacing)
    if held[0] and held[1]:
        assert distance == pytest.approx(naive_hausdorff_95(prediction, truth, spacing), abs=1e-4)
    else:
        assert math.isnan(distance)


@pytest.mark.parametrize("shape", [(37, 53), (1, 41), (19, 23, 11), (31, 1, 17), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("density", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_hausdorff_equals_medpy_on_noise(shape, density, anisotropic):
    generator = np.random.default_rng([*shape, int(100 * density)])
    prediction, truth = (generator.random(shape) < density for _ in range(2))
    prediction.flat[0] = truth.flat[-1] = True
    spacing = (0.7, 2.3, 5.0)[: len(shape)] if anisotropic else None
    assert hausdorff_95(prediction, truth, spacing) == pytest.approx(
        medpy_hd95(prediction, truth, spacing), abs=1e-4
    )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("spacing", [None, (0.5, 1.5, 4.0), (4.0, 0.3, 1.0)], ids=str)
def test_hausdorff_equals_medpy_on_solids(spacing, order):
    """Balls that overlap, lie apart, touch the borders, fill the array, or are one voxel."""
    grid = np.indices((33, 29, 21))
    balls = [
        ((16, 14, 10), 8),
        ((18, 13, 9), 7),
        ((0, 0, 0), 6),
        ((32, 28, 20), 9),
        ((3, 25, 2), 0),
        ((16, 14, 10), 99),
    ]
    masks = [sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= r * r for centre, r in balls]
    for first, second in itertools.combinations(masks, 2):
        first, second = np.array(first, order=order), np.array(second, order=order)
        assert hausdorff_95(first, second, spacing) == pytest.approx(
            medpy_hd95(first, second, spacing), abs=1e-4
        )


def test_hausdorff_of_a_large_volume_runs_in_parallel_to_the_same_value():
    grid = np.indices((128, 120, 90))
    first = sum((grid[i] - c) ** 2 for i, c in enumerate((60, 60, 45))) < 58**2
    second = sum((grid[i] - c) ** 2 for i, c in enumerate((64, 58, 44))) < 55**2
    first[0, 0, 0] = second[-1, -1, -1] = True  # the joint box is the whole volume, beyond the parallel limit
    spacing = (0.8, 0.9, 2.0)
    assert hausdorff_95(first, second, spacing) == pytest.approx(medpy_hd95(first, second, spacing), abs=1e-4)


@settings(max_examples=80, deadline=None)
@given(mask_pairs(), SPACINGS, st.floats(0.1, 20.0))
def test_symmetry_identity_and_scale(masks, spacing, factor):
    first, second = masks
    spacing = spacing[: first.ndim]
    assert dice(first, second) == pytest.approx(dice(second, first), nan_ok=True)
    distance = hausdorff_95(first, second, spacing)
    assert hausdorff_95(second, first, spacing) == pytest.approx(distance, nan_ok=True)
    larger = hausdorff_95(first, second, [factor * step for step in spacing])
    assert larger == pytest.approx(factor * distance, rel=1e-5, abs=1e-6, nan_ok=True)
    if first.any():
        assert dice(first, first) == 1
        assert hausdorff_95(first, first, spacing) == 0


@settings(max_examples=40, deadline=None)
@given(mask_pairs(), st.integers(0, 5))
def test_empty_space_around_the_masks_changes_nothing(masks, margin):
    wider = [np.pad(mask, margin) for mask in masks]
    assert dice(*wider) == pytest.approx(dice(*masks), nan_ok=True)
    assert hausdorff_95(*wider) == pytest.approx(hausdorff_95(*masks), abs=1e-5, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(mask_pairs(), SPACINGS)
def test_axes_and_their_spacing_move_together(masks, spacing):
    spacing = spacing[: masks[0].ndim]
    turned = hausdorff_95(*[mask.T for mask in masks], spacing[::-1])
    assert turned == pytest.approx(hausdorff_95(*masks, spacing), abs=1e-4, nan_ok=True)


def test_the_table_of_empty_masks():
    empty, full = np.zeros((4, 5), dtype=bool), np.ones((4, 5), dtype=bool)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(hausdorff_95(empty, empty))
    for pair in ((empty, full), (full, empty)):
        assert dice(*pair) == 0
        assert math.isnan(hausdorff_95(*pair))
    assert math.isnan(dice(np.zeros((0, 3), bool), np.zeros((0, 3), bool)))


def test_inputs_are_left_alone():
    generator = np.random.default_rng(0)
    prediction, truth = (generator.random((9, 8, 7)) < 0.5 for _ in range(2))
    before = prediction.copy(), truth.copy()
    hausdorff_95(prediction, truth, (1, 2, 3))
    assert np.array_equal(prediction, before[0])
    assert np.array_equal(truth, before[1])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"\(3, 4\) and truth \(4, 3\)"):
        dice(np.ones((3, 4), bool), np.ones((4, 3), bool))
    with pytest.raises(ShapeError, match="neither 2 nor 3"):
        hausdorff_95(np.ones(4, bool), np.ones(4, bool))


@pytest.mark.parametrize(
    "spacing", [(1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, math.nan), (1.0, math.inf)], ids=str
)
def test_a_spacing_that_cannot_be_is_refused(spacing):
    mask = np.ones((3, 4), bool)
    with pytest.raises(GeometryError, match="does not describe 2 axes"):
        hausdorff_95(mask, mask, spacing)


def test_a_label_map_is_not_taken_for_a_mask():
    with pytest.raises(UsageError, match="not boolean"):
        dice(np.full((3, 4), 2), np.ones((3, 4), bool))
