"""Splits of plans: the folder's own, a file, 8:1:1 or folds, and never one patient in two parts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvseg.data.files import CaseFiles
from rwkvseg.data.layouts import DataFolder
from rwkvseg.data.splits import PARTS, Split, make_split, read_split, write_split
from rwkvseg.errors import DataError
from rwkvseg.training.plan_split import FEW, crossing_groups, make_folds, plan_split


def folder_of(*cases):
    """Folder of cases (id, part, group); nothing of it is on disk."""
    files = [
        CaseFiles(name, (Path(f"{name}.png"),), Path("label.png"), part, group) for name, part, group in cases
    ]
    return DataFolder(Path("data"), "images", tuple(sorted(files, key=lambda case: case.id)))


def plain(number, part=None):
    return [(f"{part or 'case'}_{index:03d}", part, None) for index in range(number)]


def keys(planned):
    return {choice.key: choice.value for choice in planned.choices}


def test_the_papers_rule_where_there_are_many():
    folder = folder_of(*plain(FEW))
    planned = plan_split(folder, "x", 3)
    assert planned.split == make_split(folder.cases, "paper", 3)
    assert keys(planned) == {"split.file": "x_split.json"}
    assert planned.files == {"x_split.json": planned.split}
    assert "50" not in planned.choices[0].why
    assert planned.choices[0].why.endswith("40 to train, 5 to validate, 5 to test.")


def test_patients_stay_whole():
    folder = folder_of(
        *((f"p{index // 3:02d}_{index}", None, f"p{index // 3:02d}") for index in range(3 * FEW))
    )
    planned = plan_split(folder, "x", 0)
    assert planned.split == make_split(folder.cases, "grouped", 0)
    assert crossing_groups(folder.cases, planned.split) == []
    assert "whole patients" in planned.choices[0].why


def test_few_cases_are_cross_validated():
    folder = folder_of(*plain(FEW - 1))
    planned = plan_split(folder, "x", 0)
    assert list(planned.files) == [f"x_fold{fold}.json" for fold in range(5)]
    assert keys(planned) == {"split.file": "x_fold0.json"}
    assert planned.split == planned.files["x_fold0.json"]
    validated = sorted(case for split in planned.files.values() for case in split.val)
    assert validated == [case.id for case in folder.cases]
    # the definition of the committed file of Hippocampus: the first share of the permutation
    order = np.random.default_rng(0).permutation(FEW - 1)
    assert planned.split.val == tuple(sorted(f"case_{index:03d}" for index in order[:10]))


def test_very_few_cases_have_as_many_folds():
    assert len(plan_split(folder_of(*plain(3)), "x", 0).files) == 3
    twins = [(f"{group}{index}", None, group) for group in "ab" for index in range(2)]
    planned = plan_split(folder_of(*twins), "x", 0)
    assert [set(split.val) for split in planned.files.values()] in (
        [{"a0", "a1"}, {"b0", "b1"}],
        [{"b0", "b1"}, {"a0", "a1"}],
    )


@given(st.lists(st.integers(0, 12), min_size=3, max_size=80), st.integers(0, 5))
def test_no_group_crosses_and_no_case_is_lost(groups, seed):
    cases = [(f"c{index:02d}", None, f"g{group}") for index, group in enumerate(groups)]
    folder = folder_of(*cases)
    if len(set(groups)) < 2:
        with pytest.raises(DataError, match="of one patient"):
            plan_split(folder, "x", seed)
        return
    for split in plan_split(folder, "x", seed).files.values():
        named = [case for part in PARTS for case in getattr(split, part)]
        assert sorted(named) == [case for case, _, _ in cases]
        assert crossing_groups(folder.cases, split) == []
        assert split.train
        assert split.val


@given(st.integers(2, 40), st.integers(2, 5), st.integers(0, 3))
def test_folds_are_almost_equally_large(number, folds, seed):
    if folds > number:
        return
    made = make_folds([[f"{index:02d}"] for index in range(number)], folds, seed)
    sizes = [len(split.val) for split in made]
    assert sum(sizes) == number
    assert max(sizes) - min(sizes) <= 1
    assert all(len(split.train) + len(split.val) == number for split in made)


def test_official_parts_are_kept():
    both = plan_split(folder_of(*plain(8, "train"), *plain(2, "val"), *plain(3, "test")), "x", 1)
    assert (keys(both), both.files) == ({"split.rule": "official"}, {})
    assert tuple(len(getattr(both.split, part)) for part in PARTS) == (8, 2, 3)
    folder = folder_of(*plain(85, "train"), *plain(80, "test"))
    glas = plan_split(folder, "x", 1)
    assert (keys(glas), glas.files) == ({"split.rule": "official", "split.seed": 1}, {})
    assert glas.split == make_split(folder.cases, "official", 1)
    only = plan_split(folder_of(*plain(60, "train")), "x", 0)
    assert keys(only) == {"split.file": "x_split.json"}


def test_official_training_patients_are_not_torn_apart_to_validate():
    training = [(f"train_p{index // 4}_{index}", "train", f"p{index // 4}") for index in range(40)]
    folder = folder_of(*training, ("test_q_0", "test", "q"), ("test_q_1", "test", "q"))
    planned = plan_split(folder, "x", 0)
    assert keys(planned) == {"split.file": "x_split.json"}
    assert crossing_groups(folder.cases, planned.split) == []
    assert len(planned.split.val) == 4
    assert planned.split.test == ("test_q_0", "test_q_1")
    small = plan_split(folder_of(*plain(4, "train"), *plain(2, "test")), "x", 0)  # too few for a tenth
    assert tuple(len(getattr(small.split, part)) for part in PARTS) == (3, 1, 2)


def test_parts_that_share_patients_are_refused():
    cases = [(f"{part}_p_{index}", part, "p") for part in ("train", "val") for index in range(2)]
    with pytest.raises(DataError, match=r"the parts of data share 1 patient or video: p\. Move .* --split"):
        plan_split(folder_of(*cases, ("train_q", "train", "q")), "x", 0)


def test_a_given_file_wins_and_its_leaks_are_told(tmp_path):
    cases = [(f"p{index // 2}_{index}", None, f"p{index // 2}") for index in range(6)]
    folder = folder_of(*cases)
    path = tmp_path / "mine.json"
    write_split(path, Split("file", 0, ("p0_0", "p1_2", "p1_3"), ("p0_1",), ()))
    planned = plan_split(folder, "x", 0, path)
    assert planned.split == read_split(path, folder.cases)
    assert (keys(planned), planned.files) == ({"split.file": str(path)}, {})
    assert "beware, 1 patient or video is in two of its parts (p0)" in planned.choices[0].why
    write_split(path, Split("file", 0, ("p0_0", "p0_1"), ("p1_2",), ()))
    assert "beware" not in plan_split(folder, "x", 0, path).choices[0].why


@pytest.mark.parametrize("number", [1, 2])
def test_too_few_cases(number):
    cases = "1 labelled case:" if number == 1 else "2 labelled cases:"
    with pytest.raises(DataError, match=f"^{cases} at least 3 are needed"):
        plan_split(folder_of(*plain(number)), "x", 0)
