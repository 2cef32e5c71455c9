"""`rwkvseg predict` on DICOM as users meet it: a real network, folders, options, refusals."""

import json

import highdicom
import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from dicom_cases import Grid, assert_lies_right, lps, write_picture, write_series
from rwkvseg.data.layouts import find_inputs, read_case
from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.inference.model_file import Architecture, ModelDescription, save_model
from rwkvseg.models.registry import create_model
from small import OVERRIDES, files_below
from small_volumes import OVERRIDES as VOLUME_OVERRIDES

LABELS = {"background": 0, "liver": 1, "spleen": 2}
NETWORKS = {
    "slices": ("rwkv_unet_tiny", OVERRIDES, {"size": (32, 32)}),
    "volumes": (
        "urwkv3d_tiny",
        VOLUME_OVERRIDES,
        {"dimensions": 3, "patch": (16, 16, 8), "orientation": "RAS", "spacing": (1.0, 1.0, 2.5)},
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request, tmp_path_factory):
    """Folder of an untrained network all of whose labels occur."""
    name, overrides, preprocessing = NETWORKS[request.param]
    torch.manual_seed(0)
    network = create_model(name, in_channels=1, num_classes=3, **overrides).eval()
    heads = [module for module in network.modules() if getattr(module, "out_channels", 0) == 3]
    with torch.no_grad():  # no label shall win everywhere
        logits = network(torch.rand(1, 1, *preprocessing.get("size", preprocessing.get("patch"))))
        heads[-1].bias -= logits.flatten(2).median(dim=2).values[0]
    description = ModelDescription(
        rwkvseg_version="0.1.0",
        architecture=Architecture(name=name, in_channels=1, num_classes=3, overrides=overrides),
        labels=LABELS,
        preprocessing=Preprocessing(channels=1, **preprocessing),
    )
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, network, description)
    return folder


@pytest.fixture
def study(tmp_path):
    """Two series, oblique and tilted, and a scout that makes no volume."""
    folder = tmp_path / "study"

    def scout(dataset, k):
        dataset.SeriesNumber = 1
        if k == 1:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    def second(dataset, _):
        dataset.SeriesNumber = 4

    shape = (33, 29, 6)
    write_series(folder / "scout", change=scout)
    oblique = write_series(folder / "oblique", Grid.rotated((20, -35, 50), shape=shape))
    tilted = write_series(folder / "tilted", Grid(shape=shape, shear=(0, 0.9, 0)), change=second)
    return folder, {"oblique": oblique, "tilted": tilted}


def predict(rwkvseg, model, inputs, out, *options):
    return rwkvseg("predict", "-m", model, "-i", inputs, "-o", out, "--device", "cpu", *options)


def test_a_study_as_nifti_and_as_segmentation(rwkvseg, model, study, tmp_path, caplog):
    folder, written = study
    chosen = ("--series", "3", "--series", "4")
    code, out, err = predict(rwkvseg, model, folder, tmp_path / "nifti", *chosen, "--overlay")
    assert code == 0, err
    assert "2 label maps" in out
    assert caplog.text.count("sheared by 19.8 degrees") == 1
    names = [
        "oblique.nii.gz",
        "overlays/oblique.png",
        "overlays/tilted.png",
        "prediction.json",
        "tilted.nii.gz",
    ]
    assert files_below(tmp_path / "nifti") == names
    code, _, err = predict(rwkvseg, model, folder, tmp_path / "seg", *chosen, "--format", "dicom-seg")
    assert code == 0, err
    assert files_below(tmp_path / "seg") == ["oblique.dcm", "prediction.json", "tilted.dcm"]
    for name, series in written.items():
        nifti = nibabel.load(tmp_path / "nifti" / f"{name}.nii.gz")
        labels = np.asarray(nifti.dataobj)
        assert len(np.unique(labels)) > 1
        (files,) = find_inputs(series.folder)
        case = read_case(files)
        np.testing.assert_allclose(nifti.affine, case.affine, atol=1e-4)
        assert_lies_right(case.image[0], case.affine, series.grid)
        seg = highdicom.seg.segread(tmp_path / "seg" / f"{name}.dcm")
        assert seg.FrameOfReferenceUID == series.frame_of_reference
        found = seg.get_pixels_by_source_instance(
            series.uids, combine_segments=True, assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(found, labels.transpose(2, 1, 0))


def test_other_programs_see_the_nifti_over_the_series(rwkvseg, model, study, tmp_path):
    folder, written = study
    code, _, err = predict(rwkvseg, model, written["oblique"].folder, tmp_path / "out")
    assert code == 0, err
    labels = SimpleITK.ReadImage(str(tmp_path / "out" / "oblique.nii.gz"))
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / "oblique"))
    scan = SimpleITK.ReadImage(names)
    assert labels.GetSize() == scan.GetSize()
    for index in ((0, 0, 0), (28, 32, 5), (3, 20, 2)):
        one, other = (image.TransformIndexToPhysicalPoint(index) for image in (labels, scan))
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_itk_refuses_a_sheared_nifti_and_does_not_misplace_it(rwkvseg, model, study, tmp_path):
    code, _, err = predict(rwkvseg, model, study[0] / "tilted", tmp_path / "out")
    assert code == 0, err
    with pytest.raises(RuntimeError, match="orthonormal"):
        SimpleITK.ReadImage(str(tmp_path / "out" / "tilted.nii.gz"))


def test_label_pictures(rwkvseg, model, study, tmp_path):
    folder, _ = study
    report = tmp_path / "run.json"
    options = ("--series", "oblique", "--format", "png", "--report", report)
    code, _, err = predict(rwkvseg, model, folder, tmp_path / "out", *options)
    assert code == 0, err
    pictures = [f"oblique/{k:04d}.png" for k in range(6)]
    assert files_below(tmp_path / "out") == [*pictures, "oblique/slices.csv", "prediction.json"]
    assert json.loads(report.read_text())["cases"][0]["file"] == str(tmp_path / "out" / "oblique")
    with Image.open(tmp_path / "out" / pictures[0]) as picture:
        assert picture.size == (29, 33)


def test_refusals(rwkvseg, model, study, tmp_path):
    folder, written = study
    for code, options, told in (
        (1, (), "scout holds slices of 2 kinds"),
        (2, ("--series", "9"), "there is no series 9. There are oblique (number 3, UID"),
        (2, ("--series", "3", "--part", "test"), "--part is of a run's split, --series of DICOM"),
        (2, ("--format", "tiff"), "'tiff' is not one of"),
    ):
        found, out, err = predict(rwkvseg, model, folder, tmp_path / "out", *options)
        assert found == code, (out, err)
        assert told in err
        assert err.startswith("error: ")
        assert not (tmp_path / "out").exists()
    written["oblique"].files[2].unlink()
    code, _, err = predict(rwkvseg, model, folder, tmp_path / "out", "--series", "3")
    assert code == 1
    assert "5 slices 2.5 mm apart, but 5 mm from" in err


def test_a_damaged_file_is_named_and_nothing_is_left(rwkvseg, model, study, tmp_path):
    folder, written = study
    path = written["oblique"].files[4]
    path.write_bytes(path.read_bytes()[:-100])
    code, _, err = predict(rwkvseg, model, folder, tmp_path / "out", "--series", "3")
    assert code == 1
    assert f"cannot decode {path}" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["volumes"], indirect=True)
def test_memory_is_planned_from_the_headers(rwkvseg, model, study, tmp_path, monkeypatch):
    monkeypatch.setattr("rwkvseg.data.dicom_pixels.read_frames", lambda _: pytest.fail("a voxel was read"))
    folder, _ = study
    options = ("--series", "3", "--max-memory", "500M")
    code, _, err = predict(rwkvseg, model, folder, tmp_path / "out", *options)
    assert code == 1
    assert "case oblique of 29 x 33 x 6 voxels" in err
    assert "--max-memory allows 500 MiB" in err


def test_x_rays(rwkvseg, model, tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (40, 30)).astype(np.uint16)
    write_picture(tmp_path / "x" / "IM0001", values, photometric="MONOCHROME1", bits=12)
    code, _, err = predict(rwkvseg, model, tmp_path / "x", tmp_path / "out")
    if "urwkv3d" in (model / "model.json").read_text():
        assert code == 1
        assert "case x is a picture of (40, 30), the network takes volumes" in err
        return
    assert code == 0, err
    with Image.open(tmp_path / "out" / "x.png") as picture:
        assert picture.size == (30, 40)


def test_places_are_those_of_the_headers():
    """The test's own arithmetic: LPS to RAS and back."""
    affine = np.diag([-2.0, -3.0, 4.0, 1.0])
    np.testing.assert_allclose(lps((2, 2, 2), affine)[1, 1, 1], (2, 3, 4))
