"""The recipes for volumes that come along: splits, strides, data layouts, and the rows of their studies."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rwkvseg.data.layouts import open_data
from rwkvseg.data.nifti import write_nifti
from rwkvseg.data.splits import read_split
from rwkvseg.errors import RecipeError, UsageError
from rwkvseg.inference.evaluate import evaluate
from rwkvseg.models import create_model
from rwkvseg.models.urwkv3d_strides import strides_from_spacing
from rwkvseg.training.datamodule import SegmentationData
from rwkvseg.training.module import SegmentationModule
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run_folder import open_recipe_data

pytestmark = pytest.mark.usefixtures("without_plots")

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "recipes"
STUDIES = yaml.safe_load((RECIPES / "studies" / "volumes.yaml").read_text())
ROWS = [(study, row) for study in STUDIES for row in study["rows"]]
ABLATIONS = [(study, row) for study, row in ROWS if study["study"] != "rivals"]


@pytest.mark.parametrize(
    ("name", "parts", "spacing"),
    [
        ("hippocampus_urwkv3d_tiny", (208, 52, 0), None),
        ("acdc_urwkv3d_tiny", (110, 18, 32), (1.5, 1.5, 10)),
        ("synapse_3d_nnformer", (18, 12, 0), (0.76, 0.76, 3.0)),
    ],
)
def test_splits_and_strides(name, parts, spacing):
    recipe = Recipe.from_file(RECIPES / f"{name}.yaml")
    split = json.loads(recipe.split.file.read_text())
    assert tuple(len(split[part]) for part in ("train", "val", "test")) == parts
    assert len({*split["train"], *split["val"], *split["test"]}) == sum(parts)
    patch = recipe.preprocessing.patch
    network = create_model(recipe.model.name, **recipe.model.overrides)
    if spacing is None:  # the first run's: a deepest map of 3 x 4 x 3, which the rule would not make so small
        assert network.config.strides == ((2, 2, 2),) * 4
    else:
        assert network.config.strides == strides_from_spacing(spacing, patch)
    assert all(side % stride == 0 for side, stride in zip(patch, network.stride, strict=True))
    assert recipe.training.report == "last"  # nothing is chosen on what is reported


def test_the_hippocampus_split_is_numpys_permutation():
    split = json.loads((RECIPES / "splits" / "hippocampus_seed0.json").read_text())
    ids = sorted(split["train"] + split["val"])
    first = np.random.default_rng(0).permutation(260)[:52]
    assert split["val"] == sorted(ids[index] for index in first)


@pytest.mark.shared_data
def test_the_hippocampus_split_fits_the_data(shared_data):
    cases = open_data(shared_data / "Task04_Hippocampus").cases
    assert len(cases) == 260
    read_split(RECIPES / "splits" / "hippocampus_seed0.json", cases)


def test_nnformers_split_is_transunets():
    ours, theirs = (
        json.loads((RECIPES / "splits" / f"synapse_{name}.json").read_text())
        for name in ("nnformer", "transunet")
    )
    assert [name.removeprefix("img") for name in ours["val"]] == [
        name.removeprefix("case") for name in theirs["test"]
    ]


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_synapse_is_read_in_either_layout(tmp_path, layout):
    """Generated files of that layout, a few voxels each; patches of two cases as the recipe cuts them."""
    recipe = Recipe.from_file(
        RECIPES / "synapse_3d_nnformer.yaml",
        changes=[f"data.path={tmp_path}", "preprocessing.patch=[16, 16, 8]", "training.workers=0"],
    )
    split = json.loads(recipe.split.file.read_text())
    random = np.random.default_rng(0)
    for name in split["train"] + split["val"]:
        label = random.integers(0, 14, (9, 8, 5)).astype(np.uint8)
        image = (label * 20 + random.normal(-60, 5, label.shape)).astype(np.int16)
        ending = "" if layout == "msd" else "_0000"
        affine = np.diag([0.8, 0.7, 3.0, 1.0])
        write_nifti(tmp_path / "imagesTr" / f"{name}{ending}.nii.gz", image, affine)
        write_nifti(tmp_path / "labelsTr" / f"{name}.nii.gz", label, affine)
    if layout == "nnunet":
        content = {"channel_names": {"0": "CT"}, "labels": recipe.data.labels, "file_ending": ".nii.gz"}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    folder, labels, found = open_recipe_data(recipe)
    assert folder.layout == layout
    assert len(labels) == 14
    data = SegmentationData(folder.cases, found, labels, recipe)
    intensity = data.recipe.preprocessing.intensity
    assert intensity.low < -30 < intensity.mean < 150 < intensity.high
    batch = data.train.__getitem__((0, 0))
    assert batch["image"].shape == (1, 16, 16, 8)
    whole = data.val[0, 0]["image"]
    assert whole.shape[1:] == (9, 7, 5)  # 0.8, 0.7 and 3 mm at 0.76, 0.76 and 3
    # mean and deviation are those of nearly all voxels, and hardly any is clipped
    torch.testing.assert_close(whole.mean(), torch.tensor(0.0), atol=0.3, rtol=0)


class TestScored:
    labels = {"background": 0, "liver": 1, "spleen": 2, "aorta": 3}  # noqa: RUF012

    @pytest.fixture
    def folders(self, tmp_path):
        label = np.random.default_rng(0).integers(0, 4, (6, 5, 4)).astype(np.uint8)
        for name in ("pred", "truth"):
            values = label if name == "truth" else label[::-1]
            write_nifti(tmp_path / name / "a.nii.gz", values, np.eye(4))
        return tmp_path / "pred", tmp_path / "truth", tmp_path / "out"

    def test_only_some_structures_count(self, folders):
        every = evaluate(*folders, labels=self.labels)
        some = evaluate(*folders, labels=self.labels, scored=["aorta", "liver"])
        assert [score.name for score in every.scores] == ["liver", "spleen", "aorta"]
        assert some.scores == [score for score in every.scores if score.name != "spleen"]
        assert "spleen" not in (folders[2] / "scores.csv").read_text()

    @pytest.mark.parametrize("scored", [["heart"], ["background"], []])
    def test_unknown_structures_are_refused(self, folders, scored):
        with pytest.raises(UsageError, match=r"scored names .* known are aorta, liver, spleen"):
            evaluate(*folders, labels=self.labels, scored=scored)

    @pytest.mark.parametrize("scored", [["heart"], ["background"], []])
    def test_of_a_recipe_too(self, scored):
        content = {"name": "x", "data": {"labels": self.labels, "scored": scored}}
        with pytest.raises(RecipeError, match="is no structure of labels"):
            Recipe.from_mapping(content)

    def test_by_the_command_line(self, folders, rwkvseg):
        predictions, truth, out = folders
        code, _, error = rwkvseg(
            "evaluate", "-p", predictions, "-t", truth, "-o", out, "--scored", "label 1, label 3"
        )
        assert (code, error) == (0, "")
        rows = (out / "scores.csv").read_text().splitlines()[1:]
        assert [row.split(",")[2] for row in rows] == ["label 1", "label 3"]


def changes(row):
    return [change if change.startswith("model.") else f"model.overrides.{change}" for change in row["set"]]


@pytest.mark.parametrize(
    ("study", "row"), ROWS, ids=[f"{study['study']}: {row['name']}" for study, row in ROWS]
)
def test_a_row_is_a_network_with_the_stated_parameters(study, row):
    recipe = Recipe.from_file(RECIPES / f"{study['recipe']}.yaml", changes=changes(row))
    with torch.device("meta" if recipe.model.name.startswith("urwkv3d") else "cpu"):
        network = create_model(
            recipe.model.name, in_channels=1, num_classes=len(recipe.data.labels), **recipe.model.overrides
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == row["parameters"]
    assert network.spatial_dims == recipe.preprocessing.dimensions == 3


def test_the_documentation_lists_every_row():
    page = (REPOSITORY / "docs" / "how-to" / "train-on-volumes.md").read_text().splitlines()
    for study, row in ROWS:
        settings = " ".join(f"`--set {change}`" for change in changes(row)) or "as it is"
        assert f"| {study['study']} | {row['name']} | {settings} | {row['parameters']:,} |" in page


class _Trainer:
    estimated_stepping_batches = 100


@pytest.mark.parametrize(
    ("study", "row"), ABLATIONS, ids=[f"{study['study']}: {row['name']}" for study, row in ABLATIONS]
)
def test_an_ablation_takes_a_step_that_moves_every_weight(study, row):
    """The row's own loss and optimiser, on a patch as small as leaves several tokens at the lowest level."""
    recipe = Recipe.from_file(RECIPES / f"{study['recipe']}.yaml", changes=changes(row))
    torch.manual_seed(0)
    classes = len(recipe.data.labels)
    network = create_model(recipe.model.name, in_channels=1, num_classes=classes, **recipe.model.overrides)
    module = SegmentationModule(network, recipe, num_classes=classes, val_cases=1).train()
    module._trainer, module._fabric, module.log = _Trainer(), None, lambda *_, **__: None
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    batch = {"image": torch.randn(1, 1, 32, 36, 16), "label": torch.randint(classes, (1, 32, 36, 16))}
    optimizer = module.configure_optimizers()["optimizer"]
    loss = module.training_step(batch, 0)
    loss.backward()
    module.configure_gradient_clipping(optimizer, recipe.optimizer.gradient_clip)
    optimizer.step()
    assert 0 < loss.item() < 10
    parameters = dict(network.named_parameters())
    idle = [name for name, value in parameters.items() if value.grad is None or not value.grad.any()]
    # where all orders start alike, which of them counts has no gradient yet
    assert all(row["name"] == "zero" and "fusion" in name for name in idle), idle
    assert all(not torch.equal(parameters[name], before[name]) for name in parameters if name not in idle)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
