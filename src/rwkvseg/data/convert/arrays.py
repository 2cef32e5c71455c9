"""TransUNet's layout: slices of the training part as npz, volumes of the others as h5, and their lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.arrays import write_arrays
from rwkvseg.data.case import Case
from rwkvseg.data.convert.nnunet_msd import geometry
from rwkvseg.data.convert.plan import Item, Plan
from rwkvseg.data.convert.result import Done, unread, write_folds, write_groups, write_labels
from rwkvseg.data.convert.scale import MOST
from rwkvseg.data.io import Label
from rwkvseg.data.preprocessing import Preprocessing, slice_axis
from rwkvseg.errors import DataError
from rwkvseg.output import write_text

GEOMETRY = "spacing and affine, for which the files have no place; they are noted in conversion.json"
AXES = "the order of the axes: slices, cut along the axis with the largest spacing, come first in the files"
WINDOWED = "intensities outside --window: what lies within is scaled to 0..1"
NO_LABEL = "cases without label, for which the layout has no place"
NO_PARTS = "all cases are in the part train: the source names no parts. Give them with --split"
LISTS = {"train": "train.txt", "val": "val_vol.txt", "test": "test_vol.txt"}


def write_case(item: Item, case: Case, plan: Plan, root: Path) -> Done:
    """Write one case: the slices of a training case, else the whole; nothing of one without label.

    Raises:
        DataError: more than one channel.
        OutputError, MissingExtraError: as `write_arrays`.
    """
    part = item.part or "train"
    volume = len(case.spatial_shape) == 3
    record = geometry(case) if volume else {}
    if case.label is None:
        return Done(item.id, (), part, item.group, False, len(case.image), (NO_LABEL,), record)
    if len(case.image) != 1:
        raise DataError(
            f"case {item.id} has {len(case.image)} channels, TransUNet's files hold one. "
            "Convert the images to grey, or use --to nnunet."
        )
    lost = unread(item) + ([GEOMETRY] if case.affine is not None else [])
    image, label = case.image[0], _compact(case.label)
    if volume:
        axis = slice_axis(case, Preprocessing())
        image, label = np.moveaxis(image, axis, -1), np.moveaxis(label, axis, -1)
        record |= {"axis": axis}
        lost += [AXES] if axis != 2 else []
    if plan.options.window is not None:
        image = _windowed(image, *plan.options.window)
        lost.append(WINDOWED)
    ids = _write(item.id, image, label, root / ("train_npz" if part == "train" else "test_vol_h5"))
    return Done(item.id, ids, part, item.group, True, 1, tuple(lost), record)


def _write(name: str, image: NDArray[Any], label: Label, folder: Path) -> tuple[str, ...]:
    """Write a picture or a volume, as slices where the folder is that of npz; the ids."""
    if folder.name != "train_npz":
        write_arrays(folder / f"{name}.npy.h5", image=image, label=label)
        return (name,)
    if image.ndim == 2:
        write_arrays(folder / f"{name}.npz", image=image, label=label)
        return (name,)
    names = tuple(f"{name}_slice{index:03d}" for index in range(image.shape[-1]))
    for index, one in enumerate(names):
        write_arrays(folder / f"{one}.npz", image=image[..., index], label=label[..., index])
    return names


def _compact(label: Label) -> Label:
    """The same values in the smallest of uint8 and uint16 that holds them; as it is where none does."""
    low, high = int(label.min(initial=0)), int(label.max(initial=0))
    return label if low < 0 or high > MOST else label.astype(np.uint8 if high < 256 else np.uint16)


def _windowed(image: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    scaled: NDArray[Any] = (image.astype(np.float64).clip(low, high) - low) / (high - low)
    return scaled.astype(np.float32)


def finish(root: Path, plan: Plan, done: Sequence[Done]) -> list[str]:
    """Write the lists, labels.json, splits_final.json and groups.csv; what else there is to know.

    Raises:
        DataError: labels that do not fit, or no case with a label.
    """
    kept = [case for case in done if case.ids]
    if not kept:
        raise DataError(f"no case of {plan.folder.root} has a label, which TransUNet's layout needs.")
    for part, name in LISTS.items():
        ids = [one for case in kept if case.part == part for one in case.ids]
        if ids:
            write_text(root / "lists" / name, "\n".join(ids) + "\n")
    write_labels(root, plan, kept)
    write_groups(root, kept)
    notes = [NO_PARTS] if all(item.part is None for item in plan.items) else []
    folds = write_folds(root, plan, kept, val=False)
    return notes + ([folds] if folds else [])
