"""Conversion between layouts: lossless round trips where the target holds it, and what is said where not."""

import csv
import gzip
import json

import nibabel
import numpy as np
import pytest
from convert_cases import WIDE, fresh, read_all, same_geometry, volumes, write_nnunet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image

from array_folders import write_synapse
from rwkvseg.data.convert import Options, convert_data
from rwkvseg.data.convert.scale import choose_scale
from rwkvseg.data.layouts import open_data, read_case
from rwkvseg.data.preprocessing import Preprocessing, slice_axis
from rwkvseg.data.verify import verify_data
from rwkvseg.errors import DataError, UsageError
from small import files_below

FEW = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
