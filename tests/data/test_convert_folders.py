"""Conversions of whole folders: parts, folds, splits, masks, what is refused, what an interruption leaves."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from convert_cases import NAMED, read_all, small, write_nnunet
from PIL import Image

from array_folders import volume_arrays, write_acdc, write_synapse
from rwkvseg.data import convert
from rwkvseg.data.convert import Options, convert_data
from rwkvseg.data.convert.plan import stem_in_part
from rwkvseg.data.layouts import find_inputs, held_back, open_data, read_case
from rwkvseg.data.splits import read_split
from rwkvseg.data.verify import verify_data
from rwkvseg.errors import DataError, LabelError, OutputError, UsageError
from small import files_below


def test_parts_and_folds_are_kept(parted, tmp_path):
    done = convert_data(parted, tmp_path / "images", Options(to="images"))
    assert done.parts == {"train": 5, "test": 2}
    cases = open_data(tmp_path / "images").cases
    assert {case.part for case in cases} == {"train", "test"}
    assert {case.group for case in cases} == {f"patient{number:03d}" for number in range(7)}
    split = read_split(tmp_path / "images" / "splits_final.json", cases, fold=1)
    assert len(split.train) == 3 * 5
    assert split.val[0] == "train_patient003_frame01_slice000"
    for layout in ("msd", "transunet", "nnunet"):
        target = tmp_path / f"Dataset009_{layout}"
        convert_data(parted, target, Options(to=layout))
        found = open_data(target).cases
        split = read_split(target / "splits_final.json", found, fold=0)
        assert {name[:10] for name in split.val} == {"patient000"}
        held = {case.id for case in found if case.part == "test"} | {
            case.id for case in held_back(open_data(target))
        }
        assert held == {"patient005_frame01", "patient006_frame01"}
        assert {case.id for case in find_inputs(target)} == held


def test_cases_without_label_are_inputs(parted, tmp_path):
    shutil.rmtree(parted / "labelsTs")
    convert_data(parted, tmp_path / "msd", Options(to="msd"))
    content = json.loads((tmp_path / "msd" / "dataset.json").read_text())
    assert (content["numTraining"], content["numTest"]) == (5, 2)
    assert content["test"] == [f"./imagesTs/patient00{number}_frame01.nii.gz" for number in (5, 6)]
    convert_data(tmp_path / "msd", tmp_path / "images", Options(to="images"))
    assert len(list((tmp_path / "images" / "test" / "images").iterdir())) == 10
    assert not (tmp_path / "images" / "test" / "masks").exists()
    done = convert_data(tmp_path / "msd", tmp_path / "t", Options(to="transunet"))
    assert any(line.startswith("2 of 7 cases: cases without label") for line in done.lost)
    assert not (tmp_path / "t" / "test_vol_h5").exists()
    (parted / "labelsTs").mkdir()
    shutil.copy(
        parted / "labelsTr" / "patient000_frame01.nii.gz", parted / "labelsTs" / "patient005_frame01.nii.gz"
    )
    with pytest.raises(
        DataError, match="1 case of the part test without label, others with one: patient006_frame01"
    ):
        convert_data(parted, tmp_path / "i", Options(to="images"))


def test_a_split_file_gives_the_parts(parted, tmp_path):
    split = {part: [f"patient00{n}_frame01" for n in numbers] for part, numbers in
             (("train", (0, 1)), ("val", (2,)), ("test", (3,)))}  # fmt: skip
    (tmp_path / "s.json").write_text(json.dumps(split))
    for layout in ("transunet", "nnunet"):
        done = convert_data(parted, tmp_path / layout, Options(to=layout, split=tmp_path / "s.json"))
        assert done.parts == {"train": 2, "val": 1, "test": 1}
        assert "3 cases that the split does not name left out" in done.notes
    cases = open_data(tmp_path / "transunet").cases
    assert [case.id for case in cases if case.part == "val"] == ["patient002_frame01"]
    assert len([case for case in cases if case.part == "train"]) == 10
    assert json.loads((tmp_path / "nnunet" / "splits_final.json").read_text()) == [
        {"train": split["train"], "val": split["val"]}
    ]


def test_slices_become_volumes_again(tmp_path):
    root = write_synapse(tmp_path / "s")
    convert_data(root, tmp_path / "Dataset002_s", Options(to="nnunet", channels=("CT",)))
    data, cases = read_all(tmp_path / "Dataset002_s")
    assert data.channels == ("CT",)
    assert list(cases) == ["case0005", "case0006", "case0007"]
    arrays = volume_arrays(6)
    np.testing.assert_array_equal(cases["case0006"].image[0], np.moveaxis(arrays["image"], 0, -1))
    np.testing.assert_array_equal(cases["case0006"].label, np.moveaxis(arrays["label"], 0, -1))
    assert [case.id for case in held_back(data)] == ["case0001", "case0002"]
    convert_data(tmp_path / "Dataset002_s", tmp_path / "back", Options(to="transunet"))
    before, after = open_data(root), open_data(tmp_path / "back")
    assert [(case.id, case.part) for case in after.cases] == [(case.id, case.part) for case in before.cases]
    for one, other in zip(before.cases, after.cases, strict=True):
        np.testing.assert_array_equal(read_case(one).image, read_case(other).image)
        np.testing.assert_array_equal(read_case(one).label, read_case(other).label)


def test_volumes_of_acdc_without_some_slices_are_refused(tmp_path):
    root = write_acdc(tmp_path / "a")
    (root / "ACDC_training_slices" / "patient040_frame01_slice_1.h5").unlink()
    with pytest.raises(DataError, match="volume patient040_frame01 lacks 1 of its slices: 1"):
        convert_data(root, tmp_path / "b", Options(to="nnunet"))
    assert convert_data(root, tmp_path / "c", Options(to="images")).cases == 7
    assert open_data(tmp_path / "c").labels == open_data(root).labels


@pytest.mark.parametrize("channels", [2, 3])
def test_channels_in_pictures_of_their_own(tmp_path, channels):
    root = tmp_path / "a"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 9999, (channels, 3, 4)).astype(np.uint16)
    for channel, values in enumerate(images):
        Image.fromarray(values).save(root / "imagesTr" / f"x_{channel:04d}.png")
    Image.fromarray((images[0] > 5000).astype(np.uint8)).save(root / "labelsTr" / "x.png")
    names = {str(index): f"c{index}" for index in range(channels)}
    (root / "dataset.json").write_text(json.dumps({"channel_names": names, "labels": {"a": 1}}))
    assert convert_data(root, tmp_path / "b", Options(to="nnunet")).lost == ()
    _, cases = read_all(tmp_path / "b")
    np.testing.assert_array_equal(cases["x"].image, images)


def test_images_alone_become_inputs(tmp_path):
    image, _, affine = small(3)
    (tmp_path / "a").mkdir()
    nibabel.save(nibabel.Nifti1Image(image[0], affine), tmp_path / "a" / "scan.nii")
    done = convert_data(tmp_path / "a", tmp_path / "n", Options(to="nnunet"))
    assert "no case has a label, and nothing names any" in done.notes
    (case,) = find_inputs(tmp_path / "n")
    assert case.images[0].relative_to(tmp_path / "n").as_posix() == "imagesTs/scan_0000.nii.gz"
    np.testing.assert_array_equal(read_case(case).image, image)
    with pytest.raises(DataError, match=r"no case of .* has a label, which TransUNet's layout needs"):
        convert_data(tmp_path / "a", tmp_path / "t", Options(to="transunet"))
    (tmp_path / "empty").mkdir()
    for source, message in (("empty", "holds no images"), ("none", "does not exist")):
        with pytest.raises(DataError, match=message):
            convert_data(tmp_path / source, tmp_path / "x", Options(to="msd"))


def test_volumes_become_8_bit_only_where_they_were(tmp_path):
    image, label, affine = small(0)
    cases = {"a": (image, label, affine), "b": (image.astype(np.int16), label, affine)}
    done = convert_data(write_nnunet(tmp_path / "s", cases), tmp_path / "i", Options(to="images"))
    types = {name[0]: case.image.dtype for name, case in read_all(tmp_path / "i")[1].items()}
    assert types == {"a": np.uint8, "b": np.uint16}
    assert any(note.startswith("pictures have 8 and 16 bit") for note in done.notes)


def test_two_cases_of_one_name_are_refused(tmp_path, parted):
    shutil.copytree(parted / "imagesTr", parted / "imagesTs", dirs_exist_ok=True)
    with pytest.raises(DataError, match="5 names are those of two cases, in different parts: patient000"):
        convert_data(parted, tmp_path / "b", Options(to="msd"))


def test_joined_and_numbered_masks_become_one(tmp_path):
    for name, pixels in (("x", [[7, 7]]), ("x_mask", [[255, 0]]), ("x_mask_1", [[0, 255]])):
        (tmp_path / "a" / "benign").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(pixels, np.uint8)).save(tmp_path / "a" / "benign" / f"{name}.png")
    labels = {"background": 0, "tumor": 1}
    for layout in ("images", "nnunet"):
        convert_data(tmp_path / "a", tmp_path / layout, Options(to=layout, labels=labels))
        data, cases = read_all(tmp_path / layout)
        assert data.labels == labels
        assert cases["x"].label.tolist() == [[1, 1]]


def test_labels_that_nothing_names(tmp_path):
    for name, value in (("x", 255), ("y", 0)):
        for folder, pixel in (("images", 9), ("masks", value)):
            (tmp_path / "a" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.array([[pixel, 0]], np.uint8)).save(tmp_path / "a" / folder / f"{name}.png")
    done = convert_data(tmp_path / "a", tmp_path / "n", Options(to="nnunet"))
    assert open_data(tmp_path / "n").labels == {"background": 0, "label 1": 1}
    assert "nothing names the labels: they are called background, label 1" in done.notes
    convert_data(tmp_path / "a", tmp_path / "i", Options(to="images"))
    assert read_all(tmp_path / "i")[1]["x"].label.tolist() == [[1, 0]]
    Image.fromarray(np.array([[1, 2]], np.uint8)).save(tmp_path / "a" / "masks" / "y.png")
    with pytest.raises(DataError, match="hold 1 and 255, and nothing names them"):
        convert_data(tmp_path / "a", tmp_path / "m", Options(to="nnunet"))
    with pytest.raises(LabelError, match="holds 2, which no label has"):
        convert_data(tmp_path / "a", tmp_path / "m2", Options(to="nnunet", labels={"background": 0, "x": 1}))


def test_what_a_target_cannot_hold_is_refused(tmp_path, parted):
    two = write_nnunet(tmp_path / "two", {"x": small(0, channels=2)})
    for layout, message in (
        ("images", "case x has 2 channels; pictures hold one"),
        ("transunet", "case x has 2 channels, TransUNet's files hold one"),
    ):
        with pytest.raises(DataError, match=message):
            convert_data(two, tmp_path / f"to_{layout}", Options(to=layout))
        assert not (tmp_path / f"to_{layout}").exists()
    with pytest.raises(DataError, match="images have 1 channel, 2 named: CT, MR"):
        convert_data(parted, tmp_path / "n", Options(to="nnunet", channels=("CT", "MR")))


def test_a_target_that_is_not_free_is_refused(tmp_path, parted):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(UsageError, match="full is not empty, and nothing is overwritten"):
        convert_data(parted, tmp_path / "full", Options(to="msd"))
    for target in (parted / "inside", parted.parent, parted):
        with pytest.raises(UsageError, match="lie within each other"):
            convert_data(parted, target, Options(to="msd"))
    (tmp_path / "empty").mkdir()
    convert_data(parted, tmp_path / "empty", Options(to="msd"))
    with pytest.raises(UsageError, match="already holds a finished conversion"):
        convert_data(parted, tmp_path / "empty", Options(to="msd"))
    with pytest.raises(UsageError, match="is a file"):
        convert_data(parted, tmp_path / "full" / "x", Options(to="msd"))


@pytest.mark.parametrize("layout", ["nnunet", "msd", "images", "transunet"])
def test_an_interrupted_conversion_goes_on(tmp_path, parted, monkeypatch, layout):
    whole = convert_data(parted, tmp_path / "Dataset005_once" / "y", Options(to=layout))
    seen, read = [], convert.read_item

    def interrupted(item, plan):
        seen.append(item.id)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return read(item, plan)

    target = tmp_path / "Dataset006_twice" / "y"
    monkeypatch.setattr(convert, "read_item", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_data(parted, target, Options(to=layout))
    assert not target.exists()
    journal = target.with_name(".y.partial") / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"source": "pat')  # a line cut short
    (journal.parent / "labelsTr").mkdir(exist_ok=True)
    (journal.parent / "labelsTr" / ".7.partial.x.png").write_text("half")
    with pytest.raises(
        UsageError, match="holds an unfinished conversion of other data or with other options"
    ):
        convert_data(parted, target, Options(to=layout, labels=NAMED | {"d": 4}))
    resumed = convert_data(parted, target, Options(to=layout))
    assert (resumed.resumed, len(seen)) == (3, 3 + 1 + 4)
    assert (resumed.lost, resumed.notes, resumed.parts) == (whole.lost, whole.notes, whole.parts)
    assert files_below(tmp_path / "Dataset005_once") == files_below(tmp_path / "Dataset006_twice")
    for name in files_below(whole.folder):
        first, second = ((folder / name).read_bytes() for folder in (whole.folder, target))
        assert first == second or Path(name).suffix in (".h5", ".npz", ".gz")


def test_changed_files_are_not_mixed_in(tmp_path, parted, monkeypatch):
    def failing(item, plan):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "read_item", failing)
        with pytest.raises(KeyboardInterrupt):
            convert_data(parted, tmp_path / "x", Options(to="msd"))
    path = parted / "labelsTr" / "patient000_frame01.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 3, 5), np.uint8), np.diag([1.0, 1, 3, 1])), path)
    with pytest.raises(UsageError, match="unfinished conversion of other data"):
        convert_data(parted, tmp_path / "x", Options(to="msd"))


def test_a_full_disk_leaves_nothing_at_the_target(tmp_path, parted, file_size_limit):
    with file_size_limit(600), pytest.raises(OutputError, match="cannot write"):
        convert_data(parted, tmp_path / "x", Options(to="nnunet"))
    assert not (tmp_path / "x").exists()
    convert_data(parted, tmp_path / "x", Options(to="nnunet"))
    assert len(open_data(tmp_path / "x").cases) == 5


def test_results_are_clean(tmp_path, parted):
    for layout in ("nnunet", "msd", "images", "transunet"):
        convert_data(parted, tmp_path / layout, Options(to=layout))
        kinds = {finding.kind for finding in verify_data(tmp_path / layout).findings}
        assert not kinds & {"layout", "missing_image", "missing_label", "unknown_label", "group_across"}
        assert not list(tmp_path.glob(f".{layout}*"))


def test_a_stem_loses_its_part_once():
    assert stem_in_part("train_train_2", "train") == "train_2"
    assert stem_in_part("train_2", None) == "train_2"
    assert stem_in_part("val_2", "train") == "val_2"
