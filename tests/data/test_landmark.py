"""The landmark phantom: what is near a target tells nothing of its class, what is far tells all."""

import json
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as components

from rwkvseg.data.landmark import (
    LANDMARK_LABELS,
    exchange_landmarks,
    landmark_gap,
    make_landmark,
    write_landmark,
)
from rwkvseg.data.layouts import open_data, read_case
from rwkvseg.errors import UsageError
from rwkvseg.training.recipe import Recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SIZES = ((160, 17), (144, 12, 13))


@cache
def cases(size, number=60):
    return make_landmark(number, size, seed=2)


def spans(mask):
    """First and last row of every connected part of a mask, in order."""
    parts, number = components(mask)
    rows = [np.nonzero(parts == part)[0] for part in range(1, number + 1)]
    return sorted((int(found.min()), int(found.max())) for found in rows)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_near_a_target_nothing_tells_its_class(size):
    """The very same neighbourhood, noise included, occurs around targets of both classes."""
    gap = landmark_gap(size)
    for index, case in enumerate(cases(size, 20)):
        other = exchange_landmarks(index, size, seed=2)
        assert np.array_equal(other.label, np.array([0, 2, 1])[case.label])
        differs = np.nonzero((case.image != other.image).any(axis=tuple(range(2, case.image.ndim))))[1]
        for first, last in spans(case.label > 0):
            assert np.maximum(first - differs, differs - last).min() > gap
            assert min(first, size[0] - 1 - last) > gap  # nor does the border come nearer


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_even_cases_hold_one_target_of_each_class_and_odd_ones_two_of_one(size):
    for index, case in enumerate(cases(size)):
        (first, second) = spans(case.label > 0)
        assert second[0] - first[1] > landmark_gap(size)
        found = [int(case.label[row].max()) for row, _ in (first, second)]
        assert (found[0] != found[1]) == (index % 2 == 0)
        sizes = [np.count_nonzero(case.label[first[0] : first[1] + 1]), np.count_nonzero(case.label)]
        assert 0.4 < sizes[0] / sizes[1] < 0.6


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_nearer_landmark_names_the_target(size):
    for case in cases(size, 20):
        image = case.image[0].astype(int)
        rows = {"bright": np.nonzero(image > 200)[0], "dark": np.nonzero(image < 50)[0]}
        for first, last in spans(case.label > 0):
            away = {kind: np.abs(found - first).min() for kind, found in rows.items() if found.size}
            name = int(case.label[first : last + 1].max())
            assert LANDMARK_LABELS[f"near the {min(away, key=away.get)} landmark"] == name


def test_neither_place_nor_brightness_is_a_cue():
    """Over many cases both classes have the same places and intensities, but for chance."""
    even = make_landmark(400, (120, 12), seed=0)[::2]
    place = np.array([[np.nonzero(case.label == name)[0].mean() for case in even] for name in (1, 2)])
    above = np.mean(place[0] < place[1])
    assert abs(above - 0.5) < 4 * 0.5 / np.sqrt(len(even))
    assert abs(place[0].mean() - place[1].mean()) < 4 * np.sqrt(place.var(1).sum() / len(even))
    level = [np.concatenate([case.image[0][case.label == name] for case in even]) for name in (1, 2)]
    assert abs(level[0].mean() - level[1].mean()) < 4 * np.sqrt(2 * 8.0**2 / (level[0].size / 4))
    assert level[0].size == pytest.approx(level[1].size, rel=0.05)


def test_cases_depend_on_seed_and_index_alone():
    few, many = make_landmark(2, (120, 12), seed=3), make_landmark(4, (120, 12), seed=3)
    assert all(np.array_equal(a.image, b.image) and a.id == b.id for a, b in zip(few, many, strict=False))
    others = [*many, *make_landmark(2, (120, 12), seed=4)]
    assert not any(np.array_equal(a.image, b.image) for i, a in enumerate(others) for b in others[:i])


@settings(max_examples=15)
@given(st.integers(12, 20), st.integers(12, 20), st.integers(0, 9), st.integers(2, 3), st.integers(0, 999))
def test_any_slender_size_has_room(first, second, more, dimensions, seed):
    size = (8 * max(first, second) + 20 + more, first, second)[:dimensions]
    case = make_landmark(1, size, seed)[0]
    assert case.image.shape == (1, *size)
    assert case.image.dtype == case.label.dtype == np.uint8
    assert set(np.unique(case.label)) == {0, 1, 2}
    assert case.spacing == (None if dimensions == 2 else (1.0, 1.0, 1.0))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_written_cases_are_read_back(tmp_path, dimensions):
    size = (120, 12, 12)[:dimensions]
    write_landmark(tmp_path, 3, dimensions, size, seed=5)
    folder = open_data(tmp_path)
    assert folder.layout == {2: "images", 3: "nnunet"}[dimensions]
    assert folder.labels == LANDMARK_LABELS
    assert folder.licence == "Apache-2.0 (generated)"
    for files, case in zip(folder.cases, make_landmark(3, size, seed=5), strict=True):
        found = read_case(files, folder.labels)
        assert np.array_equal(found.image, case.image)
        assert np.array_equal(found.label, case.label)
        assert found.spacing == case.spacing
    assert json.loads((tmp_path / "dataset.json").read_text())["least_distance"] == 30


@pytest.mark.parametrize(
    ("call", "cure"),
    [
        (lambda: make_landmark(0), "0 cases"),
        (lambda: make_landmark(1, (120, 11)), r"\(120, 11\).*at least 12"),
        (lambda: make_landmark(1, (112, 13)), r"9 times as long"),
        (lambda: make_landmark(1, (120,)), "2 or 3 axes"),
        (lambda: make_landmark(1, seed=-1), "-1"),
        (lambda: exchange_landmarks(0, (20, 20)), "9 times"),
        (lambda: write_landmark(Path("x"), 1, 4), "dimensions is 4"),
        (lambda: write_landmark(Path("x"), 1, 3, (120, 12)), "dimensions is 3"),
    ],
)
def test_impossible_requests_are_refused(call, cure):
    with pytest.raises(UsageError, match=cure):
        call()
    assert not Path("x").exists()


@pytest.mark.parametrize("name", ["landmark_2d", "landmark_3d"])
def test_the_recipes_test_on_cases_with_two_kinds_of_landmark_only(name):
    recipe = Recipe.from_file(RECIPES / f"{name}.yaml")
    assert recipe.data.labels == LANDMARK_LABELS
    assert recipe.split.file is not None
    split = json.loads(recipe.split.file.read_text())
    numbers = {
        part: [int(case.removeprefix("landmark-")) for case in split[part]]
        for part in split
        if part not in ("rule", "seed")
    }
    assert {part: len(found) for part, found in numbers.items()} == {"train": 700, "val": 20, "test": 80}
    assert not any(number % 2 for number in (*numbers["val"], *numbers["test"]))
    assert sorted(chain(*numbers.values())) == list(range(800))
