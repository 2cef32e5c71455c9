"""Both protocols beside each other: the reasons for which they part, and files that keep them apart."""

import csv
import json
import math

import numpy as np
import pytest

from rwkvseg.errors import DataError
from rwkvseg.evaluation.both import compare_protocols, write_both
from rwkvseg.evaluation.both_report import parting_sentences, side_by_side, write_both_report
from rwkvseg.evaluation.protocols import score_case
from rwkvseg.evaluation.summary import summarise

LABELS = {"background": 0, "liver": 1, "spleen": 2}
HELD = np.zeros((9, 11), np.uint8)
HELD[2:6, 1:5] = 1
BOTH = HELD.copy()
BOTH[1:3, 7:10] = 2
MOVED = np.roll(HELD, 2, 1)


def scores_of(maps, protocol, spacings):
    found = []
    for case, (prediction, truth) in maps.items():
        options = {"labels": LABELS, "spacing": spacings[case], "protocol": protocol}
        found += score_case(case, prediction, truth, **options)
    unit = "mm" if protocol == "strict" and next(iter(spacings.values())) else "px"
    return summarise(found, protocol=protocol, unit=unit, resamples=50), found


def beside(maps, spacing=None, resized=None):
    spacings = dict.fromkeys(maps, spacing)
    theirs = scores_of(maps | (resized or {}), "transunet", spacings)
    return compare_protocols(scores_of(maps, "strict", spacings), theirs, spacings, notes=["a note"])


def reasons(both):
    return {(s.strict.case, s.strict.label): s.reasons for s in both.structures}


MAPS = {
    "agrees": (BOTH, BOTH),
    "absent": (MOVED, HELD),
    "false positive": (BOTH, HELD),
    "missed": (HELD, BOTH),
}


@pytest.mark.parametrize(("spacing", "of_moved"), [(None, ()), ((1.0, 1.0), ()), ((0.5, 2.0), ("spacing",))])
def test_every_reason_is_found_and_no_other(spacing, of_moved):
    assert reasons(beside(MAPS, spacing)) == {
        ("agrees", 1): (),
        ("agrees", 2): (),
        ("absent", 1): of_moved,
        ("absent", 2): ("absent",),
        ("false positive", 1): (),
        ("false positive", 2): ("false_positive",),
        ("missed", 1): (),
        ("missed", 2): ("missed",),
    }


def test_label_maps_that_were_resized_by_the_other_rule():
    resized = {"agrees": (np.where(MOVED == 1, 1, BOTH * (BOTH == 2)), BOTH), "missed": (BOTH, BOTH)}
    found = reasons(beside(MAPS, None, resized))
    assert found["agrees", 1] == ("resize",)
    assert found["missed", 2] == ("missed", "resize")
    assert found["agrees", 2] == ()


def test_different_structures_are_refused():
    spacings = dict.fromkeys(MAPS)
    fewer = {case: MAPS[case] for case in ("agrees", "absent")}
    with pytest.raises(
        DataError, match=r"4 structures are scored under one protocol only, .* 'false positive'"
    ):
        compare_protocols(
            scores_of(MAPS, "strict", spacings), scores_of(fewer, "transunet", spacings), spacings
        )


def test_json_csv_and_page_agree_and_keep_the_protocols_apart(tmp_path):
    both = beside(MAPS, (0.5, 2.0))
    write_both(tmp_path / "both.json", tmp_path / "both.csv", both)
    content = json.loads((tmp_path / "both.json").read_text())
    assert content["protocols"]["strict"] == json.loads(json.dumps(both.strict.to_json()))
    assert content["protocols"]["transunet"]["unit"] == "px"
    assert content["parted"]["missed"] == ["missed"]
    assert content["parted"]["spacing"] == ["absent"]
    assert content["notes"] == ["a note"]
    rows = list(csv.DictReader((tmp_path / "both.csv").read_text().splitlines()))
    assert len(rows) == len(content["structures"]) == 8
    for row, entry in zip(rows, content["structures"], strict=True):
        assert (row["case"], int(row["label"]), row["name"]) == (
            entry["case"],
            entry["label"],
            entry["name"],
        )
        assert row["reasons"].split() == entry["reasons"]
        for protocol, unit in (("strict", "mm"), ("transunet", "px")):
            assert row[f"{protocol}_outcome"] == entry[protocol]["outcome"]
            for what in ("dsc", f"hd95_{unit}"):
                kept = row[f"{protocol}_{what}"]
                assert (float(kept) if kept else None) == entry[protocol][what]
    assert not {"dsc", "hd95_mm", "hd95_px"} & rows[0].keys()
    write_both_report(tmp_path / "r.html", both, {"strict": "strict/report.html"})
    page = (tmp_path / "r.html").read_text()
    assert 'href="strict/report.html"' in page
    for structure in both.parted:
        for value in (100 * structure.strict.dsc, structure.transunet.hd95):
            assert math.isnan(value) or f"<td>{value:.2f}</td>" in page


def test_the_table_holds_the_means_of_each():
    both = beside(MAPS, (0.5, 2.0))
    heads, rows = side_by_side(both)
    assert len(heads) == len(rows[0]) == 7
    for row, ours, theirs in zip(rows[:-1], both.strict.classes, both.transunet.classes, strict=True):
        assert row[0] == ours.name
        assert row[1].startswith(f"{100 * ours.dsc.mean:.2f} [")
        assert row[5].startswith(f"{theirs.hd95.mean:.2f} [")
        assert (row[3], row[6]) == (str(ours.dsc.cases), str(theirs.dsc.cases))
    assert rows[-1][0] == "mean"


def test_the_sentences_name_cases_and_reasons():
    told = parting_sentences(beside(MAPS, (0.5, 2.0)))
    assert "part in 4 of 8 structures, in 3 of 4 cases" in told[0]
    assert any("missed: 1 structure of 1 case (missed)" in line for line in told)
    assert told[-1] == "a note"
    assert any(line.startswith("The means part by these") for line in told)
    alike = parting_sentences(beside({"equal": (BOTH, BOTH)}))
    assert "part in 0 of 2 structures, in 0 of 1 case." in alike[0]
    assert any(line.startswith("Where the means part, it is since strict averages") for line in alike)
    many = {f"case{index:02d}": (MOVED, HELD) for index in range(12)}
    (line,) = (line for line in parting_sentences(beside(many)) if line.startswith("absent"))
    assert "case00, case01" in line
    assert "and 4 more" in line
