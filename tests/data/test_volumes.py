"""Volumes on the network's grid: where voxels lie, what they hold, what it takes, what is refused."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from rwkvseg.data.case import Case
from rwkvseg.data.preprocessing import Intensity, Preprocessing, normalise
from rwkvseg.data.volume_intensity import foreground_intensity
from rwkvseg.data.volume_resampling import resample_image, resample_label, through_plane_axis
from rwkvseg.data.volumes import plan_grid, to_network_grid
from rwkvseg.errors import DataError, GeometryError

PLAIN = Intensity(low=-1e6, high=1e6, mean=0, std=1)  # leaves intensities as they are


def preprocessing(**changes):
    return Preprocessing(**{"dimensions": 3, "channels": 1, "patch": (8, 8, 8)} | changes)


def unchanged(**changes):
    return preprocessing(normalisation="ct", intensity=PLAIN, **changes)


def turned_affine(spacing, angles, order, signs):
    """Oblique, with permuted and reversed axes."""
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    affine = np.eye(4)
    affine[:3, :3] = (rotation * signs)[:, order] * spacing
    affine[:3, 3] = (-31, 7.5, 120)
    return affine


def world(affine, shape):
    """Coordinates (3, *shape) in mm of every voxel."""
    return np.einsum("ab,bijk->aijk", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]


def case_of(image, affine=None, label=None, case_id="a"):
    spacing = None if affine is None else tuple(np.linalg.norm(affine[:3, :3], axis=0))
    return Case(case_id, image, label=label, spacing=spacing, affine=affine)


AFFINES = st.builds(
    turned_affine,
    st.tuples(*[st.sampled_from([0.7, 1.0, 1.6])] * 3),
    st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
)


@settings(max_examples=30)
@given(
    affine=AFFINES,
    shape=st.tuples(*[st.integers(5, 11)] * 3),
    spacing=st.one_of(st.none(), st.tuples(*[st.sampled_from([0.7, 1.0, 1.9])] * 3)),  # below 3 to 1
    orientation=st.sampled_from(["file", "RAS"]),
    axis=st.integers(0, 2),
)
def test_every_voxel_keeps_its_place_in_the_world(affine, shape, spacing, orientation, axis):
    """An image of one world coordinate shows, wherever it is resampled to, the coordinate its affine says."""
    places = world(affine, shape)
    label = np.arange(np.prod(shape)).reshape(shape)
    case = case_of(places[axis, None].astype(np.float32), affine, label)
    done, grid = to_network_grid(case, unchanged(spacing=spacing, orientation=orientation))
    if orientation == "RAS":
        assert aff2axcodes(done.affine) == ("R", "A", "S")
    else:
        assert (grid.axes, grid.flips) == ((0, 1, 2), (False,) * 3)
    np.testing.assert_allclose(done.spacing, np.linalg.norm(done.affine[:3, :3], axis=0), rtol=1e-9)
    expected = world(done.affine, grid.network_shape)
    own = np.einsum("ab,bijk->aijk", grid.to_own_index()[:3, :3], np.indices(grid.network_shape))
    own += grid.to_own_index()[:3, 3, None, None, None]
    inner = np.ones(grid.network_shape, bool)  # at the border linear interpolation repeats the last voxel
    for oriented, source in enumerate(grid.axes):
        reach = max(1.0, grid.cropped_shape[oriented] / grid.network_shape[oriented]) + 1e-6
        inner &= (own[source] >= reach - 1) & (own[source] <= shape[source] - reach)
    np.testing.assert_allclose(done.image[0][inner], expected[axis][inner], atol=3e-4)
    # labels: the own voxel within which the network's lies
    inside = [(o >= -0.5 - 1e-9) & (o <= n - 0.5 + 1e-9) for o, n in zip(own, shape, strict=True)]
    assert np.all(inside)
    found = np.stack(np.unravel_index(done.label, shape))
    assert np.abs(found - own).max() <= 0.5 + 1e-9


def test_without_changes_nothing_but_the_type_changes():
    image = np.random.default_rng(0).normal(size=(1, 7, 5, 3))
    case = case_of(image, np.diag([1.0, 2, 3, 1]), np.arange(105).reshape(7, 5, 3) % 4)
    done, grid = to_network_grid(case, unchanged())
    np.testing.assert_array_equal(done.image, image.astype(np.float32))
    np.testing.assert_array_equal(done.label, case.label)
    np.testing.assert_array_equal(done.affine, case.affine)
    assert done.spacing == case.spacing
    assert grid.network_shape == grid.cropped_shape == grid.shape == (7, 5, 3)
    assert not np.shares_memory(done.image, case.image)
    assert not np.shares_memory(done.label, case.label)


def test_what_is_written_to_the_cropped_view_lands_on_the_own_grid():
    affine = turned_affine((1.0, 1.0, 2.0), (0.3, 0.1, -0.2), (2, 0, 1), (-1, 1, -1))
    image = np.zeros((1, 6, 7, 8), np.float32)
    image[0, 1:4, 2:7, 3:5] = 1 + np.random.default_rng(1).random((3, 5, 2))
    done, grid = to_network_grid(case_of(image, affine), unchanged(orientation="RAS", crop="nonzero"))
    assert sorted(grid.cropped_shape) == [2, 3, 5]
    back = np.zeros((6, 7, 8), np.float32)
    grid.cropped(back)[...] = done.image[0]
    np.testing.assert_array_equal(back, image[0])
    assert done.image.min() > 0  # nothing of the border is left
    np.testing.assert_array_equal(grid.cropped(image), done.image)


def test_of_an_empty_image_nothing_is_cropped():
    grid = plan_grid(case_of(np.zeros((2, 4, 5, 6), np.float32)), preprocessing(channels=2, crop="nonzero"))
    assert grid.cropped_shape == (4, 5, 6)


def test_a_voxel_of_any_channel_stays():
    image = np.zeros((2, 4, 5, 6), np.float32)
    image[0, 1, 1, 1], image[1, 2, 4, 3] = -1, 1
    grid = plan_grid(case_of(image), preprocessing(channels=2, crop="nonzero"))
    assert grid.box == ((1, 3), (1, 5), (1, 4))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("number", [3, 4, 9])
def test_through_the_plane_the_nearest_slice(axis, number):
    """Each slice comes whole from one; within the slices it is the same as for a single one."""
    image = np.random.default_rng(2).random((1, 4, 6, 5)).astype(np.float32)
    slices = image.shape[axis + 1]
    shape = [9, 4, 7]
    shape[axis] = number
    resampled = np.moveaxis(resample_image(image, tuple(shape), axis), axis + 1, 0)
    shape[axis] = 1
    for index in range(number):
        nearest = int((index + 0.5) * slices / number)
        alone = np.take(image, [nearest], axis + 1)
        expected = np.moveaxis(resample_image(alone, tuple(shape), axis), axis + 1, 0)[0]
        np.testing.assert_allclose(resampled[index], expected, atol=1e-6)


def definition(n, m, how):
    """Weights (m, n), one number at a time: a kernel about every centre, normalised, its mass centred."""

    def kernel(x):
        x = abs(x)
        if how == "linear":
            return max(0, 1 - x)
        if x <= 1:
            return (1.5 * x - 2.5) * x * x + 1
        return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0

    step = max(1, n / m)
    weights = np.zeros((m, n))
    for row in range(m):
        centre = (row + 0.5) * n / m - 0.5
        places = np.arange(n) - centre
        weights[row] = [kernel(place / step) for place in places]
        weights[row] /= weights[row].sum()
        if n > m and how == "linear" and centre - step >= -1 and centre + step <= n:
            mean, spread = weights[row] @ places, weights[row] @ places**2
            weights[row] *= (spread - mean * places) / (spread - mean**2)
            assert abs(weights[row] @ places) < 1e-9
    return weights


@pytest.mark.parametrize("how", ["linear", "cubic"])
@settings(max_examples=50)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), size=st.tuples(*[st.integers(1, 9)] * 3))
def test_resampling_is_its_definition(how, shape, size):
    image = np.random.default_rng(3).random((2, *shape)).astype(np.float32)
    i, j, k = (definition(n, m, how) for n, m in zip(shape, size, strict=True))
    expected = np.einsum("xi,yj,zk,cijk->cxyz", i, j, k, image)
    np.testing.assert_allclose(resample_image(image, size, None, how), expected, atol=1e-5)


@pytest.mark.parametrize(("how", "torchs"), [("linear", "bilinear"), ("cubic", "bicubic")])
def test_within_slices_it_is_torchs_but_for_the_centre_of_mass(how, torchs):
    from torch import from_numpy
    from torch.nn.functional import interpolate

    image = np.random.default_rng(3).random((2, 4, 16, 15)).astype(np.float32)
    for size, tolerance in (((31, 40), 2e-5), ((8, 5), 2e-5), ((7, 11), 0.08)):
        expected = interpolate(from_numpy(image), size=size, mode=torchs, antialias=True).numpy()
        np.testing.assert_allclose(resample_image(image, (4, *size), None, how), expected, atol=tolerance)


def test_shrinking_averages_instead_of_aliasing():
    """A checkerboard of voxels becomes grey, but for the border, whatever voxels a coarser grid hits."""
    image = (np.indices((24, 24, 24)).sum(0) % 2).astype(np.float32)[None]
    for size in (6, 7, 8):
        small = resample_image(image, (size,) * 3, None)
        np.testing.assert_allclose(small[0, 1:-1, 1:-1, 1:-1], 0.5, atol=0.05)


def test_cubic_overshoots_where_linear_does_not():
    image = np.zeros((1, 8, 8, 8), np.float32)
    image[:, 4:] = 1
    linear, cubic = (resample_image(image, (16, 8, 8), None, how) for how in ("linear", "cubic"))
    assert linear.min() >= 0 - 1e-6
    assert cubic.min() < -0.02
    np.testing.assert_allclose(linear.mean(), cubic.mean(), atol=1e-3)


def test_slabs_change_nothing(monkeypatch):
    image = np.random.default_rng(4).random((2, 5, 6, 7)).astype(np.float32)
    whole = [resample_image(image, (7, 3, 9), axis) for axis in (None, 1)]
    monkeypatch.setattr("rwkvseg.data.volume_resampling.SLAB_VOXELS", 150)
    for axis, expected in zip((None, 1), whole, strict=True):
        np.testing.assert_array_equal(resample_image(image, (7, 3, 9), axis), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16])
def test_labels_take_the_nearest_voxel_whatever_they_are(dtype):
    label = np.random.default_rng(5).integers(0, 60_000, (3, 4, 5)).astype(dtype)
    resampled = resample_label(label, (7, 2, 5))
    assert resampled.dtype == dtype
    for i, j, k in product(range(7), range(2), range(5)):
        assert resampled[i, j, k] == label[int((i + 0.5) * 3 / 7), int((j + 0.5) * 4 / 2), k]


@pytest.mark.parametrize(
    ("spacing", "wanted", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((1, 1, 3.0), (1, 1, 3), None),
        ((1, 1, 3.1), (1, 1, 1), 2),
        ((5.0, 0.7, 0.8), (1, 1, 1), 0),
        ((1, 1, 1), (1, 6, 1), 1),
        ((1, 5, 5), (1, 2, 2), None),  # two coarse axes have no slices between them
    ],
)
def test_the_through_plane_axis(spacing, wanted, axis):
    assert through_plane_axis(spacing, wanted) == axis


@pytest.mark.parametrize("how", ["unit", "zscore", "percentile", "none"])
def test_intensities_are_those_of_slices(how):
    """`normalise` is the definition; here it happens in place."""
    random = np.random.default_rng(6)
    image = random.gamma(2.0, 300.0, (2, 9, 8, 7)).astype(np.float32)
    image[1] = image[1] * 1e4 - 3e6
    case = case_of(image)
    expected = normalise(case, Preprocessing(channels=2, normalisation=how)).image
    done, _ = to_network_grid(case, preprocessing(channels=2, normalisation=how))
    np.testing.assert_allclose(done.image, expected, atol=2e-5)


@pytest.mark.parametrize("how", ["unit", "zscore", "percentile"])
@pytest.mark.parametrize("value", [0.0, -7.25, 3e38])
def test_constant_volumes_become_zeros(how, value):
    done, _ = to_network_grid(
        case_of(np.full((1, 3, 4, 5), value, np.float32)), preprocessing(normalisation=how)
    )
    assert not done.image.any()


def test_the_widest_range_does_not_overflow():
    image = np.array([-3e38, 0, 3e38], np.float32).reshape(1, 3, 1, 1)
    done, _ = to_network_grid(case_of(image), preprocessing(normalisation="unit"))
    np.testing.assert_allclose(done.image.ravel(), [0, 0.5, 1], atol=1e-6)


def test_ct_clips_then_standardises():
    intensity = Intensity(low=-100, high=200, mean=50, std=25)
    image = np.array([-1000, -100, 50, 75, 3000], np.float32).reshape(1, 5, 1, 1)
    done, _ = to_network_grid(case_of(image), preprocessing(normalisation="ct", intensity=intensity))
    np.testing.assert_allclose(done.image.ravel(), [-6, -6, 0, 1, 6], rtol=1e-6)


def test_the_intensity_of_the_foreground():
    random = np.random.default_rng(7)
    cases = []
    for index in range(3):
        label = random.integers(0, 3, (10, 9, 8))
        cases.append(case_of(random.normal(index, 1 + index, (1, 10, 9, 8)), label=label))
    values = np.concatenate([case.image[0][case.label > 0] for case in cases])
    found = foreground_intensity(cases)
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(
        [found.low, found.high, found.mean, found.std], [low, high, values.mean(), values.std()]
    )


def test_large_foregrounds_are_sampled_evenly():
    ramp = np.arange(60_000, dtype=np.float32).reshape(1, 60, 50, 20)
    found = foreground_intensity([case_of(ramp, label=np.ones((60, 50, 20), np.uint8))])
    np.testing.assert_allclose([found.mean, found.std], [29_999.5, 60_000 / 12**0.5], rtol=1e-3)


@pytest.mark.parametrize("label", [np.zeros((2, 3, 4), int), np.ones((2, 3, 4), int)])
def test_without_a_range_there_is_no_intensity(label):
    with pytest.raises(DataError, match="hold no range of intensities"):
        foreground_intensity([case_of(np.full((1, 2, 3, 4), 5.0), label=label)])


def test_an_axis_may_keep_the_files_spacing():
    case = case_of(np.zeros((1, 8, 6, 3)), np.diag([0.7, 1.4, 9.0, 1]))
    done, _ = to_network_grid(case, preprocessing(spacing=(1.4, 0.7, None)))
    assert done.image.shape == (1, 4, 12, 3)
    np.testing.assert_allclose(done.spacing, (1.4, 0.7, 9.0))


def test_grey_is_repeated_to_the_channels():
    done, _ = to_network_grid(case_of(np.arange(24.0).reshape(1, 2, 3, 4)), preprocessing(channels=3))
    assert done.image.shape == (3, 2, 3, 4)
    np.testing.assert_array_equal(done.image[0], done.image[2])


@pytest.mark.parametrize("how", ["unit", "zscore", "percentile", "none"])
def test_two_more_copies_of_an_image_at_most(how, monkeypatch):
    affine = np.diag([1.0, 1, 1, 1])
    image = np.random.default_rng(8).random((1, 80, 96, 64)).astype(np.float32)
    case = case_of(image, affine)
    settings_ = preprocessing(normalisation=how, orientation="RAS", spacing=(0.95, 1.0, 0.99))
    monkeypatch.setattr("rwkvseg.data.volume_resampling.SLAB_VOXELS", 2**14)
    to_network_grid(case_of(image[:, :8, :8, :8], affine), settings_)  # imports
    tracemalloc.start()
    try:
        to_network_grid(case, settings_)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.3 * image.nbytes  # resampling makes both a twentieth larger


@pytest.mark.parametrize(
    ("case", "changes", "error", "message"),
    [
        (Case("p", np.zeros((1, 4, 4))), {}, DataError, r"case p is a picture of \(4, 4\)"),
        (case_of(np.zeros((2, 3, 3, 3))), {}, DataError, "has 2 channels, the network takes 1"),
        (case_of(np.zeros((1, 3, 3, 3))), {"orientation": "RAS"}, GeometryError, "has no affine"),
        (case_of(np.zeros((1, 3, 3, 3))), {"spacing": (1, 1, 1)}, GeometryError, "has no spacing"),
        (case_of(np.zeros((1, 3, 3, 3))), {"normalisation": "ct"}, DataError, "intensity is not known"),
    ],
)
def test_what_cannot_be_brought_there(case, changes, error, message):
    with pytest.raises(error, match=message):
        to_network_grid(case, preprocessing(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 3}, "dimensions is 3 without patch"),
        ({"dimensions": 3, "patch": (8, 8)}, "patch"),
        ({"dimensions": 3, "patch": (8, 8, 0)}, "all three lengths must be positive"),
        ({"dimensions": 3, "patch": (8, 8, 8), "spacing": (1, 1, 0.0)}, "all three lengths"),
        ({"dimensions": 3, "patch": (8, 8, 8), "size": (8, 8)}, "size and slice_axis are of slices"),
        ({"dimensions": 3, "patch": (8, 8, 8), "slice_axis": 1}, "size and slice_axis are of slices"),
        ({"dimensions": 3, "patch": (8, 8, 8), "normalisation": "ct"}, "set channels to 1"),
        ({"dimensions": 3, "patch": (8, 8, 8), "intensity": PLAIN}, "intensity is of normalisation ct"),
        ({"patch": (8, 8, 8)}, "patch: of volumes only"),
        ({"crop": "nonzero", "orientation": "RAS"}, "orientation, crop: of volumes only"),
        ({"normalisation": "ct", "channels": 1}, "normalisation ct: of volumes only"),
        ({"dimensions": 4}, "dimensions"),
    ],
)
def test_preprocessings_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**changes)


@pytest.mark.parametrize("bad", [{"low": 2, "high": 1}, {"std": 0}, {"mean": float("nan")}])
def test_intensities_that_mean_nothing(bad):
    with pytest.raises(ValueError, match="Intensity"):
        Intensity(**{"low": 0, "high": 1, "mean": 0, "std": 1} | bad)


def test_it_is_written_and_read_unchanged():
    written = preprocessing(normalisation="ct", intensity=PLAIN, spacing=(1, 1, 2.5), crop="nonzero")
    assert Preprocessing.model_validate_json(written.model_dump_json()) == written
    assert written.size is None
    assert Preprocessing.model_validate({"size": [32, 32]}).dimensions == 2  # files from before volumes
