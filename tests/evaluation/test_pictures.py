"""Which slice is shown, how it is turned, and the colour of every pixel that matters."""

import math

import numpy as np
import pytest
from PIL import Image

from rwkvseg.errors import ShapeError
from rwkvseg.evaluation.drawing import CLASS_COLOURS, ERROR_COLOURS, draw_overlay
from rwkvseg.evaluation.pictures import Picture, make_picture, representative_cases
from rwkvseg.evaluation.protocols import ClassScore


def panels(picture):
    drawn = draw_overlay(picture)
    assert isinstance(drawn, Image.Image)
    assert drawn.mode == "RGB"
    pixels = np.asarray(drawn)
    width = (pixels.shape[1] - 3 * 6) // 4
    return [pixels[:, position * (width + 6) :][:, :width] for position in range(4)]


def plain(truth, prediction, **options):
    image = np.full(truth.shape, 100, dtype=np.uint8)
    return Picture("a", image, truth, prediction, 0.5, **options)


def scores_of(values):
    return [ClassScore(case, 1, "x", dsc, 0.0, "scored", 1, 1, 1, 1) for case, dsc in values.items()]


def test_small_pictures_are_enlarged_by_whole_pixels():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (37, 50), dtype=np.uint8)
    empty = np.zeros((37, 50), dtype=np.uint8)
    first, *_ = panels(Picture("a", image, empty, empty, 1.0))
    assert first.shape == (37 * 7, 50 * 7, 3)
    assert np.array_equal(first[3::7, 3::7, 0], image)
    assert np.array_equal(first[:, :, 0], np.kron(image, np.ones((7, 7), np.uint8)))


@pytest.mark.parametrize("shape", [(2000, 1500), (256, 256), (1, 1), (5, 300), (700, 3)], ids=str)
def test_every_size_can_be_drawn(shape):
    truth = np.ones(shape, dtype=np.uint8)
    picture = Picture("a", np.zeros((*shape, 3), np.uint8), truth, 2 * truth, 0.0)
    height, width = panels(picture)[0].shape[:2]
    assert max(height, width) <= 512
    if max(shape) < 2 * min(shape):
        assert min(height, width) >= 256
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.01)


def test_panels_have_physical_proportions():
    labels = np.zeros((10, 60), dtype=np.uint8)
    height, width = panels(plain(labels, labels, spacing=(6.0, 1.0)))[0].shape[:2]
    assert height == width


def test_contours_lie_just_inside_and_errors_have_their_colours():
    truth, prediction = (np.zeros((64, 64), dtype=np.uint8) for _ in range(2))
    truth[10:30, 10:30] = 1
    prediction[10:30, 14:34] = 1
    truth[40:60, 40:60] = 2
    prediction[40:60, 40:50] = 1
    prediction[40:60, 50:60] = 2
    image, true, predicted, errors = panels(plain(truth, prediction))
    assert (image == 100).all()
    assert tuple(true[4 * 10, 4 * 20]) == CLASS_COLOURS[0]
    assert tuple(true[4 * 40, 4 * 45]) == CLASS_COLOURS[1]
    assert tuple(true[4 * 20, 4 * 20]) == (100, 100, 100)
    assert (true[4 * 10 - 1, 4 * 20] < 100).all()
    assert tuple(predicted[4 * 10, 4 * 32]) == CLASS_COLOURS[0]
    assert tuple(errors[4 * 20, 4 * 32]) == ERROR_COLOURS["false positive"]
    assert tuple(errors[4 * 20, 4 * 12]) == ERROR_COLOURS["false negative"]
    assert tuple(errors[4 * 50, 4 * 45]) == ERROR_COLOURS["wrong class"]
    assert tuple(errors[4 * 20, 4 * 20]) == (60, 60, 60)
    assert tuple(errors[4 * 10, 4 * 20]) == (255, 255, 255)


def test_colours_of_classes_and_errors_differ():
    assert len(set(CLASS_COLOURS)) == len(CLASS_COLOURS)
    assert not set(CLASS_COLOURS[:4]) & set(ERROR_COLOURS.values())


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1, 1, 5), 2), ((5, 1, 1), 0), ((1, 5, 1), 1), ((2, 2, 2), 2), ((2, 2, 1), 1), (None, 2)],
    ids=str,
)
def test_volumes_are_cut_where_most_is_wrong(spacing, axis):
    truth = np.zeros((7, 8, 9), dtype=np.uint8)
    prediction = truth.copy()
    np.moveaxis(prediction, axis, 0)[4, 1:5, 1:4] = 1
    np.moveaxis(prediction, axis, 0)[2, 1, 1] = 1
    picture = make_picture("v", np.zeros((1, 7, 8, 9)), truth, prediction, 0.4, spacing=spacing)
    assert picture.caption == f"slice 4 of axis {axis}"
    assert picture.prediction.sum() == 12
    kept = [other for other in range(3) if other != axis]
    assert picture.spacing == tuple((spacing or (1, 1, 1))[other] for other in kept)


def test_a_perfect_volume_shows_its_largest_slice_and_an_empty_one_its_middle():
    truth = np.zeros((5, 5, 9), dtype=np.uint8)
    assert make_picture("v", truth[None], truth, truth, 1.0).caption == "slice 4 of axis 2"
    truth[1:3, 1, 7] = 1
    assert make_picture("v", truth[None], truth, truth, 1.0).caption == "slice 7 of axis 2"


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ARS", "PSR", "SLA", "IPL"])
def test_an_affine_hangs_slices_as_radiologists_do(codes):
    """A mark at the patient's right front top lands in the upper left corner, whatever the array's order."""
    directions = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        world, sign = directions[code]
        affine[world, axis] = sign * (1.0 + axis)
    label = np.zeros((6, 6, 6), dtype=np.uint8)
    corner = tuple(5 if code in "RAS" else 0 for code in codes)
    label[corner] = 1
    picture = make_picture(
        "v", label[None], label, np.zeros_like(label), 0.0, spacing=(1, 2, 3), affine=affine
    )
    assert picture.truth[0, 0] == 1
    assert picture.truth.sum() == 1
    steps = {directions[code][0]: 1.0 + axis for axis, code in enumerate(codes) if axis != 2}
    assert picture.spacing == (steps[max(steps)], steps[min(steps)])


def test_grey_scale_of_a_slice_is_that_of_its_volume():
    image = np.linspace(-1000, 1000, 10 * 10 * 4, dtype=np.float32).reshape(1, 4, 10, 10)
    image[0, 0, 0, 0] = np.nan
    label = np.zeros((4, 10, 10), dtype=np.uint8)
    label[0] = 1
    picture = make_picture("v", image, label, label * 0, 0.0, spacing=(9, 1, 1))
    assert picture.image.dtype == np.uint8
    assert picture.image[0, 0] == 0
    assert 55 < picture.image.max() < 70


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 9)), (3, (8, 9, 3)), (4, (8, 9))])
def test_channels_of_pictures(channels, shape):
    image = np.arange(channels * 72, dtype=np.uint8).reshape(channels, 8, 9)
    label = np.zeros((8, 9), dtype=np.uint8)
    picture = make_picture("p", image, label, label, 1.0)
    assert picture.image.shape == shape
    assert np.array_equal(picture.image if channels != 3 else picture.image[..., 0], image[0])


def test_constant_and_sixteen_bit_images_can_be_shown():
    label = np.zeros((8, 9), dtype=np.uint8)
    for image in (np.full((1, 8, 9), 7, np.uint16), np.full((1, 8, 9), np.nan)):
        assert make_picture("p", image, label, label, 1.0).image.dtype == np.uint8


def test_grids_that_differ_are_refused():
    label = np.zeros((8, 9), dtype=np.uint8)
    with pytest.raises(ShapeError, match="'p'"):
        make_picture("p", np.zeros((1, 9, 8)), label, label, 1.0)


@pytest.mark.parametrize("number", range(1, 14))
def test_representative_cases_are_ordered_and_distinct(number):
    values = {f"c{index}": index / 20 for index in range(number)}
    chosen = representative_cases(scores_of(values), 3)
    assert list(chosen) == ["best", "median", "worst"]
    everything = [case for group in chosen.values() for case in group]
    assert len(everything) == len(set(everything))
    assert chosen["best"][0] == f"c{number - 1}"
    if number >= 3:
        assert len({len(group) for group in chosen.values()}) == 1
        assert chosen["worst"][0] == "c0"
        assert {f"c{number // 2}", f"c{(number - 1) // 2}"} & set(chosen["median"])
    if number >= 9:
        assert chosen["worst"] == ["c0", "c1", "c2"]
        assert chosen["best"] == [f"c{number - 1}", f"c{number - 2}", f"c{number - 3}"]


def test_representative_cases_leave_out_what_was_not_scored():
    chosen = representative_cases(scores_of({"a": math.nan, "b": 0.5}))
    assert chosen == {"best": ["b"], "median": [], "worst": []}
