"""`rwkvseg plan` and `data fingerprint` on folders as the owners of public sets name their files."""

import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from array_folders import volume_arrays, write_h5, write_synapse
from rwkvseg.data.splits import PARTS
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run_folder import open_recipe_data

pytestmark = pytest.mark.usefixtures("without_plots")

SIZE = (40, 36)
RNG = np.random.default_rng(0)


def pair(image, mask, *, value=255, colours=True, empty=False):
    """A bright box on noise, and its mask."""
    label = np.zeros(SIZE, np.uint8)
    if not empty:
        label[8:20, 5 : 15 + int(RNG.integers(9))] = value
    values = RNG.integers(0, 99, (*SIZE, 3), dtype=np.uint8) + 150 * (label[..., None] > 0).astype(np.uint8)
    for path, content in ((image, values if colours else values[..., 0]), (mask, label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)


def synapse(root):
    write_synapse(root, train=12, test=3, shape=(3, *SIZE))


def acdc(root):
    for patient in (1, 2, 20, 21, 30, 31, 50, 100):
        for frame in (1, 9):
            name, arrays = (
                f"patient{patient:03d}_frame{frame:02d}",
                volume_arrays(patient + frame, (3, *SIZE)),
            )
            write_h5(root / "ACDC_training_volumes" / f"{name}.h5", arrays)
            for index in range(3):
                one = {key: values[index] for key, values in arrays.items()}
                write_h5(root / "ACDC_training_slices" / f"{name}_slice_{index}.h5", one)


def busi(root):
    for kind, number in (("benign", 28), ("malignant", 20), ("normal", 12)):
        for index in range(1, number + 1):
            stem = root / kind / f"{kind} ({index})"
            mask = stem.with_name(f"{stem.name}_mask.png")
            pair(stem.with_name(f"{stem.name}.png"), mask, colours=False, empty=kind == "normal")
    shutil.copy(root / "benign" / "benign (5)_mask.png", root / "benign" / "benign (4)_mask_1.png")


def isic(root):
    for part, number in (("Training", 20), ("Validation", 4), ("Test_v2", 3)):
        for index in range(number):
            stem = f"ISIC_{len(part):03d}{index:04d}"
            image = root / f"ISIC-2017_{part}_Data" / f"{stem}.jpg"
            mask = root / f"ISIC-2017_{part}_Part1_GroundTruth" / f"{stem}_segmentation.png"
            pair(image, mask)
            image.with_name(f"{stem}_superpixels.png").write_bytes(mask.read_bytes())
    shutil.rmtree(root / "ISIC-2017_Test_v2_Part1_GroundTruth")


def glas(root):
    for part, number in (("train", 20), ("testA", 4), ("testB", 2)):
        for index in range(1, number + 1):
            pair(root / f"{part}_{index}.bmp", root / f"{part}_{index}_anno.bmp", value=index)


def glas_of_uctransnet(root):
    for part, number in (("Train_Folder", 20), ("Test_Folder", 6)):
        for index in range(1, number + 1):
            pair(root / part / "img" / f"{index}.png", root / part / "labelcol" / f"{index}.png")


def clinic_db(root):
    for index in range(1, 61):
        pair(root / "Original" / f"{index}.tif", root / "Ground Truth" / f"{index}.tif")


def pranet(root):
    for part, number in (("TrainDataset", 20), ("TestDataset", 6)):
        for index in range(number):
            pair(root / part / "image" / f"{index}.png", root / part / "mask" / f"{index}.png")


FOLDERS = {  # training, validation, test; the ids that are trained on start so
    synapse: ((30, 6, 3), "case"),
    acdc: ((18, 4, 6), "patient"),
    busi: ((48, 6, 6), ("benign", "malignant", "normal")),
    isic: ((20, 4, 0), "train_"),
    glas: ((18, 2, 6), "train_"),
    glas_of_uctransnet: ((18, 2, 6), "train_"),
    clinic_db: ((48, 6, 6), ""),
    pranet: ((18, 2, 6), "train_"),
}


@pytest.mark.parametrize("write", FOLDERS, ids=lambda write: write.__name__)
def test_a_plan_sees_pictures_and_keeps_to_the_parts(rwkvseg, tmp_path, write):
    root, recipe = tmp_path / "data", tmp_path / "planned.yaml"
    write(root)
    code, out, err = rwkvseg("data", "fingerprint", root, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["cases"]
    code, _, err = rwkvseg("plan", root, "-o", recipe, "--gpu-memory", "2G")
    assert (code, err) == (0, "")
    planned = Recipe.from_file(recipe)
    assert (planned.preprocessing.dimensions, planned.model.name) == (2, "rwkv_unet_tiny")
    assert planned.preprocessing.size == (64, 64)
    _, _, split = open_recipe_data(planned)
    numbers, names = FOLDERS[write]
    assert tuple(len(getattr(split, part)) for part in PARTS) == numbers
    assert all(case.startswith(names) for case in split.train)
    if write in (synapse, acdc):  # slices and volumes scaled alike: both hold 0 to 1 of the scan
        assert planned.preprocessing.normalisation == "none"
        assert all("slice" in case for case in split.train)
        assert not any("slice" in case for case in split.test)
        patients = [{case.split("_")[0] for case in getattr(split, part)} for part in PARTS]
        assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]


@pytest.mark.slow
@pytest.mark.parametrize("write", FOLDERS, ids=lambda write: write.__name__)
def test_planned_recipes_train_as_they_are(rwkvseg, tmp_path, write):
    """Only the number and the size of the batches is cut: the rest of the recipe is as planned."""
    root, recipe = tmp_path / "data", tmp_path / "planned.yaml"
    write(root)
    assert rwkvseg("plan", root, "-o", recipe, "--gpu-memory", "2G", "--variant", "nano")[0] == 0
    fewer = ("training.epochs=1", "training.steps_per_epoch=1", "training.batch_size=2")
    options = [option for change in fewer for option in ("--set", change)]
    code, out, err = rwkvseg("train", recipe, "-o", tmp_path / "run", "--device", "cpu", *options)
    assert (code, err) == (0, "")
    numbers, _ = FOLDERS[write]
    tested = next(part for part in ("test", "val") if numbers[PARTS.index(part)])
    assert f"{tested} ({numbers[PARTS.index(tested)]} cases)" in out
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_arrays_beyond_0_to_1_are_scaled(rwkvseg, tmp_path):
    acdc(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            file["image"][...] *= 300
    assert rwkvseg("plan", tmp_path / "data", "-o", tmp_path / "p.yaml", "--gpu-memory", "2G")[0] == 0
    assert Recipe.from_file(tmp_path / "p.yaml").preprocessing.normalisation == "percentile"
