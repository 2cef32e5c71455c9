"""Preprocessed cases, kept in memory when small.

Legend: an item is what the network sees once: a picture, or one slice of a volume. Patches of volumes are
made by volume_data.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rwkvseg.data.augmentation import Numbers, draw_numbers
from rwkvseg.data.case import Case
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.preprocessing import preprocess
from rwkvseg.data.reading import read_case
from rwkvseg.data.transforms import sample_generator
from rwkvseg.training.recipe import Recipe

Draw = tuple[int, int]  # (pass through the items, position of the item)
OnRead = Callable[[CaseFiles, Case], None]


def unnoticed(_files: CaseFiles, _case: Case) -> None:
    """Let a case be read that nobody asks about."""


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
        on_read: called with each case as its files hold it, before it is preprocessed.
    """

    def __init__(
        self,
        files: Sequence[CaseFiles],
        labels: dict[str, int],
        recipe: Recipe,
        *,
        augment: bool,
        on_case: Callable[[], None] = lambda: None,
        on_read: OnRead = unnoticed,
    ) -> None:
        self.files = {case.id: case for case in files}
        self.labels = labels
        self.recipe = recipe
        self.augment = augment
        self.items: list[Item] = []
        self._kept: dict[str, list[Case]] = {}
        room = recipe.training.cache_gigabytes * 2**30
        for index, case in enumerate(files):
            slices = self._read(case.id, on_read)
            self.items += [Item(case.id, item.id, index, position) for position, item in enumerate(slices)]
            size = sum(item.image.nbytes + _label(item).nbytes for item in slices)
            if size <= room:
                self._kept[case.id] = slices
                room -= size
            on_case()

    def _read(self, case_id: str, on_read: OnRead = unnoticed) -> list[Case]:
        files = self.files[case_id]
        case = read_case(files, self.labels)
        on_read(files, case)
        return preprocess(case, self.recipe.preprocessing)

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
