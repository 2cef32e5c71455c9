"""DICOM folders under `data` and `plan`: refused with a way out that leads to a recipe, and converted."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from dicom_cases import Grid, assert_lies_right, write_picture, write_series
from rwkvseg.data.io import read_image
from rwkvseg.data.layouts import open_data
from rwkvseg.data.pictures import read_picture
from rwkvseg.errors import DataError
from rwkvseg.training.recipe import Recipe
from small import files_below

GRIDS = {
    "one": Grid(shape=(20, 17, 9)),
    "three": Grid.rotated((10, -20, 30), shape=(18, 21, 11)),
    "two": Grid(shape=(20, 17, 9), spacing=(1.0, 1.0, 1.5)),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three series, one of them oblique. Not to be changed."""
    folder = tmp_path_factory.mktemp("study") / "ct"
    for number, (name, grid) in enumerate(GRIDS.items()):
        write_series(folder / name, grid, reverse=number == 1)
    return folder


@pytest.mark.parametrize(
    "command", [("plan",), ("data", "verify"), ("data", "fingerprint")], ids=lambda words: words[-1]
)
def test_labels_are_asked_for_with_a_way_to_give_them(rwkvseg, study, tmp_path, command):
    options = ("-o", tmp_path / "recipe.yaml") if command == ("plan",) else ()
    code, out, err = rwkvseg(*command, study, *options)
    assert (code, out) == (1, "")
    assert f"{study} holds DICOM files, which come without labels" in err
    assert f"`rwkvseg data convert {study} DST --to nnunet --label NAME=VALUE`" in err
    assert files_below(tmp_path) == []


def test_training_asks_for_labels_too(rwkvseg, study, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: bones\ndata: {labels: {background: 0, bone: 1}}\n")
    code, out, err = rwkvseg("train", recipe, "--data", study, "-o", tmp_path / "run")
    assert (code, out) == (1, "")
    assert f"`rwkvseg data convert {study} DST --to nnunet --label NAME=VALUE`" in err
    assert not (tmp_path / "run").exists()


def test_the_way_out_ends_in_a_recipe(rwkvseg, study, tmp_path):
    target = tmp_path / "Dataset007_CT"
    code, out, err = rwkvseg("data", "convert", study, target, "--to", "nnunet", "--label", "bone=1")
    assert (code, err) == (0, "")
    assert "3 cases (test 3)" in out
    assert "lost in 3 of 3 cases: the DICOM headers" in out
    described = json.loads((target / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "bone": 1}
    assert described["channel_names"] == {"0": "CT"}  # by which a plan knows its intensities
    for name, grid in GRIDS.items():
        image, _, affine = read_image(target / "imagesTs" / f"{name}_0000.nii.gz")
        assert_lies_right(image[0], affine, grid)
    code, _, err = rwkvseg("data", "verify", target)
    assert code == 1
    assert "holds imagesTs/ without imagesTr/" in err
    (target / "imagesTs").rename(target / "imagesTr")
    (target / "labelsTr").mkdir()
    for name in GRIDS:
        image = nibabel.load(target / "imagesTr" / f"{name}_0000.nii.gz")
        values = image.get_fdata()
        label = (values > np.median(values)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, image.affine), target / "labelsTr" / f"{name}.nii.gz")
    code, out, err = rwkvseg("data", "verify", target)
    assert (code, err) == (0, "")
    assert "layout nnunet, 3 cases" in out
    assert rwkvseg("data", "fingerprint", target)[0] == 0
    code, _, err = rwkvseg("plan", target, "-o", tmp_path / "recipe.yaml", "--gpu-memory", "2G")
    assert (code, err) == (0, "")
    assert Recipe.from_file(tmp_path / "recipe.yaml").preprocessing.dimensions == 3


def test_series_without_labels_become_any_layout_that_needs_none(rwkvseg, study, tmp_path):
    code, out, _ = rwkvseg("data", "convert", study, tmp_path / "msd", "--to", "msd")
    assert code == 0
    assert "note: no case has a label, and nothing names any" in out
    for name, grid in GRIDS.items():
        image, _, affine = read_image(tmp_path / "msd" / "imagesTs" / f"{name}.nii.gz")
        assert_lies_right(image[0], affine, grid)
    code, out, _ = rwkvseg("data", "convert", study, tmp_path / "png", "--to", "images")
    assert code == 0
    assert "hold no spacing, no affine" in out
    pictures = [name for name in files_below(tmp_path / "png") if name.endswith(".png")]
    assert len(pictures) == sum(grid.shape[2] for grid in GRIDS.values())
    code, _, err = rwkvseg("data", "convert", study, tmp_path / "t", "--to", "transunet")
    assert code == 1
    assert f"no case of {study} has a label, which TransUNet's layout needs" in err
    assert not (tmp_path / "t").exists()


def test_x_rays_become_pictures(rwkvseg, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (2, 19, 23)).astype(np.uint8)
    for name, picture in zip("ab", values, strict=True):
        write_picture(tmp_path / "x" / f"{name}.dcm", picture)
    code, out, err = rwkvseg("data", "convert", tmp_path / "x", tmp_path / "png", "--to", "images")
    assert (code, err) == (0, "")
    assert "lost in 2 of 2 cases: the DICOM headers" in out
    made = sorted((tmp_path / "png" / "test" / "images").iterdir())
    np.testing.assert_array_equal([read_picture(path)[0] for path in made], values)
    code, out, _ = rwkvseg("data", "verify", tmp_path / "png")
    assert code == 0
    assert "0 errors, 0 warnings, 1 note" in out


def test_damaged_and_mixed_folders_stop_the_conversion(rwkvseg, study, tmp_path):
    spoilt = shutil.copytree(study, tmp_path / "spoilt")
    path = min((spoilt / "one").iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    code, _, err = rwkvseg("data", "convert", spoilt, tmp_path / "a", "--to", "nnunet")
    assert code == 1
    assert str(path) in err
    path.unlink()
    code, _, err = rwkvseg("data", "convert", spoilt, tmp_path / "b", "--to", "nnunet")
    assert code == 1
    assert "one" in err
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_folder_of_nothing_known_says_what_is_known(rwkvseg, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("nothing")
    code, _, err = rwkvseg("data", "verify", tmp_path)
    assert code == 1
    assert "follows no known layout. Expected images/ + masks/" in err
    with pytest.raises(DataError, match="follows no known layout"):
        open_data(tmp_path)
