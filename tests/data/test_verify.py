"""Every fault of a data folder is planted and found, and the search goes on behind it."""

import gzip
import json
import shutil
import tracemalloc

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rwkvseg.data import open_data, read_case
from rwkvseg.data.findings import KINDS
from rwkvseg.data.io import read_image
from rwkvseg.data.phantom import write_phantom
from rwkvseg.data.verify import verify_data
from rwkvseg.errors import DataError
from spoilt import change_volume, found, ids, only, picture, volume


@pytest.mark.parametrize("name", ["phantom", "phantom_3d"])
def test_a_clean_folder_gives_no_finding(name, request):
    root = request.getfixturevalue(name)
    seen = []
    result = verify_data(root, on_case=lambda done, total: seen.append((done, total)))
    assert result.findings == ()
    assert not result.has_errors
    number = 20 if name == "phantom" else 10
    assert result.parts == {None: number}
    assert seen == [(done, number) for done in range(1, number + 1)]


def test_pictures_that_cannot_be_decoded(pictures):
    picture(pictures, 1).write_bytes(b"no picture at all")
    whole = picture(pictures, 2).read_bytes()
    picture(pictures, 2).write_bytes(whole[: len(whole) // 2])
    picture(pictures, 3, "masks").write_bytes(b"")
    findings = found(pictures)
    assert {kind: [f.file for f in items] for kind, items in findings.items()} == {
        "unreadable": ["images/phantom-0001.png"],
        "truncated": ["images/phantom-0002.png", "masks/phantom-0003.png"],
    }
    assert findings["truncated"][1].what == "the file is empty: 0 bytes"


def test_volumes_that_cannot_be_decoded(volumes):
    volume(volumes, 1).write_bytes(b"no volume at all")
    packed = volume(volumes, 2).read_bytes()
    volume(volumes, 2).write_bytes(packed[: len(packed) // 2])
    raw = gzip.decompress(volume(volumes, 3).read_bytes())
    volume(volumes, 3).unlink()
    (volumes / "imagesTr" / "phantom-0003_0000.nii").write_bytes(raw[:-100])
    damaged = bytearray(volume(volumes, 4, "labelsTr").read_bytes())
    damaged[-5] ^= 255  # in the checksum
    volume(volumes, 4, "labelsTr").write_bytes(damaged)
    findings = found(volumes)
    assert {kind: [f.cases[0] for f in items] for kind, items in findings.items()} == {
        "unreadable": ids(1, 4),
        "truncated": ids(2, 3),
    }
    assert "imagesTr" not in findings["truncated"][0].what  # the file stands in its own column


def test_missing_files(pictures, volumes):
    picture(pictures, 4).unlink()
    picture(pictures, 5, "masks").unlink()
    findings = found(pictures)
    assert {kind: [f.cases for f in items] for kind, items in findings.items()} == {
        "missing_image": [("phantom-0004",)],
        "missing_label": [("phantom-0005",)],
    }
    volume(volumes, 6).unlink()
    volume(volumes, 7, "labelsTr").unlink()
    assert set(found(volumes)) == {"missing_image", "missing_label"}


def test_missing_channel(volumes):
    for index in range(10):
        second = volume(volumes, index).with_name(f"phantom-{index:04d}_0001.nii.gz")
        shutil.copy(volume(volumes, index), second)
    assert len(found(volumes)["missing_channel"]) == 10  # dataset.json names one
    settings = json.loads((volumes / "dataset.json").read_text())
    settings["channel_names"] = {"0": "T1", "1": "T2"}
    (volumes / "dataset.json").write_text(json.dumps(settings))
    assert verify_data(volumes).findings == ()
    (volumes / "imagesTr" / "phantom-0004_0001.nii.gz").unlink()
    finding = only(volumes, "missing_channel")
    assert finding.cases == ("phantom-0004",)
    assert finding.what == "has the channels 0000, not 0000 to 0001"
    second.rename(second.with_name("stray.nii.gz"))
    assert {kind: len(items) for kind, items in found(volumes).items()} == {"layout": 1, "missing_channel": 2}


def test_channels_on_different_grids(volumes):
    settings = json.loads((volumes / "dataset.json").read_text())
    settings["channel_names"] = {"0": "T1", "1": "T2"}
    (volumes / "dataset.json").write_text(json.dumps(settings))
    for index in range(10):
        shutil.copy(volume(volumes, index), volumes / "imagesTr" / f"phantom-{index:04d}_0001.nii.gz")
    change_volume(volumes / "imagesTr" / "phantom-0002_0001.nii.gz", affine=np.diag([2.0, 1, 2.5, 1]))
    assert only(volumes, "spacing").file == "imagesTr/phantom-0002_0001.nii.gz"


def test_missing_files_of_a_listed_msd_task(volumes):
    for path in sorted((volumes / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace("_0000", "")))
    names = [path.name for path in sorted((volumes / "imagesTr").iterdir())]
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    settings = {"labels": {"0": "background", "1": "a", "2": "b", "3": "c", "4": "d"}, "training": training}
    (volumes / "dataset.json").write_text(json.dumps(settings))
    assert verify_data(volumes).findings == ()
    (volumes / "labelsTr" / names[3]).unlink()
    assert only(volumes, "missing_label").file == f"labelsTr/{names[3]}"
    settings["training"] = [*training, {"image": "x"}]
    (volumes / "dataset.json").write_text(json.dumps(settings))
    assert set(found(volumes)) == {"missing_label", "layout"}


def test_size(pictures):
    Image.open(picture(pictures, 6, "masks")).crop((0, 0, 30, 40)).save(picture(pictures, 6, "masks"))
    assert only(pictures, "size").what == "is 40 x 30, images/phantom-0006.png is 40 x 36"


@pytest.mark.parametrize(
    ("shift", "kinds"), [(0.9e-3, set()), (1.1e-3, {"affine"})], ids=["within", "beyond"]
)
def test_affine_has_a_tolerance(volumes, shift, kinds):
    affine = nibabel.load(volume(volumes, 0)).affine.copy()
    affine[0, 3] += shift
    change_volume(volume(volumes, 0, "labelsTr"), affine=affine)
    findings = found(volumes)
    assert set(findings) == kinds
    assert all("tolerance 0.001 mm" in finding.what for finding in findings.get("affine", ()))


@pytest.mark.parametrize(
    ("factor", "kinds"), [(0.9e-3, set()), (1.2e-3, {"spacing"})], ids=["within", "beyond"]
)
def test_spacing_has_a_tolerance(volumes, factor, kinds):
    affine = nibabel.load(volume(volumes, 0)).affine.copy()
    assert np.linalg.norm(affine[:3, 0]) == pytest.approx(1)  # mm
    affine[:3, 0] *= 1 + factor
    change_volume(volume(volumes, 0, "labelsTr"), affine=affine)
    findings = found(volumes)
    assert set(findings) == kinds
    assert all("tolerance 0.001 mm" in finding.what for finding in findings.get("spacing", ()))


def test_an_affine_that_maps_no_volume(volumes):
    broken = nibabel.load(volume(volumes, 2))
    header = broken.header.copy()
    header.set_sform(np.diag([0.0, 1, 1, 1]), code=1)
    image = nibabel.Nifti1Image(np.asanyarray(broken.dataobj), None, header)
    nibabel.save(image, volume(volumes, 2))
    assert only(volumes, "affine").cases == ("phantom-0002",)


def test_unknown_label_value(pictures):
    label = np.asarray(Image.open(picture(pictures, 7, "masks"))).copy()
    label[0, :3] = (9, 12, 9)
    Image.fromarray(label).save(picture(pictures, 7, "masks"))
    assert only(pictures, "unknown_label").what.startswith("the label map holds 9, 12, which no label has")


def test_255_is_known_under_two_labels_only(pictures):
    for path in (pictures / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    assert len(found(pictures)["unknown_label"]) == 20
    (pictures / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1}}')
    assert found(pictures) == {}


def test_values_without_named_labels_are_told(pictures):
    (pictures / "dataset.json").unlink()
    assert "hold 0, 1, 2, 3, 4" in only(pictures, "unnamed_labels").what


def test_label_maps_of_no_labels(pictures, volumes):
    Image.fromarray(np.random.default_rng(0).integers(0, 5, (40, 36, 3), np.uint8)).save(
        picture(pictures, 8, "masks")
    )
    assert "colour" in only(pictures, "label_values").what
    change_volume(
        volume(volumes, 1, "labelsTr"), lambda values: values.__setitem__((0, 0, 0), 1.5), dtype=np.float32
    )
    assert "fractions such as 1.5" in only(volumes, "label_values").what


def test_empty_mask(pictures):
    Image.new("L", (36, 40)).save(picture(pictures, 9, "masks"))
    finding = only(pictures, "empty_mask")
    assert (finding.severity, finding.file) == ("warning", "masks/phantom-0009.png")


def test_nan_and_infinity(volumes):
    def spoil(values):
        values[0, 0, :2] = np.nan
        values[1, 1, 1] = -np.inf

    change_volume(volume(volumes, 3), spoil, dtype=np.float32)
    findings = found(volumes)
    assert {kind: items[0].what for kind, items in findings.items()} == {
        "nan": "NaN in 2 of 3060 voxels of the image",
        "inf": "infinity in 1 of 3060 voxels of the image",
    }
    change_volume(volume(volumes, 4, "labelsTr"), spoil, dtype=np.float32)
    findings = found(volumes)
    assert [len(findings[kind]) for kind in ("nan", "inf")] == [2, 2]
    assert findings["nan"][1].what == "NaN in 2 of 3060 voxels of the label map"


def test_constant_image(pictures, volumes):
    Image.new("L", (36, 40), 7).save(picture(pictures, 10))
    assert only(pictures, "constant_image").what == "every pixel of the image is 7"
    change_volume(volume(volumes, 5), lambda values: values.fill(0))
    assert only(volumes, "constant_image").what == "every voxel of the image is 0"


def test_one_case_may_have_several_faults(volumes):
    volume(volumes, 3).write_bytes(b"")
    change_volume(volume(volumes, 3, "labelsTr"), lambda values: values.__setitem__((1, 1, 1), 77))
    findings = verify_data(volumes).findings
    assert [(finding.kind, finding.cases) for finding in findings] == [
        ("truncated", ("phantom-0003",)),
        ("unknown_label", ("phantom-0003",)),
    ]


def test_all_faults_at_once_are_listed_gravest_first(pictures):
    picture(pictures, 0).write_bytes(b"")
    picture(pictures, 1, "masks").unlink()
    Image.new("L", (36, 40)).save(picture(pictures, 2, "masks"))
    Image.new("L", (36, 40), 7).save(picture(pictures, 3))
    shutil.copy(picture(pictures, 4), picture(pictures, 5))
    result = verify_data(pictures)
    assert [finding.kind for finding in result.findings] == [
        "missing_label", "truncated", "constant_image", "empty_mask", "duplicate_within",
    ]  # fmt: skip
    assert result.counts == {"error": 2, "warning": 2, "note": 1}
    assert all(finding.kind in KINDS for finding in result.findings)


def test_no_layout(tmp_path):
    with pytest.raises(DataError, match="no known layout"):
        verify_data(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        verify_data(tmp_path / "none")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        verify_data(tmp_path)


def test_one_image_is_held_at_a_time(tmp_path):
    """Ten times the pictures take no more memory than one does, but for what is kept of each."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()

    def peak():
        tracemalloc.start()
        verify_data(tmp_path)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    for index in range(7):
        values = random.integers(0, 255, (400, 500), np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / f"{index}.bmp")
        Image.fromarray(values // 128).save(tmp_path / "masks" / f"{index}.bmp")
        if index == 1:
            first = peak()
    assert peak() < first + 400 * 500


@pytest.fixture(scope="module")
def pair_of_folders(tmp_path_factory):
    """A folder of one picture and one of one volume, to be damaged and restored."""
    root = tmp_path_factory.mktemp("fuzz")
    write_phantom(root / "2d", 1, size=(16, 13))
    write_phantom(root / "3d", 1, dimensions=3, size=(9, 8, 8))
    label = root / "3d" / "labelsTr" / "phantom-0000.nii.gz"
    label.with_suffix("").write_bytes(
        gzip.decompress(label.read_bytes())
    )  # damage in gzip stops at its checksum
    label.unlink()
    return root


@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), max_size=3),
    st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_damage_is_an_error_exactly_where_the_reader_refuses(pair_of_folders, which, flips, cut):
    """Whatever bytes change: verify never fails, and agrees with `read_case`."""
    paths = sorted(path for path in pair_of_folders.rglob("phantom*") if path.is_file())
    path = paths[which]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for place, mask in flips:
        damaged[place % len(damaged)] ^= mask
    path.write_bytes(damaged[: -1 - len(damaged) // 3] if cut else damaged)
    try:
        data = open_data(path.parents[1])
        try:
            read_case(data.cases[0], data.labels)
            refused = False
        except DataError:
            refused = True
        result = verify_data(path.parents[1])
    finally:
        path.write_bytes(whole)
    assert result.has_errors == refused, result.findings


def test_an_odd_header_extension_is_passed_over(volumes):
    """NiBabel would warn of it."""
    old = nibabel.load(volume(volumes, 1))
    values = np.asanyarray(old.dataobj)
    image = nibabel.Nifti1Image(values, old.affine)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"odd"))
    raw = bytearray(image.to_bytes())
    assert raw[352:354] == b"\x10\x00"  # its size, a multiple of 16
    raw[352] = 15
    volume(volumes, 1).unlink()
    path = volumes / "imagesTr" / "phantom-0001_0000.nii"
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_image(path)[0][0], values)
    assert verify_data(volumes).findings == ()


@pytest.mark.parametrize(
    ("values", "gap"), [((0, 1, 2, 4), True), ((0, 1, 255), True), ((0, 255), False), ((0, 1, 2), False)]
)
def test_labels_that_plan_and_train_refuse(pictures, values, gap):
    (pictures / "dataset.json").unlink()
    for path in (pictures / "masks").iterdir():
        label = np.asarray(Image.open(path))
        Image.fromarray(np.array(values, np.uint8)[label % len(values)]).save(path)
    findings = found(pictures).get("label_gap", [])
    assert ["without gaps" in finding.what for finding in findings] == [True] * gap


def test_pictures_that_a_viewer_turns(pictures):
    path = picture(pictures, 3)
    image = Image.open(path)
    image.load()
    exif = Image.Exif()
    exif[274] = 6
    image.save(path, exif=exif)
    finding = only(pictures, "orientation")
    assert (finding.cases, "orientation 6" in finding.what) == (("phantom-0003",), True)
