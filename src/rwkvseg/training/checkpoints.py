"""Checkpoints that survive being killed and never run code: written whole, read with weights_only=True."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import CheckpointIO

from rwkvseg.errors import ModelFileError, one_line
from rwkvseg.models.weight_files import DAMAGE
from rwkvseg.output import write_atomically

CHECKPOINTS = "checkpoints"


class SafeCheckpointIO(CheckpointIO):  # type: ignore[misc]
    """Saves under a temporary name and renames; loads plain tensors and numbers only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        with write_atomically(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch reports a full disk as a failed zip writer
                raise OSError(
                    "the checkpoint could not be written whole, most likely for lack of space"
                ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint without executing anything in it.

        Raises:
            ModelFileError: missing, damaged, or holding more than tensors and plain values.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of foreign pickles, which are refused anyway
                loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except DAMAGE as error:
            raise ModelFileError(
                f"cannot resume from {path}: {one_line(error, 200)}. "
                "Remove this file to start the run again from its beginning."
            ) from error
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint that is no longer wanted."""
        Path(path).unlink(missing_ok=True)


class _MovableCheckpoint(ModelCheckpoint):  # type: ignore[misc]
    """Remembers the best score although the run folder was moved; Lightning's own would start afresh."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state with every path brought into the folder of today."""
        moved = dict(state_dict) | {"dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            moved[key] = self._here(state_dict[key])
        moved["best_k_models"] = {self._here(p): score for p, score in state_dict["best_k_models"].items()}
        super().load_state_dict(moved)

    def _here(self, path: str) -> str:
        return str(Path(self.dirpath or "") / Path(path).name) if path else path


def last_path(out: Path) -> Path:
    """Where a run in the folder `out` keeps the checkpoint that it goes on from."""
    return out / CHECKPOINTS / "last.ckpt"


def best_path(out: Path) -> Path:
    """Where it keeps that of the best validation."""
    return out / CHECKPOINTS / "best.ckpt"


def checkpoint_callbacks(out: Path, *, every: int, validate_every: int) -> list[ModelCheckpoint]:
    """`best.ckpt` by validation DSC and `last.ckpt`; best comes first so that last remembers it."""
    best = _MovableCheckpoint(
        filename="best", monitor="val_dsc", mode="max", every_n_epochs=validate_every, **_common(out)
    )
    return [best, last_checkpoint(out, every=every)]


def last_checkpoint(out: Path, *, every: int) -> ModelCheckpoint:
    """`last.ckpt`, written anew after every so many epochs."""
    return _MovableCheckpoint(filename="last", every_n_epochs=every, **_common(out))


def _common(out: Path) -> dict[str, Any]:
    return {"dirpath": out / CHECKPOINTS, "enable_version_counter": False, "save_on_train_epoch_end": True}
