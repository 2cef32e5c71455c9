"""The metrics beside DSC and HD95 in every file that an evaluation writes."""

import csv
import json
import math

import nibabel
import numpy as np
import pytest
from PIL import Image

from rwkvseg.evaluation import assd, hausdorff_95, iou, nsd, precision, recall, volume_difference
from rwkvseg.inference.evaluate import evaluate

SPACING = (1.0, 1.5, 3.0)
NAMES = [
    *("iou", "precision", "recall"),
    *("hd95_larger_mm", "assd_mm", "nsd_1.5mm", "volume_difference_ml"),
]


@pytest.fixture
def volumes(tmp_path):
    """Two volumes of two classes; "b" lacks class 2, and something else is predicted as it."""
    maps = {}
    for case in "ab":
        truth = np.zeros((9, 8, 5), np.uint8)
        truth[1:5, 2:6, 1:4] = 1
        truth[6:8, 1:4, 2:4] = 2 if case == "a" else 0
        predicted = np.roll(truth, 1, 1)
        predicted[8, 7, 4] = 2
        maps[case] = predicted, truth
        for folder, values in (("pred", predicted), ("truth", truth)):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = nibabel.Nifti1Image(values, np.diag([*SPACING, 1.0]))
            nibabel.save(image, tmp_path / folder / f"{case}.nii.gz")
    return tmp_path, maps


def expected(prediction, truth):
    values = [metric(prediction, truth) for metric in (iou, precision, recall)]
    values.append(hausdorff_95(prediction, truth, SPACING, method="larger"))
    values += [assd(prediction, truth, SPACING), nsd(prediction, truth, SPACING, tolerance=1.5)]
    return dict(zip(NAMES, [*values, volume_difference(prediction, truth, SPACING)], strict=True))


def test_csv_json_and_report_hold_the_same_numbers(volumes, rwkvseg):
    root, maps = volumes
    code, _, err = rwkvseg(
        *("evaluate", "-p", root / "pred", "-t", root / "truth", "-o", root / "out", "--tolerance", "1.5")
    )
    assert (code, err) == (0, "")
    by_class = {1: [], 2: []}
    for row in csv.DictReader((root / "out" / "scores.csv").read_text().splitlines()):
        masks = [values == int(row["label"]) for values in maps[row["case"]]]
        wanted = expected(*masks)
        found = {name: float(row[name]) if row[name] else math.nan for name in NAMES}
        assert found == pytest.approx(wanted, nan_ok=True)
        by_class[int(row["label"])].append(wanted)
    assert math.isnan(by_class[2][1]["recall"])  # nothing to be found
    ours = json.loads((root / "out" / "summary.json").read_text())["rwkvseg"]
    for row in ours["classes"]:
        for name in NAMES:
            defined = [case[name] for case in by_class[row["label"]] if not math.isnan(case[name])]
            assert row[name]["cases"] == len(defined)
            assert row[name]["mean"] == pytest.approx(np.mean(defined))
    # classes of a case first, then cases
    recalls = [case["recall"] for case in by_class[1]]
    a, b = np.mean([recalls[0], by_class[2][0]["recall"]]), recalls[1]
    assert ours["mean"]["recall"] == {"mean": pytest.approx((a + b) / 2), "cases": 2}
    page = (root / "out" / "report.html").read_text()
    assert "NSD at 1.5 mm (%)" in page
    assert f"{100 * ours['mean']['iou']['mean']:.2f} / 2" in page


def test_pictures_have_no_volume(tmp_path):
    mask = np.zeros((7, 9), np.uint8)
    mask[2:5, 2:5] = 1
    for folder in ("pred", "truth"):
        (tmp_path / folder).mkdir()
        Image.fromarray(mask).save(tmp_path / folder / "a.png")
    result = evaluate(tmp_path / "pred", tmp_path / "truth", tmp_path / "out")
    further = result.summary.mean.further
    assert list(further) == [
        *NAMES[:3], "hd95_larger_px", "assd_px", "nsd_2px", "volume_difference_ml",
    ]  # fmt: skip
    assert further["volume_difference_ml"].cases == 0
    assert (further["nsd_2px"].mean, further["assd_px"].mean) == (1, 0)
    ours = json.loads((tmp_path / "out" / "summary.json").read_text())["rwkvseg"]
    assert ours["mean"]["volume_difference_ml"] == {"mean": None, "cases": 0}


def test_a_tolerance_must_be_a_distance(rwkvseg, tmp_path):
    code, _, err = rwkvseg(
        *("evaluate", "-p", tmp_path, "-t", tmp_path, "-o", tmp_path / "out", "--tolerance", "-1")
    )
    assert code == 2
    assert "--tolerance" in err
