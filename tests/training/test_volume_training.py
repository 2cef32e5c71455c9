"""Training on volumes through the command line: train, predict, evaluate; stopped and resumed; rivals."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rwkvseg.data.io import write_label_map
from rwkvseg.data.nifti import write_nifti
from rwkvseg.data.phantom import PHANTOM_LABELS, make_phantom_3d
from rwkvseg.data.splits import Split
from rwkvseg.errors import DataError, RecipeError
from rwkvseg.models import create_model
from rwkvseg.training.datamodule import SegmentationData
from rwkvseg.training.history import History
from rwkvseg.training.module import SegmentationModule
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from rwkvseg.training.run_folder import open_recipe_data, require_same_recipe
from small import files_below, small_recipe
from small_volumes import OVERRIDES, small_volume_recipe

pytestmark = pytest.mark.usefixtures("without_plots")


def test_train_predict_evaluate(rwkvseg, tmp_path):
    data, run, out = (tmp_path / name for name in ("data", "run", "pred"))
    cases = make_phantom_3d(10, (20, 17, 9), (1.2, 0.9, 5.0), oblique=True)
    turned = np.diag([-1.0, -1, 1, 1])  # the files run left and back
    for case in cases:
        write_nifti(data / "imagesTr" / f"{case.id}_0000.nii.gz", case.image[0], turned @ case.affine)
        write_label_map(data / "labelsTr" / f"{case.id}.nii.gz", case.label, turned @ case.affine)
    description = {"channel_names": {"0": "phantom"}, "labels": PHANTOM_LABELS, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(description))
    content = small_volume_recipe(data, epochs=1)
    content["preprocessing"] |= {"spacing": [1.5, 1.5, None], "orientation": "RAS", "normalisation": "ct"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))

    code, printed, error = rwkvseg("train", tmp_path / "r.yaml", "-o", run, "--device", "cpu")
    assert (code, error) == (0, "")
    assert "epoch 1/1  loss" in printed
    described = json.loads((run / "model" / "model.json").read_text())
    assert described["preprocessing"]["intensity"]["std"] > 0  # found, though the recipe names none
    assert yaml.safe_load((run / "recipe.yaml").read_text())["preprocessing"]["intensity"] is None
    assert not (run / "volumes").exists()

    code, _, error = rwkvseg("predict", "-m", run, "-i", data / "imagesTr", "-o", out, "--device", "cpu")
    assert (code, error) == (0, "")
    for case in cases:
        written = nibabel.load(out / f"{case.id}.nii.gz")
        np.testing.assert_allclose(written.affine, turned @ case.affine, atol=1e-5)
        assert written.shape == case.spatial_shape
    (test,) = json.loads((run / "split.json").read_text())["test"]
    inside = nibabel.load(run / "predictions" / "test" / f"{test}.nii.gz")
    np.testing.assert_array_equal(inside.dataobj, nibabel.load(out / f"{test}.nii.gz").dataobj)

    code, printed, error = rwkvseg("evaluate", "-p", out, "-t", data, "-o", tmp_path / "eval")
    assert (code, "8 cases (" in error) == (0, True), "most were trained on, and that is told"
    assert "HD95 mm" in printed


def recipe_of(data, **training):
    return Recipe.from_mapping(small_volume_recipe(data, **({"epochs": 2, "validate_every": 2} | training)))


def test_a_resumed_run_ends_where_an_undisturbed_one_does(phantom_3d, tmp_path, monkeypatch):
    def stop(_self, trainer, _module):
        if trainer.current_epoch == 1:
            raise KeyError("stopped")

    # mapped from disk, and nothing but the run's own files are left
    settings = {"cache_gigabytes": 0}
    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(KeyError):
            train(recipe_of(phantom_3d, **settings), tmp_path / "run", device="cpu")
    torch.manual_seed(999)
    train(recipe_of(phantom_3d, **settings), tmp_path / "run", device="cpu", resume=True)
    train(recipe_of(phantom_3d, **settings), tmp_path / "whole", device="cpu")
    assert files_below(tmp_path / "run") == files_below(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("run", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [(tmp_path / run / "metrics.csv").read_text().splitlines() for run in ("run", "whole")]
    assert [row.rsplit(",", 1)[0] for row in rows[0]] == [row.rsplit(",", 1)[0] for row in rows[1]]


def test_a_rival_trains_by_one_changed_line(phantom_3d, tmp_path):
    content = small_volume_recipe(phantom_3d, epochs=1, steps_per_epoch=2)
    content["model"] = {"name": "monai_segresnet", "overrides": {"spatial_dims": 3, "features": 8}}
    content["optimizer"] = {"name": "sgd", "decay": "poly", "learning_rate": 1e-2, "gradient_clip": 12}
    result = train(Recipe.from_mapping(content), tmp_path / "run", device="cpu")
    assert result.summary["best_val_dsc_on_network_grid"] is not None
    (row,) = result.evaluations["test"].summary.cases
    assert 0 <= row.dsc <= 1


@pytest.mark.parametrize(
    ("model", "dimensions", "message"),
    [
        ({"name": "monai_segresnet"}, 3, "dimensions is 3, but monai_segresnet takes 2 axes"),
        ({"name": "rwkv_unet_tiny"}, 3, "takes 2 axes"),
        ({"name": "urwkv3d_tiny", "overrides": OVERRIDES}, 2, "dimensions is 2, but urwkv3d_tiny takes 3"),
    ],
)
def test_a_network_of_other_dimensions_is_refused(phantom_3d, tmp_path, model, dimensions, message):
    make = small_volume_recipe if dimensions == 3 else small_recipe
    recipe = Recipe.from_mapping(make(phantom_3d) | {"model": model})
    with pytest.raises(RecipeError, match=message):
        train(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def spoil(path, how):
    image = nibabel.load(path)
    values = np.asarray(image.dataobj, np.float32)
    if how == "nan":
        values[3, 4, 5] = np.nan
    elif how == "4d":
        values = np.stack([values, values], -1)
    write_nifti(path, values, image.affine)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "NaN or infinity in 1 of 3060 voxels"),
        ("4d", "more than one volume"),
        ("truncated", "truncated, damaged"),
    ],
)
def test_a_bad_volume_is_named_before_anything_is_written(phantom_3d, tmp_path, how, message):
    data = Path(shutil.copytree(phantom_3d, tmp_path / "data"))
    bad = data / "imagesTr" / "phantom-0004_0000.nii.gz"
    spoil(bad, how)
    with pytest.raises(DataError, match=message) as caught:
        train(Recipe.from_mapping(small_volume_recipe(data)), tmp_path / "run", device="cpu")
    assert bad.name in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_channels_that_the_network_does_not_take(phantom_3d, tmp_path):
    data = Path(shutil.copytree(phantom_3d, tmp_path / "data"))
    for path in sorted((data / "imagesTr").iterdir()):
        shutil.copy(path, path.with_name(path.name.replace("_0000", "_0001")))
    description = json.loads((data / "dataset.json").read_text())
    description["channel_names"] = {"0": "phantom", "1": "again"}
    (data / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"case phantom-\d+ has 2 channels, the network takes 1"):
        train(Recipe.from_mapping(small_volume_recipe(data)), tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("dimensions", "augmentation", "message"),
    [
        (3, {"elastic": 0.05}, "elastic is of pictures"),
        (2, {"flip_slices": 0.5}, "flip_slices and through_plane are of volumes"),
        (2, {"through_plane": 0}, "flip_slices and through_plane are of volumes"),
    ],
)
def test_augmentation_of_other_dimensions_is_refused(tmp_path, dimensions, augmentation, message):
    make = small_volume_recipe if dimensions == 3 else small_recipe
    with pytest.raises(RecipeError, match=message):
        Recipe.from_mapping(make(tmp_path) | {"augmentation": augmentation})


def test_a_run_from_before_a_key_existed_goes_on(tmp_path):
    recipe = Recipe.from_mapping(small_recipe(tmp_path))
    old = recipe.model_dump(mode="json")
    del old["preprocessing"]["dimensions"], old["optimizer"]["momentum"], old["loss"]["batch_dice"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(old))
    require_same_recipe(tmp_path / "recipe.yaml", recipe)
    old["optimizer"]["momentum"] = 0.5
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(RecipeError, match=r"optimizer\.momentum: 0\.5 there, 0\.99 here"):
        require_same_recipe(tmp_path / "recipe.yaml", recipe)


@pytest.mark.shared_data
def test_the_loss_falls_on_real_volumes(shared_data):
    content = small_volume_recipe(shared_data / "Task04_Hippocampus", steps_per_epoch=24)
    content["preprocessing"] |= {"patch": [24, 32, 16], "normalisation": "percentile"}
    recipe = Recipe.from_mapping(content)
    files, labels, _ = open_recipe_data(recipe)
    names = [case.id for case in files.cases]
    data = SegmentationData(files.cases, Split("file", 0, names[:6], names[6:7], ()), labels, recipe)
    torch.manual_seed(0)
    network = create_model("urwkv3d_tiny", in_channels=1, num_classes=3, widths=[8] * 5, depths=[1] * 4)
    module = SegmentationModule(network, recipe, num_classes=3, val_cases=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for loaded in data.train_dataloader():
        batch = data.transfer_batch_to_device(loaded, torch.device("cpu"), 0)
        loss = module.loss(network(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
