"""Conversion between layouts: lossless round trips where the target holds it, and what is said where not."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image
from scipy.spatial.transform import Rotation

from array_folders import volume_arrays, write_acdc, write_synapse
from rwkvseg.data import convert
from rwkvseg.data.convert import Options, convert_data
from rwkvseg.data.convert.plan import stem_in_part
from rwkvseg.data.convert.scale import choose_scale
from rwkvseg.data.layouts import find_inputs, held_back, open_data, read_case
from rwkvseg.data.preprocessing import Preprocessing, slice_axis
from rwkvseg.data.splits import read_split
from rwkvseg.data.verify import verify_data
from rwkvseg.errors import DataError, LabelError, OutputError, UsageError
from small import files_below

NAMED = {"background": 0, "a": 1, "b": 2, "c": 3}
FEW = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def oblique(spacing, degrees, offset):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = offset
    return affine


def write_nnunet(root, cases, labels=NAMED, channels=None, suffix=".nii.gz", **extra):
    """Write {id: (image (C, i, j, k), label, affine)} with NiBabel alone."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    number = 1
    for name, (image, label, affine) in cases.items():
        number = len(image)
        for channel, values in enumerate(image):
            path = root / "imagesTr" / f"{name}_{channel:04d}{suffix}"
            nibabel.save(nibabel.Nifti1Image(values, affine), path)
        nibabel.save(nibabel.Nifti1Image(label, affine), root / "labelsTr" / f"{name}{suffix}")
    names = channels or [f"c{index}" for index in range(number)]
    content = {"channel_names": {str(i): name for i, name in enumerate(names)}, "labels": labels, **extra}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@st.composite
def volumes(draw, channels=(1, 2)):
    """Odd shapes, spacings, oblique affines, every kind of intensity, labels up to 16 bits."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    number = draw(st.sampled_from(channels))
    dtype = np.dtype(draw(st.sampled_from(["u1", "i2", "u2", "f4"])))
    spacing = draw(st.tuples(*[st.floats(0.2, 9)] * 3))
    degrees = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    offset = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    floats = {"elements": st.floats(-1e4, 1e4, width=32)} if dtype.kind == "f" else {}
    image = draw(arrays_of.arrays(dtype, (number, *shape), **floats))
    label = draw(arrays_of.arrays(np.uint16, shape, elements=st.sampled_from([0, 1, 2, 3, 700])))
    return image, label, oblique(spacing, degrees, offset)


WIDE = NAMED | {"far": 700}


def fresh(tmp_path_factory, name="x"):
    return tmp_path_factory.mktemp(name)


def read_all(root, labels=None):
    data = open_data(root)
    return data, {files.id: read_case(files, labels or data.labels) for files in data.cases}


def same_geometry(one, other):
    np.testing.assert_allclose(one.affine, other.affine, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(one.spacing, other.spacing, rtol=1e-6)


@FEW
@given(volume=volumes(channels=(1,)), suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_nnunet_to_msd_and_back_is_lossless(tmp_path_factory, volume, suffix):
    root = fresh(tmp_path_factory)
    source = write_nnunet(root / "a", {"x 1": volume}, WIDE, ["CT"], suffix, licence="CC0")
    assert convert_data(source, root / "b", Options(to="msd")).lost == ()
    assert convert_data(root / "b", root / "Dataset001_c", Options(to="nnunet")).lost == ()
    data, cases = read_all(root / "Dataset001_c")
    assert (data.layout, data.channels, data.labels, data.licence) == ("nnunet", ("CT",), WIDE, "CC0")
    image, label, _ = volume
    np.testing.assert_array_equal(cases["x 1"].image, image.astype(np.float32))
    np.testing.assert_array_equal(cases["x 1"].label, label)
    same_geometry(cases["x 1"], read_all(source)[1]["x 1"])
    # the image's file is the same, header and all
    written = gzip.decompress((root / "Dataset001_c" / "imagesTr" / "x 1_0000.nii.gz").read_bytes())
    first = (source / "imagesTr" / f"x 1_0000{suffix}").read_bytes()
    assert written == (first if suffix == ".nii" else gzip.decompress(first))
    label_file = nibabel.load(root / "Dataset001_c" / "labelsTr" / "x 1.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(label_file.dataobj), label)


@FEW
@given(volume=volumes(channels=(2, 3)), through=st.sampled_from(["nnunet", "msd"]))
def test_channels_stay_channels(tmp_path_factory, volume, through):
    root = fresh(tmp_path_factory)
    source = write_nnunet(root / "a", {"x": volume}, WIDE)
    convert_data(source, root / "b", Options(to=through))
    assert len(list((root / "b" / "imagesTr").iterdir())) == (1 if through == "msd" else len(volume[0]))
    convert_data(root / "b", root / "c", Options(to="nnunet"))
    for folder in ("b", "c"):
        data, cases = read_all(root / folder)
        assert data.channels == tuple(f"c{index}" for index in range(len(volume[0])))
        np.testing.assert_array_equal(cases["x"].image, volume[0].astype(np.float32))
        np.testing.assert_array_equal(cases["x"].label, volume[1])
        same_geometry(cases["x"], read_all(source)[1]["x"])
        kinds = {finding.severity: finding.kind for finding in verify_data(root / folder).findings}
        assert "error" not in kinds


@FEW
@given(volume=volumes(channels=(1,)))
def test_transunet_keeps_values_and_says_that_geometry_is_lost(tmp_path_factory, volume):
    root = fresh(tmp_path_factory)
    source = write_nnunet(root / "a", {"x": volume}, WIDE)
    before = read_all(source)[1]["x"]
    done = convert_data(source, root / "b", Options(to="transunet"))
    assert any("spacing and affine" in line for line in done.lost)
    record = json.loads((root / "b" / "conversion.json").read_text())
    np.testing.assert_allclose(record["cases"]["x"]["affine"], before.affine)
    np.testing.assert_allclose(record["cases"]["x"]["spacing"], before.spacing)
    back = convert_data(root / "b", root / "c", Options(to="nnunet"))
    assert any("1 mm and the axes of the array were written" in line for line in back.lost)
    after = read_all(root / "c")[1]["x"]
    axis = record["cases"]["x"]["axis"]
    assert axis == slice_axis(before, Preprocessing())
    assert any("slices, cut along" in line for line in done.lost) == (axis != 2)
    np.testing.assert_array_equal(after.image[0], np.moveaxis(before.image[0], axis, -1))
    np.testing.assert_array_equal(after.label, np.moveaxis(before.label, axis, -1))
    assert open_data(root / "c").labels == WIDE


@FEW
@given(volume=volumes(channels=(1,)))
def test_images_keep_labels_and_whole_intensities(tmp_path_factory, volume):
    root = fresh(tmp_path_factory)
    source = write_nnunet(root / "a", {"x": volume}, WIDE)
    before = read_all(source)[1]["x"]
    done = convert_data(source, root / "b", Options(to="images"))
    data, cases = read_all(root / "b")
    record = json.loads((root / "b" / "conversion.json").read_text())["cases"]["x"]
    assert data.labels == WIDE
    assert record["ids"] == [case.id for case in data.cases] == [f"x_slice{i:03d}" for i in range(len(cases))]
    stored = np.stack([case.image[0] for case in cases.values()]).astype(np.float64)
    values = np.moveaxis(before.image[0], record["axis"], 0)
    whole = bool((values == np.rint(values)).all())
    whole |= np.ptp(values) == 0  # kept by the offset
    assert any("65536 steps" in line for line in done.lost) == (not whole)
    found = record["offset"] + record["step"] * stored
    np.testing.assert_allclose(found, values, rtol=0, atol=0 if whole else 0.51 * record["step"])
    labels = np.stack([case.label for case in cases.values()])
    np.testing.assert_array_equal(labels, np.moveaxis(before.label, record["axis"], 0))
    rows = list(csv.reader((root / "b" / "groups.csv").read_text().splitlines()))
    assert rows == [["id", "group"], *([name, "x"] for name in record["ids"])]


@FEW
@given(
    image=arrays_of.arrays(
        st.sampled_from([np.uint8, np.uint16]), st.tuples(st.integers(1, 9), st.integers(1, 9))
    ),
    colours=st.booleans(),
    through=st.sampled_from(["nnunet", "transunet", "images"]),
)
def test_pictures_come_back_pixel_by_pixel(tmp_path_factory, image, colours, through):
    root = fresh(tmp_path_factory)
    values = np.stack([image, image[::-1], image], axis=-1).astype(np.uint8) if colours else image
    mask = (image % 3).astype(np.uint8)
    for part, name in (("train", "1"), ("train", "train_2"), ("test", "1")):
        for folder, pixels in (("images", values), ("masks", mask)):
            (root / "a" / part / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "a" / part / folder / f"{name}.png")
    (root / "a" / "labels.json").write_text('{"labels": {"background": 0, "x": 1, "y": 2}}')
    if colours and through == "transunet":
        with pytest.raises(DataError, match="has 3 channels, TransUNet's files hold one"):
            convert_data(root / "a", root / "b", Options(to="transunet"))
        return
    assert convert_data(root / "a", root / "b", Options(to=through)).lost == ()
    assert convert_data(root / "b", root / "c", Options(to="images")).lost == ()
    before, after = read_all(root / "a"), read_all(root / "c")
    parts = [[(case.id, case.part) for case in data.cases] for data, _ in (before, after)]
    assert parts[0] == parts[1]
    assert {path for path in files_below(root / "a") if path.endswith(".png")} == {
        path for path in files_below(root / "c") if path.endswith(".png")
    }
    for name, case in before[1].items():
        np.testing.assert_array_equal(after[1][name].image, case.image)
        assert after[1][name].image.dtype == case.image.dtype
        np.testing.assert_array_equal(after[1][name].label, case.label)


@given(arrays_of.arrays(np.float32, st.integers(1, 20), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_scales_lead_back(values):
    scale = choose_scale(values, values.dtype)
    stored = scale.apply(values)
    back = scale.offset + scale.step * stored.astype(np.float64)
    np.testing.assert_allclose(back, values, rtol=0, atol=0 if scale.exact else scale.step * 0.51)


def test_fractions_of_slices_stay_comparable(tmp_path):
    root = write_synapse(tmp_path / "s")
    convert_data(root, tmp_path / "i", Options(to="images"))
    _, pictures = read_all(tmp_path / "i")
    for case in open_data(root).cases[:4]:
        if case.part == "train":
            values, stored = read_case(case).image, pictures[f"train_{case.id}"].image
            np.testing.assert_allclose(stored / 65535, values, atol=0.51 / 65535)


def test_a_window_clips_and_scales(tmp_path):
    image = np.array([[[[-2000.0, -125.0, 75.0, 275.0, 3000.0]]]], np.float32)
    label = np.zeros((1, 1, 5), np.uint8)
    source = write_nnunet(tmp_path / "a", {"x": (image, label, np.diag([9, 1, 1, 1]))})
    done = convert_data(source, tmp_path / "t", Options(to="transunet", window=(-125, 275)))
    assert any("outside --window" in line for line in done.lost)
    (case,) = read_all(tmp_path / "t")[1].values()
    np.testing.assert_allclose(case.image.ravel(), [0, 0, 0.5, 1, 1])
    convert_data(source, tmp_path / "i", Options(to="images", window=(-125, 275)))
    (case,) = read_all(tmp_path / "i")[1].values()
    assert case.image.ravel().tolist() == [0, 0, 32768, 65535, 65535]
    with pytest.raises(UsageError, match="nnunet keeps intensities"):
        convert_data(source, tmp_path / "n", Options(to="nnunet", window=(-125, 275)))
    with pytest.raises(UsageError, match="the window 3 to 3 is empty"):
        convert_data(source, tmp_path / "n", Options(to="images", window=(3, 3)))


def small(seed, shape=(4, 3, 5), channels=1):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 99, (channels, *shape)).astype(np.uint8)
    return image, generator.integers(0, 4, shape).astype(np.uint8), np.diag([1.0, 1, 3, 1])


@pytest.fixture
def parted(tmp_path):
    """Five labelled cases, folds, an unlabelled test case and one whose truth is in labelsTs."""
    cases = {f"patient{number:03d}_frame01": small(number) for number in range(7)}
    root = write_nnunet(tmp_path / "Dataset001_x", cases)
    for folder in ("imagesTs", "labelsTs"):
        (root / folder).mkdir()
    for number in (5, 6):
        name = f"patient{number:03d}_frame01"
        (root / "imagesTr" / f"{name}_0000.nii.gz").rename(root / "imagesTs" / f"{name}_0000.nii.gz")
        (root / "labelsTr" / f"{name}.nii.gz").rename(root / "labelsTs" / f"{name}.nii.gz")
    names = [f"patient{number:03d}_frame01" for number in range(5)]
    folds = [{"train": names[1:], "val": names[:1]}, {"train": names[:3], "val": names[3:]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    return root


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
