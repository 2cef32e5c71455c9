"""What is faster for most pictures gives, to the last bit, what the general form gives."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import find_objects

from rwkvseg.evaluation import surfaces
from rwkvseg.evaluation.masks import bounding_box
from rwkvseg.evaluation.protocols import _FEW_VALUES, _objects
from rwkvseg.evaluation.surfaces import _has_few_points, surface_distances

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def both_ways(prediction, truth, monkeypatch):
    """Distances by the search of every point, and by the transform of the box."""
    found = []
    for few in (True, False):
        monkeypatch.setattr(surfaces, "_has_few_points", lambda *_, few=few: few)
        found.append(surface_distances(prediction, truth))
    return found


def assert_equal(first, second):
    assert np.array_equal(first.to_truth, second.to_truth)
    assert np.array_equal(first.to_prediction, second.to_prediction)


@given(st.data())
def test_search_and_transform_agree_on_noise(data):
    prediction = data.draw(MASKS)
    truth = data.draw(hnp.arrays(bool, prediction.shape))
    prediction[0, 0] = truth[-1, -1] = True
    with pytest.MonkeyPatch.context() as patch:
        assert_equal(*both_ways(prediction, truth, patch))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(211, 173), (1, 4000), (300, 301)])
def test_search_and_transform_agree_on_solids(shape, order, monkeypatch):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    height, width = shape
    ellipse = ((rows - 0.45 * height) / height) ** 2 + ((columns - 0.4 * width) / width) ** 2 < 0.1
    other = ((rows - 0.6 * height) / height) ** 2 + ((columns - 0.5 * width) / width) ** 2 < 0.07
    ellipse[0, width // 3] = other[0, -1] = other[-1, 0] = True
    assert_equal(*both_ways(np.asarray(ellipse, order=order), other, monkeypatch))


def test_search_is_for_few_points_and_small_boxes():
    corners = np.zeros((60, 60), bool)
    corners[0, 0] = corners[-1, -1] = True
    assert _has_few_points(corners, corners)
    assert not _has_few_points(~corners, corners)
    wide = np.zeros((2, 5000), bool)  # squares of its distances are beyond float32's whole numbers
    wide[0, 0] = True
    assert not _has_few_points(wide, wide)


def test_only_pictures_without_spacing_are_searched(monkeypatch):
    monkeypatch.setattr(surfaces, "_has_few_points", lambda *_: pytest.fail("searched"))
    mask = np.eye(5, dtype=bool)
    surface_distances(mask, mask, (1.0, 0.5))
    surface_distances(mask[None], mask[None])


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.integers(0, 6)))
@example(np.zeros((3, 4), np.uint8))
@example(np.full((3, 4), _FEW_VALUES, np.uint8))
def test_boxes_of_values_are_scipys(array):
    assert _objects(array) == find_objects(array)


def test_the_box_of_a_mask():
    mask = np.zeros((5, 6, 7), bool)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[3, 5, 0] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 6), slice(0, 4))
