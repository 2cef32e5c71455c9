"""TransUNet's folders: what is trained on, what is tested on, and that no patient is both."""

import pytest

from array_folders import SHAPE, volume_arrays, write_acdc, write_h5, write_synapse
from rwkvseg.data.datasets import DATASETS
from rwkvseg.data.layouts import find_inputs, open_data, read_case
from rwkvseg.data.reading import read_geometry
from rwkvseg.data.splits import make_split, read_split
from rwkvseg.data.verify import verify_data
from rwkvseg.errors import DataError


def ids(cases, part=None):
    return [case.id for case in cases if part in (None, case.part)]


def slices(name, digits=3):
    return [f"{name}_slice{index:0{digits}d}" for index in range(SHAPE[0])]


def test_synapse_trains_on_slices_and_tests_on_volumes(tmp_path):
    data = open_data(write_synapse(tmp_path / "s"))
    assert (data.layout, data.labels) == ("transunet", DATASETS["synapse"].labels)
    assert ids(data.cases, "train") == slices("case0005") + slices("case0006") + slices("case0007")
    assert ids(data.cases, "test") == ["case0001", "case0002"] == ids(find_inputs(tmp_path / "s"))
    assert [case.group for case in data.cases if case.part == "test"] == ["case0001", "case0002"]
    assert ids(find_inputs(tmp_path / "s" / "train_npz"))[0] == "case0005_slice000"


def test_a_slice_of_a_volume_is_the_slice(tmp_path):
    root = write_synapse(tmp_path / "s")
    write_h5(root / "test_vol_h5" / "case0001.npy.h5", volume_arrays(5))
    cases = {case.id: case for case in open_data(root).cases}
    volume, piece = read_case(cases["case0001"]), read_case(cases["case0005_slice001"])
    assert volume.spatial_shape == (7, 5, 3)
    assert (volume.spacing, volume.affine, piece.spacing) == (None, None, None)
    assert (volume.image[..., 1] == piece.image).all()
    assert (volume.label[..., 1] == piece.label).all()
    assert read_geometry(cases["case0001"]).spatial_shape == (7, 5, 3)
    assert read_geometry(cases["case0005_slice001"]) is None


def test_without_lists_every_file_counts(tmp_path):
    root = write_synapse(tmp_path / "s")
    for path in (root / "lists" / "lists_Synapse").iterdir():
        path.unlink()
    assert len(ids(open_data(root).cases, "train")) == 9
    (root / "train.txt").write_text("case0005_slice000\ncase0007\n")
    cases = open_data(root).cases
    assert ids(cases, "train") == ["case0005_slice000", *slices("case0007")]
    assert ids(cases, "test") == ["case0001", "case0002"]


def test_a_list_that_names_no_file_is_told(tmp_path):
    root = write_synapse(tmp_path / "s")
    (root / "test_vol_h5" / "case0002.npy.h5").unlink()
    with pytest.raises(DataError, match=r"test_vol\.txt lists 1 case without a file: case0002\."):
        open_data(root)
    findings = verify_data(root).findings
    assert [finding.kind for finding in findings if finding.severity == "error"] == ["missing_image"]
    assert "case0002" in findings[0].what


def test_a_case_on_two_lists_is_refused(tmp_path):
    root = write_acdc(tmp_path / "a", slices=False)
    for name in ("train", "val"):
        (root / f"{name}.list").write_text("patient040_frame01\n")
    message = r"val\.list lists patient040_frame01, which is in the part train already\. Keep it on one"
    for read in (open_data, verify_data):
        with pytest.raises(DataError, match=message):
            read(root)


def test_acdc_by_the_papers_patients(tmp_path):
    data = open_data(write_acdc(tmp_path / "a"))
    assert data.labels == DATASETS["acdc"].labels
    train = [f"patient{number:03d}_frame01_slice_{index}" for number in (40, 100) for index in range(3)]
    assert ids(data.cases, "train") == train
    assert ids(data.cases, "val") == ["patient025_frame01"]
    assert ids(data.cases, "test") == ["patient005_frame01"]
    groups = {
        part: {case.group for case in data.cases if case.part == part} for part in ("train", "val", "test")
    }
    assert groups == {"train": {"patient040", "patient100"}, "val": {"patient025"}, "test": {"patient005"}}


def test_acdc_by_its_lists_and_without_slices(tmp_path):
    root = write_acdc(tmp_path / "a", slices=False)
    assert ids(open_data(root).cases, "train") == ["patient040_frame01", "patient100_frame01"]
    for name, patient in (("train", 5), ("val", 40), ("test", 25)):
        (root / f"{name}.list").write_text(f"patient{patient:03d}_frame01\n")
    cases = open_data(root).cases
    assert [(case.id[:10], case.part) for case in cases] == [
        ("patient005", "train"), ("patient025", "test"), ("patient040", "val"),
    ]  # fmt: skip
    write_h5(root / "ACDC_training_volumes" / "heart1.h5", volume_arrays(0))
    for path in root.glob("*.list"):
        path.unlink()
    with pytest.raises(DataError, match=r"'heart1' names no patient.*Add train\.list, val\.list and"):
        open_data(root)


def test_other_labels_are_not_guessed(tmp_path):
    root = write_synapse(tmp_path / "s")
    write_h5(root / "test_vol_h5" / "liver_3.npy.h5", volume_arrays(9))
    (root / "lists" / "lists_Synapse" / "test_vol.txt").write_text("liver_3\n")
    assert open_data(root).labels is None
    (root / "labels.json").write_text('{"labels": {"background": 0, "liver": 1, "a": 2, "b": 3}}')
    assert open_data(root).labels == {"background": 0, "liver": 1, "a": 2, "b": 3}
    assert not [finding for finding in verify_data(root).findings if finding.severity == "error"]


def test_the_official_split_sets_whole_cases_aside(tmp_path):
    data = open_data(write_synapse(tmp_path / "s", train=5))
    split = make_split(data.cases, "official", seed=1)
    groups = [{name[:8] for name in part} for part in (split.train, split.val, split.test)]
    assert [len(group) for group in groups] == [4, 1, 2]
    assert not groups[0] & groups[1]
    assert len(split.train) + len(split.val) == 15


def test_a_split_may_name_volumes_for_their_slices(tmp_path):
    data = open_data(write_synapse(tmp_path / "s"))
    path = tmp_path / "split.json"
    path.write_text('{"train": ["case0005", "case0006_slice001"], "val": ["case0007"], "test": ["case0002"]}')
    split = read_split(path, data.cases)
    assert split.train == (*slices("case0005"), "case0006_slice001")
    assert (split.val, split.test) == (tuple(slices("case0007")), ("case0002",))
    found = verify_data(data.root, path)
    assert found.parts == {"train": 4, "val": 3, "test": 1, None: 3}
    path.write_text('{"train": ["case0005"], "val": ["case0005_slice001"], "test": []}')
    with pytest.raises(DataError, match="names 1 case twice: case0005_slice001"):
        read_split(path, data.cases)


def test_verify_reads_the_layout(tmp_path):
    root = write_synapse(tmp_path / "s")
    found = verify_data(root)
    assert (found.layout, found.parts, found.groups) == ("transunet", {"train": 9, "test": 2}, 5)
    assert not [finding for finding in found.findings if finding.severity == "error"]
    bad = volume_arrays(1)
    bad["label"][0, 0, 0], bad["image"][1, 1, 1] = 77, float("nan")
    write_h5(root / "test_vol_h5" / "case0001.npy.h5", bad)
    kinds = {finding.kind for finding in verify_data(root).findings if finding.severity == "error"}
    assert kinds == {"nan", "unknown_label"}
