"""A recipe for whole volumes, small enough for tests."""

from pathlib import Path
from typing import Any

OVERRIDES = {
    "widths": [8, 8, 8, 8, 8],
    "depths": [1, 1, 1, 1],
    "strides": [[2, 2, 1], [2, 2, 2], [2, 2, 2], [1, 1, 1]],
}


def small_volume_recipe(data: Path, **training: Any) -> dict[str, Any]:
    """Mapping of a recipe on `data`; keywords change its training section."""
    return {
        "name": "small_volumes",
        "data": {"path": str(data)},
        "preprocessing": {"dimensions": 3, "channels": 1, "patch": [16, 16, 8]},
        "model": {"name": "urwkv3d_tiny", "overrides": dict(OVERRIDES)},
        "optimizer": {"learning_rate": 5e-3, "schedule": "step", "gradient_clip": 5.0},
        "augmentation": {"rotation": 10, "scale": 0.1, "flip_slices": 0.5, "brightness": 0.1},
        "training": {"epochs": 2, "batch_size": 2, "workers": 0} | training,
    }
