"""Sets of pictures under their owners' names: BUSI, ISIC 2017, GlaS, CVC-ClinicDB, PraNet's polyps."""

import numpy as np
import pytest
from PIL import Image

from rwkvseg.data.layouts import find_inputs, open_data, read_case
from rwkvseg.data.published import mask_files
from rwkvseg.data.reading import read_case_label
from rwkvseg.data.verify import verify_data
from rwkvseg.errors import DataError, GeometryError, LabelError

BINARY = {"background": 0, "structure": 1}
GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)


def picture(path, values=GREY):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def mask(*places):
    values = np.zeros((3, 4), np.uint8)
    for place in places:
        values[place] = 255
    return values


@pytest.fixture
def busi(tmp_path):
    root = tmp_path / "Dataset_BUSI_with_GT"
    picture(root / "benign" / "benign (1).png")
    picture(root / "benign" / "benign (1)_mask.png", mask((0, 0)))
    picture(root / "benign" / "benign (1)_mask_1.png", mask((1, 2)))
    picture(root / "normal" / "normal (1).png", GREY + 1)
    picture(root / "normal" / "normal (1)_mask.png", mask())
    return root


def test_busi_joins_masks_and_keeps_normals(busi):
    data = open_data(busi)
    assert (data.layout, [case.id for case in data.cases]) == ("beside", ["benign (1)", "normal (1)"])
    labels = [read_case(case, BINARY).label for case in data.cases]
    np.testing.assert_array_equal(labels[0], mask((0, 0), (1, 2)) // 255)
    assert labels[1].max() == 0
    assert [case.id for case in find_inputs(busi)] == ["benign (1)", "normal (1)"]
    assert [case.id for case in find_inputs(busi / "benign")] == ["benign (1)"]
    assert [(finding.kind, finding.cases) for finding in verify_data(busi).findings][:1] == [
        ("empty_mask", ("normal (1)",))
    ]


def test_the_case_of_a_mask(busi):
    files = mask_files(busi / "benign" / "benign (1)_mask.png")
    assert (files.id, len(files.joined)) == ("benign (1)", 1)
    np.testing.assert_array_equal(read_case_label(files)[0], mask((0, 0), (1, 2)))
    lone = picture(busi / "truths" / "x_mask.png", mask((0, 0)))
    assert mask_files(lone).joined == ()
    assert read_case_label(mask_files(lone))[0].max() == 255


def test_busi_faults(busi):
    picture(busi / "benign" / "benign (1)_mask_1.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(GeometryError, match=r"mask_1\.png has size 4 x 4, .*mask\.png has 3 x 4"):
        read_case(open_data(busi).cases[0], BINARY)
    picture(busi / "malignant" / "malignant (1).png")
    with pytest.raises(DataError, match=r"1 image below .* without mask beside: malignant \(1\)\."):
        open_data(busi)
    (busi / "malignant" / "malignant (1).png").unlink()
    picture(busi / "malignant" / "malignant (1)_mask.png")
    with pytest.raises(DataError, match=r"1 mask below .* without image beside"):
        open_data(busi)
    picture(busi / "malignant" / "malignant (1).png")
    picture(busi / "malignant" / "benign (1).png")
    with pytest.raises(DataError, match="have the same name"):
        open_data(busi)


def test_isic_as_its_archives_unpack(tmp_path):
    for part, name in (("Training", "0"), ("Validation", "1"), ("Test_v2", "2")):
        picture(tmp_path / f"ISIC-2017_{part}_Data" / f"ISIC_{name}.jpg")
        picture(tmp_path / f"ISIC-2017_{part}_Data" / f"ISIC_{name}_superpixels.png")
        if part != "Test_v2":
            folder = tmp_path / f"ISIC-2017_{part}_Part1_GroundTruth"
            picture(folder / f"ISIC_{name}_segmentation.png", mask((0, 0)))
    cases = open_data(tmp_path).cases
    assert [(case.id, case.part) for case in cases] == [("train_ISIC_0", "train"), ("val_ISIC_1", "val")]
    assert [case.id for case in find_inputs(tmp_path)] == ["test_ISIC_2", "train_ISIC_0", "val_ISIC_1"]
    assert verify_data(tmp_path).parts == {"test": 1, "train": 1, "val": 1}


def test_glas_of_the_contest_numbers_its_glands(tmp_path):
    for name in ("train_1", "testA_1", "testB_1"):
        picture(tmp_path / f"{name}.bmp")
        picture(tmp_path / f"{name}_anno.bmp", GREY)
    (tmp_path / "Grade.csv").write_text("name, patient ID, grade\n")
    cases = open_data(tmp_path).cases
    parts = [("testA_1", "test"), ("testB_1", "test"), ("train_1", "train")]
    assert [(case.id, case.part) for case in cases] == parts
    np.testing.assert_array_equal(read_case(cases[0], BINARY).label, GREY > 0)
    (tmp_path / "labels.json").write_text('{"labels": {"background": 0, "gland": 1}}')
    assert "unknown_label" not in {finding.kind for finding in verify_data(tmp_path).findings}


@pytest.mark.parametrize(
    ("images", "masks", "part"),
    [
        ("Original", "Ground Truth", None),
        ("Train_Folder/img", "Train_Folder/labelcol", "train"),
        ("TrainDataset/image", "TrainDataset/mask", "train"),
        ("TrainDataset/images", "TrainDataset/masks", "train"),
        ("valid/images", "valid/masks", "val"),
    ],
)
def test_other_names_of_the_folders(tmp_path, images, masks, part):
    picture(tmp_path / images / "1.tif")
    picture(tmp_path / masks / "1.tif", mask((0, 0)))
    (case,) = open_data(tmp_path).cases
    assert (case.id, case.part) == (f"{part}_1" if part else "1", part)
    assert [found.id for found in find_inputs(tmp_path)] == [case.id]
    assert [found.kind for found in verify_data(tmp_path).findings] == ["unnamed_labels"]


def test_jpeg_masks_of_two_labels_are_black_and_white(tmp_path):
    noise = np.random.default_rng(0).integers(0, 20, (16, 16)).astype(np.uint8)
    pixels = np.where(np.arange(16) < 8, noise, 255 - noise).astype(np.uint8)
    picture(tmp_path / "images" / "k.jpg", pixels)
    picture(tmp_path / "masks" / "k.jpg", pixels)
    (case,) = open_data(tmp_path).cases
    np.testing.assert_array_equal(read_case(case, BINARY).label, np.tile(np.arange(16) >= 8, (16, 1)))
    for labels in (None, BINARY | {"more": 2}):
        with pytest.raises(LabelError, match="or name two labels, 0 and 1: then that is done for you"):
            read_case(case, labels)
    assert "label_values" in {finding.kind for finding in verify_data(tmp_path).findings}
    (tmp_path / "labels.json").write_text('{"labels": {"background": 0, "polyp": 1}}')
    assert verify_data(tmp_path).findings == ()


def test_label_maps_alone_are_no_pairs(tmp_path):
    for name in ("a", "b", "c", "a_mask"):
        picture(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match="follows no known layout"):
        open_data(tmp_path)


def test_nnunet_keeps_colours_in_one_picture(tmp_path):
    picture(tmp_path / "imagesTr" / "r_0000.png", np.zeros((3, 4, 3), np.uint8))
    picture(tmp_path / "labelsTr" / "r.png", mask((0, 0)) // 255)
    (tmp_path / "dataset.json").write_text(
        '{"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "road": 1}}'
    )
    data = open_data(tmp_path)
    assert data.channels == ("R", "G", "B")
    assert read_case(data.cases[0], data.labels).image.shape == (3, 3, 4)
    assert {finding.kind for finding in verify_data(tmp_path).findings} == {"constant_image"}
