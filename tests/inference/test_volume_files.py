"""`rwkvseg predict` on NIfTI volumes: labels lie over the object in the world, and bad files are refused."""

import gzip
import json
import signal
import struct
import subprocess
import sys
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import SimpleITK
from nibabel.affines import apply_affine
from volume_cases import Linear, oblique_affine, world

from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.inference import volume_memory
from rwkvseg.inference.model_file import Architecture, ModelDescription, save_model
from rwkvseg.models import registry
from small import files_below

CENTRE, RADII = np.array([9.0, -36.0, 22.0]), np.array([8.0, 5.0, 11.0])  # mm
SPACINGS = (0.8, 1.1, 2.0)


def volume_threshold(*, in_channels, num_classes):
    """A registered network: foreground where the intensity exceeds 0.5."""
    assert num_classes == 1
    return Linear()


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Write a model folder of that network, its preprocessing as given."""
    monkeypatch.setitem(registry._FACTORIES, "volume_threshold", volume_threshold)

    def write(**preprocessing):
        settings = {"dimensions": 3, "channels": 1, "patch": (16, 12, 10)} | preprocessing
        description = ModelDescription(
            rwkvseg_version="0.1.0",
            architecture=Architecture(
                name="volume_threshold", in_channels=settings["channels"], num_classes=1
            ),
            labels={"background": 0, "organ": 1},
            preprocessing=Preprocessing(**settings),
        )
        save_model(tmp_path / "model", Linear(), description)
        return tmp_path / "model"

    return write


def write_organ(path, affine, shape):
    """NIfTI of an ellipsoid given in the world, bright within; its mask."""
    inside = (((world(shape, affine) - CENTRE) / RADII) ** 2).sum(-1) <= 1
    values = np.where(inside, 900, -100).astype(np.int16)
    values += np.random.default_rng(0).integers(-90, 90, shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return inside


def affine_around(axes, signs, shape, spacing=SPACINGS):
    """Oblique affine that puts the middle of the volume near the organ."""
    affine = oblique_affine(axes, signs, spacing)
    off_centre = CENTRE + np.array([1.0, -2.0, 0.5])
    affine[:3, 3] += off_centre - apply_affine(affine, (np.array(shape) - 1) / 2)
    return affine


LPS = ((0, 1, 2), (-1, -1, 1))
REVERSED = ((0, 1, 2), (-1, -1, -1))
CORONAL = ((0, 2, 1), (1, -1, 1))
SAGITTAL = ((1, 2, 0), (1, -1, -1))


@pytest.mark.parametrize(("axes", "signs"), [LPS, REVERSED, CORONAL, SAGITTAL])
@pytest.mark.parametrize("orientation", ["file", "RAS"])
def test_predict_overlays_the_object_in_the_world(rwkvseg, model, tmp_path, axes, signs, orientation):
    shape = (33, 28, 21)
    affine = affine_around(axes, signs, shape)
    inside = write_organ(tmp_path / "scan.nii.gz", affine, shape)
    folder = model(orientation=orientation)
    code, _, err = rwkvseg("predict", "-m", folder, "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out")
    assert code == 0, err
    written, original = (nibabel.load(p) for p in (tmp_path / "out/scan.nii.gz", tmp_path / "scan.nii.gz"))
    np.testing.assert_array_equal(written.affine, original.affine)
    np.testing.assert_allclose(written.get_qform(), written.get_sform(), atol=1e-5)
    assert written.header["sform_code"] == original.header["sform_code"]
    assert written.get_data_dtype() == np.uint8
    labels = np.asarray(written.dataobj)
    np.testing.assert_array_equal(labels, inside)
    centroid = apply_affine(written.affine, np.argwhere(labels)).mean(0)
    np.testing.assert_allclose(centroid, CENTRE, atol=0.3)


def test_at_another_spacing_the_object_keeps_its_place(rwkvseg, model, tmp_path):
    """Anisotropic 0.8 x 1.1 x 2 mm, predicted at 1.5 mm: of every orientation the centroid is the organ's."""
    shape, folder = (
        (33, 28, 21),
        model(spacing=(1.5, 1.5, 1.5), orientation="RAS", normalisation="percentile"),
    )
    (tmp_path / "in").mkdir()
    masks = {}
    for index, (axes, signs) in enumerate(product(permutations(range(3)), [(1, -1, 1), (-1, 1, -1)])):
        affine = affine_around(axes, signs, shape)
        masks[f"{index}"] = write_organ(tmp_path / f"in/{index}.nii.gz", affine, shape)
    code, out, err = rwkvseg("predict", "-m", folder, "-i", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.startswith("12 label maps")
    for name, inside in masks.items():
        written = nibabel.load(tmp_path / f"out/{name}.nii.gz")
        labels = np.asarray(written.dataobj)
        dice = 2 * (labels * inside).sum() / (labels.sum() + inside.sum())
        centroids = [apply_affine(written.affine, np.argwhere(mask)).mean(0) for mask in (labels, inside)]
        assert dice > 0.9
        np.testing.assert_allclose(*centroids, atol=0.15)


def test_the_largest_part_is_kept_and_said_so(rwkvseg, model, tmp_path):
    shape, affine = (33, 28, 21), affine_around(*LPS, (33, 28, 21))
    inside = write_organ(tmp_path / "scan.nii.gz", affine, shape)
    scan = nibabel.load(tmp_path / "scan.nii.gz")
    values = np.asarray(scan.dataobj).copy()
    values[:2, :2, :2] = values[30, 1, 19] = 900  # specks far from the organ
    assert not inside[:3, :3, :3].any()
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "scan.nii.gz")
    given = ("predict", "-m", model(), "-i", tmp_path / "scan.nii.gz", "--report", tmp_path / "report.json")
    assert rwkvseg(*given, "-o", tmp_path / "raw")[0] == 0
    assert np.asarray(nibabel.load(tmp_path / "raw/scan.nii.gz").dataobj).sum() == inside.sum() + 9
    assert "keep_largest" not in json.loads((tmp_path / "raw/prediction.json").read_text())
    code, _, err = rwkvseg(*given, "-o", tmp_path / "out", "--keep-largest", "organ")
    assert code == 0, err
    np.testing.assert_array_equal(nibabel.load(tmp_path / "out/scan.nii.gz").dataobj, inside)
    assert json.loads((tmp_path / "out/prediction.json").read_text())["keep_largest"] == ["organ"]
    (row,) = json.loads((tmp_path / "report.json").read_text())["cases"]
    assert (row["removed"], row["pixels"]["organ"]) == ({"organ": 9}, inside.sum())
    (tmp_path / "truth").mkdir()
    nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8), affine), tmp_path / "truth/scan.nii.gz")
    code, _, err = rwkvseg(
        "evaluate", "-p", tmp_path / "out", "-t", tmp_path / "truth", "-o", tmp_path / "scores"
    )
    assert code == 0, err
    assert "largest part only" in (tmp_path / "scores/report.html").read_text()
    summary = json.loads((tmp_path / "scores/summary.json").read_text())
    assert summary["rwkvseg"]["context"]["keep_largest"] == ["organ"]
    code, _, err = rwkvseg(*given, "-o", tmp_path / "other", "--keep-largest", "liver")
    assert code == 2
    assert "'liver', which is no structure; known are organ (1)" in err


REAL = {
    "ACDC-nii/imagesTr": {"patch": (160, 160, 8)},
    "ACDC-nii/labelsTr": {"patch": (96, 112, 8), "spacing": (1.6, 1.6, 10.0), "orientation": "RAS"},
    "Task04_Hippocampus/imagesTr": {"patch": (24, 24, 24), "orientation": "RAS", "crop": "nonzero"},
    "Task04_Hippocampus/labelsTr": {"patch": (24, 24, 24), "spacing": (0.8, 0.8, 0.8)},
}


@pytest.mark.shared_data
@pytest.mark.parametrize("folder", REAL)
def test_real_volumes(rwkvseg, model, tmp_path, shared_data, folder):
    """The brighter half of the range, or a real organ as the image, comes back where it was."""
    source = sorted((shared_data / folder).glob("*.nii.gz"))[7]
    image = nibabel.load(source)
    affine = image.affine.copy()
    affine[:3, :3] = oblique_affine()[:3, :3] @ affine[:3, :3]  # the files themselves lie straight
    values = np.asarray(image.dataobj)
    values = values if "images" in folder else (values > 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "scan.nii.gz")
    code, _, err = rwkvseg(
        "predict", "-m", model(**REAL[folder]), "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out"
    )
    assert code == 0, err
    written = nibabel.load(tmp_path / "out/scan.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-4)
    labels, expected = np.asarray(written.dataobj), values > (float(values.max()) + float(values.min())) / 2
    if "images" in folder:
        np.testing.assert_array_equal(labels, expected)
    else:
        centroids = [apply_affine(affine, np.argwhere(mask)).mean(0) for mask in (labels, expected)]
        np.testing.assert_allclose(*centroids, atol=0.2)
        assert 2 * (labels * expected).sum() / (labels.sum() + expected.sum()) > 0.95


class TestBadInput:
    """Clear errors, exit code 1, nothing written, and no memory taken for what a header claims."""

    @pytest.fixture
    def refused(self, rwkvseg, model, tmp_path):
        def run(path, *arguments, code=1, **preprocessing):
            found, out, err = rwkvseg(
                "predict", "-m", model(**preprocessing), "-i", path, "-o", tmp_path / "out", *arguments
            )
            assert (found, out) == (code, ""), err
            assert err.startswith("error: ")
            assert not err.startswith("error: unexpected")
            assert not (tmp_path / "out").exists()
            return err

        return run

    def scan(self, path, values=None, affine=None):
        values = np.arange(6 * 5 * 4).reshape(6, 5, 4).astype(np.int16) if values is None else values
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
        return path

    def test_several_volumes_in_one_file(self, refused, tmp_path):
        path = self.scan(tmp_path / "a.nii.gz", np.zeros((4, 4, 4, 3), np.int16))
        assert "4 axes (4, 4, 4, 3), more than one volume" in refused(path)

    def test_a_wrong_number_of_channels(self, refused, tmp_path):
        folder = tmp_path / "in"
        folder.mkdir()
        for channel in range(3):
            self.scan(folder / f"a_{channel:04d}.nii.gz")
        assert "case a has 3 channels, the network takes 2" in refused(folder, channels=2)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan_and_infinity(self, refused, tmp_path, value):
        values = np.zeros((6, 5, 4), np.float32)
        values[1, 2, 3] = value
        assert "NaN or infinity in 1 of 120 voxels" in refused(self.scan(tmp_path / "a.nii.gz", values))

    @pytest.mark.parametrize("kept", [0.3, 0.95])
    def test_truncated(self, refused, tmp_path, kept):
        noise = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
        path = self.scan(tmp_path / "a.nii.gz", noise)
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        assert "cannot decode" in refused(path)

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_a_hundred_thousand_voxels_a_side(self, refused, tmp_path, name):
        header = bytearray(nibabel.Nifti2Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).header.binaryblock)
        struct.pack_into("<8q", header, 16, 3, 10**5, 10**5, 10**5, 1, 1, 1, 1)
        content = bytes(header) + bytes(100)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        assert "header claims 2000000000000000 bytes" in refused(tmp_path / name)

    def test_a_sparse_file_as_large_as_it_claims(self, refused, tmp_path):
        header = bytearray(nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).header.binaryblock)
        struct.pack_into("<8h", header, 40, 3, 20000, 20000, 2000, 1, 1, 1, 1)
        with (tmp_path / "a.nii").open("wb") as file:
            file.write(bytes(header) + bytes(4))
            file.truncate(352 + 2 * 20000**2 * 2000)
        err = refused(tmp_path / "a.nii")
        assert "holds 20000 x 20000 x 2000 voxels, which take 4.37 TiB of memory to read" in err

    def test_an_affine_without_extent(self, refused, tmp_path):
        flat = np.diag([1.0, 0.0, 1.0, 1.0])
        path = self.scan(tmp_path / "a.nii")
        content = bytearray(path.read_bytes())
        struct.pack_into("<12f", content, 280, *flat[:3].ravel())
        path.write_bytes(content)
        assert "an affine that maps no volume" in refused(path)
        struct.pack_into("<4f", content, 80, 1, 0, 1, 0)
        struct.pack_into("<2h", content, 252, 1, 0)
        path.write_bytes(content)
        assert "a spacing of 0 mm along axis 1, and no sform. Mend its pixdim" in refused(path)

    def test_a_spacing_that_would_fill_the_memory(self, refused, tmp_path):
        """A header in metres that says mm: the network's grid would have 10^12 voxels."""
        path = self.scan(tmp_path / "a.nii", affine=np.diag([2e3, 2e3, 2e3, 1]))
        err = refused(path, spacing=(1.0, 1.0, 1.0))
        assert "6 x 5 x 4 voxels, 12000 x 10000 x 8000 for the network, would take" in err
        assert "this machine has" in err

    def test_more_memory_than_is_allowed(self, refused, tmp_path, monkeypatch):
        path = self.scan(tmp_path / "a.nii", np.zeros((64, 64, 64), np.int16))
        monkeypatch.setattr(volume_memory, "PROGRAM", 0)
        err = refused(path, "--max-memory", "2M")
        assert "case a of 64 x 64 x 64 voxels" in err
        assert "--max-memory allows 2 MiB. Check its spacing" in err
        assert "no amount of memory" in refused(path, "--max-memory", "lots", code=2)
        assert "overlap is 1.0" in refused(path, "--overlap", "1", code=2)


def test_an_interrupted_write_leaves_nothing(rwkvseg, model, tmp_path, monkeypatch):
    write_organ(tmp_path / "scan.nii.gz", affine_around(*LPS, (12, 9, 8)), (12, 9, 8))

    def half(_image, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(nibabel, "save", half)
    code, _, err = rwkvseg("predict", "-m", model(), "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out")
    assert (code, err.startswith("error: stopped")) == (130, True)
    assert files_below(tmp_path / "out") == []


KILLED = """
import os, signal, sys
from pathlib import Path
import nibabel, numpy
from rwkvseg.data.io import write_label_map

def half(image, path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

nibabel.save = half
write_label_map(Path(sys.argv[1]), numpy.zeros((2, 2, 2), numpy.uint8))
"""


def test_a_killed_write_leaves_no_half_label_map(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "scan.nii.gz"], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path for path in files_below(tmp_path) if not path.startswith(".")] == []


@pytest.mark.parametrize("codes", [(0, 0), (2, 0), (0, 3), (1, 1), (2, 1)])
def test_sform_qform_and_their_codes_go_over(rwkvseg, model, tmp_path, codes):
    """Programs differ in which they go by where the two disagree, or where there is neither."""
    shape, affine = (12, 9, 8), affine_around(*LPS, (12, 9, 8))
    write_organ(tmp_path / "scan.nii", affine, shape)
    image = nibabel.load(tmp_path / "scan.nii")
    image.header.set_sform(affine, code=codes[0])
    image.header.set_qform(np.diag([2.0, 2.0, 2.0, 1.0]), code=codes[1])
    values = np.asarray(image.dataobj)
    whole = nibabel.Nifti1Image(values, None, image.header)
    nibabel.save(whole, tmp_path / "scan.nii.gz")
    (tmp_path / "scan.nii").unlink()
    code, _, err = rwkvseg("predict", "-m", model(), "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out")
    assert code == 0, err
    written, original = (
        nibabel.load(p).header for p in (tmp_path / "out/scan.nii.gz", tmp_path / "scan.nii.gz")
    )
    for name in ("sform_code", "qform_code", "srow_x", "quatern_b", "qoffset_x", "qoffset_z"):
        np.testing.assert_array_equal(written[name], original[name], name)
    np.testing.assert_array_equal(written["pixdim"][:4], original["pixdim"][:4])
    ours, theirs = (
        SimpleITK.ReadImage(str(p)) for p in (tmp_path / "out/scan.nii.gz", tmp_path / "scan.nii.gz")
    )
    for asked in ("GetOrigin", "GetDirection", "GetSpacing"):
        assert getattr(ours, asked)() == getattr(theirs, asked)(), asked


def test_a_single_file_has_the_name_that_it_has_in_its_folder(rwkvseg, model, tmp_path):
    for case in ("a", "b"):
        (tmp_path / "imagesTs").mkdir(exist_ok=True)
        write_organ(
            tmp_path / "imagesTs" / f"{case}_0000.nii.gz", affine_around(*LPS, (12, 9, 8)), (12, 9, 8)
        )
    one, out = tmp_path / "imagesTs" / "b_0000.nii.gz", tmp_path / "out"
    assert rwkvseg("predict", "-m", model(), "-i", one, "-o", out)[0] == 0
    assert files_below(out) == ["b.nii.gz", "prediction.json"]
