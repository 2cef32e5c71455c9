"""Small sets of pictures on the GPU as a whole: a batch is a choice of rows there, no worker, no copy."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from rwkvseg.training.datamodule import EpochSampler, SegmentationItems

SHARE = 0.25  # of the GPU's free memory; training needs the rest


def fits(items: "SegmentationItems", device: torch.device) -> bool:
    """Whether the items lie in memory, have one shape and leave the GPU `device` enough room; no CPU does."""
    if device.type != "cuda" or not items.in_memory or not len(items):
        return False
    shapes = {items.pair(position)[0].shape for position in range(len(items))}
    if len(shapes) > 1:
        return False
    image, label = items.pair(0)
    return len(items) * (image.nbytes + label.nbytes) <= SHARE * torch.cuda.mem_get_info(device)[0]


class ResidentLoader:
    """What a `DataLoader` of the same items, sampler and batch size yields, but on `device`.

    Args:
        items: all of one shape.
        sampler: order of every epoch.
        batch_size: items of a batch; the last may hold fewer.
        device: where the items are kept, as long as the loader lives.
    """

    def __init__(
        self, items: "SegmentationItems", sampler: "EpochSampler", *, batch_size: int, device: torch.device
    ) -> None:
        self.items, self.sampler, self.batch_size, self.device = items, sampler, batch_size, device
        image, label = items.pair(0)
        self._images = torch.empty(len(items), *image.shape, device=device)
        self._labels = torch.empty(len(items), *label.shape, device=device, dtype=label.dtype)
        for position in range(len(items)):
            image, label = items.pair(position)
            self._images[position].copy_(image)
            self._labels[position].copy_(label)
        cases = [item.case_index for item in items.items]
        self._cases = torch.tensor(cases, device=device)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = iter(self.sampler)
        while draws := list(islice(order, self.batch_size)):
            rows = torch.tensor([position for _, position in draws]).to(self.device, non_blocking=True)
            batch = {
                "image": self._images[rows],
                "label": self._labels[rows],
                "case": self._cases[rows],
            }
            if self.items.augment:
                batch["numbers"] = torch.from_numpy(np.stack([self.items.numbers(draw) for draw in draws]))
            yield batch
