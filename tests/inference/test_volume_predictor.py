"""Whole volumes: the label map lies where the object lies, slabs change nothing, memory is bounded."""

import math
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from torch import nn
from torch.nn.functional import interpolate
from volume_cases import Linear, case_of, convolution, make_predictor, oblique_affine, world

from rwkvseg.data.case import Case
from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.data.volumes import to_network_grid
from rwkvseg.errors import DataError, UsageError
from rwkvseg.inference.predictor import Predictor
from rwkvseg.inference.volume_plan import VolumeOptions

SIGNS = list(product([1, -1], repeat=3))
LENGTHS = st.tuples(*[st.floats(0.8, 2.2)] * 3)


def ramp(shape, affine, seed):
    """Intensities linear in world coordinates, and the half of space where they exceed the middle."""
    direction = np.random.default_rng(seed).normal(size=3)
    values = world(shape, affine) @ direction
    return values, values - (values.max() + values.min()) / 2


@settings(max_examples=20, derandomize=True)
@given(
    st.sampled_from(list(permutations(range(3)))),
    st.sampled_from(SIGNS),
    st.tuples(*[st.integers(13, 20)] * 3),
    LENGTHS,
    st.none() | LENGTHS,
    st.sampled_from(["file", "RAS"]),
    st.tuples(*[st.integers(5, 12)] * 3),
    st.integers(0, 999),
)
def test_half_spaces_lie_where_they_are_in_the_world(
    axes, signs, shape, spacing, wanted, orientation, patch, seed
):
    """A ramp stays a ramp under linear resampling, so every voxel off the plane and the border is right."""
    affine = oblique_affine(axes, signs, spacing)
    values, beyond = ramp(shape, affine, seed)
    predictor = make_predictor(Linear(), patch=patch, spacing=wanted, orientation=orientation)
    prediction = predictor.predict(case_of(values, affine))
    assert prediction.dtype == np.uint8
    border = 0 if wanted is None else 5  # there a ramp's resampling levels off
    inner = tuple(slice(border, n - border) for n in shape)
    clear = np.abs(beyond[inner]) > 1e-3 * np.abs(beyond).max()
    np.testing.assert_array_equal(prediction[inner][clear], (beyond[inner] > 0)[clear])


def test_every_orientation_gives_the_same_world():
    """One object in 48 orientations, resampled: the labels are the same set of points."""
    rng = np.random.default_rng(0)
    smooth = interpolate(torch.rand(1, 1, 4, 5, 3, generator=torch.Generator().manual_seed(3)),
                         size=(12, 15, 9), mode="trilinear")[0, 0].numpy()  # fmt: skip
    reference = case_of(smooth + 0.01 * rng.random(smooth.shape), oblique_affine(spacing=(0.9, 1.1, 2.0)))
    predictor = make_predictor(
        convolution(), num_classes=3, patch=(7, 8, 6), spacing=(1.3, 1.2, 1.4), orientation="RAS"
    )
    expected = predictor.predict(reference)
    assert len(np.unique(expected)) > 1
    for axes, signs in product(permutations(range(3)), SIGNS):
        turn = np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)])
        image = nibabel.Nifti1Image(reference.image[0], reference.affine).as_reoriented(turn)
        prediction = predictor.predict(case_of(np.asarray(image.dataobj), image.affine))
        np.testing.assert_array_equal(prediction, apply_orientation(expected, turn))


def plainly(predictor, case):
    """Definition: reorient, resample, MONAI's windows, trilinear, arg-max, all of it at once, and back."""
    from monai.inferers import sliding_window_inference

    settings = predictor.description.preprocessing
    network_case, grid = to_network_grid(case, settings)
    with torch.no_grad():
        logits = sliding_window_inference(
            torch.from_numpy(network_case.image)[None], settings.patch, 2, predictor.network,
            overlap=predictor.options.overlap, mode="gaussian",
        )  # fmt: skip
    shape = grid.cropped_shape
    probabilities = interpolate(logits.softmax(1), size=shape, mode="trilinear", align_corners=False)[0]
    oriented = np.zeros([case.spatial_shape[axis] for axis in grid.axes], np.uint8)
    oriented[tuple(slice(*side) for side in grid.box)] = probabilities.argmax(0).numpy()
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(case.affine))
    return apply_orientation(oriented, back), probabilities


@pytest.mark.parametrize("shape", [(13, 22, 9), (24, 11, 14), (10, 9, 25)], ids=str)
@pytest.mark.parametrize("wanted", [None, (1.5, 0.9, 1.2)])
@pytest.mark.parametrize("overlap", [0.5, 0.25])
def test_slabs_equal_the_whole_volume(shape, wanted, overlap):
    affine = oblique_affine((2, 0, 1), (-1, 1, -1), (1.0, 1.4, 2.0))
    values = np.random.default_rng(1).normal(size=shape)
    values[:2] = values[:, -1:] = 0  # for the crop
    network = convolution()
    with torch.no_grad():
        network[2].weight.mul_(5)
    predictor = make_predictor(
        network, num_classes=3, patch=(8, 6, 7), spacing=wanted, orientation="RAS", crop="nonzero",
        normalisation="zscore", options=VolumeOptions(overlap=overlap, batch_size=3),
    )  # fmt: skip
    found = predictor.predict(case_of(values, affine))
    expected, probabilities = plainly(predictor, case_of(values, affine))
    best = probabilities.topk(2, dim=0).values
    ties = int((best[0] - best[1] < 1e-5).sum())
    assert set(np.unique(expected)) == {0, 1, 2}
    assert (found != expected).sum() <= ties
    assert not found[:2].any()
    assert not found[:, -1].any()


@pytest.mark.parametrize("limit", ["3,5,4", "30,30,30"])
def test_far_apart_slices_are_taken_whole(limit):
    """Of slices 10 mm apart the label comes from one, both ways; in plane the object keeps its place."""
    affine = oblique_affine((0, 1, 2), (-1, -1, 1), (1.5, 1.5, 10.0))
    values = np.zeros((24, 20, 5))
    values[6:14, 4:12, 2] = 1
    values[10:20, 8:16, 3] = 1
    patch = tuple(int(side) for side in limit.split(","))
    predictor = make_predictor(Linear(), patch=patch, spacing=(1.0, 1.0, 5.0))
    prediction = predictor.predict(case_of(values, affine))
    assert not prediction[..., [0, 1, 4]].any()
    for index in (2, 3):
        np.testing.assert_array_equal(prediction[..., index], values[..., index])


def test_labels_come_from_the_slice_that_the_image_went_to():
    """Five slices on a grid of four: each takes the label of one, never a mean of two."""
    affine = oblique_affine((0, 1, 2), (-1, 1, 1), (1.0, 1.0, 10.0))
    values = np.tile([0, 0.6, 1, 0.6, 0], (6, 6, 1))
    predictor = make_predictor(Linear(), patch=(4, 4, 2), spacing=(1.0, 1.0, 12.5))
    prediction = predictor.predict(case_of(values, affine))
    # slice x takes (2x + 1) * 4 // 10 of the grid's 0, 1, 2, 3, which come from 0, 1, 3, 4
    np.testing.assert_array_equal(prediction, np.tile([0, 1, 1, 1, 0], (6, 6, 1)))


def test_the_crop_is_background_outside():
    values = np.zeros((14, 12, 10))
    values[3:9, 4:8, 2:9] = np.random.default_rng(0).random((6, 4, 7)) + 1
    always = nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        always.weight.zero_()
        always.bias.copy_(torch.tensor([0.0, 1.0]))
    predictor = make_predictor(always, num_classes=2, patch=(4, 4, 4), crop="nonzero")
    np.testing.assert_array_equal(predictor.predict(case_of(values, np.eye(4))), values > 0)


def test_mirroring_averages():
    """A network that sees only the first half of its window learns of the second by mirroring."""

    class FirstHalf(nn.Module):
        def forward(self, x):
            logits = torch.zeros_like(x)
            half = x.shape[4] // 2
            logits[..., :half] = x[..., :half] - 0.5
            return logits

    values = np.indices((6, 6, 8)).sum(0) % 2
    plain = make_predictor(FirstHalf(), patch=(6, 6, 8))
    mirrored = make_predictor(FirstHalf(), patch=(6, 6, 8), options=VolumeOptions(mirror=(0, 2)))
    case = case_of(values, np.eye(4))
    assert not plain.predict(case)[..., 4:].any()
    np.testing.assert_array_equal(mirrored.predict(case), values)


def test_volumes_smaller_than_the_patch_and_progress():
    values = np.random.default_rng(0).random((3, 1, 2))
    predictor, seen = make_predictor(Linear(), patch=(16, 16, 16)), []
    prediction = predictor.predict(case_of(values, np.eye(4)), on_windows=lambda *n: seen.append(n))
    middle = (values.max() + values.min()) / 2
    np.testing.assert_array_equal(prediction, values > middle)
    assert seen == [(1, 1)]
    larger = case_of(np.random.default_rng(0).random((30, 17, 16)), np.eye(4))
    predictor.predict(larger, on_windows=lambda *n: seen.append(n))
    assert seen[1:] == [(done, 6) for done in range(1, 7)]
    assert math.prod(prediction.shape) == 6


def test_what_a_network_for_volumes_cannot_take():
    predictor = make_predictor(Linear(), patch=(8, 8, 8), channels=2, spacing=(1, 1, 1))
    picture = Case(id="photo", image=np.zeros((2, 9, 9), np.uint8))
    with pytest.raises(DataError, match="photo is a picture"):
        predictor.predict(picture)
    with pytest.raises(DataError, match="3 channels, the network takes 2"):
        predictor.predict(Case(id="x", image=np.zeros((3, 9, 9, 9)), spacing=(1, 1, 1), affine=np.eye(4)))
    with pytest.raises(UsageError, match="transunet is of slices"):
        predictor.predict(case_of(np.zeros((4, 4, 4)), np.eye(4)), protocol="transunet")


WRONG = [{"overlap": 1.0}, {"overlap": -0.1}, {"overlap": math.nan}, {"mirror": (0, 0)}, {"mirror": (3,)}]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_options_that_cannot_be_meant(options):
    with pytest.raises(UsageError, match=rf"{next(iter(options))} is .*Give"):
        VolumeOptions(**options)


def test_options_for_a_network_of_slices():
    slices = Preprocessing(channels=1, size=(32, 32))
    description = make_predictor(Linear(), patch=(8, 8, 8)).description
    description = description.model_copy(update={"preprocessing": slices})
    Predictor(Linear(), description, torch.device("cpu"))
    with pytest.raises(UsageError, match="this network sees slices"):
        Predictor(Linear(), description, torch.device("cpu"), options=VolumeOptions(overlap=0.25))
