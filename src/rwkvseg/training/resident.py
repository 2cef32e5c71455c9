"""Small sets of pictures on the GPU as a whole: a batch is a choice of rows there, no worker, no copy."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from rwkvseg.training.items import SegmentationItems

SHARE = 0.05  # of the GPU's free memory, for each part: what `rwkvseg plan` estimates too much leaves room


def fits(items: SegmentationItems, device: torch.device) -> bool:
    """Whether the items lie in memory, have one shape and leave the GPU `device` enough room; no CPU does."""
    if device.type != "cuda" or not items.in_memory or len(items.shapes_in_memory) != 1:
        return False
    ((channels, *sides),) = items.shapes_in_memory
    return resident_bytes(len(items), channels, sides) <= SHARE * torch.cuda.mem_get_info(device)[0]


def resident_bytes(number: int, channels: int, sides: Sequence[int]) -> int:
    """Bytes of so many items: float32 images, uint8 labels.

    >>> resident_bytes(1000, 3, (256, 256))
    851968000
    """
    return number * math.prod(sides) * (4 * channels + 1)


class ResidentItems(Dataset[dict[str, Any]]):
    """What a loader of the same items yields, but on `device`: a `DataLoader` asks for a batch at a time.

    Args:
        items: all of one shape.
        device: where they are kept, as long as this lives.
    """

    def __init__(self, items: SegmentationItems, device: torch.device) -> None:
        self.items, self.device = items, device
        image, label = items.pair(0)
        self._images = torch.empty(len(items), *image.shape, device=device)
        self._labels = torch.empty(len(items), *label.shape, device=device, dtype=label.dtype)
        for position in range(len(items)):
            image, label = items.pair(position)
            self._images[position].copy_(image)
            self._labels[position].copy_(label)
        self._cases = torch.tensor([item.case_index for item in items.items], device=device)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draw: tuple[int, int]) -> dict[str, Any]:
        return self.items[draw]

    def __getitems__(self, draws: list[tuple[int, int]]) -> dict[str, Any]:
        """Batch of these draws."""
        rows = torch.tensor([position for _, position in draws]).to(self.device, non_blocking=True)
        batch = {"image": self._images[rows], "label": self._labels[rows], "case": self._cases[rows]}
        if self.items.augment:
            batch["numbers"] = torch.from_numpy(np.stack([self.items.numbers(draw) for draw in draws]))
        return batch


def as_it_is(batch: Any) -> Any:
    """Collate nothing: the items are a batch already."""
    return batch
