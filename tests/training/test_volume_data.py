"""Patches of volumes as a training draws them, and whole volumes as it validates on them."""

import numpy as np
import pytest
import torch
from batch_cases import batches_of, equal

from rwkvseg.data.layouts import read_case
from rwkvseg.data.volume_intensity import foreground_intensity
from rwkvseg.data.volumes import to_network_grid
from rwkvseg.errors import OutputError
from rwkvseg.training.datamodule import SegmentationData
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run_folder import open_recipe_data, part_files
from small import files_below
from small_volumes import small_volume_recipe


def make_data(folder, *, changes=None, scratch=None, **training):
    recipe = Recipe.from_mapping(small_volume_recipe(folder, **training) | (changes or {}))
    files, labels, split = open_recipe_data(recipe)
    return SegmentationData(files.cases, split, labels, recipe, scratch=scratch)


@pytest.fixture(scope="module")
def plain(phantom_3d):
    """Batches of epoch 3."""
    return batches_of(make_data(phantom_3d), 3)


def test_batches_are_patches_of_every_case_once(plain):
    assert [batch["image"].shape for batch in plain] == [(2, 1, 16, 16, 8)] * 4
    assert {batch["image"].dtype for batch in plain} == {torch.float32}
    assert plain[0]["label"].shape == (2, 16, 16, 8)
    assert plain[0]["label"].dtype == torch.uint8
    assert sorted(int(case) for batch in plain for case in batch["case"]) == list(range(8))


def test_batches_depend_on_seed_and_epoch_alone(plain, phantom_3d, tmp_path):
    assert equal(plain, batches_of(make_data(phantom_3d), 3))
    assert equal(plain, batches_of(make_data(phantom_3d, workers=2), 3))
    mapped = make_data(phantom_3d, cache_gigabytes=0, scratch=tmp_path / "volumes", workers=1)
    assert equal(plain, batches_of(mapped, 3))
    assert not equal(plain, batches_of(make_data(phantom_3d), 4))
    assert not equal(plain, batches_of(make_data(phantom_3d, seed=1), 3))


def test_what_exceeds_the_cache_is_mapped_and_goes_with_the_data(phantom_3d, tmp_path):
    one = (4 + 1) * 20 * 17 * 9 + 8 * 20 * 17 * 9  # image, label, and at most so many places
    data = make_data(phantom_3d, cache_gigabytes=2 * one / 2**30, scratch=tmp_path / "volumes")
    kept = [data.train._store[case].image for case in data.train.ids]
    assert {isinstance(image, np.memmap) for image in kept} == {True, False}
    assert files_below(tmp_path / "volumes" / "train")
    data.close()
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_run_are_swept_away(phantom_3d, tmp_path):
    left = tmp_path / "volumes" / "train" / "7.0.npy"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    data = make_data(phantom_3d, cache_gigabytes=0, scratch=tmp_path / "volumes")
    assert left.name not in files_below(left.parent) or left.read_bytes() != b"half"
    data.close()


def test_without_a_folder_volumes_are_mapped_among_temporary_files(phantom_3d, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = make_data(phantom_3d, cache_gigabytes=0)
    assert len(files_below(tmp_path)) == 2 * 9  # image and label of 8 to train on and 1 to validate
    data.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(phantom_3d, tmp_path):
    (tmp_path / "volumes").write_text("a file")
    with pytest.raises(OutputError, match=r"raise training\.cache_gigabytes"):
        make_data(phantom_3d, cache_gigabytes=0, scratch=tmp_path / "volumes")


def test_validation_is_whole_volumes_in_order(phantom_3d):
    data = make_data(phantom_3d)
    files, labels, split = open_recipe_data(data.recipe)
    (batch,) = data.val_dataloader()
    case = read_case(part_files(files, split, "val")[0], labels)
    expected, _ = to_network_grid(case, data.recipe.preprocessing)
    np.testing.assert_array_equal(batch["image"][0].numpy(), expected.image)
    np.testing.assert_array_equal(batch["label"][0].numpy(), expected.label)
    assert batch["case"].tolist() == [0]


@pytest.mark.parametrize("augmentation", [{}, {"rotation": 10, "shift": 0.05}], ids=["cut", "turned"])
def test_patches_are_centred_on_foreground_as_often_as_asked(phantom_3d, augmentation):
    changes = {"augmentation": augmentation}
    preprocessing = {"dimensions": 3, "channels": 1, "patch": [3, 3, 3]}
    shares = []
    for fraction in (0.0, 1.0):
        changes |= {"preprocessing": preprocessing}
        data = make_data(phantom_3d, changes=changes, foreground_fraction=fraction, steps_per_epoch=40)
        labels = torch.cat([batch["label"] for batch in batches_of(data)])
        shares.append(float((labels[:, 1, 1, 1] > 0).float().mean()))
    assert shares[0] < 0.5
    assert shares[1] > 0.8


def test_a_volume_smaller_than_the_patch_lies_in_its_middle(phantom_3d):
    preprocessing = {"dimensions": 3, "channels": 1, "patch": [24, 16, 12]}
    data = make_data(phantom_3d, changes={"preprocessing": preprocessing, "augmentation": {}})
    item = data.train[0, 0]
    assert item["image"].shape == (1, 24, 16, 12)
    outside = torch.ones(24, 16, 12, dtype=torch.bool)
    outside[2:22, :, 1:10] = False
    assert not item["image"][0][outside].any()
    assert not item["label"][outside].any()
    assert item["image"][0][2:22, :, 1:10].count_nonzero() > 0.9 * 20 * 16 * 9


def test_ct_takes_its_intensity_from_the_foreground_of_the_training_part(phantom_3d):
    preprocessing = {"dimensions": 3, "channels": 1, "patch": [8, 8, 8], "normalisation": "ct"}
    data = make_data(phantom_3d, changes={"preprocessing": preprocessing})
    files, labels, split = open_recipe_data(data.recipe)
    expected = foreground_intensity(read_case(case, labels) for case in part_files(files, split, "train"))
    assert data.recipe.preprocessing.intensity == expected
    given = {"low": 0, "high": 200, "mean": 100, "std": 50}
    data = make_data(phantom_3d, changes={"preprocessing": preprocessing | {"intensity": given}})
    assert data.recipe.preprocessing.intensity.model_dump() == given


def test_loading_takes_no_numbers_from_the_global_generator(phantom_3d):
    data = make_data(phantom_3d)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches_of(data)
    list(data.val_dataloader())
    assert torch.equal(before, torch.get_rng_state())
