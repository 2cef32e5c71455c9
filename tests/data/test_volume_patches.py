"""Patches of volumes: where they lie, what they show when turned, and that one generator draws them."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from augment_one import augment_one
from rwkvseg.data.transforms import Augmentation, sample_generator
from rwkvseg.data.volume_patches import (
    cut_patch,
    draw_corner,
    draw_geometry,
    foreground_places,
    sample_patch,
)

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


def volume(shape=(9, 8, 7), seed=0):
    random = np.random.default_rng(seed)
    image = random.normal(size=(2, *shape)).astype(np.float32)
    return torch.from_numpy(image), torch.from_numpy(random.integers(0, 4, shape).astype(np.uint8))


def middle(corner, patch):
    return np.add(corner, (np.array(patch) - 1) / 2)


@given(shape=SHAPES, patch=SHAPES, corner=st.tuples(*[st.integers(-9, 9)] * 3))
def test_a_cut_is_the_padded_volume_there(shape, patch, corner):
    values = np.random.default_rng(0).integers(1, 9, (2, *shape))
    padded = np.pad(values, [(0, 0), *[(9, 18)] * 3])
    i, j, k = (slice(9 + start, 9 + start + side) for start, side in zip(corner, patch, strict=True))
    np.testing.assert_array_equal(cut_patch(values, corner, patch), padded[:, i, j, k])


@given(shape=SHAPES, patch=SHAPES, corner=st.tuples(*[st.integers(-4, 4)] * 3))
def test_unturned_a_sample_is_the_cut(shape, patch, corner):
    image, label = volume(shape)
    sampled, nearest = sample_patch(image, label, middle(corner, patch), np.eye(3), patch)
    np.testing.assert_allclose(sampled, cut_patch(image.numpy(), corner, patch), atol=1e-4)
    np.testing.assert_array_equal(nearest, cut_patch(label.numpy(), corner, patch))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_numpys(axis):
    first, second = (other for other in range(3) if other != axis)
    image, label = volume((7, 7, 7))
    quarter = np.eye(3)
    quarter[[first, second]] = quarter[[second, first]]
    quarter[first, second] *= -1
    sampled, nearest = sample_patch(image, label, np.full(3, 3.0), quarter, (7, 7, 7))
    expected = np.rot90(image.numpy(), -1, (first + 1, second + 1))
    np.testing.assert_allclose(sampled, expected, atol=1e-5)
    np.testing.assert_array_equal(nearest, np.rot90(label.numpy(), -1, (first, second)))


@given(seed=st.integers(0, 50))
def test_every_voxel_shows_the_place_the_matrix_says(seed):
    """Coordinates as channels, which linear interpolation keeps; labels against the definition."""
    random = np.random.default_rng(seed)
    shape, patch = (9, 7, 8), (5, 6, 3)
    matrix = np.eye(3) + random.uniform(-0.4, 0.4, (3, 3))
    centre = random.uniform(2, 5, 3)
    coordinates = np.indices(shape).astype(np.float32)
    label = torch.from_numpy(random.integers(1, 250, shape).astype(np.uint8))
    sampled, nearest = sample_patch(torch.from_numpy(coordinates), label, centre, matrix, patch)
    for index in product(*map(range, patch)):
        place = centre + matrix @ (np.array(index) - (np.array(patch) - 1) / 2)
        if np.all(place >= 0) and np.all(place <= np.array(shape) - 1):
            np.testing.assert_allclose(sampled[(slice(None), *index)], place, atol=1e-4)
        if np.abs(place - np.floor(place) - 0.5).min() < 1e-3:
            continue  # between two voxels
        own = np.floor(place + 0.5).astype(int)
        inside = np.all(own >= 0) and np.all(own < shape)
        assert nearest[index] == (label[tuple(own)] if inside else 0)


def corners(number, shape, patch, places, fraction):
    generator = np.random.RandomState(0)
    return np.array(
        [
            draw_corner(shape, patch, generator, places=places, foreground_fraction=fraction)
            for _ in range(number)
        ]
    )


def test_corners_fill_the_volume_evenly():
    found = corners(4000, (7, 4, 9), (5, 4, 8), {}, 1.0)
    assert set(found[:, 1]) == {0}
    for axis, last in ((0, 2), (2, 1)):
        counts = np.bincount(found[:, axis], minlength=last + 1)
        np.testing.assert_allclose(counts / 4000, 1 / (last + 1), atol=0.04)


def test_a_smaller_volume_lies_in_the_middle():
    (corner,) = corners(1, (5, 4, 1), (8, 4, 4), {}, 0.0)
    assert corner.tolist() == [-1, 0, -1]


def test_the_foreground_fraction_is_centred_on_every_class_alike():
    label = np.zeros((30, 30, 30), np.uint8)
    label[2, 15, 15] = 1  # one voxel
    label[20:25, 20:25, 20:25] = 3
    places = foreground_places(label, 4)
    assert {value: len(found) for value, found in places.items()} == {1: 1, 3: 125}
    found = corners(2000, label.shape, (5, 5, 5), places, 0.4)
    on_one = np.all(found == (0, 13, 13), axis=1)  # as far as the border lets it
    centre = found + 2
    on_three = np.all((centre >= 20) & (centre < 25), axis=1)
    assert on_one.mean() == pytest.approx(0.2, abs=0.03)
    assert on_three.mean() == pytest.approx(0.2, abs=0.03)


def test_of_many_voxels_some_are_kept_from_all_over():
    label = np.ones((40, 30, 20), np.uint8)
    found = foreground_places(label, 2)[1]
    assert len(found) == 4096
    assert (found[0], found[-1]) == (0, label.size - 1)
    assert np.diff(found).max() <= 6


GEOMETRY = Augmentation(rotation=40, scale=0.3, shift=0.2)


@given(number=st.integers(0, 100))
def test_rotations_are_rigid_in_mm(number):
    spacing = np.array([0.7, 1.3, 4.0])
    settings = GEOMETRY.model_copy(update={"scale": 0.0})
    matrix, shift = draw_geometry(settings, (10, 20, 30), spacing, sample_generator(0, number, "a"))
    rigid = matrix * spacing[:, None] / spacing
    np.testing.assert_allclose(rigid @ rigid.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rigid) == pytest.approx(1)
    # trace = 1 + 2 cos of the whole angle, which is below the sum of three of 40 degrees
    assert np.arccos(np.clip((np.trace(rigid) - 1) / 2, -1, 1)) <= np.deg2rad(120)
    assert np.all(np.abs(shift) <= 0.2 * np.array([10, 20, 30]))


@given(number=st.integers(0, 100))
def test_scales_are_within_their_range(number):
    settings = Augmentation(scale=0.3)
    matrix, shift = draw_geometry(settings, (4, 4, 4), None, sample_generator(0, number, "a"))
    scales = np.diag(matrix)
    np.testing.assert_array_equal(matrix, np.diag(scales))
    assert np.all((scales >= np.exp(-0.3)) & (scales <= np.exp(0.3)))
    assert not shift.any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_stay_slices(axis):
    settings = GEOMETRY.model_copy(update={"through_plane": axis})
    matrix, shift = draw_geometry(settings, (8, 8, 8), (1.5, 2.0, 1.0), sample_generator(0, 0, "a"))
    expected = np.eye(3)[axis]
    np.testing.assert_allclose(matrix[axis], expected)
    np.testing.assert_allclose(matrix[:, axis], expected)
    assert shift[axis] == 0
    assert np.count_nonzero(np.abs(matrix) > 1e-3) == 5
    assert np.count_nonzero(shift) == 2


def test_geometry_is_as_frequent_as_it_says_and_absent_without_ranges():
    settings = GEOMETRY.model_copy(update={"geometry_probability": 0.25})
    drawn = [draw_geometry(settings, (8, 8, 8), None, sample_generator(0, n, "a")) for n in range(400)]
    assert sum(one is not None for one in drawn) / 400 == pytest.approx(0.25, abs=0.07)
    assert draw_geometry(Augmentation(), (8, 8, 8), None, sample_generator(0, 0, "a")) is None


def test_flips_of_all_axes_move_image_and_label_together():
    settings = Augmentation(flip_rows=1, flip_columns=1, flip_slices=1)
    image, label = volume()
    flipped, flipped_label = augment_one(settings, image, label, sample_generator(0, 0, "a"))
    assert torch.equal(flipped, image.flip(1, 2, 3))
    assert torch.equal(flipped_label, label.flip(0, 1, 2))
    only = Augmentation(flip_slices=1)
    assert torch.equal(augment_one(only, image, label, sample_generator(0, 0, "a"))[0], image.flip(3))


INTENSITIES = {
    "contrast": {"contrast": 0.3},
    "brightness": {"brightness": 0.2},
    "gamma": {"gamma": 0.4, "gamma_probability": 1},
    "blur": {"blur": 1.5, "blur_probability": 1},
    "noise": {"noise": 0.2, "noise_probability": 1},
}


@pytest.mark.parametrize("kind", INTENSITIES)
def test_intensities_change_and_labels_do_not(kind):
    settings = Augmentation(**INTENSITIES[kind])
    image, label = volume()
    before = image.clone()
    changed, same = augment_one(settings, image, label, sample_generator(0, 1, "a"))
    assert changed.shape == image.shape
    assert changed.dtype == torch.float32
    assert not torch.allclose(changed, image)
    assert torch.equal(same, label)
    assert torch.equal(image, before)
    again, _ = augment_one(settings, image, label, sample_generator(0, 1, "a"))
    assert torch.equal(again, changed)


def test_gamma_keeps_order_mean_and_deviation():
    settings = Augmentation(gamma=0.7, gamma_probability=1)
    image, label = volume()
    changed, _ = augment_one(settings, image, label, sample_generator(0, 2, "a"))
    torch.testing.assert_close(changed.mean(), image.mean())
    torch.testing.assert_close(changed.std(), image.std())
    assert torch.equal(changed.flatten().argsort(), image.flatten().argsort())
