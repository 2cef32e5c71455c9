import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import ScaleIntensityRange
from monai.utils import convert_to_numpy
from pydantic import ValidationError
from scipy.ndimage import zoom

from rwkvseg.data.case import Case
from rwkvseg.data.preprocessing import (
    Preprocessing,
    iterate_slices,
    normalise,
    preprocess,
    resize_image,
    resize_label,
    slice_axis,
)
from rwkvseg.errors import DataError

RNG = np.random.default_rng(0)


def volume(shape=(4, 5, 6), spacing=(1.0, 1.0, 5.0)):
    label = RNG.integers(0, 3, shape)
    return Case(
        "v", RNG.normal(size=(1, *shape)).astype(np.float32), label, spacing, np.diag([*spacing, 1.0])
    )


def scaled(image, how, channels=None):
    case = normalise(Case("a", image), Preprocessing(channels=channels or len(image), normalisation=how))
    assert (type(case.image), case.image.dtype) == (np.ndarray, np.float32)
    return case.image


def test_unit_follows_the_type():
    values = np.array([[[0, 51, 255]]])
    np.testing.assert_allclose(scaled(values.astype(np.uint8), "unit")[0, 0], [0, 0.2, 1])
    np.testing.assert_allclose(scaled((values * 257).astype(np.uint16), "unit")[0, 0], [0, 0.2, 1])
    np.testing.assert_allclose(scaled(np.float32([[[-5, 0, 15]]]), "unit")[0, 0], [0, 0.25, 1])
    np.testing.assert_allclose(scaled(np.int16([[[-32768, 32767]]]), "unit")[0, 0], [0, 1])
    np.testing.assert_allclose(scaled(np.float32([[[-3e38, 3e38]]]), "unit")[0, 0], [0, 1])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_unit_of_every_whole_number_is_monais_to_the_last_bit(kind):
    most = np.iinfo(kind).max
    values = np.arange(most + 1, dtype=kind)
    expected = ScaleIntensityRange(0.0, float(most), 0, 1, clip=True)(values.astype(np.float64))
    found = scaled(values.reshape(1, 16, -1), "unit").ravel()
    assert found.tobytes() == convert_to_numpy(expected).tobytes()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
def test_none_leaves_intensities(kind):
    values = np.array([[[0, 3, 200]]]).astype(kind)
    np.testing.assert_array_equal(scaled(values, "none"), values)


def test_zscore_is_per_channel_over_the_whole_case():
    image = RNG.normal(1e6, 3e5, (3, 5, 6, 7)).astype(np.float32) * np.float32([1, 2, 3])[:, None, None, None]
    result = scaled(image, "zscore")
    np.testing.assert_allclose(result.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std((1, 2, 3)), 1, rtol=1e-5)


def test_percentile_clips_the_tails():
    image = np.arange(1001, dtype=np.float32)[None, None]
    np.testing.assert_allclose(
        scaled(image, "percentile")[0, 0], np.clip((np.arange(1001) - 5) / 990, 0, 1), atol=1e-6
    )


@pytest.mark.parametrize("how", ["unit", "zscore", "percentile"])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e30])
def test_a_constant_image_becomes_zeros(how, value):
    np.testing.assert_array_equal(scaled(np.full((1, 5, 7), value, np.float32), how), 0)


def test_channels_are_repeated_or_refused():
    grey = RNG.integers(0, 255, (1, 3, 4), dtype=np.uint8)
    np.testing.assert_array_equal(scaled(grey, "unit", 3), np.repeat(scaled(grey, "unit"), 3, axis=0))
    with pytest.raises(
        DataError, match=r"case a has 3 channels, the network takes 1\. Set preprocessing\.channels"
    ):
        scaled(np.zeros((3, 3, 4), np.uint8), "unit", 1)


@pytest.mark.parametrize(
    ("spacing", "chosen", "axis"),
    [
        ((1, 1, 5), None, 2), ((5, 1, 1), None, 0), ((1, 5, 1), None, 1), ((1, 1, 1), None, 2),
        ((2, 2, 1), None, 1), ((1.0000001, 1, 1), None, 2), (None, None, 2), ((1, 1, 5), 0, 0),
    ],
)  # fmt: skip
def test_slices_run_along_the_largest_spacing(spacing, chosen, axis):
    case = Case("v", np.zeros((1, 2, 3, 4)), spacing=spacing)
    assert slice_axis(case, Preprocessing(slice_axis=chosen)) == axis


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 5, 1), 2), ((1, 5, 6), 0), ((1, 5, 1), 1), ((4, 5, 6), 1)], ids=str
)
def test_a_volume_of_one_slice_is_cut_along_it(shape, axis):
    assert slice_axis(volume(shape, (1.0, 1.5, 0.5)), Preprocessing()) == axis


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stacked_slices_are_the_volume(axis):
    case = volume()
    slices = list(iterate_slices(case, axis))
    np.testing.assert_array_equal(np.stack([item.image for item in slices], axis + 1), case.image)
    np.testing.assert_array_equal(np.stack([item.label for item in slices], axis), case.label)
    assert [item.id for item in slices[:2]] == ["v:0000", "v:0001"]
    assert slices[0].spacing == tuple(mm for i, mm in enumerate(case.spacing) if i != axis)
    assert np.shares_memory(slices[0].image, case.image)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["linear", "cubic"]),
)
def test_resize_keeps_channels_types_values_and_constants(old, new, interpolation):
    label = RNG.integers(0, 9, old)
    resized = resize_label(label, new)
    assert (type(resized), resized.shape, resized.dtype) == (np.ndarray, new, label.dtype)
    assert set(np.unique(resized)) <= set(np.unique(label))
    image = resize_image(np.full((2, *old), 0.7, np.float32), new, interpolation)
    assert (type(image), image.shape, image.dtype) == (np.ndarray, (2, *new), np.float32)
    np.testing.assert_allclose(image, 0.7, rtol=1e-5)


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_resizing_a_label_up_and_down_again_is_the_identity(factor):
    label = RNG.integers(0, 9, (5, 8))
    larger = resize_label(label, (5 * factor, 8 * factor))
    np.testing.assert_array_equal(larger, np.kron(label, np.ones((factor, factor), int)))
    np.testing.assert_array_equal(resize_label(larger, (5, 8)), label)


@pytest.mark.parametrize("finer", [1, 7, 10])
def test_image_and_label_stay_aligned_when_resized(finer):
    rows, columns = np.mgrid[: 60 * finer, : 90 * finer] / finer
    disc = ((rows - 20) ** 2 + (columns - 61) ** 2 < 15**2).astype(np.uint8)
    image = resize_image(disc[None].astype(np.float32), (37, 41))
    label = resize_label(disc, (37, 41))
    assert np.mean((image[0] > 0.5) != label) < 0.01


def test_shrinking_does_not_alias():
    stripes = np.tile(np.float32([0, 1]), 64)[None, None].repeat(8, axis=1)
    np.testing.assert_allclose(resize_image(stripes, (8, 16))[..., 2:-2], 0.5, atol=0.05)


def test_cubic_is_the_spline_of_the_published_protocol():
    image = RNG.random((2, 64, 54), dtype=np.float32)
    expected = np.stack([zoom(channel, (56 / 64, 60 / 54), order=3) for channel in image])
    np.testing.assert_allclose(resize_image(image, (56, 60), "cubic"), expected, atol=1e-6)
    image = RNG.random((1, 512, 512), dtype=np.float32)
    expected = zoom(image[0], 224 / 512, order=3)
    # SciPy's own default loses the last row and column of this size to rounding
    np.testing.assert_allclose(
        resize_image(image, (224, 224), "cubic")[0, :-1, :-1], expected[:-1, :-1], atol=1e-6
    )


def test_linear_interpolates_between_pixel_centres():
    ramp = np.tile(np.arange(9, dtype=np.float32), (5, 1))[None]
    expected = np.clip((np.arange(23) + 0.5) * 9 / 23 - 0.5, 0, 8)
    np.testing.assert_allclose(resize_image(ramp, (7, 23))[0], np.broadcast_to(expected, (7, 23)), atol=1e-5)


@pytest.mark.parametrize("how", ["unit", "zscore", "percentile", "none"])
def test_normalising_does_not_change_the_case(how):
    image = RNG.normal(size=(2, 5, 7)).astype(np.float32)
    before = image.copy()
    scaled(image, how)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("value", [1, 1000])
def test_percentiles_without_a_range_give_zeros(value):
    image = np.zeros((1, 30, 30), np.float32)
    image[0, 0, 0] = value
    np.testing.assert_array_equal(scaled(image, "percentile"), 0)


def test_preprocess_makes_one_item_a_picture_and_one_a_slice():
    picture = Case("p", np.full((1, 6, 5), 255, np.uint8), np.ones((6, 5), np.uint8))
    (item,) = preprocess(picture, Preprocessing(size=(8, 10)))
    assert (item.id, item.image.shape, item.label.shape, item.spacing) == ("p", (3, 8, 10), (8, 10), None)
    assert item.image.max() == 1
    items = preprocess(volume(), Preprocessing(channels=1, size=(8, 10), normalisation="zscore"))
    assert [item.id for item in items] == [f"v:{i:04d}" for i in range(6)]
    assert items[0].image.shape == (1, 8, 10)
    assert items[0].spacing == (0.5, 0.5)
    (kept,) = preprocess(picture, Preprocessing(size=None))
    assert kept.image.shape == (3, 6, 5)


def test_statistics_are_those_of_the_case_and_not_of_the_slice():
    image = np.zeros((1, 2, 2, 2), np.float32)
    image[..., 1] = 10
    first, second = preprocess(Case("v", image), Preprocessing(channels=1, size=None))
    assert (first.image.max(), second.image.min()) == (0, 1)


@pytest.mark.parametrize(
    "change",
    [{"typo": 1}, {"size": (0, 5)}, {"channels": 0}, {"slice_axis": 3}, {"normalisation": "max"}],
    ids=str,
)
def test_bad_settings_are_refused(change):
    with pytest.raises(ValidationError):
        Preprocessing(**change)


def test_reading_and_preprocessing_load_nothing_heavy():
    code = (
        "import sys, rwkvseg.data; heavy = {'torch', 'monai', 'lightning', 'matplotlib'}; "
        "print(heavy & set(sys.modules)); import rwkvseg.data.preprocessing; print(heavy & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["set()", "set()"]
