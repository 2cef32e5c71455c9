"""Time of `rwkvseg evaluate` on 12 volumes of the size of the Synapse test set with 8 organs.

    python benchmarks/evaluate_synapse_size.py [--cases 12] [--shape 512 512 150] [--protocol strict]
        [--threads 2] [--limit 90] [-o benchmarks/results]

Makes truths and predictions in a temporary folder as NIfTI: organs as bumpy ellipsoids of realistic size,
predictions moved, with other bumps, with an island far off the organ in every third structure and with the
gallbladder missed in the first case. Then one `rwkvseg evaluate` of all of them, in a process of its own,
with every metric and file that the command gives by default. Exit code 1 where Dice or HD95 of one structure
differs from medpy's by more than 1e-4, or where the processor time on all threads exceeds --limit seconds.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import report
from command import Cost, run_command
from medpy.metric.binary import dc, hd95
from numpy.typing import NDArray
from scipy.ndimage import zoom

FIELD_MM = (384.0, 384.0, 450.0)  # so that 512 x 512 x 150 voxels are 0.75 x 0.75 x 3 mm, as abdominal CT
ORGANS = {  # centre as a share of the field, semi-axes in mm
    "aorta": ((0.50, 0.55, 0.50), (11, 11, 150)),
    "gallbladder": ((0.33, 0.38, 0.46), (14, 14, 36)),
    "left kidney": ((0.68, 0.62, 0.44), (28, 25, 55)),
    "right kidney": ((0.32, 0.62, 0.42), (28, 25, 55)),
    "liver": ((0.30, 0.42, 0.64), (78, 72, 66)),
    "pancreas": ((0.54, 0.43, 0.52), (55, 15, 22)),
    "spleen": ((0.77, 0.56, 0.62), (30, 42, 48)),
    "stomach": ((0.63, 0.34, 0.62), (48, 40, 50)),
}
TOLERANCE = 1e-4

LabelMap = NDArray[np.uint8]


def bumps(generator: np.random.Generator, shape: Sequence[int]) -> NDArray[np.float32]:
    """Smooth noise about 0, deviation about 1, on a grid of `shape`."""
    coarse = generator.standard_normal((8, 8, 8)).astype(np.float32)
    return zoom(coarse, [n / 8 for n in shape], order=1)


def draw(
    labels: LabelMap,
    value: int,
    centre_mm: Sequence[float],
    axes_mm: Sequence[float],
    noise: np.random.Generator,
) -> None:
    """Write an ellipsoid with bumps into the part of `labels` that can hold it."""
    step = [field / size for field, size in zip(FIELD_MM, labels.shape, strict=True)]
    box = tuple(
        slice(max(0, int((c - 1.4 * a) / s)), min(n, int((c + 1.4 * a) / s) + 2))
        for c, a, s, n in zip(centre_mm, axes_mm, step, labels.shape, strict=True)
    )
    grids = np.ogrid[box]
    terms = [((g * s - c) / a) ** 2 for g, s, c, a in zip(grids, step, centre_mm, axes_mm, strict=True)]
    part = labels[box]
    part[np.sqrt(sum(terms)) < 1 + 0.08 * bumps(noise, part.shape)] = value


def make_case(number: int, folder: Path, shape: Sequence[int]) -> None:
    """Write truth and prediction of a case."""
    generator = np.random.default_rng(number)
    truth, prediction = (np.zeros(shape, np.uint8) for _ in range(2))
    for value, (share, axes) in enumerate(ORGANS.values(), 1):
        size = generator.uniform(0.9, 1.1)
        centre = np.array(share) * FIELD_MM + generator.uniform(-8, 8, 3)
        grown = np.array(axes) * size
        draw(truth, value, centre, grown, generator)
        if number or value != 2:
            draw(prediction, value, centre + generator.uniform(-3, 3, 3), 1.02 * grown, generator)
        if (number + value) % 3 == 0:  # as networks do: a joint box as large as the body
            draw(prediction, value, generator.uniform(0.1, 0.9, 3) * FIELD_MM, (6, 6, 9), generator)
    affine = np.diag([*(field / size for field, size in zip(FIELD_MM, shape, strict=True)), 1])
    for what, labels in (("truth", truth), ("predictions", prediction)):
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / what / f"case{number:04d}.nii.gz")


def difference_from_medpy(folder: Path, name: str, value: int, scores: Path, unit: str) -> float:
    """Largest difference of Dice and HD95 of one structure from medpy's."""
    with scores.open(encoding="utf-8") as file:
        row = next(r for r in csv.DictReader(file) if r["case"] == name and r["label"] == str(value))
    files = [nibabel.load(folder / what / f"{name}.nii.gz") for what in ("predictions", "truth")]
    prediction, truth = (np.asarray(file.dataobj) == value for file in files)
    spacing = [float(step) for step in files[1].header.get_zooms()] if unit == "mm" else None
    theirs = float(dc(prediction, truth)), float(hd95(prediction, truth, spacing))
    return max(abs(float(row["dsc"]) - theirs[0]), abs(float(row[f"hd95_{unit}"]) - theirs[1]))


def table(options: argparse.Namespace, cost: Cost, difference: float, megabytes: float) -> list[str]:
    """Lines of the table, and what it was measured on."""
    size = " x ".join(map(str, options.shape))
    each = cost.processor / options.cases
    return [
        f"# `rwkvseg evaluate` on {options.cases} volumes of {size} with {len(ORGANS)} organs",
        "",
        *report.header("cpu"),
        f"- {report.load()}; threads: {options.threads}",
        f"- files: {2 * options.cases} NIfTI, gzip, {megabytes:.1f} MB together; no images beside them",
        f"- protocol {options.protocol}; all metrics, CSV, JSON and the HTML report with pictures",
        f"- liver of case0001: Dice and HD95 differ from medpy's by at most {difference:.1e}",
        "",
        "| volumes | clock (s) | processor (s) | processor (s) a volume | peak memory (GiB) |",
        "|---|---|---|---|---|",
        f"| {options.cases} | {cost.clock:.1f} | {cost.processor:.1f} | {each:.2f} "
        f"| {cost.peak / 2**30:.2f} |",
        "",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=12, help="at least 2")
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 150])
    parser.add_argument("--protocol", choices=["strict", "transunet"], default="strict")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=90, help="seconds of processor time")
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what in ("truth", "predictions"):
            (folder / what).mkdir()
        with ProcessPoolExecutor(options.threads) as pool:
            list(pool.map(partial(make_case, folder=folder, shape=options.shape), range(options.cases)))
        megabytes = sum(path.stat().st_size for path in folder.glob("*/*.nii.gz")) / 1e6
        files = ["-p", str(folder / "predictions"), "-t", str(folder / "truth"), "-o", str(folder / "out")]
        cost = run_command(["evaluate", "--protocol", options.protocol, *files], threads=options.threads)
        unit = "mm" if options.protocol == "strict" else "px"
        liver = list(ORGANS).index("liver") + 1
        difference = difference_from_medpy(folder, "case0001", liver, folder / "out" / "scores.csv", unit)
    lines = table(options, cost, difference, megabytes)
    print("\n".join(lines))
    if difference > TOLERANCE or cost.processor > options.limit:
        print(f"differs from medpy by more than {TOLERANCE}, or takes longer than {options.limit} s")
        return 1
    report.save(options.out, "evaluate_synapse_size", "cpu", "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
