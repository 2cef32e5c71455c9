"""Best, median and worst cases of an evaluation as error maps, without the images (not ours to share).

White: outline of the truth; orange: false positive; blue: false negative.

    python benchmarks/errors_of_cases.py --run runs/kvasir --truth Kvasir-SEG/masks -o errors.png
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rwkvseg.data.io import read_label
from rwkvseg.evaluation.drawing import draw_overlay
from rwkvseg.evaluation.pictures import make_picture


def error_map(prediction: Path, truth: Path) -> np.ndarray:
    predicted, _ = read_label(prediction)
    true = (read_label(truth)[0] > 0).astype(np.uint8)
    ground = np.full((1, *true.shape), 90, np.uint8)
    sheet = np.asarray(draw_overlay(make_picture("", ground, true, predicted, float("nan"))))
    return sheet[:, -sheet.shape[0] * true.shape[1] // true.shape[0] :]  # the last of four panels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True, help="folder of binary PNG masks")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    with (arguments.run / "evaluation" / "test" / "scores.csv").open(newline="") as file:
        scores = {row["case"]: float(row["dsc"]) for row in csv.DictReader(file)}
    ranked = sorted(scores, key=lambda case: -scores[case])
    middle = len(ranked) // 2
    columns = {"best": ranked[:3], "median": ranked[middle - 1 : middle + 2], "worst": ranked[-3:]}
    figure = Figure(figsize=(9, 9.6), layout="constrained")
    axes = figure.subplots(3, 3)
    for row, (kind, cases) in zip(axes, columns.items(), strict=True):
        for axis, case in zip(row, cases, strict=True):
            name = f"{case}.png"
            axis.imshow(error_map(arguments.run / "predictions" / "test" / name, arguments.truth / name))
            axis.set_title(f"{kind}: DSC {100 * scores[case]:.1f} %", fontsize=10)
            axis.set_axis_off()
    figure.savefig(arguments.out, dpi=70)


if __name__ == "__main__":
    main()
