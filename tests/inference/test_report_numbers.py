"""scores.csv, summary.csv, summary.json and report.html of one evaluation hold the same numbers."""

import csv
import json
import math
import re
from html.parser import HTMLParser

import nibabel
import numpy as np
import pytest

from rwkvseg.evaluation.report_text import further_heading
from rwkvseg.inference.evaluate import evaluate

SPACING = (0.8, 1.3, 5.0)
DASH = "\N{EN DASH}"


class Tables(HTMLParser):
    """Every table of a page as rows of cells, and what stands outside them."""

    def __init__(self):
        super().__init__()
        self.tables, self.text, self.inside, self.sources = [], "", False, []

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.tables[-1][-1][-1] += data
        self.text += data


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*SPACING, 1.0])), path)


@pytest.fixture(scope="module", params=["strict", "transunet"])
def written(request, tmp_path_factory):
    """An evaluation of seven volumes of three patients with every kind of empty structure."""
    root = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(4)
    for index in range(7):
        truth = np.zeros((15, 11, 6), np.uint8)
        truth[2 : 7 + index, 3:8, 1:4] = 1
        truth[12:15, 1:5, 2:5] = 2 if index not in (1, 2) else 0
        prediction = np.roll(truth, 1, int(rng.integers(3)))
        prediction[prediction == 2] = 0 if index == 3 else 2
        prediction[0, 9, 5] = 2 if index == 1 else 0
        name = f"patient{index // 3:02d}_frame{index}.nii.gz"
        write(root / "truth" / name, truth)
        if index < 6:
            write(root / "pred" / name, prediction)
    result = evaluate(
        root / "pred",
        root / "truth",
        root / "out",
        protocol=request.param,
        tolerance=1.5,
        context={"part": "x"},
    )
    page = Tables()
    page.feed((root / "out" / "report.html").read_text())
    return root / "out", result, page


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def as_csv(value):
    return "" if value is None else str(value)


def two_decimals(value, scale=1.0):
    return DASH if value is None else f"{scale * value:.2f}"


def test_scores_of_csv_and_json_agree_to_the_last_digit(written):
    out, result, _ = written
    kept = json.loads((out / "summary.json").read_text())["rwkvseg"]["scores"]
    rows = rows_of(out / "scores.csv")
    assert len(rows) == len(kept) == len(result.scores) == 12
    assert [{key: as_csv(value) for key, value in entry.items()} for entry in kept] == rows
    assert {row["outcome"] for row in rows} == {"scored", "absent", "false_positive", "missed"}


def test_means_of_csv_and_json_agree_to_the_last_digit(written):
    out, _, _ = written
    ours = json.loads((out / "summary.json").read_text())["rwkvseg"]
    for row, entry in zip(rows_of(out / "summary.csv"), [*ours["classes"], ours["mean"]], strict=True):
        for metric, mean in entry.items():
            if metric in ("name", "label"):
                assert row[metric] == as_csv(mean)
            elif metric == "outcomes":
                assert {key: row[key] for key in mean} == {key: str(n) for key, n in mean.items()}
            else:
                assert row[metric] == as_csv(mean["mean"])
                for key in {"low", "high", "cases"} & mean.keys():
                    assert row[f"{metric}_{key}"] == as_csv(mean[key])


def test_the_result_table_of_the_report_is_the_json_rounded(written):
    out, result, page = written
    ours, unit = json.loads((out / "summary.json").read_text())["rwkvseg"], result.summary.unit
    table = next(table for table in page.tables if table[0][1:3] == ["DSC (%)", "95 % interval"])
    for row, entry in zip(table[1:], [*ours["classes"], ours["mean"]], strict=True):
        dsc, hd95, found = (entry[key] for key in ("dsc", f"hd95_{unit}", f"hd95_{unit}_without_missed"))
        assert row[:4] == [
            entry["name"],
            two_decimals(dsc["mean"], 100),
            f"{100 * dsc['low']:.2f} {DASH} {100 * dsc['high']:.2f}",
            str(dsc["cases"]),
        ]
        assert (row[4], row[6], row[7]) == (
            two_decimals(hd95["mean"]), str(hd95["cases"]), two_decimals(found["mean"]),
        )  # fmt: skip
        assert row[8:] == [str(entry["outcomes"][kind]) for kind in ("missed", "false_positive", "absent")]


def test_the_further_table_of_the_report_is_the_json_rounded(written):
    out, _, page = written
    ours = json.loads((out / "summary.json").read_text())["rwkvseg"]
    table = next(table for table in page.tables if table[0][1].startswith("IoU"))
    known = [
        key
        for key, value in ours["mean"].items()
        if isinstance(value, dict) and value.keys() == {"mean", "cases"}
    ]
    heads = {f"{further_heading(name)} / cases": name for name in known}
    names = [heads[head] for head in table[0][1:]]
    unseen = set(known) - set(names)
    assert unseen == {"volume_difference_ml"} - {name for name in known if ours["mean"][name]["cases"]}
    for row, entry in zip(table[1:], [*ours["classes"], ours["mean"]], strict=True):
        for name, head, cell in zip(names, table[0][1:], row[1:], strict=True):
            mean = entry[name]
            assert cell == f"{two_decimals(mean['mean'], 100 if '%' in head else 1)} / {mean['cases']}"


def test_the_cases_of_the_report_are_the_csv_rounded(written):
    out, result, page = written
    unit = result.summary.unit
    rows = {(row["case"], row["name"]): row for row in rows_of(out / "scores.csv")}
    table = next(table for table in page.tables if table[0][:1] == ["case"])
    assert len(table) == 7
    for cells in table[1:]:
        for column in range(3, len(cells), 2):
            name = table[0][column].partition(":")[0]
            row = rows[cells[0], name]
            dsc, hd95 = (float(row[key]) if row[key] else None for key in ("dsc", f"hd95_{unit}"))
            assert cells[column].partition(" ")[0] == two_decimals(dsc, 100)
            assert cells[column + 1] == two_decimals(hd95)


def test_the_report_says_what_was_excluded_and_why_and_by_which_data_and_software(written):
    out, result, page = written
    assert "Not scored: 1 truth without a prediction (patient02_frame6)." in page.text
    for outcome, case in (("absent", "patient00_frame2"), ("missed", "patient01_frame3")):
        (line,) = re.findall(rf"1 {outcome}[^.]*\. Cases: ([^.]*)\.", page.text)
        assert line == case
    assert "bootstrap means over patients or videos" in page.text  # the ids say so
    assert result.summary.grouped
    assert f"protocol {result.summary.protocol}" in page.text
    context = json.loads((out / "summary.json").read_text())["rwkvseg"]["context"]
    assert context["data"]["size"] == {"least": [15, 11, 6], "most": [15, 11, 6]}
    assert context["data"]["spacing_mm"]["most"] == pytest.approx(SPACING)
    assert "6 cases, size 15 x 11 x 6, spacing 0.8 x 1.3 x 5 mm" in page.text
    assert context["data"]["truth_sha256"][:12] in page.text
    assert f"numpy {context['environment']['packages']['numpy']}" in page.text
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for heading in ("Worst", "Median", "Best"):
        assert heading in page.text


def test_volumes_show_the_slice_with_the_largest_error(written):
    out, result, page = written
    worst = min(result.summary.cases, key=lambda case: math.inf if math.isnan(case.dsc) else case.dsc)
    maps = [
        np.asarray(nibabel.load(out.parent / folder / f"{worst.case}.nii.gz").dataobj)
        for folder in ("pred", "truth")
    ]
    wrong = (maps[0] != maps[1]).sum(axis=(0, 1))
    captions = re.findall(r"(patient\d+_frame\d+) · DSC [\d.]+ % · slice (\d+) of axis 2", page.text)
    assert dict(captions)[worst.case] == str(int(wrong.argmax()))


def test_checksums_follow_the_files_and_nothing_else(written, tmp_path):
    out, result, _ = written
    again = evaluate(out.parent / "pred", out.parent / "truth", tmp_path / "a")
    assert again.context.digests == result.context.digests
    prediction = next(iter(sorted((out.parent / "pred").iterdir())))
    kept = prediction.read_bytes()
    try:
        values = np.asarray(nibabel.load(prediction).dataobj).copy()
        values[7, 7, 2] ^= 1
        write(prediction, values)
        changed = evaluate(out.parent / "pred", out.parent / "truth", tmp_path / "b")
    finally:
        prediction.write_bytes(kept)
    assert changed.context.digests["truth"] == result.context.digests["truth"]
    assert changed.context.digests["predictions"] != result.context.digests["predictions"]
