import json
import logging

import nibabel
import numpy as np
import pytest
from PIL import Image

from data_folders import write_pictures
from rwkvseg.data import notices
from rwkvseg.data.layouts import CaseFiles, find_inputs, open_data, read_case
from rwkvseg.data.listing import list_folder
from rwkvseg.data.reading import read_geometry
from rwkvseg.errors import DataError, GeometryError, LabelError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
MASK = (GREY > 5).astype(np.uint8)


def picture(path, values=GREY):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def volume(path, values=None, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(24, dtype=np.int16).reshape(4, 3, 2) if values is None else values
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 5, 1]) if affine is None else affine), path)
    return path


def settings(root, **content):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))


def ids(cases):
    return [case.id for case in cases]


@pytest.mark.parametrize("ending", ["", "_mask", "_segmentation", "_gt"])
def test_image_folders_pair_by_name(tmp_path, ending):
    for name in ("b", "a"):
        picture(tmp_path / "images" / f"{name}.JPG")
        picture(tmp_path / "masks" / f"{name}{ending}.png", MASK)
    for clutter in ("images/Thumbs.db", "images/._a.jpg", "masks/.DS_Store", "masks/notes.txt"):
        (tmp_path / clutter).write_text("x")
    data = open_data(tmp_path)
    assert (data.layout, ids(data.cases), data.labels, data.licence) == ("images", ["a", "b"], None, None)
    assert data.cases[0].label.name == f"a{ending}.png"


def test_parts_prefix_ids_and_a_part_without_masks_is_left_out(tmp_path):
    for part in ("train", "val", "test"):
        picture(tmp_path / part / "images" / "1.png")
    for part in ("train", "val"):
        picture(tmp_path / part / "masks" / "1.png", MASK)
    picture(tmp_path / "train" / "instances" / "9.png")
    cases = open_data(tmp_path).cases
    assert [(case.id, case.part) for case in cases] == [("train_1", "train"), ("val_1", "val")]
    assert ids(find_inputs(tmp_path)) == ["test_1", "train_1", "val_1"]


@pytest.mark.parametrize("name", ["groups.csv", "sequences.csv"])
def test_groups_come_from_a_two_column_file(tmp_path, name):
    for case in ("1", "2"):
        picture(tmp_path / "images" / f"{case}.png")
        picture(tmp_path / "masks" / f"{case}.png", MASK)
    (tmp_path / name).write_text("frame,sequence\n1, x\n2,y\n3,y\n")
    assert [case.group for case in open_data(tmp_path).cases] == ["x", "y"]
    (tmp_path / name).write_text("frame,sequence\n1,x\n")
    with pytest.raises(DataError, match=rf"{name} lists no group for 1 case: 2\."):
        open_data(tmp_path)
    (tmp_path / name).write_text("frame\n1\n")
    with pytest.raises(DataError, match="two columns"):
        open_data(tmp_path)


@pytest.mark.parametrize("file", ["dataset.json", "labels.json"])
def test_image_folders_may_name_their_labels(tmp_path, file):
    picture(tmp_path / "images" / "1.png")
    picture(tmp_path / "masks" / "1.png", MASK)
    (tmp_path / file).write_text('{"labels": {"liver": 2, "background": 0, "spleen": 1}}')
    assert list(open_data(tmp_path).labels.items()) == [("background", 0), ("spleen", 1), ("liver", 2)]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".png"])
def test_nnunet_groups_channels(tmp_path, suffix):
    labels = {"background": 0, "tumour": 1}
    settings(tmp_path, channel_names={"0": "T1", "1": "T2"}, labels=labels, licence="CC0", file_ending=suffix)
    make, mask = (picture, MASK) if suffix == ".png" else (volume, np.ones((4, 3, 2), np.uint8))
    for case in ("b_1", "a"):
        for channel in range(2):
            make(tmp_path / "imagesTr" / f"{case}_{channel:04d}{suffix}")
        make(tmp_path / "labelsTr" / f"{case}{suffix}", mask)
    make(tmp_path / "imagesTs" / f"z_0000{suffix}")
    make(tmp_path / "imagesTs" / f"z_0001{suffix}")
    data = open_data(tmp_path)
    assert (data.layout, ids(data.cases), data.labels, data.licence) == (
        "nnunet",
        ["a", "b_1"],
        labels,
        "CC0",
    )
    case = read_case(data.cases[1], data.labels)
    assert len(case.image) == 2
    assert [(case.id, len(case.images)) for case in find_inputs(tmp_path)] == [("z", 2)]
    assert ids(find_inputs(tmp_path / "imagesTr")) == ["a", "b_1"]


def test_nnunet_version_1_is_recognised_without_channel_names(tmp_path):
    settings(
        tmp_path, modality={"0": "CT"}, labels={"0": "background", "1": "liver"}, training=[{"image": "x"}]
    )
    volume(tmp_path / "imagesTr" / "a_0000.nii.gz")
    volume(tmp_path / "labelsTr" / "a.nii.gz")
    data = open_data(tmp_path)
    assert (data.layout, ids(data.cases), data.labels) == ("nnunet", ["a"], {"background": 0, "liver": 1})


def test_nnunet_mistakes_are_named(tmp_path):
    settings(tmp_path, channel_names={"0": "CT"}, labels={"a": 1})
    volume(tmp_path / "imagesTr" / "a_0000.nii.gz")
    volume(tmp_path / "labelsTr" / "b.nii.gz")
    with pytest.raises(DataError, match=r"1 image .* without label .*: a\. Add"):
        open_data(tmp_path)
    volume(tmp_path / "labelsTr" / "a.nii.gz")
    with pytest.raises(DataError, match=r"1 label .* without image .*: b\. Add"):
        open_data(tmp_path)
    (tmp_path / "labelsTr" / "b.nii.gz").unlink()
    assert open_data(tmp_path).labels == {"background": 0, "a": 1}
    volume(tmp_path / "imagesTr" / "a_0001.nii.gz")
    with pytest.raises(DataError, match=r"has 2 channels a case, dataset\.json names 1"):
        open_data(tmp_path)
    volume(tmp_path / "imagesTr" / "c_0000.nii.gz")
    with pytest.raises(DataError, match=r"1 case lacks some of the channels 0000\.\.0001: c\."):
        open_data(tmp_path)
    volume(tmp_path / "imagesTr" / "nonumber.nii.gz")
    with pytest.raises(DataError, match="lacks the channel number"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "regions or ignore"),
        ({"background": 0, "a": 1, "ignore": 2}, "regions or ignore"),
        ({"background": 0, "a": 1, "b": 1}, "share a value"),
        ({"2": "background", "1": "a"}, "call 2 background and name no 0"),
        ({"background": 2, "a": 1}, "call 2 background and name no 0"),
        ({"background": 0, "a": "one"}, "not name: value"),
        ([0, 1], "no JSON object"),
    ],
)
def test_labels_that_cannot_be_meant(tmp_path, labels, message):
    settings(tmp_path, labels=labels)
    picture(tmp_path / "images" / "1.png")
    picture(tmp_path / "masks" / "1.png", MASK)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


def test_msd_follows_its_list_or_pairs_by_name(tmp_path):
    for case in ("hippo_1", "hippo_2"):
        volume(tmp_path / "imagesTr" / f"{case}.nii.gz")
        volume(tmp_path / "labelsTr" / f"{case}.nii.gz", np.ones((4, 3, 2), np.uint8))
    data = open_data(tmp_path)
    assert (data.layout, ids(data.cases), data.labels) == ("msd", ["hippo_1", "hippo_2"], None)
    entry = {"image": "./imagesTr/hippo_2.nii.gz", "label": "./labelsTr/hippo_2.nii.gz"}
    settings(tmp_path, labels={"0": "background", "1": "Anterior"}, training=[entry], licence="CC-BY-SA 4.0")
    data = open_data(tmp_path)
    assert (ids(data.cases), data.labels) == (["hippo_2"], {"background": 0, "Anterior": 1})
    (tmp_path / "labelsTr" / "hippo_2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"hippo_2\.nii\.gz, listed in dataset\.json, does not exist"):
        open_data(tmp_path)


def test_unpaired_pictures_are_counted_and_the_first_five_named(tmp_path):
    for number in range(8):
        picture(tmp_path / "images" / f"{number}.png")
    picture(tmp_path / "masks" / "7.png")
    with pytest.raises(
        DataError, match=r"7 images in .*images without label in .*0\.png, .*4\.png and 2 more\. Add"
    ):
        open_data(tmp_path)
    for number in range(9):
        picture(tmp_path / "masks" / f"{number}.png")
    with pytest.raises(DataError, match=r"1 label .* without image .*: 8\.png"):
        open_data(tmp_path)


def test_ambiguous_names_are_refused(tmp_path):
    picture(tmp_path / "images" / "1.png")
    picture(tmp_path / "masks" / "1.png")
    picture(tmp_path / "masks" / "1_mask.png")
    with pytest.raises(DataError, match=r"2 masks: 1, 1_mask\. Keep one"):
        open_data(tmp_path)
    picture(tmp_path / "images" / "1.jpg")
    with pytest.raises(DataError, match="have the same name"):
        open_data(tmp_path)


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"follows no known layout\. Expected images/ \+ masks/"):
        open_data(tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        find_inputs(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="masks does not exist"):
        open_data(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="holds no labelled images"):
        open_data(tmp_path)
    file = picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a file where a data folder is needed"):
        open_data(file)
    with pytest.raises(DataError, match="unknown layout 'voc'"):
        open_data(tmp_path, "voc")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json is not valid JSON"):
        open_data(tmp_path)


def test_inputs_are_a_file_a_folder_or_a_data_folder(tmp_path):
    file = picture(tmp_path / "plain" / "IMG_0000.png")
    picture(tmp_path / "plain" / "IMG_0001.png")
    assert find_inputs(file) == (CaseFiles("IMG_0000", (file,)),)
    assert ids(find_inputs(tmp_path / "plain")) == ["IMG_0000", "IMG_0001"]  # a camera's numbers, no channels
    volume(tmp_path / "scans" / "a_0000.nii.gz")
    volume(tmp_path / "scans" / "a_0001.nii.gz")
    assert ids(find_inputs(tmp_path / "scans")) == ["a"]
    picture(tmp_path / "data" / "images" / "x.png")
    picture(tmp_path / "data" / "masks" / "x.png")
    assert ids(find_inputs(tmp_path / "data")) == ["x"]
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no known format"):
        find_inputs(tmp_path / "a.txt")
    with pytest.raises(DataError, match="does not exist"):
        find_inputs(tmp_path / "gone")


def one_case(tmp_path, mask, labels=None, image=GREY):
    files = CaseFiles("1", (picture(tmp_path / "i.png", image),), picture(tmp_path / "m.png", mask))
    return read_case(files, labels)


def test_black_and_white_masks_are_binary_and_said_so_once(tmp_path, caplog):
    notices._say.cache_clear()
    labels = {"background": 0, "polyp": 1}
    with caplog.at_level(logging.INFO, logger="rwkvseg"):
        for _ in range(3):
            np.testing.assert_array_equal(one_case(tmp_path, MASK * 255, labels).label, MASK)
    assert [record.message for record in caplog.records] == ["masks hold 0 and 255: 255 is taken as label 1"]
    np.testing.assert_array_equal(one_case(tmp_path, MASK * 255).label, MASK * 255)  # raw without labels
    kept = one_case(tmp_path, MASK * 255, {"background": 0, "white": 255}).label
    np.testing.assert_array_equal(kept, MASK * 255)


@pytest.mark.parametrize(
    ("mask", "labels", "message"),
    [
        (
            MASK * 7,
            {"background": 0, "polyp": 1},
            r"m\.png holds 7, which no label has; known are 0 background, 1 polyp",
        ),
        (MASK * 254 + 1, {"background": 0, "polyp": 1}, "holds 255, which"),
        (MASK * 255, {"background": 0, "a": 1, "b": 2}, "holds 255"),
        (GREY, {"background": 0, "a": 1}, r"holds 2, 3, 4, 5, 6, 7, 8, 9, \.\.\., which"),
    ],
)
def test_unknown_values_are_listed_with_the_known(tmp_path, mask, labels, message):
    with pytest.raises(LabelError, match=message):
        one_case(tmp_path, mask, labels)


def test_negative_label_values_are_listed(tmp_path):
    files = CaseFiles(
        "1", (volume(tmp_path / "i.nii"),), volume(tmp_path / "m.nii", np.full((4, 3, 2), -1, np.int16))
    )
    with pytest.raises(LabelError, match="holds -1, which"):
        read_case(files, {"background": 0})


def test_a_mask_of_another_size_is_refused(tmp_path):
    with pytest.raises(GeometryError, match=r"m\.png has size 4 x 3, .*i\.png has 3 x 4\. Resample"):
        one_case(tmp_path, np.ascontiguousarray(MASK.T))


def test_label_affine_may_differ_by_rounding_only(tmp_path):
    image = volume(tmp_path / "i.nii.gz")
    for offset, is_fine in ((1e-6, True), (5e-4, True), (2e-3, False), (5.0, False)):
        affine = np.diag([1.0, 1.0, 5.0, 1.0])
        affine[1, 3] = offset
        files = CaseFiles("v", (image,), volume(tmp_path / "l.nii.gz", affine=affine))
        if is_fine:
            case = read_case(files)
            np.testing.assert_array_equal(case.affine, np.diag([1, 1, 5, 1]))
            assert case.spacing == (1, 1, 5)
        else:
            with pytest.raises(
                GeometryError, match=rf"affine of .*l\.nii\.gz differs .* up to {offset:.4g} mm"
            ):
                read_case(files)


def test_channels_must_share_a_grid(tmp_path):
    first, second = (
        volume(tmp_path / "a_0000.nii"),
        volume(tmp_path / "a_0001.nii", np.zeros((4, 3, 3), np.int16)),
    )
    with pytest.raises(GeometryError, match=r"a_0001\.nii has size 4 x 3 x 3"):
        read_case(CaseFiles("a", (first, second)))


def test_the_label_is_read_on_demand(tmp_path):
    files = CaseFiles("1", (picture(tmp_path / "i.png"),), tmp_path / "gone.png")
    assert read_case(files, with_label=False).label is None
    with pytest.raises(DataError, match="does not exist"):
        read_case(files)


def test_msd_keeps_modalities_along_the_fourth_axis(tmp_path):
    values = np.arange(4 * 3 * 2 * 2, dtype=np.int16).reshape(4, 3, 2, 2)
    volume(tmp_path / "imagesTr" / "p.nii.gz", values)
    volume(tmp_path / "labelsTr" / "p.nii.gz", np.zeros((4, 3, 2), np.uint8))
    volume(tmp_path / "imagesTs" / "q.nii.gz", values)
    settings(tmp_path, modality={"0": "T2", "1": "ADC"}, labels={"0": "background", "1": "gland"})
    data = open_data(tmp_path)
    assert (data.layout, data.channels) == ("msd", ("T2", "ADC"))
    for files in (data.cases[0], find_inputs(tmp_path)[0]):
        case = read_case(files)
        np.testing.assert_array_equal(case.image, np.moveaxis(values, -1, 0))
        assert case.spacing == (1, 1, 5)
        assert read_geometry(files).image.shape == (2, 4, 3, 2)
    settings(tmp_path, modality={"0": "T2"})
    with pytest.raises(DataError, match=r"has 4 axes \(4, 3, 2, 2\), more than one volume"):
        read_case(open_data(tmp_path).cases[0])


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (
            ["patient01_frame1", "patient01_frame2", "patient02_frame1"],
            ["patient01", "patient01", "patient02"],
        ),
        (["case0005_slice000", "case0005_slice001"], ["case0005"] * 2),
        (["patient01_frame1", "patient02_frame1"], [None, None]),  # each of another: nothing to group
        (["patient01_frame1", "patient01_frame2", "other"], [None] * 3),  # of some nobody knows
        (["a1", "a2"], [None, None]),
    ],
)
def test_ids_that_name_patients_are_groups(tmp_path, names, groups):
    for name in names:
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.png").touch()
    found = {case.id: case.group for case in open_data(tmp_path).cases}
    assert found == dict(zip(names, groups, strict=True))


def test_ids_name_patients_behind_the_name_of_a_part(tmp_path):
    for part, names in (("train", ["patient1_a", "patient1_b"]), ("test", ["patient2_a"])):
        write_pictures(tmp_path / part, len(names), names=names)
    found = {case.id: case.group for case in open_data(tmp_path).cases}
    assert found == {
        "test_patient2_a": "patient2",
        "train_patient1_a": "patient1",
        "train_patient1_b": "patient1",
    }


@pytest.mark.parametrize(
    ("data", "given"), [("d", "."), ("a b/d", "."), ("d", "d/images"), ("d", "d/masks")], ids=str
)
@pytest.mark.parametrize("open_folder", [open_data, list_folder])
def test_a_folder_beside_the_right_one_is_told(tmp_path, data, given, open_folder):
    (tmp_path / "readme.txt").write_text("")
    write_pictures(tmp_path / data, 2)
    with pytest.raises(DataError, match="follows no known layout") as raised:
        open_folder(tmp_path / given)
    assert f"but {tmp_path / data} does. Give that folder." in str(raised.value)
