"""Data folders of known content, written for a test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwkvseg.output import write_json


def write_pictures(
    root: Path, number: int, size: tuple[int, ...] = (24, 20), *, white: int = 1, names: Sequence[str] = ()
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Image folder: noise of `size` (rows, columns[, 3]) with a box labelled `white`; gives the arrays."""
    rng = np.random.default_rng(3)
    pairs = []
    for index in range(number):
        image = rng.integers(0, 256, size, dtype=np.uint8)
        label = np.zeros(size[:2], np.uint8)
        label[2 : 5 + index % 3, 1:7] = white
        pairs.append((image, label))
        name = names[index] if names else f"case{index}"
        for folder, values in (("images", image), ("masks", label)):
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return pairs


def write_volume(
    root: Path, name: str, image: NDArray[Any], label: NDArray[Any], affine: NDArray[np.float64] | None = None
) -> None:
    """One case of an MSD folder."""
    for folder, values in (("imagesTr", image), ("labelsTr", label)):
        path = root / folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def write_volumes(
    root: Path,
    shapes: Sequence[tuple[int, int, int]],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    names: Sequence[str] = (),
    channel: str | None = None,
) -> None:
    """MSD folder of noise with a labelled box in each volume; `channel` names the modality."""
    rng = np.random.default_rng(5)
    for index, shape in enumerate(shapes):
        image = rng.normal(100, 20, shape).astype(np.float32)
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(side // 4, side // 2 + 1) for side in shape)] = 1
        name = names[index] if names else f"case{index:03d}"
        write_volume(root, name, image, label, np.diag([*spacing, 1.0]))
    settings: dict[str, Any] = {"labels": {"0": "background", "1": "organ"}}
    if channel is not None:
        settings["modality"] = {"0": channel}
    write_json(root / "dataset.json", settings)
