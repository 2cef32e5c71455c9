"""The moving of pictures is MONAI's to the last bit, whatever the size, the ranges and the seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose, RandAffined

from rwkvseg.data.affine_augmentation import RandomAffine


@pytest.fixture(autouse=True)
def plain_tensors():
    tracked = get_track_meta()
    set_track_meta(False)
    yield
    set_track_meta(tracked)


def both(size, *, rotation, scale, shift, probability, padding):
    factors = (np.expm1(-scale), np.expm1(scale))
    theirs = RandAffined(
        ("image", "label"),
        prob=probability,
        rotate_range=np.deg2rad(rotation),
        translate_range=[shift * side for side in size],
        scale_range=(factors, factors),
        mode=("bilinear", "nearest"),
        padding_mode=padding,
    )
    ours = RandomAffine(
        size,
        probability=probability,
        rotation=float(np.deg2rad(rotation)),
        shift=[shift * side for side in size],
        scale=scale,
        padding=padding,
    )
    return theirs, ours


def pair_of(size, channels, seed):
    generator = np.random.default_rng(seed)
    image = torch.from_numpy(generator.normal(size=(channels, *size)).astype(np.float32))
    return {"image": image, "label": torch.from_numpy(generator.integers(0, 5, (1, *size)).astype(np.uint8))}


@settings(max_examples=60, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.integers(1, 4),
    rotation=st.sampled_from([0.0, 10.0, 180.0]),
    scale=st.sampled_from([0.0, 0.3, 2.0]),
    shift=st.sampled_from([0.0, 0.15, 1.0]),
    probability=st.sampled_from([0.0, 0.5, 1.0]),
    padding=st.sampled_from(["reflection", "zeros"]),
    seed=st.integers(0, 2**32 - 2),
)
def test_as_monais(size, channels, seed, **options):
    theirs, ours = both(size, **options)
    data = pair_of(size, channels, seed)
    kept = {key: values.clone() for key, values in data.items()}
    results = [transform.set_random_state(seed)(dict(data)) for transform in (theirs, ours)]
    for key in data:
        assert results[0][key].dtype == results[1][key].dtype == torch.float32
        assert torch.equal(results[0][key], results[1][key])
        assert torch.equal(data[key], kept[key])


def test_as_monais_draw_after_draw():
    """Of a size as in training, in a Compose, which deals out the seeds."""
    theirs, ours = both((96, 130), rotation=180, scale=0.3, shift=0.15, probability=0.7, padding="reflection")
    data = pair_of((96, 130), 3, 0)
    moved = 0
    for seed in range(12):
        results = [Compose([t]).set_random_state(seed)(dict(data)) for t in (theirs, ours)]
        assert all(torch.equal(results[0][key], results[1][key]) for key in data)
        moved += not torch.equal(results[1]["image"], data["image"])
    assert 0 < moved < 12
