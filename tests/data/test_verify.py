"""Every fault of a data folder is planted and found, and the search goes on behind it."""

import gzip
import json
import re
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

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


@pytest.fixture
def pictures(phantom, tmp_path):
    """Twenty pictures to be spoilt."""
    return Path(shutil.copytree(phantom, tmp_path / "pictures"))


@pytest.fixture
def volumes(phantom_3d, tmp_path):
    """Ten volumes to be spoilt."""
    return Path(shutil.copytree(phantom_3d, tmp_path / "volumes"))


def found(root, split=None):
    """Findings by kind."""
    result = verify_data(root, split)
    by_kind = {}
    for finding in result.findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    return by_kind


def only(root, kind, split=None):
    """The single finding, of the given kind."""
    findings = found(root, split)
    assert list(findings) == [kind], findings
    (finding,) = findings[kind]
    assert finding.what
    assert finding.cure
    return finding


def picture(root, index, folder="images"):
    return root / folder / f"phantom-{index:04d}.png"


def volume(root, index, folder="imagesTr"):
    return root / folder / f"phantom-{index:04d}{'_0000' if folder == 'imagesTr' else ''}.nii.gz"


def change_volume(path, change=None, affine=None, dtype=None):
    """Write a volume anew, its values or affine changed."""
    old = nibabel.load(path)
    values = np.asanyarray(old.dataobj).astype(dtype or old.get_data_dtype())
    if change is not None:
        change(values)
    nibabel.save(nibabel.Nifti1Image(values, old.affine if affine is None else affine), path)


def write_split(root, **parts):
    path = root.parent / "split.json"
    path.write_text(json.dumps({"train": [], "val": [], "test": []} | parts))
    return path


def ids(*numbers):
    return [f"phantom-{number:04d}" for number in numbers]


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


def test_a_clean_split_gives_no_finding(phantom):
    result = verify_data(
        phantom, Path(shutil.copy(phantom / "dataset.json", phantom.parent)) and split_of(phantom)
    )
    assert result.findings == ()
    assert result.parts == {"train": 16, "val": 2, "test": 2}


def split_of(root):
    return write_split(root, train=ids(*range(16)), val=ids(16, 17), test=ids(18, 19))


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
    assert only(pictures, "size").what == "is 40 x 30, phantom-0006.png is 40 x 36"


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
    assert "have no masks" in found(root)["missing_label"][0].what


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


@pytest.mark.shared_data
def test_random_split_of_cvc_shares_sequences(shared_data):
    splits = Path(__file__).resolve().parents[2] / "recipes" / "splits"
    root = shared_data / "CVC-ClinicDB-256"
    result = verify_data(root, splits / "cvc_clinicdb_seed0.json")
    kinds = Counter(finding.kind for finding in result.findings)
    assert (result.groups, kinds["group_across"]) == (29, 28)
    assert kinds["near_duplicate_across"] > 0
    assert set(kinds) == {"group_across", "near_duplicate_across", "near_duplicate_within", "unnamed_labels"}


@pytest.mark.shared_data
def test_normals_of_busi_have_empty_masks(shared_data):
    result = verify_data(shared_data / "BUSI-subset-256")
    empty = [finding.cases[0] for finding in result.findings if finding.kind == "empty_mask"]
    assert sorted(empty) == sorted(f"normal ({index})" for index in range(1, 51))
    assert not result.has_errors


@pytest.mark.shared_data
def test_hippocampus_is_clean(shared_data, tmp_path):
    cases = sorted((shared_data / "Task04_Hippocampus" / "imagesTr").iterdir())[::6]
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        for path in cases:
            (tmp_path / folder / path.name).symlink_to(path.parents[1] / folder / path.name)
    (tmp_path / "labels.json").write_text(
        '{"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}'
    )
    result = verify_data(tmp_path)
    assert (result.layout, sum(result.parts.values()), result.findings) == ("msd", 44, ())
