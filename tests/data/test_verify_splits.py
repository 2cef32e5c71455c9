"""Leaks between the parts of a split, duplicates, groups, layouts."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from data_folders import write_pictures
from rwkvseg.data.io import read_image
from rwkvseg.data.verify import verify_data
from rwkvseg.errors import DataError
from spoilt import change_volume, found, ids, only, picture, split_of, volume, write_split


def test_a_clean_split_gives_no_finding(phantom):
    result = verify_data(phantom, split_of(phantom))
    assert result.findings == ()
    assert result.parts == {"train": 16, "val": 2, "test": 2}


def test_exact_duplicates(pictures):
    shutil.copy(picture(pictures, 0), picture(pictures, 19))
    Image.open(picture(pictures, 1)).save(picture(pictures, 2).with_suffix(".bmp"))
    picture(pictures, 2).unlink()
    findings = found(pictures)
    assert set(findings) == {"duplicate_within"}
    assert [finding.cases for finding in findings["duplicate_within"]] == [
        tuple(ids(0, 19)),
        tuple(ids(1, 2)),
    ]
    split = split_of(pictures)
    findings = found(pictures, split)
    assert [findings[kind][0].cases for kind in findings] == [tuple(ids(0, 19)), tuple(ids(1, 2))]
    assert list(findings) == ["duplicate_across", "duplicate_within"]
    assert "train (1 case) and test (1 case)" in findings["duplicate_across"][0].what


def test_near_duplicates(pictures):
    image, _, _ = read_image(picture(pictures, 3))
    Image.fromarray((0.8 * image[0] + 10).astype(np.uint8)).save(picture(pictures, 17))
    finding = only(pictures, "near_duplicate_within")
    assert finding.cases == tuple(ids(3, 17))
    assert re.search(
        r"nearest are phantom-0003 and phantom-0017, \d+ of 255 bits apart \(limit 32\)", finding.what
    )
    across = only(pictures, "near_duplicate_across", split_of(pictures))
    assert across.severity == "warning"
    assert "train (1 case) and val (1 case)" in across.what


def test_near_duplicates_of_volumes(volumes):
    change_volume(volume(volumes, 2), dtype=np.float32)
    shutil.copy(volume(volumes, 2), volume(volumes, 8))
    change_volume(volume(volumes, 8), lambda values: values.__imul__(1.5), dtype=np.float32)
    assert only(volumes, "near_duplicate_within").cases == tuple(ids(2, 8))


def test_duplicates_outside_the_split_do_not_count(pictures):
    shutil.copy(picture(pictures, 0), picture(pictures, 19))
    split = write_split(pictures, train=ids(*range(16)), val=ids(16), test=ids(17, 18))
    assert only(pictures, "left_out", split).cases == tuple(ids(19))


def test_one_group_in_two_parts(pictures):
    rows = [f"{name},video{index // 4}" for index, name in enumerate(ids(*range(20)))]
    (pictures / "groups.csv").write_text("\n".join(["id,group", *rows]))
    assert verify_data(pictures).groups == 5
    assert verify_data(pictures).findings == ()
    finding = only(pictures, "group_across", split_of(pictures))
    assert finding.cases == tuple(ids(16, 17, 18, 19))
    assert finding.what == "group video4 is in val (2 cases) and test (2 cases)"


def test_groups_that_ids_tell(pictures):
    for folder in ("images", "masks"):
        for index in range(20):
            path = picture(pictures, index, folder)
            path.rename(path.with_name(f"patient{index // 2:03d}_frame{index:02d}.png"))
    names = [f"patient{index // 2:03d}_frame{index:02d}" for index in range(20)]
    split = write_split(pictures, train=names[:15], val=names[15:18], test=names[18:])
    assert only(pictures, "group_across", split).cases == ("patient007_frame14", "patient007_frame15")


def test_a_patient_in_two_folders_of_parts(tmp_path):
    """Ids begin with the name of the part there, not with the patient's."""
    for part, names in (("train", ["patient1_a", "patient2_a"]), ("test", ["patient1_b", "patient3_a"])):
        write_pictures(tmp_path / part, 2, names=names)
    (finding,) = found(tmp_path)["group_across"]
    assert finding.cases == ("test_patient1_b", "train_patient1_a")
    assert finding.what == "group patient1 is in test (1 case) and train (1 case)"


def test_groups_file_with_faults(pictures):
    (pictures / "groups.csv").write_text("id,group\nphantom-0001,a\n")
    assert "no group for 19 cases" in only(pictures, "layout").what
    (pictures / "groups.csv").write_text("id,group,more\nphantom-0001,a,b\n")
    assert "two columns" in only(pictures, "layout").what


def test_a_split_that_does_not_fit(pictures):
    split = write_split(
        pictures, train=[*ids(*range(16)), "nobody"], val=ids(15, 16, 17), test=ids(18, 18, 19)
    )
    findings = found(pictures, split)
    assert [finding.what for finding in findings["case_across"]] == [
        "split.json names it 2 times: in train, val"
    ]
    assert {finding.cases for finding in findings["split"]} == {("phantom-0018",), ("nobody",)}
    assert set(findings) == {"case_across", "split"}
    with pytest.raises(DataError, match="does not exist"):
        verify_data(pictures, pictures / "none.json")
    split.write_text("{}")
    with pytest.raises(DataError, match="no list of ids under 'train'"):
        verify_data(pictures, split)


def test_parts_of_the_folder_and_held_back_labels(pictures, tmp_path):
    root = tmp_path / "parts"
    for index in range(20):
        part = "test" if index >= 16 else "train"
        for folder in ("images", "masks"):
            (root / part / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(picture(pictures, index, folder), root / part / folder)
    shutil.copy(pictures / "dataset.json", root)
    assert verify_data(root).findings == ()
    assert verify_data(root).parts == {"train": 16, "test": 4}
    shutil.rmtree(root / "test" / "masks")
    assert only(root, "unlabelled_part").severity == "note"
    shutil.copy(picture(pictures, 2), root / "test" / "images" / "new.png")
    assert found(root)["duplicate_across"][0].cases == ("test_new", "train_phantom-0002")
    shutil.rmtree(root / "train" / "masks")
    assert "without masks" in found(root)["missing_label"][0].what


def test_a_held_back_nnunet_part_that_repeats_training_images(volumes):
    (volumes / "imagesTs").mkdir()
    shutil.copy(volume(volumes, 4), volumes / "imagesTs" / "other_0000.nii.gz")
    findings = found(volumes)
    assert set(findings) == {"duplicate_across", "unlabelled_part"}
    assert "imagesTr" in findings["duplicate_across"][0].what
    split = write_split(volumes, train=ids(*range(9)), val=[], test=ids(9))
    assert set(found(volumes, split)) == {"duplicate_across", "unlabelled_part"}


def test_masks_beside_pictures_are_joined(pictures, tmp_path):
    root = tmp_path / "busi"
    for index in range(4):
        folder = root / ("benign", "normal")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture(pictures, index), folder / f"b ({index}).png")
        shutil.copy(picture(pictures, index, "masks"), folder / f"b ({index})_mask.png")
    shutil.copy(pictures / "dataset.json", root)
    Image.new("L", (36, 40)).save(root / "benign" / "b (0)_mask_1.png")
    assert verify_data(root).layout == "beside"
    assert verify_data(root).findings == ()  # the second mask is empty, the joined one is not
    Image.new("L", (36, 40)).save(root / "normal" / "b (1)_mask.png")
    assert only(root, "empty_mask").cases == ("b (1)",)
    (root / "benign" / "b (2).png").rename(root / "normal" / "b (3).bmp")
    assert set(found(root)) >= {"layout", "missing_image"}


def test_names_that_clash_and_json_that_is_broken(pictures):
    Image.open(picture(pictures, 1)).save(picture(pictures, 1).with_suffix(".bmp"))
    (pictures / "dataset.json").write_text("{")
    findings = found(pictures)
    assert set(findings) == {"layout", "unnamed_labels"}
    assert len(findings["layout"]) == 2
    (pictures / "dataset.json").write_text('{"labels": {"a": 1, "b": 1}}')
    assert any("share a value" in finding.what for finding in found(pictures)["layout"])
