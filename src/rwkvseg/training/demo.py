"""The main job on built-in data: make it, train on it, test on unseen cases, picture the result."""

from pathlib import Path

from rich.console import Console

from rwkvseg.data.phantom import PHANTOM_LABELS, PHANTOM_LICENCE, write_phantom
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import RunResult, train

NUMBER_OF_CASES = 250  # 200 train, 25 val, 25 test by the 8:1:1 rule


def demo_recipe(data: Path, *, seed: int = 0) -> Recipe:
    """Recipe of the demo: rwkv_unet_tiny at 128 x 128, about two minutes on 2 CPU cores."""
    return Recipe.from_mapping(
        {
            "name": "demo",
            "description": "rwkv_unet_tiny on the built-in phantom, two minutes on 2 CPU cores",
            "data": {"path": data, "labels": PHANTOM_LABELS, "licence": PHANTOM_LICENCE},
            "split": {"rule": "paper", "seed": seed},
            "preprocessing": {"channels": 1, "size": (128, 128), "normalisation": "unit"},
            # too few steps to need drop path
            "model": {"name": "rwkv_unet_tiny", "overrides": {"drop_path_rate": 0.0}},
            "loss": {"cross_entropy": 0.5, "dice": 1.0},
            "optimizer": {
                "learning_rate": 6e-3,
                "weight_decay": 0.01,
                "warmup_steps": 22,
                "schedule": "step",
                "gradient_clip": 5.0,
            },
            "training": {"epochs": 3, "batch_size": 4, "seed": seed},
        },
        source="the demo's recipe",
    )


def run_demo(out: Path, *, device: str, seed: int, console: Console) -> RunResult:
    """Make the data in `OUT/data`, train and test in `OUT/run`; a demo that was stopped goes on.

    Raises:
        UsageError: `out` holds a demo of another seed.
        OutputError: the folder cannot be written.
    """
    data = out / "data"
    console.print(f"making {NUMBER_OF_CASES} pictures in {data}", highlight=False, soft_wrap=True)
    write_phantom(data, NUMBER_OF_CASES, dimensions=2, seed=seed)
    console.print("training rwkv_unet_tiny on 200 of them", highlight=False)
    return train(demo_recipe(data, seed=seed), out / "run", device=device, resume=True, console=console)
