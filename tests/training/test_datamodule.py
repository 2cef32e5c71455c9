import pytest
import torch
from batch_cases import batches_of, equal
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rwkvseg.data.layouts import read_case
from rwkvseg.data.preprocessing import preprocess
from rwkvseg.training.datamodule import SegmentationData
from rwkvseg.training.items import SegmentationItems
from rwkvseg.training.loader import EpochSampler
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.resident import ResidentItems, fits
from rwkvseg.training.run import train
from rwkvseg.training.run_folder import open_recipe_data
from small import small_recipe

pytestmark = pytest.mark.usefixtures("without_plots")


def make_data(folder, **training):
    recipe = Recipe.from_mapping(small_recipe(folder, **training))
    files, labels, split = open_recipe_data(recipe)
    return SegmentationData(files.cases, split, labels, recipe)


@given(
    number=st.integers(1, 40),
    draws=st.integers(1, 100),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    processes=st.integers(1, 5),
)
def test_the_sampler_deals_out_one_order(number, draws, seed, epoch, processes):
    def order(rank=0, processes=1):
        sampler = EpochSampler(number, draws=draws, seed=seed, shuffle=True, rank=rank, processes=processes)
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler)
        passes = -(-draws // number)
        assert {p for p, _ in drawn} <= set(range(epoch * passes, (epoch + 1) * passes))
        return drawn

    whole = order()
    assert whole == order()  # a function of (seed, epoch)
    assert len(whole) == draws
    for start in range(0, draws, number):  # round after round, every item once
        part = whole[start : start + number]
        assert len({number_of_pass for number_of_pass, _ in part}) == 1
        assert len({position for _, position in part}) == len(part)
        assert {position for _, position in part} <= set(range(number))
    assert len(set(whole)) == draws  # no item twice in one pass, so no augmentation twice
    dealt = [order(rank, processes) for rank in range(processes)]
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    merged = [dealt[i % processes][i // processes] for i in range(draws)]
    assert merged == whole  # together all of it, nothing twice


def test_the_order_changes_with_epoch_and_seed_and_never_in_validation():
    def order(seed, epoch, *, shuffle=True):
        sampler = EpochSampler(50, draws=50, seed=seed, shuffle=shuffle)
        sampler.set_epoch(epoch)
        return [position for _, position in sampler]

    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(50))]
    assert len({tuple(one) for one in orders}) == 4
    assert order(3, 0, shuffle=False) == order(3, 7, shuffle=False) == list(range(50))


def test_batches_do_not_depend_on_workers_or_cache(phantom):
    plain = batches_of(make_data(phantom), epoch=3)
    assert [len(batch["image"]) for batch in plain] == [4, 4, 4, 4]
    assert plain[0]["image"].shape == (4, 1, 32, 32)
    assert plain[0]["image"].dtype == torch.float32
    assert plain[0]["label"].dtype == torch.uint8
    assert equal(plain, batches_of(make_data(phantom, cache_gigabytes=0), epoch=3))
    assert equal(plain, batches_of(make_data(phantom, workers=2), epoch=3))
    assert equal(plain, batches_of(make_data(phantom, workers=1, cache_gigabytes=1e-6), epoch=3))
    assert not equal(plain, batches_of(make_data(phantom), epoch=4))
    assert not equal(plain, batches_of(make_data(phantom, seed=1), epoch=3))


def test_an_items_augmentation_does_not_depend_on_its_place_in_the_batch(phantom):
    def by_case(batches):
        return {
            int(case): image
            for batch in batches
            for case, image in zip(batch["case"], batch["image"], strict=True)
        }

    four = by_case(batches_of(make_data(phantom), epoch=1))
    eight = by_case(batches_of(make_data(phantom, batch_size=8), epoch=1))
    assert four.keys() == eight.keys() == set(range(16))
    assert all(torch.equal(four[case], eight[case]) for case in four)


def test_loading_takes_no_numbers_from_the_global_generator(phantom):
    for workers in (0, 2):
        data = make_data(phantom, workers=workers)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        batches_of(data, epoch=0)
        list(data.val_dataloader())
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("batch_size", "steps", "sizes"),
    [
        (5, None, [5, 5, 5]),  # the sixteenth would be alone
        (15, None, [15]),
        (3, None, [3, 3, 3, 3, 3]),
        (7, None, [7, 7, 2]),
        (1, None, [1] * 16),
        (32, None, [16]),
        (4, 3, [4, 4, 4]),
        (6, 5, [6] * 5),  # more than there are: a second round
    ],
)
def test_a_last_batch_of_one_is_dropped(phantom, batch_size, steps, sizes):
    data = make_data(phantom, batch_size=batch_size, steps_per_epoch=steps)
    assert [len(batch["image"]) for batch in batches_of(data, epoch=0)] == sizes


def test_validation_is_what_preprocessing_makes_in_order(phantom):
    recipe = Recipe.from_mapping(small_recipe(phantom))
    files, labels, split = open_recipe_data(recipe)
    data = SegmentationData(files.cases, split, labels, recipe)
    seen = list(data.val_dataloader())
    by_id = {case.id: case for case in files.cases}
    expected = [preprocess(read_case(by_id[i], labels), recipe.preprocessing)[0] for i in split.val]
    images = torch.cat([batch["image"] for batch in seen])
    assert torch.equal(images, torch.stack([torch.from_numpy(case.image.copy()) for case in expected]))
    assert torch.cat([batch["case"] for batch in seen]).tolist() == list(range(len(split.val)))


def test_slices_know_their_volume(phantom_3d):
    content = small_recipe(phantom_3d)
    recipe = Recipe.from_mapping(content)
    files, labels, _ = open_recipe_data(recipe)
    items = SegmentationItems(files.cases[:3], labels, recipe, augment=False)
    assert len(items) == 3 * 9
    assert [items[0, position]["case"] for position in (0, 8, 9, 26)] == [0, 0, 1, 2]
    assert items.items[10].id == f"{files.cases[1].id}:0001"
    assert items[0, 0]["image"].shape == (1, 32, 32)


def test_a_set_that_lies_on_the_device_gives_the_same_batches(phantom, monkeypatch):
    data = make_data(phantom, batch_size=5, steps_per_epoch=4)
    wanted = [batches_of(data, epoch) for epoch in (0, 1)]
    validated = list(data.val_dataloader())
    monkeypatch.setattr("rwkvseg.training.datamodule.fits", lambda *_: True)
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, ResidentItems)
    assert len(loader) == len(wanted[0]) == 4
    assert equal(wanted[0], batches_of(data, 0))
    assert equal(wanted[1], batches_of(data, 1))
    assert equal(validated, list(data.val_dataloader()))


def test_a_run_whose_pictures_lie_on_the_device_is_the_same_run(phantom, tmp_path, monkeypatch):
    recipe = Recipe.from_mapping(small_recipe(phantom))
    wanted = train(recipe, tmp_path / "plain", device="cpu").summary
    monkeypatch.setattr("rwkvseg.training.datamodule.fits", lambda *_: True)
    found = train(recipe, tmp_path / "resident", device="cpu").summary
    assert found["results"] == wanted["results"]


def test_what_stays_on_a_device(phantom, monkeypatch):
    gpu, free = torch.device("cuda"), 16 * 32 * 32 * 5 * 20  # the images, and a twentieth of it may be used
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2 * free))
    assert fits(make_data(phantom).train, gpu)
    assert not fits(make_data(phantom).train, torch.device("cpu"))
    assert not fits(make_data(phantom, cache_gigabytes=1e-6).train, gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free - 20, 2 * free))
    assert not fits(make_data(phantom).train, gpu)


def test_pictures_of_several_sizes_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**40, 2**40))
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(12):
        for part in ("images", "masks"):
            Image.new("L", (32 + i % 2, 24), i % 2).save(tmp_path / part / f"{i}.png")
    content = small_recipe(tmp_path)
    content["data"]["labels"] = {"background": 0, "thing": 1}
    content["preprocessing"]["size"] = None
    content["training"]["batch_size"] = 1
    recipe = Recipe.from_mapping(content)
    files, labels, split = open_recipe_data(recipe)
    data = SegmentationData(files.cases, split, labels, recipe)
    assert not fits(data.train, torch.device("cuda"))
