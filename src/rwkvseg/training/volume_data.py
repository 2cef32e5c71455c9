"""Patches of volumes for training, whole volumes for validation: preprocessed once, in memory or mapped.

What exceeds `training.cache_gigabytes` lies preprocessed on disk and is mapped, so that a draw reads no more
than the patch it cuts; worker processes share both.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from rwkvseg.data.augmentation import draw_numbers
from rwkvseg.data.case import Case
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.reading import read_case
from rwkvseg.data.transforms import sample_generator
from rwkvseg.data.volume_intensity import foreground_intensity
from rwkvseg.data.volume_patches import (
    Places,
    cut_patch,
    draw_corner,
    draw_geometry,
    foreground_places,
    sample_patch,
)
from rwkvseg.data.volumes import to_network_grid
from rwkvseg.errors import OutputError
from rwkvseg.output import write_atomically
from rwkvseg.training.items import OnRead, unnoticed
from rwkvseg.training.recipe import Recipe


@dataclass(frozen=True)
class Volume:
    """A preprocessed case: image (C, i, j, k) float32, label (i, j, k) uint8, mm, voxels of every class."""

    image: NDArray[Any]
    label: NDArray[Any]
    spacing: tuple[float, ...] | None
    places: Places


class VolumeStore:
    """Keeps preprocessed volumes: up to so many bytes in memory, the rest in `folder`.

    Args:
        room: bytes of memory.
        folder: where volumes go that do not fit; it is emptied first and removed with the store, its parent
            too if it is then empty. None makes one among the system's temporary files.
    """

    def __init__(self, room: float, folder: Path | None) -> None:
        self.room = room
        self.folder = folder
        self._made: Path | None = None
        self._kept: dict[str, Volume] = {}
        self._finalize: Callable[[], Any] = lambda: None

    def close(self) -> None:
        """Forget the volumes and remove the folder; without it both go at the end of the process."""
        self._kept.clear()
        self._finalize()

    def add(self, case: Case, places: Places) -> None:
        """Take up a preprocessed case.

        Raises:
            OutputError: the folder cannot be written.
        """
        assert case.label is not None, case.id
        image, label = case.image, case.label.astype(np.uint8)
        size = image.nbytes + label.nbytes + sum(found.nbytes for found in places.values())
        if size <= self.room:
            self.room -= size
        else:
            image, label = (
                self._mapped(f"{len(self._kept)}.{i}.npy", a) for i, a in enumerate((image, label))
            )
        self._kept[case.id] = Volume(image, label, case.spacing, places)

    def __getitem__(self, case_id: str) -> Volume:
        return self._kept[case_id]

    def _mapped(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        path = self._made_folder() / name
        with write_atomically(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
        mapped: NDArray[Any] = np.load(path, mmap_mode="c")  # tensors must look writable
        return mapped

    def _made_folder(self) -> Path:
        if self._made is None:
            try:
                self._made = _empty_folder(self.folder)
            except OSError as error:
                raise OutputError(
                    f"cannot write {self.folder}: {error.strerror or error}. "
                    "Free some space, or raise training.cache_gigabytes."
                ) from error
            self._finalize = weakref.finalize(self, _remove, self._made, self.folder, os.getpid())
        return self._made


def _remove(made: Path, given: Path | None, process: int) -> None:
    if os.getpid() != process:  # workers share the volumes
        return
    shutil.rmtree(made, ignore_errors=True)
    if given is not None:
        with suppress(OSError):  # the other part's is still there
            given.parent.rmdir()


def _empty_folder(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="rwkvseg-"))
    if folder.exists():  # of a run that was killed
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


class VolumeItems(Dataset[dict[str, Any]]):
    """One item a case, indexed by (pass, position): a random patch in training, else the whole volume.

    A patch is a pure function of (seed, pass, case): its place, its geometry, and the numbers that decide how
    its intensities change, see `augment_batch`.

    Args:
        files: the cases.
        labels: name -> value of every label.
        recipe: preprocessing, augmentation, seed and memory for the cache.
        augment: whether to cut patches (training) or not (validation).
        on_case: called after each case is read, for a progress bar.
        on_read: called with each case as its files hold it, before it is preprocessed.
        folder: see `VolumeStore`.
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
        folder: Path | None = None,
    ) -> None:
        assert recipe.preprocessing.patch is not None
        self.recipe = recipe
        self.patch = recipe.preprocessing.patch
        self.ids = [case.id for case in files]
        self.augment = augment
        self._store = VolumeStore(recipe.training.cache_gigabytes * 2**30, folder)
        for case in files:
            read = read_case(case, labels)
            on_read(case, read)
            prepared, _ = to_network_grid(read, recipe.preprocessing)
            assert prepared.label is not None
            places = foreground_places(prepared.label, max(labels.values()) + 1) if augment else {}
            self._store.add(prepared, places)
            on_case()

    def close(self) -> None:
        """Forget the volumes."""
        self._store.close()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, draw: tuple[int, int]) -> dict[str, Any]:
        number_of_pass, position = draw
        case = self.ids[position]
        volume = self._store[case]
        if not self.augment:
            image, label = torch.from_numpy(volume.image), torch.from_numpy(volume.label)
            return {"image": image, "label": label, "case": position}
        generator = sample_generator(self.recipe.training.seed, number_of_pass, case)
        image, label = self._cut(volume, generator)
        numbers = draw_numbers(self.recipe.augmentation, len(image), generator)
        return {"image": image, "label": label, "case": position, "numbers": numbers}

    def _cut(self, volume: Volume, generator: np.random.RandomState) -> tuple[torch.Tensor, torch.Tensor]:
        corner = draw_corner(
            volume.label.shape,
            self.patch,
            generator,
            places=volume.places,
            foreground_fraction=self.recipe.training.foreground_fraction,
        )
        geometry = draw_geometry(self.recipe.augmentation, self.patch, volume.spacing, generator)
        if geometry is None:
            cut = (cut_patch(values, corner, self.patch) for values in (volume.image, volume.label))
            return torch.from_numpy(next(cut)), torch.from_numpy(next(cut))
        matrix, shift = geometry
        centre = np.add(corner, (np.array(self.patch) - 1) / 2) + shift
        return sample_patch(
            torch.from_numpy(volume.image), torch.from_numpy(volume.label), centre, matrix, self.patch
        )


def with_intensity(recipe: Recipe, files: Sequence[CaseFiles], labels: dict[str, int]) -> Recipe:
    """Recipe whose "ct" knows its intensity: that of the foreground of `files`, where it is not given.

    Raises:
        DataError: a case cannot be read, or there is no foreground.
    """
    settings = recipe.preprocessing
    if settings.normalisation != "ct" or settings.intensity is not None:
        return recipe
    found = foreground_intensity(read_case(case, labels) for case in files)
    filled = settings.model_copy(update={"intensity": found})
    return recipe.model_copy(update={"preprocessing": filled})
