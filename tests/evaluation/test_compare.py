"""Comparisons against the statistics they are made of, and everything that may not be compared."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compared import shifted, truths, write_evaluation
from rwkvseg.errors import DataError, UsageError
from rwkvseg.evaluation.compare import Comparison, compare, spread_cases
from rwkvseg.evaluation.compare_text import difference_table, notes, result_table
from rwkvseg.evaluation.evaluations import CaseResult, Evaluated, find_part, read_evaluations
from rwkvseg.evaluation.signed_rank import signed_rank_test
from rwkvseg.evaluation.statistics import paired_permutation_test


@pytest.fixture
def folders(tmp_path):
    """Evaluations a, b, c of the same five cases, c the worst."""
    maps = truths()
    for name, steps in {"a": (1, 0, 2), "b": (0, 1), "c": (3,)}.items():
        write_evaluation(tmp_path / name, shifted(maps, *steps), maps)
    return tmp_path


def read(folder, *names):
    return read_evaluations([str(folder / name) for name in names])


def spoil(folder, change):
    path = folder / "summary.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_each_run_is_tested_against_the_first(folders):
    runs = read(folders, "a", "b", "c")
    found = compare(runs, resamples=200)
    assert [(entry.run, entry.metric) for entry in found.differences] == [
        *(("b", "dsc"), ("b", "hd95"), ("c", "dsc"), ("c", "hd95"))
    ]
    for entry in found.differences:
        other = next(run for run in runs if run.label == entry.run)
        a, b = ([getattr(case, entry.metric) for case in run.cases.values()] for run in (other, runs[0]))
        assert entry.permutation == paired_permutation_test(a, b, resamples=200)
        assert entry.signed_rank == signed_rank_test(a, b)
        assert entry.permutation.difference == pytest.approx(np.mean(a) - np.mean(b))
        assert entry.permutation.p_value <= entry.p_holm <= 1
        assert entry.permutation.p_value >= entry.smallest_p == 2 / 2**5
    assert found.differences[2].permutation.difference < 0 < found.differences[3].permutation.difference


def test_the_order_of_the_cases_does_not_matter(folders):
    maps = truths()
    backwards = dict(reversed(shifted(maps, 0, 1).items()))
    assert list(backwards) != list(maps)
    turned = {name: shifted(maps, 0, 1)[name] for name in backwards}
    write_evaluation(folders / "turned", turned, maps)
    first, second = (compare(read(folders, "a", name)).differences for name in ("b", "turned"))
    assert [entry.permutation for entry in first] == [entry.permutation for entry in second]


def test_patients_flip_together(tmp_path):
    maps = truths(6)
    groups = {name: f"patient{index // 2}" for index, name in enumerate(maps)}
    write_evaluation(tmp_path / "a", shifted(maps, 1), maps, groups=groups)
    write_evaluation(tmp_path / "b", shifted(maps, 0), maps)
    found = compare(read(tmp_path, "b", "a"))
    assert found.grouped
    assert found.to_json()["grouped"] is True
    runs = found.runs
    a, b = ([case.dsc for case in run.cases.values()] for run in (runs[1], runs[0]))
    assert found.differences[0].permutation == paired_permutation_test(
        a, b, groups=list(groups.values()), resamples=20_000
    )
    assert found.differences[0].permutation.p_value == 2 / 2**3
    assert found.differences[0].signed_rank.units == 3
    assert any("over patients or videos" in sentence for sentence in notes(found))
    assert any("with 3 patients or videos p cannot be below 0.25" in sentence for sentence in notes(found))


def test_an_evaluation_by_unnamed_patients_is_refused(tmp_path):
    maps = truths()
    groups = dict.fromkeys(maps, "p") | {"case0": "q"}
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, shifted(maps, 1), maps, groups=groups)
        spoil(tmp_path / name, lambda content: [case.pop("group") for case in content["rwkvseg"]["cases"]])
    with pytest.raises(DataError, match=r"does not say which case is whose.*Score its predictions again"):
        compare(read(tmp_path, "a", "b"))


def test_unscored_cases_are_left_out_and_told(tmp_path):
    maps = truths()
    empty = dict(maps, case2=np.zeros_like(maps["case2"]))
    write_evaluation(tmp_path / "a", shifted(maps, 1), empty)  # case2 has false positives: no HD95
    write_evaluation(tmp_path / "b", empty, empty)
    found = compare(read(tmp_path, "a", "b"))
    dsc, hd95 = found.differences
    assert (dsc.permutation.cases, dsc.permutation.excluded) == (4, 1)
    assert (hd95.permutation.cases, hd95.permutation.excluded) == (4, 1)
    assert any("HD95 of b: 1 case is not scored in both runs" in sentence for sentence in notes(found))
    json.dumps(found.to_json(), allow_nan=False)


def test_the_tables_say_what_the_reports_say(folders):
    found = compare(read(folders, "a", "b"))
    headings, rows = result_table(found)
    assert [row[:2] for row in rows] == [
        [name, run] for name in ("liver", "spleen", "mean") for run in ("a", "b")
    ]
    summary = json.loads((folders / "b" / "summary.json").read_text())["rwkvseg"]
    dsc = summary["mean"]["dsc"]
    assert rows[-1][2] == f"{100 * dsc['mean']:.2f} [{100 * dsc['low']:.2f}, {100 * dsc['high']:.2f}]"
    assert headings[3].startswith("HD95 px")
    _, (row,) = difference_table(found, "dsc")
    test = found.differences[0].permutation
    assert row[1].startswith(f"{100 * test.difference:+.2f} [{100 * test.low:+.2f}, ")
    assert not any("best" in cell or "wins" in cell for cell in row)
    assert any("counts as independent" in sentence for sentence in notes(found))


def test_json_holds_the_same_numbers(folders):
    found = compare(read(folders, "a", "b"))
    content = found.to_json()
    assert (content["protocol"], content["unit"], content["cases"]) == ("strict", "px", 5)
    entry = content["differences"][1]
    assert (entry["minus"], entry["run"], entry["metric"]) == ("a", "b", "hd95_px")
    assert entry["permutation"]["p_value"] == found.differences[1].permutation.p_value
    assert entry["signed_rank"]["effect"] == found.differences[1].signed_rank.effect
    summary = json.loads((folders / "a" / "summary.json").read_text())["rwkvseg"]
    assert content["runs"][0]["rows"][-1]["hd95_px"] == summary["mean"]["hd95_px"]


def test_run_folders_are_read_by_part(tmp_path):
    maps = truths()
    for run in ("x/one", "y/one"):
        for part, step in (("test", 1), ("val", 2)):
            write_evaluation(tmp_path / run / "evaluation" / part, shifted(maps, step), maps)
    texts = [str(tmp_path / "x" / "one"), f"new={tmp_path / 'y' / 'one'}"]
    test, val = (read_evaluations(texts, part=part) for part in ("test", "val"))
    assert [run.label for run in test] == ["one", "new"]
    assert test[0].rows[-1].dsc.mean > val[0].rows[-1].dsc.mean
    clash = read_evaluations([texts[0], str(tmp_path / "y" / "one")])
    assert [run.label for run in clash] == [str(tmp_path / run) for run in ("x/one", "y/one")]


def test_val_is_compared_where_no_run_has_a_test_part(tmp_path):
    maps = truths()
    texts = [str(tmp_path / "one"), f"new={tmp_path / 'two'}"]
    assert find_part(texts) == ("test", "")  # nothing is there: the message names the test part
    write_evaluation(tmp_path / "one" / "evaluation" / "val", shifted(maps, 1), maps)
    write_evaluation(tmp_path / "two" / "evaluation" / "val", shifted(maps, 2), maps)
    part, remark = find_part(texts)
    assert part == "val"
    assert "no run has a test part" in remark
    assert notes(compare(read_evaluations(texts, part=part), remarks=[remark]))[0] == remark
    write_evaluation(tmp_path / "two" / "evaluation" / "test", shifted(maps, 2), maps)
    assert find_part(texts) == ("test", "")  # a test part is never set beside a val part
    with pytest.raises(DataError, match="one"):
        read_evaluations(texts, part="test")


def test_folders_of_evaluations_have_no_parts(folders):
    assert find_part([str(folders / "a"), str(folders / "b")]) == ("test", "")


def test_regions_that_every_run_has_stand_below_the_mean(tmp_path):
    maps = truths()
    whole, other = {"whole": (1, 2)}, {"left": (1,)}
    write_evaluation(tmp_path / "a", shifted(maps, 1), maps, regions=whole | other)
    write_evaluation(tmp_path / "b", shifted(maps, 2), maps, regions=whole)
    found = compare(read(tmp_path, "a", "b"))
    _, rows = result_table(found)
    assert [row[:2] for row in rows[-4:]] == [
        ["mean", "a"], ["mean", "b"], ["whole (1+2)", "a"], ["whole (1+2)", "b"],
    ]  # fmt: skip
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())["rwkvseg"]["regions"][0]
    assert rows[-1][2].startswith(f"{100 * summary['dsc']['mean']:.2f} [")
    plain = write_evaluation(tmp_path / "c", shifted(maps, 1), maps)
    assert found.runs[0].rows[-1].dsc.mean == plain.mean.dsc.mean


class TestRefusals:
    def refused(self, folders, words, *, error=DataError):
        with pytest.raises(error) as caught:
            read(folders, "a", "other")
        message = str(caught.value)
        for word in words:
            assert word in message

    def test_other_cases(self, folders):
        maps = truths(6)
        some = {name: maps[name] for name in maps if name != "case1"}
        write_evaluation(folders / "other", some, some)
        self.refused(folders, ["5 and 5 cases", "1 only in 'a' (case1)", "1 only in 'other' (case5)"])

    def test_fewer_cases(self, folders):
        maps = truths(2)
        write_evaluation(folders / "other", maps, maps)
        self.refused(folders, ["5 and 2 cases", "3 only in 'a' (case2, case3, case4)", "same cases of one"])

    def test_another_protocol(self, folders):
        write_evaluation(folders / "other", truths(), truths(), protocol="transunet")
        self.refused(folders, ["'strict' and 'transunet'", "--protocol"])

    def test_another_unit(self, folders):
        write_evaluation(folders / "other", truths(), truths(), spacing=(1.0, 1.0))
        self.refused(folders, ["px and mm", "spacing"])

    def test_other_classes(self, folders):
        labels = {"background": 0, "liver": 1, "kidney": 2}
        write_evaluation(folders / "other", truths(), truths(), labels=labels)
        self.refused(folders, ["liver, spleen and liver, kidney", "--scored"])

    def test_other_truths_under_the_same_names(self, folders):
        maps = truths()
        maps["case3"][0, 0] = 1
        write_evaluation(folders / "other", maps, maps)
        self.refused(folders, ["1 of 5 cases", "'case3'", "'1': 15", "'1': 16", "same truths"])

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: content.pop("rwkvseg"),
            lambda content: content["rwkvseg"].pop("unit"),
            lambda content: content["rwkvseg"]["cases"].pop(),
            lambda content: content["rwkvseg"]["mean"].update(dsc=3),
            lambda content: content["metric_per_case"][0]["metrics"]["1"].update(n_ref=None),
        ],
    )
    def test_a_damaged_summary(self, folders, change):
        spoil(folders / "b", change)
        with pytest.raises(DataError, match=r"b.summary\.json is no summary.*rwkvseg evaluate"):
            read(folders, "a", "b")

    def test_a_summary_of_anything_else(self, folders):
        (folders / "b" / "summary.json").write_text("[1]")
        with pytest.raises(DataError, match="is no summary"):
            read(folders, "a", "b")
        with pytest.raises(DataError, match="does not exist"):
            read(folders, "a", "absent")

    def test_one_run_and_one_name_twice(self, folders):
        with pytest.raises(UsageError, match="two or more"):
            read(folders, "a")
        with pytest.raises(UsageError, match="two runs are called"):
            read(folders, "a", "a")


def evaluated(scores):
    case = {"group": None, "truth_size": {}, "prediction": None, "truth": None, "image": None}
    cases = {f"case{i}": CaseResult(dsc=dsc, hd95=0.0, **case) for i, dsc in enumerate(scores)}
    return Evaluated("run", None, "strict", "px", False, (), cases)


def test_shown_are_worst_median_and_best():
    run = evaluated([0.5, 0.9, math.nan, 0.1, 0.7, 0.3])
    assert spread_cases(run, 3) == ["case3", "case0", "case1"]
    assert spread_cases(run, 1) == ["case0"]
    assert spread_cases(run, 2) == ["case3", "case1"]
    assert spread_cases(run, 0) == []
    assert spread_cases(run, 99) == ["case3", "case5", "case0", "case4", "case1"]
    assert spread_cases(evaluated([math.nan]), 3) == []


@given(st.integers(0, 40), st.integers(0, 50))
def test_no_case_is_shown_twice(cases, number):
    shown = spread_cases(evaluated([0.01 * i for i in range(cases)]), number)
    assert len(shown) == len(set(shown)) == min(cases, number)


def test_nothing_that_differs_has_p_one(folders):
    write_evaluation(folders / "again", shifted(truths(), 1, 0, 2), truths())
    found: Comparison = compare(read(folders, "a", "again"))
    assert [entry.permutation.p_value for entry in found.differences] == [1.0, 1.0]
    assert [entry.signed_rank.equal for entry in found.differences] == [5, 5]
