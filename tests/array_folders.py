"""Small data folders in TransUNet's layout, written with numpy and h5py alone."""

from pathlib import Path

import h5py
import numpy as np

SHAPE = (3, 7, 5)  # slices, rows, columns


def volume_arrays(seed: int, shape: tuple[int, ...] = SHAPE) -> dict[str, np.ndarray]:
    """Image 0..1 and label 0..3, float32 as published; the label can be seen in the image."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 4, shape).astype(np.float32)
    image = (label / 4 + generator.random(shape) / 8).astype(np.float32)
    return {"image": image, "label": label}


def write_h5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)


def write_synapse(root: Path, train: int = 3, test: int = 2, shape: tuple[int, ...] = SHAPE) -> Path:
    """Slices of cases 5, 6, ... in train_npz, volumes 1, 2, ... in test_vol_h5, and the lists."""
    (root / "train_npz").mkdir(parents=True)
    (root / "lists" / "lists_Synapse").mkdir(parents=True)
    names = []
    for number in range(5, 5 + train):
        arrays = volume_arrays(number, shape)
        for index in range(shape[0]):
            names.append(f"case{number:04d}_slice{index:03d}")
            one = {name: values[index] for name, values in arrays.items()}
            np.savez(root / "train_npz" / f"{names[-1]}.npz", **one)
    volumes = [f"case{number:04d}" for number in range(1, 1 + test)]
    for number, name in enumerate(volumes, 1):
        write_h5(root / "test_vol_h5" / f"{name}.npy.h5", volume_arrays(number, shape))
    (root / "lists" / "lists_Synapse" / "train.txt").write_text("\n".join(names) + "\n")
    (root / "lists" / "lists_Synapse" / "test_vol.txt").write_text("\n".join(volumes) + "\n")
    return root


def write_acdc(root: Path, patients: tuple[int, ...] = (5, 25, 40, 100), *, slices: bool = True) -> Path:
    """A volume of each patient in ACDC_training_volumes, and its slices in ACDC_training_slices."""
    for patient in patients:
        arrays = volume_arrays(patient)
        name = f"patient{patient:03d}_frame01"
        write_h5(root / "ACDC_training_volumes" / f"{name}.h5", arrays)
        for index in range(SHAPE[0] if slices else 0):
            one = {key: values[index] for key, values in arrays.items()}
            write_h5(root / "ACDC_training_slices" / f"{name}_slice_{index}.h5", one)
    return root
