"""Time `hausdorff_95` against medpy 0.5.2 on a volume of 512 x 512 x 120 with a liver-sized organ.

    python benchmarks/bench_hd95.py

Checks first that both agree to 1e-4 mm, there and on small random masks, and refuses to time otherwise.
Takes about a minute, nearly all of it in medpy. Writes its table to benchmarks/results/.

Two times are given: seconds on the clock, which suffer when other programs run, and seconds of processor
time, added over all threads.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import report
from medpy.metric.binary import hd95
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, shift

from rwkvseg.evaluation.metrics import hausdorff_95

SHAPE = (512, 512, 120)
SPACING = (0.75, 0.75, 3.0)
SEMI_AXES_MM = (86.0, 70.0, 66.0)  # with the factor below about 2.5 l: a large liver, >= 1.5 M voxels
TOLERANCE = 1e-4


def liver(seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A bumpy ellipsoid off the centre, and the same moved by some voxels with other bumps."""
    generator = np.random.default_rng(seed)
    grids = np.meshgrid(
        *[(np.arange(n) - 0.45 * n) * s for n, s in zip(SHAPE, SPACING, strict=True)],
        indexing="ij",
        sparse=True,
    )
    radius = np.sqrt(sum((grid / axis) ** 2 for grid, axis in zip(grids, SEMI_AXES_MM, strict=True)))
    coarse = [gaussian_filter(generator.standard_normal((32, 32, 30)), 2) for _ in range(2)]
    bumps = [np.kron(noise / noise.std(), np.ones((16, 16, 4))) for noise in coarse]
    truth = radius < 1.15 + 0.06 * bumps[0]
    prediction = shift(truth.astype(np.uint8), (3, -4, 1), order=0).astype(bool) & (
        radius < 1.25 + 0.1 * bumps[1]
    )
    return prediction, truth


def check_small(number: int = 200) -> float:
    """Largest difference from medpy on small random masks with random spacing."""
    generator = np.random.default_rng(0)
    worst = 0.0
    for _ in range(number):
        shape = tuple(generator.integers(2, 14, generator.integers(2, 4)))
        spacing = tuple(generator.uniform(0.3, 5.0, len(shape)))
        prediction, truth = (generator.random(shape) < generator.uniform(0.1, 0.9) for _ in range(2))
        if prediction.any() and truth.any():
            worst = max(
                worst, abs(hausdorff_95(prediction, truth, spacing) - hd95(prediction, truth, spacing))
            )
    return worst


def timed(function: Callable[[], float], repeats: int) -> tuple[float, float, float]:
    """Value, median seconds on the clock, median seconds of processor time."""
    clock, processor = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        value = function()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    return value, statistics.median(clock), statistics.median(processor)


def main() -> int:
    worst = check_small()
    if worst > TOLERANCE:
        print(f"small masks differ from medpy by {worst:.2e}: not timed")
        return 1
    prediction, truth = liver()
    ours, *our_times = timed(lambda: hausdorff_95(prediction, truth, SPACING), repeats=9)
    theirs, *their_times = timed(lambda: float(hd95(prediction, truth, SPACING)), repeats=1)
    if abs(ours - theirs) > TOLERANCE:
        print(f"{ours} and medpy's {theirs} differ by more than {TOLERANCE}: not timed")
        return 1
    ratios = [slow / fast for slow, fast in zip(their_times, our_times, strict=True)]
    lines = [
        "# HD95 against medpy",
        "",
        *report.header("cpu"),
        f"- {report.load()}",
        "",
        f"Volume {' x '.join(map(str, SHAPE))}, spacing {SPACING} mm, {truth.sum():,} voxels of organ.",
        f"Largest difference from medpy: {abs(ours - theirs):.1e} mm here, {worst:.1e} on 200 small masks.",
        "",
        "| implementation | HD95 (mm) | clock (s) | ratio | processor (s) | ratio |",
        "|---|---|---|---|---|---|",
        f"| medpy 0.5.2, one run | {theirs:.4f} | {their_times[0]:.2f} | 1 | {their_times[1]:.2f} | 1 |",
        f"| rwkvseg, median of 9 | {ours:.4f} | {our_times[0]:.2f} | {ratios[0]:.0f} "
        f"| {our_times[1]:.2f} | {ratios[1]:.0f} |",
        "",
    ]
    table = "\n".join(lines)
    print(table)
    report.save(Path(__file__).parent / "results", "hd95", "cpu", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
