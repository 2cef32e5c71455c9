"""Which networks solve the landmark phantom: makes the data, trains every row, tests it on unseen cases.

    python benchmarks/landmark_table.py [--study 2d 3d] [--row "U-Net"] [--seeds 0] [--device auto]
        [--work landmark] [--set training.epochs=5] [--write-data] [-o benchmarks/results]

The rows stand in recipes/studies/landmark.yaml, what to expect of them in docs/explanation/landmark.md. Reach
is how far along the long axis a pixel's logits look, counted on fresh weights; the DSC is that of the targets
near the bright and near the dark landmark, with a 95 % bootstrap interval over the test cases. A network that
sees no farther than its reach cannot tell the two targets of an image apart: 50 % is the most it can expect.
--write-data stops when the data is written. A run that is finished in --work is not trained again.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
import yaml
from rich.console import Console

from rwkvseg.data.landmark import LANDMARK_PICTURE_SIZE, LANDMARK_VOLUME_SIZE, landmark_gap, write_landmark
from rwkvseg.inference.device import choose_device
from rwkvseg.inference.receptive_field import reach
from rwkvseg.models import create_model
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SIZES = {"2d": LANDMARK_PICTURE_SIZE, "3d": LANDMARK_VOLUME_SIZE}
NUMBER_OF_CASES = 800  # as recipes/splits/landmark.json has it
HEADS = (
    "| network | seed | parameters | reach | near bright, DSC % | near dark, DSC % | mean (95 % interval) | "
    "seconds | images/s |"
)


def recipe_of(study: dict[str, Any], row: dict[str, Any], changes: Sequence[str]) -> Recipe:
    return Recipe.from_file(RECIPES / f"{study['recipe']}.yaml", changes=[*row["set"], *changes])


def reach_of(recipe: Recipe, size: Sequence[int]) -> int:
    """Reach along axis 0 of the recipe's network with fresh weights."""
    network = create_model(
        recipe.model.name, in_channels=recipe.preprocessing.channels, num_classes=3, **recipe.model.overrides
    )
    return reach(network, size)


def row_text(row: dict[str, Any], seed: int, distance: int, summary: dict[str, Any]) -> str:
    test = summary["results"]["test"]
    by_class = [f"{100 * found['dsc']['mean']:.1f}" for found in test["classes"]]
    mean = test["mean"]["dsc"]
    interval = f"{100 * mean['mean']:.1f} ({100 * mean['low']:.1f} to {100 * mean['high']:.1f})"
    cells = [row["name"], seed, f"{summary['parameters']:,}", distance, *by_class, interval]
    cells += [f"{summary['training_seconds']:.0f}", summary["images_per_second"]]
    return f"| {' | '.join(map(str, cells))} |"


def run_study(study: dict[str, Any], options: argparse.Namespace, console: Console) -> list[str]:
    name, size = study["study"], SIZES[study["study"]]
    data = options.work / name
    if not (data / "dataset.json").exists():
        console.print(f"making {NUMBER_OF_CASES} cases in {data}", highlight=False)
        write_landmark(data, NUMBER_OF_CASES, dimensions=len(size))
    if options.write_data:
        return []
    lines = [
        f"\n## {' x '.join(map(str, size))}: the nearest landmark is at least {landmark_gap(size)} away\n",
        HEADS,
        "|---" * (HEADS.count("|") - 1) + "|",
    ]
    for row in study["rows"]:
        if options.row and row["name"] not in options.row:
            continue
        for seed in options.seeds:
            changes = [f"training.seed={seed}", f"data.path={data}", *options.set]
            recipe = recipe_of(study, row, changes)
            out = options.work / "runs" / f"{name}-{study['rows'].index(row)}-{seed}"
            console.print(f"{name}: {row['name']}, seed {seed}, in {out}", highlight=False)
            result = train(recipe, out, device=options.device, resume=True, console=console)
            lines.append(row_text(row, seed, reach_of(recipe, size), result.summary))
            console.print(lines[-1], highlight=False, soft_wrap=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", nargs="+", choices=sorted(SIZES), default=sorted(SIZES))
    parser.add_argument("--row", nargs="+", help="names of rows; all without")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("landmark"), help="folder for data and runs")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], help="key=value that wins over the recipes"
    )
    parser.add_argument("--write-data", action="store_true", help="make the data and stop")
    parser.add_argument("-o", "--out", type=Path, help="folder or .md file for the table")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    console = Console(width=200)
    studies = yaml.safe_load((RECIPES / "studies" / "landmark.yaml").read_text(encoding="utf-8"))
    device = choose_device(options.device).type
    lines = ["# The landmark phantom: who sees what is far away", "", *report.header(device)]
    for study in studies:
        if study["study"] in options.study:
            lines += run_study(study, options, console)
    lines += ["", f"{time.perf_counter() - started:.0f} s in all."]
    if options.write_data:
        return 0
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        report.save(options.out, "landmark", device, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
