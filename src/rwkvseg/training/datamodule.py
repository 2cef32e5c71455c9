"""From cases and a split to batches: preprocessed once, kept in memory when small, augmented on the device.

Pictures and slices are items.py, patches of volumes volume_data.py, the order of an epoch loader.py; batches
of a set that lies on the GPU whole are made by resident.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from rwkvseg.data.augmentation import augment_batch
from rwkvseg.data.files import CaseFiles, name_some
from rwkvseg.data.splits import Split
from rwkvseg.errors import RecipeError
from rwkvseg.training.items import OnRead, SegmentationItems, unnoticed
from rwkvseg.training.loader import make_loader, number_of_workers, sampler_of
from rwkvseg.training.processes import require_share
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.resident import ResidentItems, fits
from rwkvseg.training.volume_data import VolumeItems, with_intensity


class SegmentationData(LightningDataModule):  # type: ignore[misc]
    """Batches {"image": (B, C, H, W) float32, "label": (B, H, W) uint8, "case": (B,) place in the part}.

    Of recipes for volumes: (B, C, *patch) and (B, *patch) in training, one whole volume in validation. Their
    `recipe` knows the intensities of the training part.

    `on_read` is called with each case of the training part as it is read, for what else is to be known of it.

    A last training batch that would hold a single item is dropped: batch normalisation needs two. Of several
    devices each takes its share of every batch; a last one that is not full is dropped.
    """

    def __init__(
        self,
        files: Sequence[CaseFiles],
        split: Split,
        labels: dict[str, int],
        recipe: Recipe,
        *,
        on_case: Callable[[], None] = lambda: None,
        on_read: OnRead = unnoticed,
        scratch: Path | None = None,
    ) -> None:
        super().__init__()
        by_id = {case.id: case for case in files}
        train, val = ([by_id[i] for i in part] for part in (split.train, split.val))
        self.recipe = with_intensity(recipe, train, labels)
        self.train: SegmentationItems | VolumeItems
        self.val: SegmentationItems | VolumeItems
        if recipe.preprocessing.dimensions == 2:
            self.train = SegmentationItems(
                train, labels, recipe, augment=True, on_case=on_case, on_read=on_read
            )
            self.val = SegmentationItems(val, labels, recipe, augment=False, on_case=on_case)
            _require_shares(recipe, len(self.train), len(self.val))
            _require_one_size(recipe, self.train.shapes_in_memory | self.val.shapes_in_memory)
        else:
            _require_shares(recipe, len(train), len(val))
            folders = [scratch / part if scratch else None for part in ("train", "val")]
            make = partial(VolumeItems, labels=labels, recipe=self.recipe, on_case=on_case)
            self.train = make(train, augment=True, on_read=on_read, folder=folders[0])
            self.val = make(val, augment=False, folder=folders[1])

    def close(self) -> None:
        """Forget volumes, and remove those that were put on disk."""
        for items in (self.train, self.val):
            if isinstance(items, VolumeItems):
                items.close()

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move a batch, and augment it there if it says how."""
        numbers = batch.pop("numbers", None)
        moved: dict[str, Any] = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if numbers is not None:
            moved["image"], moved["label"] = augment_batch(
                self.recipe.augmentation, moved["image"], moved["label"], numbers.numpy()
            )
        return moved

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the training part in the order of the epoch, with what decides their augmentation."""
        settings = self.recipe.training
        number = len(self.train)
        draws = settings.steps_per_epoch * settings.batch_size if settings.steps_per_epoch else number
        if settings.devices > 1:
            draws -= draws % settings.batch_size
        elif draws % settings.batch_size == 1 and draws > 1:
            draws -= 1
        return self._loader(self.train, draws=draws, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the validation part, always in the same order."""
        return self._loader(self.val, draws=len(self.val), shuffle=False)

    def _loader(
        self, items: SegmentationItems | VolumeItems, *, draws: int, shuffle: bool
    ) -> DataLoader[dict[str, Any]]:
        settings = self.recipe.training
        sampler = sampler_of(self.trainer, len(items), draws=draws, seed=settings.seed, shuffle=shuffle)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        share = settings.batch_size // settings.devices
        if isinstance(items, SegmentationItems) and fits(items, device):
            return make_loader(ResidentItems(items, device), sampler, batch_size=share, workers=0)
        workers = number_of_workers(settings.workers, settings.devices) if shuffle else 0
        whole = isinstance(items, VolumeItems) and not shuffle  # volumes differ in size
        return make_loader(items, sampler, batch_size=1 if whole else share, workers=workers)


def _require_shares(recipe: Recipe, train: int, val: int) -> None:
    """Raise RecipeError where so many items are too few for the devices of the recipe."""
    settings = recipe.training
    if settings.devices == 1:
        return
    require_share(settings.devices, val, "items to validate")
    if settings.steps_per_epoch is None and train < settings.batch_size:
        raise RecipeError(
            f"{train} items to train on do not fill one batch of {settings.batch_size}. "
            "Set training.batch_size lower, or training.steps_per_epoch."
        )


def _require_one_size(recipe: Recipe, shapes: set[tuple[int, ...]]) -> None:
    """Raise RecipeError where pictures of several sizes would have to make one batch."""
    if len(shapes) > 1 and recipe.training.batch_size > 1:
        sizes = name_some((" x ".join(map(str, shape[1:])) for shape in sorted(shapes)), 3)
        raise RecipeError(
            f"the pictures have several sizes ({sizes}), and preprocessing.size is null: they make no "
            "batch. Set preprocessing.size, or training.batch_size: 1."
        )
