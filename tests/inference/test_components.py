"""The largest connected part of a label, against its definition by walking."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from rwkvseg.errors import UsageError
from rwkvseg.inference.components import keep_largest, labels_to_keep

SHAPES = st.one_of(arrays.array_shapes(min_dims=2, max_dims=2, max_side=7), st.just((3, 4, 5)))
MAPS = SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=st.integers(0, 3)))
LABELS = {"background": 0, "organ": 1, "vessel": 2}


def parts_of(labels, value):
    """Sets of places of a label that touch by faces, edges or corners, each walked from its first place."""
    left = {tuple(place) for place in np.argwhere(labels == value)}
    parts = []
    for place in sorted(left):
        if place not in left:
            continue
        part, front = {place}, [place]
        left -= part
        while front:
            here = front.pop()
            near = {other for other in left if max(abs(a - b) for a, b in zip(here, other, strict=True)) < 2}
            left -= near
            part |= near
            front += near
        parts.append(part)
    return parts


@given(labels=MAPS)
def test_it_agrees_with_walking(labels):
    expected, gone = labels.copy(), {}
    for value in (1, 3):
        parts = parts_of(labels, value)
        largest = max(parts, key=len, default=set())
        for part in parts:
            if part is not largest:
                expected[tuple(np.array(sorted(part)).T)] = 0
        gone[value] = sum(map(len, parts)) - len(largest)
    found = labels.copy()
    assert keep_largest(found, [1, 3]) == gone
    np.testing.assert_array_equal(found, expected)


def test_of_equal_parts_the_first_stays():
    labels = np.array([[1, 0, 1, 0, 1], [0, 0, 1, 0, 1]], np.uint8)
    assert keep_largest(labels, [1]) == {1: 3}
    assert labels.tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]


def test_a_label_that_is_not_there_changes_nothing():
    labels = np.array([[0, 2, 0, 2]], np.uint8)
    assert keep_largest(labels, [1, 7]) == {1: 0, 7: 0}
    assert labels.tolist() == [[0, 2, 0, 2]]


def test_which_labels_are_meant():
    assert labels_to_keep([], LABELS) == {}
    assert labels_to_keep(["vessel", "2", 1], LABELS) == {"organ": 1, "vessel": 2}
    assert labels_to_keep(["all"], LABELS) == {"organ": 1, "vessel": 2}
    assert labels_to_keep(["all"], {"background": 0, "all": 1, "some": 2}) == {"all": 1}


@pytest.mark.parametrize("word", ["background", "0", "liver", "3"])
def test_what_is_no_structure_is_refused(word):
    with pytest.raises(UsageError, match=r"no structure; known are organ \(1\), vessel \(2\)"):
        labels_to_keep([word], LABELS)


@pytest.mark.parametrize("protocol", ["strict", "transunet"])
def test_pictures_keep_one_part_of_each_label(rwkvseg, small_run, phantom, tmp_path, protocol):
    given = ("predict", "-m", small_run, "-i", phantom, "--device", "cpu", "--protocol", protocol)
    assert rwkvseg(*given, "-o", tmp_path / "raw")[0] == 0
    code, _, err = rwkvseg(*given, "-o", tmp_path / "out", "--keep-largest", "all")
    assert code == 0, err
    names = [path.name for path in (tmp_path / "raw").glob("*.png")]
    removed = 0
    for name in names:
        raw, kept = (np.array(Image.open(tmp_path / folder / name)) for folder in ("raw", "out"))
        assert all(len(parts_of(kept, value)) <= 1 for value in np.unique(kept) if value > 0)
        assert (kept[kept > 0] == raw[kept > 0]).all()
        removed += int((kept != raw).sum())
    assert names
    assert removed > 0, "nothing was to be done"
