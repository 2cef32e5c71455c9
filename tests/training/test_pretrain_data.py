"""Which pictures a pre-training sees: never one that a named recipe validates or tests on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pretrain_cases import classify_recipe, masked_recipe, write_tree

from rwkvseg.errors import DataError, RecipeError
from rwkvseg.training.pretrain import pretrain
from rwkvseg.training.pretrain_data import PictureItems, PretrainData, open_pictures, pixel_digest
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run_folder import open_recipe_data
from small import small_recipe


@pytest.fixture
def segmentation(tmp_path, phantom):
    """File of a segmentation recipe on the phantom: 16 cases to train on, 2 to validate, 2 to test."""
    path = tmp_path / "segmentation.yaml"
    path.write_text(yaml.safe_dump(small_recipe(phantom)))
    return path


def split_of(path, *changes):
    return open_recipe_data(Recipe.from_file(path, changes=changes))[2]


def names_of(sources, **training):
    recipe = PretrainRecipe.from_mapping(masked_recipe(sources, **training))
    pictures = open_pictures(recipe)
    return {picture.id.split("/", 1)[1] for picture in pictures.train}, pictures


@pytest.mark.parametrize("seed", [0, 1])
def test_a_recipe_gives_its_training_part_of_the_same_split(segmentation, seed):
    changes = [f"split.seed={seed}"]
    names, pictures = names_of({"a": {"recipe": str(segmentation), "changes": changes}})
    split = split_of(segmentation, *changes)
    assert names == set(split.train)
    assert set(pictures.record["held_out"]) == {f"a/{case}" for case in split.val + split.test}
    assert pictures.val == ()


def test_files_that_come_with_a_recipe_start_from_its_folder(tmp_path):
    apart = tmp_path / "lists" / "b.txt"
    sources = {
        "a": {"recipe": "a.yaml", "path": "pictures"},
        "b": {"list": "b.txt"},
        "c": {"list": str(apart)},
    }
    path = tmp_path / "masked.yaml"
    path.write_text(yaml.safe_dump(masked_recipe(sources)))
    found = PretrainRecipe.from_file(path).data.sources
    assert found["a"].recipe == (tmp_path / "a.yaml").resolve()
    assert found["a"].path == Path("pictures")  # data, which do not come with it
    assert [found[name].list for name in "bc"] == [(tmp_path / "b.txt").resolve(), apart]


def test_splits_of_two_seeds_differ(segmentation):
    assert split_of(segmentation) != split_of(segmentation, "split.seed=1")


def test_of_two_splits_of_the_same_pictures_neither_is_violated(segmentation):
    sources = {
        "a": {"recipe": str(segmentation)},
        "b": {"recipe": str(segmentation), "changes": ["split.seed=1"]},
    }
    names, pictures = names_of(sources)
    first, second = split_of(segmentation), split_of(segmentation, "split.seed=1")
    assert names == set(first.train) & set(second.train)
    assert names
    assert pictures.record["left_out_as_equal_to"]


def test_a_plain_folder_beside_a_guarding_recipe_loses_what_is_held_out(segmentation, phantom, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(phantom / "images", folder)
    split = split_of(segmentation)
    renamed = folder / "another name.bmp"  # a lossless copy under another name and format
    with Image.open(folder / f"{split.test[0]}.png") as picture:
        picture.save(renamed)
    guard = {"recipe": str(segmentation), "held_out_only": True}
    names, pictures = names_of({"plain": {"path": str(folder)}, "guard": guard})
    assert {name.removesuffix(".png") for name in names} == set(split.train)
    left_out = pictures.record["left_out_as_equal_to"]
    assert left_out["plain/another name.bmp"] == f"guard/{split.test[0]}"
    assert len(left_out) == len(split.val + split.test) + 1
    unguarded, _ = names_of({"plain": {"path": str(folder)}})
    assert len(unguarded) == 21


def test_nothing_but_held_out_pictures_is_refused(segmentation, phantom, tmp_path):
    split = split_of(segmentation)
    (tmp_path / "list.txt").write_text("\n".join(f"{case}.png" for case in split.test) + "\n")
    sources = {
        "plain": {"path": str(phantom / "images"), "list": str(tmp_path / "list.txt")},
        "guard": {"recipe": str(segmentation), "held_out_only": True},
    }
    with pytest.raises(DataError, match="all of 2 pictures are held out"):
        names_of(sources, batch_size=2)


def test_the_run_says_which_pictures_it_saw_and_which_it_left_out(segmentation, phantom, tmp_path, rwkvseg):
    content = masked_recipe({"a": {"recipe": segmentation.name}}, epochs=1, batch_size=8)
    content["data"]["sources"]["b"] = {"path": str(phantom / "images")}
    path = tmp_path / "painter.yaml"
    path.write_text(yaml.safe_dump(content))
    code, out, err = rwkvseg("pretrain", path, "-o", tmp_path / "run", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "32 pictures to train on; 4 left out: equal to held-out ones" in out
    record = json.loads((tmp_path / "run" / "pictures.json").read_text())
    assert len(record["pictures"]) == 32
    assert not set(record["pictures"].values()) & set(record["held_out"].values())


def test_no_batch_holds_a_held_out_picture(segmentation, phantom, monkeypatch):
    from rwkvseg.training import pretrain_data

    read = []
    original = pretrain_data.read_rgb
    recipe = PretrainRecipe.from_mapping(masked_recipe({"a": {"recipe": str(segmentation)}}, batch_size=4))
    pictures = open_pictures(recipe)
    monkeypatch.setattr(pretrain_data, "read_rgb", lambda path: read.append(path.stem) or original(path))
    loader = PretrainData(pictures, recipe).train_dataloader()
    loader.sampler.set_epoch(1)
    batches = list(loader)
    assert len(batches) == 4
    assert sorted(read) == sorted(split_of(segmentation).train)
    assert all(batch["image"].shape == (4, 3, 32, 32) for batch in batches)
    assert all(batch["mask"].float().mean() == 0.5 for batch in batches)


def test_a_list_chooses_and_may_not_lead_outside(phantom, tmp_path):
    chosen = tmp_path / "list.txt"
    chosen.write_text("phantom-0003.png\n\n  phantom-0001.png\n")
    source = {"path": str(phantom / "images"), "list": str(chosen)}
    assert names_of({"a": source}, batch_size=2)[0] == {"phantom-0001.png", "phantom-0003.png"}
    for line in (
        "phantom-9999.png",
        "../masks/phantom-0001.png",
        str(phantom / "masks" / "phantom-0001.png"),
    ):
        chosen.write_text(f"phantom-0001.png\n{line}\n")
        with pytest.raises(DataError, match="1 picture of its list is not in it"):
            names_of({"a": source}, batch_size=2)
    with pytest.raises(DataError, match="cannot read the list"):
        names_of({"a": source | {"list": str(tmp_path / "absent.txt")}})


def test_paths_beside_the_recipe_and_from_the_command_line(segmentation, phantom, tmp_path):
    path = tmp_path / "painter.yaml"
    content = yaml.safe_load(segmentation.read_text())
    content["data"].pop("path")
    segmentation.write_text(yaml.safe_dump(content))
    path.write_text(yaml.safe_dump(masked_recipe({"a": {"recipe": segmentation.name}})))
    with pytest.raises(RecipeError, match="names no data"):
        open_pictures(PretrainRecipe.from_file(path))
    for key in ("data.path", "data.sources.a.path"):
        recipe = PretrainRecipe.from_file(path, changes=[f"{key}={phantom}"])
        assert len(open_pictures(recipe).train) == 16
    with pytest.raises(RecipeError, match="source a names no folder"):
        names_of({"a": {}})


def test_volumes_are_refused(phantom_3d, tmp_path):
    path = tmp_path / "volumes.yaml"
    path.write_text(yaml.safe_dump(small_recipe(phantom_3d)))
    with pytest.raises(DataError, match="is no picture"):
        names_of({"a": {"recipe": str(path)}})


def test_the_digest_is_of_the_pixels_and_the_size(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "b.tif")
    Image.fromarray(values.reshape(8, 6, 3)).save(tmp_path / "c.png")
    values[0, 0, 0] ^= 1
    Image.fromarray(values).save(tmp_path / "d.png")
    digests = [pixel_digest(tmp_path / name) for name in ("a.png", "b.tif", "c.png", "d.png")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_items_are_functions_of_seed_pass_and_id(tmp_path):
    tree = write_tree(tmp_path / "tree")
    recipe = PretrainRecipe.from_mapping(classify_recipe() | {"data": {"path": str(tree)}})
    pictures = open_pictures(recipe)
    items = PictureItems(pictures.train, recipe, train=True)
    assert torch.equal(items[3, 2]["image"], items[3, 2]["image"])
    assert not torch.equal(items[3, 2]["image"], items[4, 2]["image"])
    assert [items[0, place]["label"] for place in (0, 6, 17)] == [0, 1, 2]
    held = PictureItems(pictures.val, recipe, train=False)
    assert torch.equal(held[0, 1]["image"], held[5, 1]["image"])


def test_workers_change_nothing(tmp_path, segmentation):
    from safetensors.torch import load_file

    files = []
    for workers in (0, 2):
        content = masked_recipe({"a": {"recipe": str(segmentation)}}, epochs=1, batch_size=8, workers=workers)
        result = pretrain(PretrainRecipe.from_mapping(content), tmp_path / str(workers), device="cpu")
        files.append(load_file(result.encoders[0]))
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
