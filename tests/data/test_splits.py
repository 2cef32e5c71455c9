import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvseg.data.files import CaseFiles
from rwkvseg.data.splits import Split, make_split, read_split, write_split
from rwkvseg.errors import DataError, UsageError

NAMES = st.lists(st.text("abc019_", min_size=1, max_size=6), min_size=10, max_size=80, unique=True)


def files(names, **fields):
    return [CaseFiles(name, (), **fields) for name in names]


def parts(split):
    return split.train, split.val, split.test


@given(NAMES, st.integers(0, 5))
def test_paper_rule_is_the_permutation_of_the_specification(names, seed):
    split = make_split(files(names), "paper", seed)
    order = [sorted(names)[i] for i in np.random.default_rng(seed).permutation(len(names))]
    tenth = len(names) // 10
    assert split.test == tuple(sorted(order[:tenth]))
    assert split.val == tuple(sorted(order[tenth : 2 * tenth]))
    assert split.train == tuple(sorted(order[2 * tenth :]))
    assert sorted(sum(parts(split), ())) == sorted(names)


@given(NAMES, st.randoms(use_true_random=False))
def test_the_order_of_the_cases_does_not_matter(names, random):
    shuffled = random.sample(names, len(names))
    assert make_split(files(names), "paper", 1) == make_split(files(shuffled), "paper", 1)


@given(st.lists(st.integers(1, 9), min_size=10, max_size=40), st.integers(0, 5))
def test_groups_never_cross_parts(sizes, seed):
    cases = [CaseFiles(f"{g}-{i}", (), group=f"g{g}") for g, size in enumerate(sizes) for i in range(size)]
    split = make_split(cases, "grouped", seed)
    groups = [{name.split("-")[0] for name in part} for part in parts(split)]
    assert not (groups[0] & groups[1])
    assert not (groups[0] & groups[2])
    assert not (groups[1] & groups[2])
    assert sorted(sum(parts(split), ())) == sorted(case.id for case in cases)
    tenth = len(cases) // 10
    assert tenth <= len(split.val) < tenth + max(sizes)
    assert tenth <= len(split.test) < tenth + max(sizes)


def test_official_parts_are_kept_and_a_missing_val_is_cut_from_train():
    train, test = files([f"a{i:02d}" for i in range(85)], part="train"), files(["b", "c"], part="test")
    split = make_split(train + test, "official", 2)
    first = np.random.default_rng(2).permutation(85)[:8]
    assert split.val == tuple(sorted(f"a{i:02d}" for i in first))
    assert (len(split.train), split.test) == (77, ("b", "c"))
    whole = make_split(train + files(["v"], part="val"), "official")
    assert (len(whole.train), whole.val, whole.test) == (85, ("v",), ())


def test_what_cannot_be_split_says_why():
    with pytest.raises(DataError, match="9 cases are too few"):
        make_split(files("abcdefghi"), "paper")
    with pytest.raises(DataError, match=r"case a has no group\. Add groups\.csv"):
        make_split(files("abcdefghij"), "grouped")
    with pytest.raises(DataError, match="1 group is too few"):
        make_split(files("abcdefghij", group="g"), "grouped")
    with pytest.raises(DataError, match="no official part"):
        make_split(files("abcdefghij"), "official")
    with pytest.raises(
        DataError, match=r"unknown split rule 'random'\. Choose one of paper, grouped, official"
    ):
        make_split(files("abcdefghij"), "random")


def test_a_written_split_comes_back(tmp_path):
    cases = files("abcdefghijkl")
    split = make_split(cases, "paper", 3)
    write_split(tmp_path / "s.json", split)
    assert read_split(tmp_path / "s.json", cases) == split
    assert json.loads((tmp_path / "s.json").read_text())["rule"] == "paper"
    assert len((tmp_path / "s.json").read_text().splitlines()) == 7


def test_a_plain_split_is_enough_and_may_leave_cases_out(tmp_path):
    (tmp_path / "s.json").write_text('{"train": ["a"], "val": ["b"], "test": []}')
    assert read_split(tmp_path / "s.json", files("abc")) == Split("file", 0, ("a",), ("b",), ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"train": ["a"], "val": ["a", "b"], "test": ["b"]}',
            "names 2 cases twice: a, b. Keep each in one part",
        ),
        ('{"train": ["x", "a"], "val": [], "test": ["y"]}', "2 cases that the data does not have: x, y."),
        ('{"train": ["a"], "test": []}', "no list of ids under 'val'"),
        ('{"train": [1], "val": [], "test": []}', "no list of ids under 'train'"),
        ('{"seed": "a", "train": [], "val": [], "test": []}', "seed 'a'"),
        ("[]", "no JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_bad_split_files(tmp_path, content, message):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_split(tmp_path / "s.json", files("abc"))


def test_a_missing_split_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json does not exist"):
        read_split(tmp_path / "gone.json", files("abc"))


FOLDS = (
    '[{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a"]}, {"train": ["z"], "val": []}, 7]'
)


def test_a_fold_of_nnunet(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(FOLDS)
    split = read_split(path, files("abcd"), fold=1)
    assert (split.rule, split.train, split.val, split.test) == ("fold 1 of 4", ("c",), ("a",), ())
    write_split(tmp_path / "kept.json", split)
    assert read_split(tmp_path / "kept.json", files("abcd")) == split


@pytest.mark.parametrize(
    ("fold", "error", "message"),
    [
        (None, UsageError, r"holds 4 folds and none is chosen\. Choose 0 to 3: --fold 0"),
        (4, UsageError, r"there is no fold 4\. Choose 0 to 3"),
        (2, DataError, "names 1 case that the data does not have: z"),
        (3, DataError, r"fold 3 of .* is no object"),
    ],
)
def test_bad_folds(tmp_path, fold, error, message):
    (tmp_path / "s.json").write_text(FOLDS)
    with pytest.raises(error, match=message):
        read_split(tmp_path / "s.json", files("abc"), fold)


def test_a_split_without_folds_has_no_fold(tmp_path):
    (tmp_path / "s.json").write_text('{"train": ["a"], "val": [], "test": []}')
    with pytest.raises(UsageError, match=r"without folds, and fold 0 is asked for\. Drop the fold"):
        read_split(tmp_path / "s.json", files("abc"), 0)
