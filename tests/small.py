"""A network and a recipe small enough for tests, and a look at what lies in a folder."""

from pathlib import Path
from typing import Any

OVERRIDES = {
    "depths": [1, 1, 1, 2],
    "widths": [4, 4, 6, 8],
    "expansions": [1, 1, 1, 1.5],
    "stem_width": 4,
    "drop_path_rate": 0.2,
}


def small_recipe(data: Path, **training: Any) -> dict[str, Any]:
    """Mapping of a recipe on `data`; keywords change its training section."""
    return {
        "name": "small",
        "data": {"path": str(data)},
        "preprocessing": {"channels": 1, "size": [32, 32]},
        "model": {"name": "rwkv_unet_tiny", "overrides": dict(OVERRIDES)},
        "optimizer": {"learning_rate": 5e-3, "schedule": "step", "gradient_clip": 5.0},
        "augmentation": {"rotation": 20, "flip_columns": 0.5},
        "training": {"epochs": 2, "batch_size": 4, "workers": 0} | training,
    }


def files_below(folder: Path) -> list[str]:
    """Every file below `folder`, hidden ones too, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
