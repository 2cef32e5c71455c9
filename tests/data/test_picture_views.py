"""Views of pictures, masks, RandAugment and ImageFolder trees."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from rwkvseg.data.image_folder import list_pictures, open_image_folder
from rwkvseg.data.pretraining import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    PictureSettings,
    _random_box,
    draw_mask,
    read_rgb,
    training_view,
    validation_view,
)
from rwkvseg.data.rand_augment import CHANGES, RandAugment, rand_augment
from rwkvseg.errors import DataError, UnreadableFileError

WHOLE = {"crop_area": (1, 1), "flip_columns": 0}


def generator(seed=0):
    return np.random.RandomState(seed)


def noise(width=31, height=20, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
    st.integers(0, 1000),
)
def test_a_crop_lies_in_the_picture_and_in_its_ranges(size, area, ratio, seed):
    settings = PictureSettings(crop_area=tuple(area), crop_ratio=tuple(ratio))
    left, top, right, bottom = _random_box(size, settings, generator(seed))
    assert 0 <= left < right <= size[0] + 1e-9
    assert 0 <= top < bottom <= size[1] + 1e-9
    found = (right - left) / (bottom - top)
    assert ratio[0] * (1 - 1e-6) <= found <= ratio[1] * (1 + 1e-6)
    share = (right - left) * (bottom - top) / (size[0] * size[1])
    middle = math.isclose(left + right, size[0]) and math.isclose(top + bottom, size[1])
    assert middle or area[0] * (1 - 1e-6) <= share <= area[1] * (1 + 1e-6)


def test_a_view_of_the_whole_picture_is_the_picture():
    picture = noise(32, 32)
    view = training_view(picture, PictureSettings(size=32, crop_ratio=(1, 1), **WHOLE), generator())
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    torch.testing.assert_close(view, expected)
    middle = validation_view(picture, PictureSettings(size=16, validation_share=0.5))
    torch.testing.assert_close(middle, expected[:, 8:24, 8:24])


@pytest.mark.parametrize(("key", "axis"), [("flip_columns", 2), ("flip_rows", 1)])
def test_flips(key, axis):
    picture, settings = noise(32, 32), {"size": 32, "crop_ratio": (1, 1)} | WHOLE
    plain = training_view(picture, PictureSettings(**settings), generator())
    flipped = training_view(picture, PictureSettings(**settings | {key: 1.0}), generator())
    assert torch.equal(flipped, plain.flip(axis))


def test_the_middle_of_an_oblong_picture():
    values = np.zeros((10, 40, 3), np.uint8)
    values[:, 15:25] = 255
    assert validation_view(Image.fromarray(values), PictureSettings(size=10, validation_share=1)).min() == 1


def test_normalisation_by_imagenet():
    picture, settings = noise(), {"size": 16} | WHOLE
    unit = training_view(picture, PictureSettings(**settings), generator())
    scaled = training_view(picture, PictureSettings(normalisation="imagenet", **settings), generator())
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    torch.testing.assert_close(scaled * deviation + mean, unit)


def test_a_view_is_a_function_of_its_generator():
    settings = PictureSettings(size=16, rand_augment=RandAugment())
    views = [training_view(noise(), settings, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_area": (0.5, 0.2)},
        {"crop_area": (0, 1)},
        {"crop_area": (0.5, 2)},
        {"crop_ratio": (1, math.inf)},
    ],
    ids=str,
)
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PictureSettings(**wrong)


@given(st.integers(1, 70), st.integers(1, 40), st.floats(0.01, 0.99), st.integers(0, 100))
def test_a_mask_hides_whole_patches_of_the_stated_number(size, patch, ratio, seed):
    mask = draw_mask(size, patch, ratio, generator(seed))
    assert (mask.shape, mask.dtype) == ((size, size), torch.bool)
    corners = mask[::patch, ::patch]
    assert int(corners.sum()) == max(1, int(ratio * corners.numel()))
    grown = corners.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:size, :size]
    assert torch.equal(mask, grown)


@pytest.mark.parametrize("name", sorted(CHANGES))
@pytest.mark.parametrize("level", [0.9, -0.9, 1.0])
def test_a_change_changes_and_keeps_size_and_mode(name, level):
    values = np.random.default_rng(0).triangular(40, 90, 200, (24, 31, 3))
    picture = Image.fromarray(values.astype(np.uint8))
    changed = CHANGES[name](picture, abs(level) if name.startswith(("solar", "poster")) else level)
    assert (changed.size, changed.mode) == (picture.size, picture.mode)
    assert changed.tobytes() != picture.tobytes()


def test_changes_against_their_definition():
    picture = noise()
    values = np.array(picture)
    assert np.array_equal(np.array(CHANGES["invert"](picture, 0.5)), 255 - values)
    assert np.array_equal(np.array(CHANGES["posterize"](picture, 0.5)), values & 0b11000000)
    solarized = np.where(values < 128, values, 255 - values)
    assert np.array_equal(np.array(CHANGES["solarize"](picture, 0.5)), solarized)
    added = np.where(values < 128, values.astype(int) + 55, values)
    assert np.array_equal(np.array(CHANGES["solarize_add"](picture, 0.5)), added)
    shifted = np.array(CHANGES["shift_columns"](noise(20, 20), 4 / 9))  # 0.45 * 4 / 9 * 20 = 4 pixels
    assert np.array_equal(shifted[:, :16], np.array(noise(20, 20))[:, 4:])
    assert np.array_equal(np.array(CHANGES["brightness"](picture, 0.0)), values)


def test_strength_and_number_of_changes_are_drawn_as_stated(monkeypatch):
    seen = []

    def recorded(name):
        return lambda picture, level: seen.append((name, level)) or picture

    for name in CHANGES:
        monkeypatch.setitem(CHANGES, name, recorded(name))
    draws, drawing = 2000, generator(3)
    for _ in range(draws):
        rand_augment(noise(4, 4), RandAugment(), drawing)
    assert abs(len(seen) / draws - 1) < 0.06  # two layers, each carried out with probability 1/2
    assert {name for name, _ in seen} == set(CHANGES)
    strength = np.abs([level for _, level in seen])
    assert strength.max() <= 1
    assert abs(strength.mean() - 0.9) < 0.01
    assert 0.02 < strength.std() < 0.06
    assert 0.4 < np.mean([level < 0 for name, level in seen if name == "rotate"]) < 0.6
    assert all(level > 0 for name, level in seen if name == "solarize")


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "F", "RGBA", "P"])
def test_any_picture_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "F" else "a.png")
    values = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
    if mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) << 8)
    elif mode == "F":
        picture = Image.fromarray(values.astype(np.float32) / 232 * 3 - 1)
    else:
        picture = Image.fromarray(values).convert(mode)
    picture.save(path)
    read = read_rgb(path)
    expected = values / 232 * 255 if mode == "F" else values
    assert read.mode == "RGB"
    assert np.abs(np.array(read)[..., 1] - np.floor(expected)).max() <= 1


def tree_of(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise().save(root / name)
    return root


def test_an_image_folder_is_listed_in_order(tmp_path):
    names = ("train/b/2.png", "train/b/1.jpg", "train/a/deep/x.PNG", "val/a/1.png", "val/b/1.png")
    folder = open_image_folder(tree_of(tmp_path, *names, "train/.hidden/1.png"))
    assert folder.classes == ("a", "b")
    assert [(picture.id, picture.target) for picture in folder.train] == [
        ("a/deep/x.PNG", 0),
        ("b/1.jpg", 1),
        ("b/2.png", 1),
    ]
    assert [picture.id for picture in folder.val] == ["a/1.png", "b/1.png"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("val/a/1.png",), "train does not exist"),
        (("train/a/1.png", "val/a/1.png"), "holds 1 class"),
        (("train/a/1.png", "train/b/1.png", "val/a/1.png"), "differ in 1 class: b"),
        (("train/a/1.png", "train/b/1.png"), "val does not exist"),
    ],
)
def test_a_tree_that_will_not_do_is_refused(tmp_path, names, said):
    with pytest.raises(DataError, match=said):
        open_image_folder(tree_of(tmp_path, *names))


def test_an_empty_class_and_a_damaged_picture_are_named(tmp_path):
    root = tree_of(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")
    (root / "val/b/1.png").write_bytes(hashlib.sha256().digest())
    with pytest.raises(UnreadableFileError, match=r"b/1\.png"):
        read_rgb(root / "val/b/1.png")
    (root / "val/b/1.png").unlink()
    with pytest.raises(DataError, match="b holds no picture"):
        open_image_folder(root)
    with pytest.raises(DataError, match="is no folder"):
        list_pictures(root / "absent")
