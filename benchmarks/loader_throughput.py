"""Images or patches a second that a training's loader yields by itself: read, cut, augmented, batched.

    python benchmarks/loader_throughput.py [--data RECIPE FOLDER] [--data ...] [--workers 0 2] [--threads 1]
        [--device cuda] [--seconds 10] [--cases N] [--cache GIB] [-o benchmarks/results]

RECIPE is a file of recipes/, FOLDER its data; without --data pictures and volumes of the sizes of Kvasir-
SEG and of Hippocampus are made up. --workers are processes (0: the main one, with --threads threads). Timed
are whole batches over --seconds, after those that wait for workers to start; the network does nothing.
Batches are augmented on --device, as in a run there; pictures that fit lie on a GPU as a whole, and need no
worker. CPU ms an item is what all processes together computed: other work on the machine spoils it less
than the items a second. GiB is their share of resident memory (PSS, Linux) beyond what there was before
reading; preprocessed cases stay in memory up to training.cache_gigabytes of the recipe, shared by the
workers. The table is last.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import report
import torch
from PIL import Image

from rwkvseg.data.augmentation import augment_batch
from rwkvseg.training.items import SegmentationItems
from rwkvseg.training.loader import EpochSampler, make_loader
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.resident import ResidentItems, fits
from rwkvseg.training.run_folder import open_recipe_data
from rwkvseg.training.volume_data import VolumeItems, with_intensity

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
NEED = {2: 1300, 3: 360}
"""Items a second that tiny networks train on one H200: 256 x 256 pictures, Hippocampus patches."""
Items = SegmentationItems | VolumeItems


def make_pictures(folder: Path, number: int = 64, side: int = 256) -> None:
    """Noise of full size: what costs time is the same as with real pictures."""
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(number):
        coarse = generator.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"{index:03d}.jpg")
        mask = Image.fromarray((coarse[..., 0] > 127).astype(np.uint8))
        mask.resize((side, side), Image.Resampling.NEAREST).save(folder / "masks" / f"{index:03d}.png")


def make_volumes(folder: Path, number: int = 32, shape: tuple[int, ...] = (36, 50, 35)) -> None:
    """Volumes as large as those of Hippocampus, with its two labels."""
    generator = np.random.default_rng(0)
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for index in range(number):
        label = np.zeros(shape, np.uint8)
        label[10:25, 10:25, 10:25], label[10:25, 25:40, 10:25] = 1, 2
        image = (generator.normal(100, 20, shape) + 50 * label).astype(np.float32)
        for kind, values in (("imagesTr", image), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / kind / f"{index:03d}.nii.gz")


def look() -> tuple[int, float]:
    """Proportional share of resident memory, and CPU seconds so far, of this process and its children."""
    own, memory, ticks = os.getpid(), 0, 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if own in (int(fields[1]), int(folder.name)):
                lines = (folder / "smaps_rollup").read_text().splitlines()
                memory += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
                ticks += int(fields[11]) + int(fields[12])
        except (OSError, ValueError, StopIteration):  # it ended meanwhile
            continue
    return memory, ticks / os.sysconf("SC_CLK_TCK")


def read_items(recipe: Recipe, cases: int | None) -> Items:
    """The training part, preprocessed as for a run."""
    folder, labels, split = open_recipe_data(recipe)
    by_id = {case.id: case for case in folder.cases}
    files = [by_id[case] for case in split.train[:cases]]
    kind = SegmentationItems if recipe.preprocessing.dimensions == 2 else VolumeItems
    return kind(files, labels, with_intensity(recipe, files, labels), augment=True)


def batches(items: Items, batch: int, workers: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Batches without end on `device`, shuffled and augmented, as in training."""
    draws = max(len(items), 50 * batch)
    sampler = EpochSampler(len(items), draws=draws, seed=0, shuffle=True)
    resident = isinstance(items, SegmentationItems) and fits(items, device)
    source = ResidentItems(items, device) if resident else items
    loader = make_loader(source, sampler, batch_size=batch, workers=0 if resident else workers)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for batch_of_items in loader:
            numbers = batch_of_items.pop("numbers").numpy()
            moved = {key: batch_of_items[key].to(device, non_blocking=True) for key in ("image", "label")}
            augment_batch(items.recipe.augmentation, moved["image"], moved["label"], numbers)
            yield moved
        epoch += 1


def measure(
    items: Items, batch: int, workers: int, seconds: float, device: torch.device
) -> tuple[float, float, int]:
    """Items a second, CPU seconds an item, and the most memory that was seen."""
    stream = batches(items, batch, workers, device)
    for _ in range(2 + 3 * workers):  # what workers have made ahead while others started
        next(stream)
    most, before = look()
    count = 0
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        count += len(next(stream)["image"])
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # else the host would run ahead of the GPU
    memory, after = look()
    stream.close()
    return count / spent, (after - before) / count, max(most, memory)


def rows_of(name: str, folder: Path, recipe: Recipe, options: argparse.Namespace) -> list[str]:
    """Rows of one recipe, a line for each number of workers."""
    (before, _), started = look(), time.perf_counter()
    items = read_items(recipe, options.cases)
    reading = time.perf_counter() - started
    dimensions, batch = recipe.preprocessing.dimensions, recipe.training.batch_size
    print(f"{name}: {len(items)} items of {folder}, read in {reading:.1f} s", flush=True)
    rows = []
    for workers in options.workers:
        rate, cost, most = measure(items, batch, workers, options.seconds, options.device)
        speed = f"{rate:.0f} | {rate / NEED[dimensions]:.0%} | {1e3 * cost:.1f}"
        memory = f"{(most - before) / 2**30:.2f} | {recipe.training.cache_gigabytes:g}"
        rows.append(f"| {name} | {len(items)} | {batch} | {workers} | {speed} | {memory} |")
        print(rows[-1], flush=True)
    if isinstance(items, VolumeItems):
        items.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs=2, action="append", default=[], metavar=("RECIPE", "FOLDER"))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--threads", type=int, default=1, help="of the main process")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="that augments")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row")
    parser.add_argument("--cases", type=int, help="at most so many of the training part")
    parser.add_argument("--cache", type=float, help="instead of the recipe's training.cache_gigabytes")
    parser.add_argument("-o", "--out", type=Path, help="folder or .md file for the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as made:
        pairs = options.data or _generated(Path(made))
        rows = []
        for file, folder in pairs:
            changes = [f"data.path={Path(folder).resolve()}"]
            changes += [] if options.cache is None else [f"training.cache_gigabytes={options.cache}"]
            changes += [] if options.data else ["split.rule=paper", "split.file=null"]
            recipe = Recipe.from_file(Path(file), changes=changes)
            rows += rows_of(recipe.name, Path(folder), recipe, options)
    device = options.device.type
    text = "\n".join(_lines(rows, device, options)) + "\n"
    if options.out is not None:
        report.save(options.out, "loader_throughput", device, text)
    print(f"\n{text}")
    return 0


def _generated(folder: Path) -> list[tuple[str, str]]:
    make_pictures(folder / "pictures")
    make_volumes(folder / "volumes")
    names = {"kvasir_seg_tiny_scratch.yaml": "pictures", "hippocampus_urwkv3d_tiny.yaml": "volumes"}
    return [(str(RECIPES / recipe), str(folder / kind)) for recipe, kind in names.items()]


def _lines(rows: Sequence[str], device: str, options: argparse.Namespace) -> list[str]:
    source = "the data named in the command" if options.data else "made-up data of the real sizes"
    return [
        "# Items a second of the loader alone",
        "",
        *report.header(device),
        f"- processor cores: {os.cpu_count()}; threads of the main process: {options.threads}; {source}",
        f"- {report.load()}",
        f"- need: {NEED[2]} pictures of 256 x 256, {NEED[3]} patches a second (tiny networks on one H200)",
        "",
        "| recipe | items | batch | workers | items/s | of the need | CPU ms an item | GiB | GiB for cases |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]


if __name__ == "__main__":
    raise SystemExit(main())
