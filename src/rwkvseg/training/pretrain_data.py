"""Pictures of a pre-training: which they are, which they must never be, and their batches.

The rule of the masked task: what any named segmentation recipe validates or tests on is never seen. A recipe
as source gives its training part alone, and every picture, wherever it comes from, whose pixels equal those
of a held-out one is left out.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rwkvseg.data.files import CaseFiles, name_some
from rwkvseg.data.image_folder import Picture, list_pictures, open_image_folder
from rwkvseg.data.io import PICTURE_SUFFIXES
from rwkvseg.data.pretraining import draw_mask, read_rgb, training_view, validation_view
from rwkvseg.data.splits import PARTS
from rwkvseg.data.transforms import sample_generator
from rwkvseg.errors import DataError, RecipeError
from rwkvseg.training.items import Draw
from rwkvseg.training.loader import make_loader, number_of_workers, sampler_of
from rwkvseg.training.pretrain_recipe import PictureSource, PretrainRecipe
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run_folder import open_recipe_data, part_files
from rwkvseg.wording import counted


@dataclass(frozen=True)
class Pictures:
    """Pictures to train on and to validate with, class names, and what pictures.json says of them."""

    train: tuple[Picture, ...]
    val: tuple[Picture, ...] = ()
    classes: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)


def open_pictures(recipe: PretrainRecipe) -> Pictures:
    """List the pictures that a recipe means.

    Raises:
        RecipeError: no path, or a source's segmentation recipe that cannot be used.
        DataError: a folder, list, split or picture that cannot be used, or fewer pictures than a batch.
    """
    pictures = _classified(recipe) if recipe.task == "classify" else _unlabelled(recipe)
    if len(pictures.train) < recipe.training.batch_size and recipe.training.steps_per_epoch is None:
        raise DataError(
            f"{counted(len(pictures.train), 'picture does', 'pictures do')} not fill one batch of "
            f"{recipe.training.batch_size}. Lower training.batch_size or set training.steps_per_epoch."
        )
    return pictures


def _classified(recipe: PretrainRecipe) -> Pictures:
    if recipe.data.path is None:
        raise RecipeError("the recipe names no data. Give --data DIR, or set data.path in the recipe.")
    folder = open_image_folder(recipe.data.path)
    digest = hashlib.sha256()
    for part in ("train", "val"):
        for picture in getattr(folder, part):
            digest.update(f"{part} {picture.id} {picture.path.stat().st_size}\n".encode())
    record = {
        "classes": list(folder.classes),
        "pictures": {"train": len(folder.train), "val": len(folder.val)},
        "sha256_of_names_and_sizes": digest.hexdigest(),
    }
    return Pictures(folder.train, folder.val, folder.classes, record)


def _unlabelled(recipe: PretrainRecipe) -> Pictures:
    chosen: list[Picture] = []
    held_out: list[Picture] = []
    for name, source in recipe.data.sources.items():
        path = source.path or recipe.data.path
        if source.recipe is None:
            chosen += _plain(name, source, path)
        else:
            parts = _parts_of_recipe(name, source, path)
            chosen += [] if source.held_out_only else parts["train"]
            held_out += parts["val"] + parts["test"]
    forbidden = {pixel_digest(picture.path): picture.id for picture in held_out}
    digests = {picture.id: pixel_digest(picture.path) for picture in chosen}
    seen = [picture for picture in chosen if digests[picture.id] not in forbidden]
    left_out = {
        picture.id: forbidden[digests[picture.id]] for picture in chosen if digests[picture.id] in forbidden
    }
    if not seen:
        raise DataError(
            f"all of {counted(len(chosen), 'picture')} are held out for validation or test, such as "
            f"{name_some(left_out)}. Name other sources."
        )
    record = {
        "pictures": {picture.id: digests[picture.id] for picture in seen},
        "held_out": {name: digest for digest, name in forbidden.items()},
        "left_out_as_equal_to": left_out,
    }
    return Pictures(tuple(seen), record=record)


def pixel_digest(path: Path) -> str:
    """SHA-256 of a picture's 8-bit RGB pixels and size: the same for every lossless copy of it."""
    picture = read_rgb(path)
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def _plain(name: str, source: PictureSource, path: Path | None) -> list[Picture]:
    if path is None:
        raise RecipeError(f"source {name} names no folder. Give --data DIR, or set data.sources.{name}.path.")
    paths = list_pictures(path) if source.list is None else [path / line for line in _lines(source.list)]
    absent = [
        each for each in paths if not (each.is_file() and each.resolve().is_relative_to(path.resolve()))
    ]
    if absent or not paths:
        what = (
            f"{counted(len(absent), 'picture of its list is', 'pictures of its list are')} not in it: "
            f"{name_some(absent)}"
            if absent
            else "has none"
        )
        raise DataError(f"source {name} in {path}: {what}. Mend the list or the path.")
    return [Picture(f"{name}/{each.relative_to(path).as_posix()}", each) for each in paths]


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {path}: {error}. Check the path.") from error
    return sorted({line for line in lines if line})


def _parts_of_recipe(name: str, source: PictureSource, path: Path | None) -> dict[str, list[Picture]]:
    assert source.recipe is not None
    recipe = Recipe.from_file(source.recipe, changes=source.changes)
    if path is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": path})})
    folder, _, split = open_recipe_data(recipe)
    return {part: [_picture(name, case) for case in part_files(folder, split, part)] for part in PARTS}


def _picture(name: str, case: CaseFiles) -> Picture:
    path = case.images[0]
    if len(case.images) != 1 or path.suffix.lower() not in PICTURE_SUFFIXES:
        raise DataError(f"case {case.id} of source {name} is no picture. Pre-training takes pictures only.")
    return Picture(f"{name}/{case.id}", path)


class PictureItems(Dataset[dict[str, Any]]):
    """Views of pictures, indexed by (pass, position); a view is a function of seed, pass and id."""

    def __init__(self, pictures: Sequence[Picture], recipe: PretrainRecipe, *, train: bool) -> None:
        self.pictures = pictures
        self.recipe = recipe
        self.train = train

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        number_of_pass, position = draw
        picture = self.pictures[position]
        generator = sample_generator(self.recipe.training.seed, number_of_pass, picture.id)
        settings, pixels = self.recipe.pictures, read_rgb(picture.path)
        image = (
            training_view(pixels, settings, generator) if self.train else validation_view(pixels, settings)
        )
        item: dict[str, Tensor | int] = {"image": image}
        if self.recipe.task == "classify":
            item["label"] = picture.target
        else:
            masked = self.recipe.masked
            item["mask"] = draw_mask(settings.size, masked.patch, masked.ratio, generator)
        return item


class PretrainData(LightningDataModule):  # type: ignore[misc]
    """Batches {"image": (B, 3, size, size) float32} with "label" (B,) or "mask" (B, size, size) bool.

    `training.batch_size` pictures over all devices together; an incomplete last batch is dropped.
    """

    def __init__(self, pictures: Pictures, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.train = PictureItems(pictures.train, recipe, train=True)
        self.val = PictureItems(pictures.val, recipe, train=False)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of random views in the order of the epoch."""
        settings = self.recipe.training
        steps = settings.steps_per_epoch or len(self.train) // settings.batch_size
        return self._loader(self.train, draws=steps * settings.batch_size, shuffle=True)

    def val_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """Batches of the validation pictures, always the same; none for a task without labels."""
        return [self._loader(self.val, draws=len(self.val), shuffle=False)] if len(self.val) else []

    def _loader(self, items: PictureItems, *, draws: int, shuffle: bool) -> DataLoader[dict[str, Any]]:
        settings = self.recipe.training
        sampler = sampler_of(self.trainer, len(items), draws=draws, seed=settings.seed, shuffle=shuffle)
        workers = number_of_workers(settings.workers, settings.devices)
        return make_loader(
            items, sampler, batch_size=settings.batch_size // settings.devices, workers=workers
        )
