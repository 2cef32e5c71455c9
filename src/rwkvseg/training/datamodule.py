"""From cases and a split to batches: preprocessed once, kept in memory when small, augmented on the device.

Legend: an item is what the network sees once: a picture, or one slice of a volume. Patches of volumes are
made by volume_data.py, batches of a set that lies on the GPU whole by resident.py.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rwkvseg.data.augmentation import Numbers, augment_batch, draw_numbers
from rwkvseg.data.case import Case
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.reading import read_case
from rwkvseg.data.splits import Split
from rwkvseg.data.transforms import preprocess, sample_generator
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.resident import ResidentItems, as_it_is, fits
from rwkvseg.training.volume_data import VolumeItems, with_intensity

Draw = tuple[int, int]  # (pass through the items, position of the item)


@dataclass(frozen=True)
class Item:
    """Where an item comes from: the case, its place in the list, and the slice's place in the case."""

    case: str
    id: str
    case_index: int
    position: int


class SegmentationItems(Dataset[dict[str, Any]]):
    """Preprocessed items of some cases, indexed by (pass, position) so that augmentation knows the pass.

    With `augment` an item holds the numbers that decide its augmentation, see `augment_batch`.

    Args:
        files: the cases.
        labels: name -> value of every label.
        recipe: preprocessing, augmentation, seed and memory for the cache.
        augment: whether they are augmented (training) or not (validation).
        on_case: called after each case is read, for a progress bar.
    """

    def __init__(
        self,
        files: Sequence[CaseFiles],
        labels: dict[str, int],
        recipe: Recipe,
        *,
        augment: bool,
        on_case: Callable[[], None] = lambda: None,
    ) -> None:
        self.files = {case.id: case for case in files}
        self.labels = labels
        self.recipe = recipe
        self.augment = augment
        self.items: list[Item] = []
        self._kept: dict[str, list[Case]] = {}
        room = recipe.training.cache_gigabytes * 2**30
        for index, case in enumerate(files):
            slices = self._read(case.id)
            self.items += [Item(case.id, item.id, index, position) for position, item in enumerate(slices)]
            size = sum(item.image.nbytes + _label(item).nbytes for item in slices)
            if size <= room:
                self._kept[case.id] = slices
                room -= size
            on_case()

    def _read(self, case_id: str) -> list[Case]:
        return preprocess(read_case(self.files[case_id], self.labels), self.recipe.preprocessing)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        image, label = self.pair(draw[1])
        found: dict[str, Any] = {"image": image, "label": label, "case": self.items[draw[1]].case_index}
        if self.augment:
            found["numbers"] = self.numbers(draw)
        return found

    @property
    def in_memory(self) -> bool:
        """Whether no item is read anew."""
        return len(self._kept) == len(self.files)

    @property
    def shapes_in_memory(self) -> set[tuple[int, ...]]:
        """Shapes (C, H, W) of the images that are not read anew."""
        return {item.image.shape for slices in self._kept.values() for item in slices}

    def pair(self, position: int) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) float32 and label (H, W) uint8 of an item, not augmented."""
        item = self.items[position]
        slices = self._kept[item.case] if item.case in self._kept else self._read(item.case)
        source = slices[item.position]
        image = torch.from_numpy(np.ascontiguousarray(source.image))
        return image, torch.from_numpy(_label(source).astype(np.uint8))

    def numbers(self, draw: Draw) -> Numbers:
        """What decides the augmentation of an item at a pass."""
        number_of_pass, position = draw
        generator = sample_generator(self.recipe.training.seed, number_of_pass, self.items[position].id)
        return draw_numbers(self.recipe.augmentation, self.recipe.preprocessing.channels, generator)


def _label(case: Case) -> np.ndarray[Any, np.dtype[np.integer[Any]]]:
    assert case.label is not None, case.id
    return case.label


class EpochSampler(Sampler[Draw]):
    """Yields (pass, position); the order is a function of (seed, epoch), dealt out evenly to processes.

    An epoch of more draws than items goes through them in several passes; passes are counted from the first
    epoch on, so that no augmentation comes twice. Lightning calls `set_epoch` at the start of every epoch.
    """

    def __init__(
        self, number: int, *, draws: int, seed: int, shuffle: bool, rank: int = 0, processes: int = 1
    ) -> None:
        self.number, self.draws, self.seed, self.shuffle = number, draws, seed, shuffle
        self.rank, self.processes = rank, processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self.draws, self.processes))

    def __iter__(self) -> Iterator[Draw]:
        passes = -(-self.draws // self.number)
        order = np.tile(np.arange(self.number), passes)
        if self.shuffle:
            generator = np.random.default_rng([self.seed, self.epoch])
            order = np.concatenate([generator.permutation(self.number) for _ in range(passes)])
        for draw in range(self.rank, self.draws, self.processes):
            yield self.epoch * passes + draw // self.number, int(order[draw])


class _LateLoader(DataLoader[dict[str, Any]]):
    """Lets workers begin at the first batch that is asked for.

    Lightning makes the iterator before it tells the sampler the epoch; of a resumed run they would draw
    epoch 0 again.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        yield from super().__iter__()


class SegmentationData(LightningDataModule):  # type: ignore[misc]
    """Batches {"image": (B, C, H, W) float32, "label": (B, H, W) uint8, "case": (B,) place in the part}.

    Of recipes for volumes: (B, C, *patch) and (B, *patch) in training, one whole volume in validation. Their
    `recipe` knows the intensities of the training part.

    A last training batch that would hold a single item is dropped: batch normalisation needs two.
    """

    def __init__(
        self,
        files: Sequence[CaseFiles],
        split: Split,
        labels: dict[str, int],
        recipe: Recipe,
        *,
        on_case: Callable[[], None] = lambda: None,
        scratch: Path | None = None,
    ) -> None:
        super().__init__()
        by_id = {case.id: case for case in files}
        train, val = ([by_id[i] for i in part] for part in (split.train, split.val))
        self.recipe = with_intensity(recipe, train, labels)
        self.train: SegmentationItems | VolumeItems
        self.val: SegmentationItems | VolumeItems
        if recipe.preprocessing.dimensions == 2:
            self.train = SegmentationItems(train, labels, recipe, augment=True, on_case=on_case)
            self.val = SegmentationItems(val, labels, recipe, augment=False, on_case=on_case)
        else:
            folders = [scratch / part if scratch else None for part in ("train", "val")]
            self.train, self.val = (
                VolumeItems(part, labels, self.recipe, augment=part is train, on_case=on_case, folder=folder)
                for part, folder in zip((train, val), folders, strict=True)
            )

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
        if draws % settings.batch_size == 1 and draws > 1:
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
        if isinstance(items, SegmentationItems) and fits(items, device):
            resident = ResidentItems(items, device)
            return make_loader(resident, sampler, batch_size=settings.batch_size, workers=0)
        workers = number_of_workers(settings.workers) if shuffle else 0
        whole = isinstance(items, VolumeItems) and not shuffle  # volumes differ in size
        return make_loader(items, sampler, batch_size=1 if whole else settings.batch_size, workers=workers)


def sampler_of(trainer: Trainer | None, number: int, *, draws: int, seed: int, shuffle: bool) -> EpochSampler:
    """Sampler of this process's share of the draws; without a trainer there is one process."""
    return EpochSampler(
        number,
        draws=draws,
        seed=seed,
        shuffle=shuffle,
        rank=trainer.global_rank if trainer else 0,
        processes=trainer.world_size if trainer else 1,
    )


def make_loader(
    items: Dataset[dict[str, Any]], sampler: EpochSampler, *, batch_size: int, workers: int
) -> DataLoader[dict[str, Any]]:
    """Batches of what the sampler draws, by so many processes (0: this one)."""
    resident = isinstance(items, ResidentItems)
    return _LateLoader(
        items,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and not resident,
        collate_fn=as_it_is if resident else None,
        worker_init_fn=_one_thread if workers else None,
        generator=torch.Generator(),  # else it draws from the global one, as often as workers are started
    )


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def number_of_workers(setting: int | str) -> int:
    """All but two cores with a GPU to feed; none on a CPU, where the network needs every core itself."""
    if isinstance(setting, int):
        return setting
    return max(0, min(16, (os.cpu_count() or 1) - 2)) if torch.cuda.is_available() else 0
