"""The phantom: reproducible, complete, and unsolvable by intensity alone."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvseg.data.case import Case
from rwkvseg.data.layouts import CaseFiles, open_data, read_case
from rwkvseg.data.phantom import PHANTOM_LABELS, make_phantom_2d, make_phantom_3d, write_phantom
from rwkvseg.data.splits import make_split
from rwkvseg.errors import OutputError, UsageError
from rwkvseg.training.demo import NUMBER_OF_CASES

ORGANS = [value for value in PHANTOM_LABELS.values() if value]


@cache
def pictures(number=150, seed=0):
    return make_phantom_2d(number, seed=seed)


def demo_parts(seed):
    cases = {case.id: case for case in make_phantom_2d(NUMBER_OF_CASES, seed=seed)}
    split = make_split([CaseFiles(case, ()) for case in cases], "paper", seed)
    return [cases[case] for case in split.train], [cases[case] for case in split.test]


def same(first: Case, second: Case) -> bool:
    return np.array_equal(first.image, second.image) and np.array_equal(first.label, second.label)


def test_a_case_depends_on_seed_and_index_alone():
    few, many = make_phantom_2d(2, seed=3), make_phantom_2d(5, seed=3)
    assert all(same(a, b) and a.id == b.id for a, b in zip(few, many, strict=False))
    assert same(make_phantom_3d(1, seed=3)[0], make_phantom_3d(2, seed=3)[0])


def test_cases_and_seeds_differ():
    cases = [*make_phantom_2d(4, seed=0), *make_phantom_2d(4, seed=1)]
    assert not any(same(a, b) for i, a in enumerate(cases) for b in cases[:i])
    assert len({case.id for case in cases[:4]}) == 4


def test_the_anatomy_is_the_same_at_every_resolution():
    coarse, fine = make_phantom_2d(1, (64, 64))[0].label, make_phantom_2d(1, (192, 192))[0].label
    assert np.array_equal(coarse, fine[1::3, 1::3])  # the centres of the coarse pixels


@settings(deadline=None, max_examples=15)
@given(st.integers(31, 90), st.integers(31, 90), st.integers(0, 10_000))
def test_pictures_of_any_size_hold_every_organ(rows, columns, seed):
    case = make_phantom_2d(1, (rows, columns), seed)[0]
    assert case.image.shape == (1, rows, columns)
    assert case.label.shape == (rows, columns)
    assert case.image.dtype == case.label.dtype == np.uint8
    assert case.spacing is None
    assert case.affine is None
    assert set(np.unique(case.label)) == set(PHANTOM_LABELS.values())


@pytest.mark.parametrize("size", [(48, 48, 24), (33, 41, 9), (8, 8, 8)], ids=str)
def test_volumes_of_any_size_hold_every_organ(size):
    for case in make_phantom_3d(3, size, spacing=(0.7, 1.1, 3.0)):
        assert case.image.shape == (1, *size)
        assert case.image.dtype == case.label.dtype == np.uint8
        assert case.spacing == (0.7, 1.1, 3.0)
        assert set(np.unique(case.label)) == set(PHANTOM_LABELS.values())


@pytest.mark.parametrize("oblique", [False, True])
def test_the_affine_has_the_spacing_and_its_origin_in_the_middle(oblique):
    affine = make_phantom_3d(1, (9, 11, 13), (1.0, 2.0, 3.0), oblique=oblique)[0].affine
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), (1, 2, 3))
    assert np.allclose(affine @ (4, 5, 6, 1), (0, 0, 0, 1))
    assert np.allclose(affine[:3, :3], np.diag((1, 2, 3))) != oblique


def test_a_picture_is_seen_as_radiologists_do_and_a_volume_runs_to_the_right_and_the_front():
    picture, volume = make_phantom_2d(1)[0].label, make_phantom_3d(1)[0].label
    row, column = (axis.mean() for axis in np.nonzero(picture == PHANTOM_LABELS["liver"]))
    kidney_row = np.nonzero(picture == PHANTOM_LABELS["kidney"])[0].mean()
    assert column < 64  # the liver is on the body's right, the picture's left
    assert row < kidney_row  # the kidneys lie behind
    right, front, _ = (axis.mean() for axis in np.nonzero(volume == PHANTOM_LABELS["liver"]))
    assert right > 24
    assert front > np.nonzero(volume == PHANTOM_LABELS["kidney"])[1].mean()


def test_no_organ_is_tiny():
    shares = [[(case.label == organ).mean() for organ in ORGANS] for case in pictures()]
    assert np.min(shares) >= 0.015


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_intensity_cannot_solve_it(seed):
    """The best classifiers of single pixels, fitted on the demo's training part, on the demo's test cases."""
    train, test = demo_parts(seed)
    counts = np.zeros((256, len(PHANTOM_LABELS)))
    for case in train:
        np.add.at(counts, (case.image[0].ravel(), case.label.ravel()), 1)
    classes = np.arange(len(PHANTOM_LABELS))
    tables = {
        "most probable": counts.argmax(axis=1)[:, None] == classes,
        "most probable, classes alike": (counts / counts.sum(axis=0)).argmax(axis=1)[:, None] == classes,
        "best interval": np.stack([_best_interval(counts, value) for value in classes], axis=1),
        "best set": np.stack([_best_set(counts, value) for value in classes], axis=1),
    }
    scores = {name: float(_mean_dsc(test, table)) for name, table in tables.items()}
    print(f"seed {seed}:", ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))  # pytest -s
    assert max(scores.values()) < 0.55, scores
    assert scores["best set"] > 0.2, scores  # the fit itself works: chance is below


def _best_interval(counts, value):
    """Intensities low..high whose pooled DSC with the class is the highest of all intervals."""
    hits = np.concatenate([[0], counts[:, value].cumsum()])
    chosen = np.concatenate([[0], counts.sum(axis=1).cumsum()])
    sizes = np.maximum(counts[:, value].sum() + chosen - chosen[:, None], 1)  # 0 only where high < low
    dsc = 2 * (hits - hits[:, None]) / sizes
    low, high = np.unravel_index(np.triu(dsc).argmax(), dsc.shape)
    inside = np.arange(256)
    return (inside >= low) & (inside < high)


def _best_set(counts, value):
    """Of all sets of intensities the one of highest pooled DSC: the first n by purity, for the best n."""
    total = counts.sum(axis=1)
    order = np.argsort(-counts[:, value] / np.maximum(total, 1))
    dsc = 2 * counts[order, value].cumsum() / (counts[:, value].sum() + total[order].cumsum())
    return np.isin(np.arange(256), order[: dsc.argmax() + 1])


def _mean_dsc(cases, table):
    """Mean over cases and organs; table (intensity, class) says which intensities are taken for the class."""
    scores = []
    for case in cases:
        for organ in ORGANS:
            truth, prediction = case.label == organ, table[case.image[0], organ]
            scores.append(2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()))
    return np.mean(scores)


def test_neighbours_tell_the_organs_apart():
    """Averages over organs are ordered alike in most cases: context has what single pixels lack."""
    means = np.array(
        [[case.image[0][case.label == organ].mean() for organ in ORGANS] for case in pictures(40)]
    )
    liver, spleen, kidney, aorta = means.T
    assert np.mean((kidney < liver) & (liver < spleen) & (spleen < aorta)) > 0.7


@pytest.mark.parametrize(("dimensions", "size"), [(2, None), (2, (37, 50)), (3, (20, 23, 11))], ids=str)
def test_written_cases_are_read_back(tmp_path, dimensions, size):
    write_phantom(tmp_path / "data", 3, dimensions=dimensions, size=size, seed=7)
    folder = open_data(tmp_path / "data")
    assert folder.layout == {2: "images", 3: "nnunet"}[dimensions]
    assert folder.labels == PHANTOM_LABELS
    assert folder.licence == "Apache-2.0 (generated)"
    make = make_phantom_2d if dimensions == 2 else make_phantom_3d
    made = make(3, size or (128, 128), seed=7)
    assert [case.id for case in folder.cases] == [case.id for case in made]
    for files, case in zip(folder.cases, made, strict=True):
        found = read_case(files, folder.labels)
        assert same(found, case)
        assert found.spacing == case.spacing
        assert (found.affine is None) if dimensions == 2 else np.allclose(found.affine, case.affine)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        write_phantom(tmp_path / name, 1, dimensions=3, size=(9, 9, 9))
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("first", "second")
    )
    assert len(first) == 3
    assert first == second


@pytest.mark.parametrize(
    ("call", "cure"),
    [
        (lambda: make_phantom_2d(0), "0 cases"),
        (lambda: make_phantom_2d(1, (7, 64)), r"\(7, 64\).*at least 8"),
        (lambda: make_phantom_2d(1, seed=-1), "-1"),
        (lambda: make_phantom_3d(1, (64, 64)), "3 axes"),
        (lambda: make_phantom_3d(1, spacing=(1.0, 0.0, 1.0)), r"0\.0.*positive"),
    ],
)
def test_impossible_requests_are_refused(call, cure):
    with pytest.raises(UsageError, match=cure):
        call()


def test_writing_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(UsageError, match="4 dimensions"):
        write_phantom(tmp_path / "data", 1, dimensions=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_phantom(tmp_path / "file" / "data", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
