"""`rwkvseg train` as users meet it: what is wrong in recipes, data and folders, in a line or two."""

import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rwkvseg.data import notices
from small import files_below, small_recipe


@pytest.fixture
def data(phantom, tmp_path):
    """Data folder to be spoilt."""
    return Path(shutil.copytree(phantom, tmp_path / "data"))


@pytest.fixture
def recipe(tmp_path, data):
    """Recipe file on that folder."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe(data)))
    return path


@pytest.fixture
def train(fails, recipe, tmp_path):
    """Train, expecting a failure that leaves no run behind."""

    def run(code, *arguments):
        err = fails(code, "train", recipe, "-o", tmp_path / "run", "--device", "cpu", *arguments)
        assert not (tmp_path / "run").exists()
        return err

    return run


def mask_of(data, part="train", index=0):
    """A mask of that part of the paper split of seed 0."""
    from rwkvseg.data.layouts import open_data
    from rwkvseg.data.splits import make_split

    cases = open_data(data).cases
    return data / "masks" / f"{getattr(make_split(cases, 'paper', 0), part)[index]}.png"


def edit(path, change):
    with Image.open(path) as picture:
        values = np.array(picture)
    Image.fromarray(change(values)).save(path)


class TestTrain:
    def test_no_recipe(self, fails, tmp_path):
        assert "cannot read the recipe" in fails(2, "train", tmp_path / "absent.yaml")

    def test_a_typo_in_the_recipe(self, train, recipe):
        recipe.write_text(recipe.read_text().replace("epochs:", "epoch:"))
        assert "unknown key 'training.epoch'; known here: epochs, batch_size" in train(2)

    def test_a_bad_set(self, train):
        assert "training.epochs = 'many'" in train(2, "--set", "training.epochs=many")

    def test_a_bad_override_of_the_network(self, train):
        assert "depths" in train(2, "--set", "model.overrides.depths=[1]")
        assert "num_classes" in train(2, "--set", "model.overrides.num_classes=4")

    def test_no_data(self, train, recipe):
        assert "names no data. Give --data DIR" in train(2, "--set", "data.path=")

    def test_a_missing_data_folder(self, train, tmp_path):
        assert "absent does not exist" in train(1, "--data", tmp_path / "absent")

    def test_an_empty_folder(self, train, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "follows no known layout" in train(1, "--data", tmp_path / "empty")
        (tmp_path / "empty" / "images").mkdir()
        (tmp_path / "empty" / "masks").mkdir()
        assert "holds no labelled images" in train(1, "--data", tmp_path / "empty")

    @pytest.mark.parametrize("part", ["train", "val", "test"])
    def test_a_truncated_image(self, train, data, part):
        path = data / "images" / mask_of(data, part).name
        path.write_bytes(path.read_bytes()[:200])
        assert f"cannot decode {path}" in train(1)

    def test_a_file_that_is_no_image(self, train, data):
        path = data / "images" / mask_of(data).name
        path.write_text("not an image")
        assert "truncated, damaged or not a PNG" in train(1)

    def test_an_image_without_mask_and_a_mask_without_image(self, train, data):
        path = mask_of(data)
        path.rename(data / "kept.png")
        assert f"1 image in {data / 'images'} without label" in train(1)
        (data / "kept.png").rename(path)
        (data / "images" / path.name).unlink()
        assert f"1 label in {data / 'masks'} without image" in train(1)

    @pytest.mark.parametrize("part", ["train", "val", "test"])
    def test_a_mask_of_another_size(self, train, data, part):
        edit(mask_of(data, part), lambda values: values[1:])
        assert re.search(r"masks/.* has size 39 x 36, .*images/.* has 40 x 36", train(1))

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_labels_outside_the_recipes(self, train, data, part):
        edit(mask_of(data, part), lambda values: np.where(values == 0, np.uint8(9), values))
        err = train(1)
        assert "holds 9, which no label has; known are 0 background, 1 liver" in err

    def test_labels_of_the_data_with_a_gap(self, train, data):
        description = json.loads((data / "dataset.json").read_text())
        description["labels"]["aorta"] = 7
        (data / "dataset.json").write_text(json.dumps(description))
        assert "without gaps" in train(1)

    def test_no_labels_anywhere(self, train, data):
        (data / "dataset.json").unlink()
        assert "Set data.labels" in train(2)

    def test_a_label_map_with_nan(self, fails, tmp_path, phantom_3d):
        data = Path(shutil.copytree(phantom_3d, tmp_path / "volumes"))
        path = sorted((data / "labelsTr").iterdir())[0]
        read = nibabel.load(path)
        values = read.get_fdata().astype(np.float32)
        values[3, 4, 5] = np.nan
        nibabel.save(nibabel.Nifti1Image(values, read.affine), path)
        recipe = tmp_path / "r.yaml"
        recipe.write_text(yaml.safe_dump(small_recipe(data)))
        err = fails(1, "train", recipe, "-o", tmp_path / "run")
        assert f"label map {path} holds NaN or infinity in 1 of 3060 voxels" in err
        assert not (tmp_path / "run").exists()

    def test_too_few_cases(self, train, data):
        for path in [*(data / "images").iterdir(), *(data / "masks").iterdir()]:
            if path.stem > "phantom-0004":
                path.unlink()
        assert "5 cases are too few" in train(1)

    def test_a_split_of_other_data(self, train, tmp_path):
        split = {"train": ["x", "y"], "val": ["z"], "test": []}
        (tmp_path / "split.json").write_text(json.dumps(split))
        err = train(1, "--set", "split.file=split.json")
        assert "names 3 cases that the data does not have: x, y, z" in err

    def test_an_output_path_below_a_file(self, fails, recipe, tmp_path):
        (tmp_path / "file").write_text("x")
        err = fails(1, "train", recipe, "-o", tmp_path / "file" / "run", "--device", "cpu")
        assert "file is a file. Choose another output path" in err
        assert (tmp_path / "file").read_text() == "x"

    def test_a_run_is_not_overwritten(self, fails, recipe, run_copy):
        err = fails(2, "train", recipe, "-o", run_copy, "--device", "cpu")
        assert "already holds a run. Continue it with --resume" in err

    def test_resuming_with_another_recipe(self, fails, recipe, run_copy):
        err = fails(
            2, "train", recipe, "-o", run_copy, "--device", "cpu", "--resume", "--set", "training.epochs=9"
        )
        assert "training.epochs: 2 there, 9 here" in err

    def test_resuming_with_other_data(self, fails, recipe, run_copy, data):
        edit(mask_of(data), lambda values: values[::-1])
        err = fails(1, "train", recipe, "-o", run_copy, "--device", "cpu", "--resume")
        assert "1 case differs from those the run began with" in err

    def test_a_full_disk_at_the_checkpoint(
        self, fails, recipe, tmp_path, file_size_limit, rwkvseg, small_run
    ):
        arguments = ("train", recipe, "-o", tmp_path / "run", "--device", "cpu")
        with file_size_limit(20_000):
            err = fails(1, *arguments)
        assert re.search(r"cannot write .*\.ckpt: .*Free some space", err)
        assert not [name for name in files_below(tmp_path / "run") if "partial" in name]
        assert files_below(tmp_path / "run" / "checkpoints") == []
        assert rwkvseg(*arguments, "--resume")[0] == 0  # as the message says
        ours, theirs = (run / "model" / "model.safetensors" for run in (tmp_path / "run", small_run))
        assert ours.read_bytes() == theirs.read_bytes()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    def test_cuda_where_there_is_none(self, fails, recipe, tmp_path):
        err = fails(1, "train", recipe, "-o", tmp_path / "run", "--device", "cuda")
        assert "Use --device cpu, or install a CUDA build" in err
        assert not (tmp_path / "run").exists()

    def test_masks_of_0_and_255_are_taken_and_it_is_said(self, rwkvseg, data, tmp_path, caplog):
        (data / "dataset.json").unlink()
        for path in (data / "masks").iterdir():
            edit(path, lambda values: np.where(values > 0, 255, 0).astype(np.uint8))
        content = small_recipe(data, epochs=1)
        content["data"]["labels"] = {"background": 0, "organ": 1}
        content["data"]["path"] = None
        recipe = tmp_path / "binary.yaml"
        recipe.write_text(yaml.safe_dump(content))
        notices._say.cache_clear()
        odd = Path(shutil.move(data, tmp_path / "my: data #1"))  # YAML would read something else
        code, out, err = rwkvseg("train", recipe, "--data", odd, "-o", tmp_path / "run", "--device", "cpu")
        assert (code, err) == (0, "")
        assert [record.message for record in caplog.records if record.name == "rwkvseg"] == [
            "masks hold 0 and 255: 255 is taken as label 1"
        ]
        assert "organ" in out
        assert f"model:  {tmp_path / 'run' / 'model'}" in out
        description = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
        assert description["labels"] == {"background": 0, "organ": 1}
