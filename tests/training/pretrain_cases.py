"""Pictures and recipes small enough to pre-train on in a test."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from small import OVERRIDES

COLOURS = {"blue": (30, 40, 200), "green": (20, 190, 40), "red": (210, 30, 30)}
SIZES = [(24, 20), (20, 31), (40, 17)]  # width, height


def write_tree(root: Path, *, train: int = 6, val: int = 3) -> Path:
    """ImageFolder tree of three classes, which differ in colour; noisy pictures of odd sizes."""
    generator = np.random.default_rng(0)
    for part, number in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                width, height = SIZES[index % len(SIZES)]
                noise = generator.integers(-25, 26, (height, width, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


def classify_recipe(**training: Any) -> dict[str, Any]:
    """Mapping of a recipe that classifies; keywords change its training section."""
    return {
        "name": "classes",
        "model": {"name": "rwkv_unet_tiny", "overrides": dict(OVERRIDES)},
        "pictures": {"size": 32, "rand_augment": {}},
        "optimizer": {"learning_rate": 1e-2, "schedule": "step", "gradient_clip": 5.0},
        "training": {"epochs": 3, "batch_size": 6, "workers": 0, "ema": 0.8} | training,
    }


def masked_recipe(sources: dict[str, Any], **training: Any) -> dict[str, Any]:
    """Mapping of a recipe that paints what is hidden."""
    recipe = classify_recipe(**training) | {"name": "painter", "task": "masked", "data": {"sources": sources}}
    recipe["masked"] = {"patch": 8, "ratio": 0.5}
    recipe["pictures"] = {"size": 32, "crop_area": [0.5, 1.0]}
    return recipe
