"""Slabs of windows equal the plain accumulation over the whole volume, and MONAI's."""

import math
from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkvseg.inference.sliding_window import (
    Windows,
    along_axis,
    gaussian_weights,
    mirrored,
    slab_axis,
    slab_logits,
)


def infer(windows):
    """Three logits that depend on where in its window, and along which axis, a voxel lies."""
    _, _, *patch = windows.shape
    ramps = [torch.arange(n).view(-1, *[1] * (2 - axis)) * (axis + 1) for axis, n in enumerate(patch)]
    place = sum(ramps) / 10
    return torch.cat([windows[:, :1] * 2, windows[:, -1:] + place, torch.sin(windows[:, :1] * place)], 1)


def whole(image, infer, patch, overlap):
    """Definition: pad, sum weighted logits of all windows over the whole volume, divide, crop."""
    _, *shape = image.shape
    missing = [max(0, side - n) for n, side in zip(shape, patch, strict=True)]
    before = [n // 2 for n in missing]
    padded = torch.zeros(len(image), *(n + m for n, m in zip(shape, missing, strict=True)))
    inside = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    padded[:, *inside] = image
    logits, total = torch.zeros(3, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    for corner in product(
        *(starts(n, side, overlap) for n, side in zip(padded.shape[1:], patch, strict=True))
    ):
        place = tuple(slice(start, start + side) for start, side in zip(corner, patch, strict=True))
        logits[:, *place] += infer(padded[None, :, *place])[0] * gaussian_weights(patch)
        total[place] += gaussian_weights(patch)
    return (logits / total)[:, *inside]


def starts(length, side, overlap):
    """Every start, one step apart, until a window reaches the border, which it is moved back to."""
    step, start, found = max(1, int(side * (1 - overlap))), 0, []
    while start + side < length:
        found.append(start)
        start += step
    return [*found, length - side]


def joined(slabs):
    """(K, *shape) of slabs that are valid until the next."""
    return torch.cat([slab.clone() for slab in slabs]).transpose(0, 1)


SHAPES = st.tuples(*[st.integers(1, 13)] * 3)
PATCHES = st.tuples(*[st.integers(1, 9)] * 3)


@settings(max_examples=25, derandomize=True)
@given(SHAPES, PATCHES, st.sampled_from([0.0, 0.25, 0.5, 0.8]), st.integers(1, 5), st.integers(1, 2))
@example((13, 7, 5), (4, 4, 4), 0.5, 1, 1)
@example((3, 1, 12), (8, 8, 8), 0.5, 4, 2)
def test_slabs_equal_the_whole(shape, patch, overlap, batch_size, channels):
    image = torch.randn(channels, *shape, generator=torch.Generator().manual_seed(1))
    windows, seen = Windows(shape=shape, patch=patch, overlap=overlap), []
    slabs = slab_logits(image, infer, windows, batch_size=batch_size, on_windows=seen.append)
    torch.testing.assert_close(joined(slabs), whole(image, infer, patch, overlap), atol=1e-5, rtol=1e-5)
    assert sum(seen) == windows.count
    assert max(seen) <= batch_size


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(11, 18, 7), (9, 4, 21)])
def test_slabs_along_every_axis_equal_monai(axis, shape):
    from monai.inferers import sliding_window_inference

    patch, overlap = (6, 8, 5), 0.5
    image = torch.randn(2, *shape)
    order = (axis, *(a for a in range(3) if a != axis))
    windows = Windows(
        shape=tuple(shape[a] for a in order), patch=tuple(patch[a] for a in order), overlap=overlap
    )
    turned = image.permute(0, *(a + 1 for a in order))
    found = joined(slab_logits(turned, along_axis(axis, infer), windows, batch_size=3))
    back = found.permute(0, *(order.index(a) + 1 for a in range(3)))
    expected = sliding_window_inference(image[None], patch, 4, infer, overlap=overlap, mode="gaussian")[0]
    torch.testing.assert_close(back, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [(1, 1, 1), (5, 8, 3), (96, 9, 2)])
def test_weights_are_those_of_monai(patch):
    from monai.data.utils import compute_importance_map

    torch.testing.assert_close(gaussian_weights(patch), compute_importance_map(patch, mode="gaussian"))


def test_no_more_than_a_patch_of_rows_is_held():
    """Every slab is a view of one buffer, of at most the patch's rows."""
    image = torch.randn(1, 40, 6, 5)
    slabs = [(len(slab), slab.untyped_storage()) for slab in
             slab_logits(image, infer, Windows(shape=(40, 6, 5), patch=(8, 4, 4)))]  # fmt: skip
    assert [rows for rows, _ in slabs] == [4] * 8 + [8]
    assert len({storage.data_ptr() for _, storage in slabs}) == 1
    assert slabs[0][1].nbytes() == 4 * 3 * 8 * 6 * 5


def test_a_window_sees_a_small_volume_in_the_middle_of_zeros():
    seen = []

    def look(windows):
        seen.append(windows.clone())
        return windows

    image = torch.ones(1, 2, 3, 4)
    found = joined(slab_logits(image, look, Windows(shape=(2, 3, 4), patch=(5, 3, 6))))
    assert [x.shape for x in seen] == [(1, 1, 5, 3, 6)]
    assert seen[0].sum() == 24
    assert seen[0][0, 0, 1:3, :, 1:5].sum() == 24
    torch.testing.assert_close(found, image)


@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)])
def test_mirroring_is_the_mean_over_all_mirrorings(axes):
    x = torch.randn(2, 1, 3, 4, 5)
    found = []
    for chosen in product([False, True], repeat=len(axes)):
        dims = [axis + 2 for axis, flip in zip(axes, chosen, strict=True) if flip]
        found.append(infer(x.flip(dims)).flip(dims))
    torch.testing.assert_close(mirrored(infer, axes)(x), torch.stack(found).mean(0))
    torch.testing.assert_close(mirrored(lambda x: x, axes)(x), x)  # what is equivariant stays
    if axes:
        assert not torch.allclose(mirrored(infer, axes)(x), infer(x))


def test_the_slab_axis_is_the_cheapest():
    shapes = [(512, 512, 800), (30, 10, 10), (8, 8, 8), (300, 300, 12)]
    for shape in shapes:
        patch = (24, 16, 8)
        held = [min(patch[a], shape[a]) * math.prod(shape) / shape[a] for a in range(3)]
        assert held[slab_axis(shape, patch)] == min(held)
