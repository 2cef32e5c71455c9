"""Equal and look-alike images: what the two hashes tell apart and what they do not."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rwkvseg.data.duplicates import (
    LOOK_BITS,
    NEAR_BITS,
    Trace,
    equal_images,
    image_look,
    nearest_pair,
    pixel_digest,
    shrink,
    similar_images,
)
from rwkvseg.data.phantom import make_phantom_2d, make_phantom_3d


def distance(first, second):
    """How many bits of two images' looks differ."""
    return int((image_look(first) != image_look(second)).sum())


def recompressed(image, quality=60):
    """The picture after JPEG."""
    buffer = BytesIO()
    Image.fromarray(image[0]).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))[None]


def resized(image, size):
    return np.asarray(Image.fromarray(image[0]).resize(size, Image.Resampling.BICUBIC))[None]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(1, 5), st.integers(0, 99))
def test_shrink_of_whole_blocks_is_their_mean(cells, factor, seed):
    values = np.random.default_rng(seed).integers(0, 255, [factor * n for n in cells], np.uint8)
    blocks = values.reshape([side for n in cells for side in (n, factor)])
    expected = blocks.mean(axis=tuple(range(1, 2 * len(cells), 2)))
    np.testing.assert_allclose(shrink(values, cells), expected)


def test_shrink_of_uneven_blocks_weighs_every_value_once():
    values = np.random.default_rng(0).random((7, 5))
    small = shrink(values, (3, 2))
    expected = [
        [values[r, c].mean() for c in (slice(0, 2), slice(2, 5))]
        for r in (slice(0, 2), slice(2, 4), slice(4, 7))
    ]
    np.testing.assert_allclose(small, expected)


def test_shrink_repeats_short_axes():
    np.testing.assert_array_equal(shrink(np.array([[1.0], [3.0]]), (4, 2)), [[1, 1], [1, 1], [3, 3], [3, 3]])


@given(st.integers(0, 99))
@settings(max_examples=20)
def test_digest_is_of_the_values_not_of_their_order_in_memory(seed):
    values = np.random.default_rng(seed).random((1, 5, 7, 3)).astype(np.float32)
    assert pixel_digest(values) == pixel_digest(np.asfortranarray(values))
    changed = values.copy()
    changed[0, seed % 5, seed % 7, seed % 3] += 1
    assert pixel_digest(values) != pixel_digest(changed)
    assert pixel_digest(values) != pixel_digest(values.reshape(1, 7, 5, 3))
    assert pixel_digest(values) != pixel_digest(values.view(np.int32))
    assert pixel_digest(values, pixel_digest(changed)) != pixel_digest(changed, pixel_digest(values))


def test_look_survives_what_changes_no_content():
    for case in make_phantom_2d(6, (96, 80)):
        image = case.image
        assert distance(image, image) == 0
        assert distance(image, recompressed(image)) <= NEAR_BITS
        assert distance(image, resized(image, (53, 71))) <= NEAR_BITS
        assert distance(image, (0.6 * image + 40).astype(np.uint8)) <= NEAR_BITS
        assert distance(image, np.repeat(image, 3, axis=0)) == 0


@pytest.mark.parametrize(
    "make", [make_phantom_2d, lambda n: make_phantom_3d(n, (24, 20, 9))], ids=["2d", "3d"]
)
def test_different_patients_do_not_look_alike(make):
    cases = make(12)
    distances = [distance(a.image, b.image) for i, a in enumerate(cases) for b in cases[:i]]
    assert min(distances) > 1.5 * NEAR_BITS


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_look_does_not_depend_on_the_unit(scale):
    image = np.random.default_rng(1).random((1, 40, 33)).astype(np.float32)
    assert distance(image, image * np.float32(scale)) <= 2


def test_a_constant_image_has_no_look():
    assert image_look(np.full((1, 9, 7), 3, np.uint8)) is None


@given(st.integers(2, 12), st.integers(0, 99))
@settings(max_examples=30)
def test_chains_are_those_of_pairwise_distances(number, seed):
    """Against the definition: components of the graph of all pairs, found by repeated merging."""
    random = np.random.default_rng(seed)
    looks = np.where(random.random((number, LOOK_BITS)) < 0.5, 1, -1).astype(np.int8)
    for row in range(1, number):
        if random.random() < 0.6:  # near an earlier one, on either side of the limit
            looks[row] = looks[random.integers(row)]
            looks[row, : random.integers(NEAR_BITS - 2, NEAR_BITS + 3)] *= -1
    traces = [Trace(str(row), None, bytes([row]), look, 2) for row, look in enumerate(looks)]
    chains = {frozenset([row]) for row in range(number)}
    for first in range(number):
        for second in range(first):
            if (looks[first] != looks[second]).sum() <= NEAR_BITS:
                joined = {chain for chain in chains if first in chain or second in chain}
                chains = (chains - joined) | {frozenset().union(*joined)}
    expected = {frozenset(map(str, chain)) for chain in chains if len(chain) > 1}
    assert {frozenset(trace.id for trace in chain) for chain in similar_images(traces)} == expected


def test_many_blocks_of_rows_find_pairs_far_apart():
    random = np.random.default_rng(0)
    looks = np.where(random.random((600, LOOK_BITS)) < 0.5, 1, -1).astype(np.int8)
    looks[599], looks[300] = looks[1], looks[255]
    looks[599, :NEAR_BITS] *= -1
    traces = [Trace(str(row), None, row.to_bytes(2, "big"), look, 2) for row, look in enumerate(looks)]
    found = [[trace.id for trace in chain] for chain in similar_images(traces)]
    assert found == [["1", "599"], ["255", "300"]]


def test_equal_images_are_not_also_similar_ones_and_axes_are_kept_apart():
    look = np.ones(LOOK_BITS, np.int8)
    same = [Trace("a", None, b"1", look, 2), Trace("b", None, b"1", look, 2)]
    volume = Trace("c", None, b"2", look, 3)
    assert [[trace.id for trace in group] for group in equal_images([*same, volume])] == [["a", "b"]]
    assert similar_images([*same, volume]) == []
    assert similar_images([]) == []


def test_nearest_pair_is_across_parts_where_there_are_several():
    looks = np.ones((3, LOOK_BITS), np.int8)
    looks[1, :5] = looks[2, :12] = -1
    traces = [Trace(name, "train", name.encode(), look, 2) for name, look in zip("abc", looks, strict=True)]
    bits, first, second = nearest_pair(traces)
    assert (bits, {first.id, second.id}) == (5, {"a", "b"})
    bits, first, second = nearest_pair([*traces[:2], Trace("c", "test", b"c", looks[2], 2)])
    assert (bits, {first.id, second.id}) == (7, {"b", "c"})
