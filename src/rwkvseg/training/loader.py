"""In which order items are drawn, and how they become batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, Sampler

from rwkvseg.parallel import available_cores
from rwkvseg.training.items import Draw
from rwkvseg.training.resident import ResidentItems, as_it_is


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


def number_of_workers(setting: int | str, devices: int = 1) -> int:
    """All but two cores with a GPU to feed, shared out among several; none on a CPU.

    There the network needs every core itself.
    """
    if isinstance(setting, int):
        return setting
    if not torch.cuda.is_available():
        return 0
    return max(0, min(16, (available_cores() - 2) // devices))
