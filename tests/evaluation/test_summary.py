"""Averages by hand, and files that give back the same numbers."""

import csv
import json
import math

import numpy as np
import pytest

from rwkvseg.errors import DataError, UsageError
from rwkvseg.evaluation.protocols import ClassScore, score_case
from rwkvseg.evaluation.score_files import write_csv, write_summary_json
from rwkvseg.evaluation.statistics import bootstrap_interval
from rwkvseg.evaluation.summary import summarise

NAN = math.nan


def score(case, label, dsc, hd95, outcome="scored"):
    return ClassScore(case, label, f"class {label}", dsc, hd95, outcome, tp=6, fp=2, fn=4, tn=88)


@pytest.fixture
def scores():
    return [
        score("a", 1, 0.9, 2.0),
        score("a", 2, 0.5, 4.0),
        score("b", 1, 0.7, 6.0),
        score("b", 2, NAN, NAN, "absent"),
        score("c", 1, 0.0, 100.0, "missed"),
        score("c", 2, 0.0, NAN, "false_positive"),
        score("d", 1, NAN, NAN, "absent"),
        score("d", 2, NAN, NAN, "absent"),
    ]


def test_classes_of_a_case_come_first_then_cases(scores):
    summary = summarise(scores, unit="mm")
    first, second = summary.classes
    assert first.dsc.mean == pytest.approx((0.9 + 0.7 + 0.0) / 3)
    assert second.dsc.mean == pytest.approx((0.5 + 0.0) / 2)
    assert summary.mean.dsc.mean == pytest.approx(((0.9 + 0.5) / 2 + 0.7 + 0.0) / 3)
    assert summary.mean.hd95.mean == pytest.approx(((2 + 4) / 2 + 6 + 100) / 3)
    assert summary.mean.hd95_found.mean == pytest.approx(((2 + 4) / 2 + 6) / 2)
    assert first.hd95.mean == pytest.approx((2 + 6 + 100) / 3)
    assert first.hd95_found.mean == pytest.approx((2 + 6) / 2)


def test_what_was_excluded_is_counted(scores):
    summary = summarise(scores)
    assert summary.classes[0].outcomes == {"scored": 2, "absent": 1, "false_positive": 0, "missed": 1}
    assert summary.classes[1].outcomes == {"scored": 1, "absent": 2, "false_positive": 1, "missed": 0}
    assert summary.mean.outcomes == {"scored": 3, "absent": 3, "false_positive": 1, "missed": 1}
    assert (summary.mean.dsc.cases, summary.mean.dsc.excluded) == (3, 1)
    assert [case.case for case in summary.cases] == ["a", "b", "c", "d"]
    assert math.isnan(summary.cases[3].dsc)


def test_intervals_are_those_of_the_case_means(scores):
    summary = summarise(scores, confidence=0.9, resamples=500, seed=7)
    assert summary.mean.dsc == bootstrap_interval([0.7, 0.7, 0.0, NAN], confidence=0.9, resamples=500, seed=7)


def test_groups_are_resampled_whole(scores):
    summary = summarise(scores, groups={"a": "p", "b": "p", "c": "q", "d": "q"})
    assert summary.grouped
    assert (summary.mean.dsc.low, summary.mean.dsc.high) == pytest.approx((0.0, 0.7))


def test_transunet_averages_over_cases_then_classes():
    generator = np.random.default_rng(0)
    labels = {"background": 0, "x": 1, "y": 2}
    scores = []
    for index in range(7):
        truth, prediction = generator.integers(0, 3, (2, 8, 9))
        truth[truth == index % 3] = 0
        prediction[prediction == (index + 1) % 3] = 0
        scores += score_case(str(index), prediction, truth, labels=labels, protocol="transunet")
    summary = summarise(scores, protocol="transunet")
    table = np.array([[s.dsc for s in scores if s.label == label] for label in (1, 2)])
    assert summary.mean.dsc.mean == pytest.approx(table.mean(axis=1).mean())
    assert summary.mean.dsc.excluded == 0


def test_one_case_has_a_mean_and_no_interval(scores):
    summary = summarise(scores[:2])
    assert summary.mean.dsc.mean == pytest.approx(0.7)
    assert not summary.mean.dsc.defined


def test_json_holds_the_same_numbers(scores):
    summary = summarise(scores, unit="mm")
    content = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert content["protocol"] == "strict"
    assert content["mean"]["dsc"]["mean"] == summary.mean.dsc.mean
    assert content["classes"][0]["hd95_mm"]["low"] == summary.classes[0].hd95.low
    assert content["classes"][0]["hd95_mm_without_missed"]["mean"] == summary.classes[0].hd95_found.mean
    nothing = {"dsc": None, "hd95_mm": None, "hd95_mm_without_missed": None, "group": None}
    assert content["cases"][3] == {"case": "d", **nothing}


@pytest.mark.parametrize("unit", ["mm", "px"])
def test_csv_gives_back_the_scores(tmp_path, scores, unit):
    odd = ClassScore('a, "b"\n', 3, "läsion", 1 / 3, 0.1 + 0.2, "scored", 1, 1, 1, 1)
    write_csv(tmp_path / "scores.csv", [*scores, odd], unit)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    distances = [f"hd95_larger_{unit}", f"assd_{unit}", f"nsd_2{unit}"]
    further = ["iou", "precision", "recall", *distances, "volume_difference_ml"]
    assert list(rows[0]) == ["case", "label", "name", "dsc", f"hd95_{unit}", "outcome", *further]
    for row, expected in zip(rows, [*scores, odd], strict=True):
        assert (row["case"], int(row["label"]), row["name"]) == (expected.case, expected.label, expected.name)
        for column, value in (("dsc", expected.dsc), (f"hd95_{unit}", expected.hd95)):
            assert (row[column] == "") == math.isnan(value)
            assert row[column] == "" or float(row[column]) == value
        assert row["outcome"] == expected.outcome


def test_summary_json_is_nnu_nets_with_ours_beside(tmp_path):
    labels = {"background": 0, "x": 1, "y": 2}
    truth = np.array([[1, 1, 0, 0, 2]])
    scores = score_case("a", np.array([[1, 0, 1, 0, 2]]), truth, labels=labels)
    scores += score_case("b", np.array([[0, 1, 1, 0, 0]]), np.array([[0, 1, 1, 1, 0]]), labels=labels)
    summary = summarise(scores)
    path = tmp_path / "summary.json"
    write_summary_json(path, summary, scores, prediction_files={"a": "p/a.png"}, truth_files={"a": "t/a.png"})
    content = json.loads(path.read_text())
    first, second = content["metric_per_case"]
    assert (first["prediction_file"], first["reference_file"]) == ("p/a.png", "t/a.png")
    assert first["metrics"]["1"] == {
        "Dice": 0.5, "IoU": 1 / 3, "TP": 1, "FP": 1, "FN": 1, "TN": 2, "n_pred": 2, "n_ref": 2,
    }  # fmt: skip
    assert second["metrics"]["2"]["Dice"] is None
    assert content["mean"]["1"]["Dice"] == pytest.approx((0.5 + 0.8) / 2)
    assert content["mean"]["2"]["Dice"] == 1
    assert content["foreground_mean"]["Dice"] == pytest.approx((0.65 + 1) / 2)
    assert content["foreground_mean"]["TP"] == pytest.approx((1.5 + 0.5) / 2)
    ours = content["rwkvseg"]
    assert [row["dsc"] for row in ours.pop("scores")] == [0.5, 1.0, 0.8, None]
    assert ours == json.loads(json.dumps(summary.to_json()))


def test_scores_without_an_honest_mean_are_refused(scores):
    with pytest.raises(DataError, match="no scores"):
        summarise([])
    with pytest.raises(DataError, match="'a' has several scores of label 1"):
        summarise([*scores, scores[0]])
    with pytest.raises(DataError, match="1 of 4 cases without one of the 2 classes, the first is 'd'"):
        summarise(scores[:-1])
    with pytest.raises(DataError, match="1 of 4 cases without a group, the first is 'd'"):
        summarise(scores, groups={"a": 1, "b": 1, "c": 1})
    with pytest.raises(UsageError, match="cm"):
        summarise(scores, unit="cm")
    with pytest.raises(UsageError, match="both"):
        summarise(scores, protocol="both")
