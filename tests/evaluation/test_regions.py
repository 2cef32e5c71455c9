"""Regions: unions of labels, scored like one class under both protocols, and counted in no mean."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compared import LABELS, shifted, truths
from rwkvseg.errors import UsageError
from rwkvseg.evaluation.metrics import assd, dice, hausdorff_95, nsd
from rwkvseg.evaluation.pictures import representative_cases
from rwkvseg.evaluation.plots import distribution_plot
from rwkvseg.evaluation.protocols import score_case
from rwkvseg.evaluation.regions import parse_regions, resolve_regions
from rwkvseg.evaluation.report import write_report
from rwkvseg.evaluation.score_files import write_csv, write_summary_csv, write_summary_json
from rwkvseg.evaluation.summary import summarise

FOUR = {"background": 0, "oedema": 1, "necrosis": 2, "active": 3}
WHOLE = {"whole": (1, 2, 3), "core": (2, 3)}


@st.composite
def map_pairs(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7))
    values = hnp.arrays(np.uint8, shape, elements=st.integers(0, 3))
    return draw(values), draw(values)


@settings(max_examples=80, deadline=None)
@given(map_pairs(), st.sampled_from(["strict", "transunet"]), st.booleans())
def test_a_region_is_scored_as_the_map_that_has_it_as_one_class(maps, protocol, known):
    prediction, truth = maps
    spacing = (0.7, 2.3, 5.0)[: truth.ndim] if known else None
    rules = {"spacing": spacing, "protocol": protocol, "tolerance": 1.6}
    found = score_case("a", prediction, truth, labels=FOUR, regions=WHOLE, **rules)
    plain = score_case("a", prediction, truth, labels=FOUR, **rules)
    assert [score.name for score in found] == ["oedema", "necrosis", "active", "whole", "core"]
    for ours, theirs in zip(found, plain, strict=False):
        assert repr(ours) == repr(theirs)
    for region in found[3:]:
        joined = [np.isin(m, WHOLE[region.name]).astype(np.uint8) for m in maps]
        (one,) = score_case("a", *joined, labels={"x": 1}, **rules)
        for name in ("dsc", "hd95", "hd95_larger", "assd", "nsd", "volume_difference", "iou", "recall"):
            assert getattr(region, name) == pytest.approx(getattr(one, name), nan_ok=True), name
        assert (region.outcome, region.tp, region.fp, region.fn, region.tn) == (
            one.outcome, one.tp, one.fp, one.fn, one.tn,
        )  # fmt: skip


def test_a_region_by_the_metrics_themselves():
    generator = np.random.default_rng(0)
    prediction, truth = (generator.integers(0, 4, (11, 9, 5)).astype(np.uint8) for _ in range(2))
    spacing = (0.7, 2.3, 5.0)
    region = score_case("a", prediction, truth, labels=FOUR, regions=WHOLE, spacing=spacing)[-1]
    masks = [(m == 2) | (m == 3) for m in (prediction, truth)]
    assert region.written_label == "2+3"
    assert region.dsc == dice(*masks)
    assert region.hd95 == hausdorff_95(*masks, spacing)
    assert region.assd == assd(*masks, spacing)
    assert region.nsd == nsd(*masks, spacing, tolerance=2.0)


@pytest.fixture(params=["strict", "transunet"])
def evaluated(request):
    """Scores and summary with and without a region; the third case has no liver, the fourth nothing."""
    maps = truths()
    maps["case2"][maps["case2"] == 1] = 0
    maps["case3"] = np.zeros_like(maps["case3"])
    predictions = shifted(maps, 0, 1, 2)
    rules = {"labels": LABELS, "protocol": request.param}

    def scores(**options):
        return [
            s for name in maps for s in score_case(name, predictions[name], maps[name], **rules, **options)
        ]

    both = scores(), scores(regions={"organs": (1, 2)})
    return [(found, summarise(found, protocol=request.param, resamples=50)) for found in both]


def test_no_mean_counts_a_region(evaluated):
    (plain_scores, plain), (scores, summary) = evaluated
    for name in ("classes", "mean", "cases"):
        assert repr(getattr(summary, name)) == repr(getattr(plain, name)), name
    assert plain.regions == ()
    (row,) = summary.regions
    assert (row.name, row.label) == ("organs", "1+2")
    own = [score.dsc for score in scores if score.region and not math.isnan(score.dsc)]
    assert row.dsc.mean == pytest.approx(np.mean(own))
    assert sum(row.outcomes.values()) == 5
    assert row.outcomes["absent"] == 1
    assert [entry.name for entry in summary.rows] == ["liver", "spleen", "mean", "organs"]
    assert representative_cases(scores) == representative_cases(plain_scores)


def test_every_file_has_the_region_and_nnunets_keys_leave_it_out(evaluated, tmp_path):
    (plain_scores, plain), (scores, summary) = evaluated
    write_csv(tmp_path / "scores.csv", scores, "px")
    write_summary_csv(tmp_path / "summary.csv", summary)
    write_summary_json(tmp_path / "summary.json", summary, scores)
    write_summary_json(tmp_path / "plain.json", plain, plain_scores)
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [row["label"] for row in rows[:3]] == ["1", "2", "1+2"]
    means = {row["name"]: row for row in csv.DictReader((tmp_path / "summary.csv").read_text().splitlines())}
    assert float(means["organs"]["dsc"]) == summary.regions[0].dsc.mean
    content, without = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("summary", "plain"))
    for key in ("foreground_mean", "mean", "metric_per_case"):
        assert content[key] == without[key]
    assert content["rwkvseg"]["regions"][0]["label"] == "1+2"
    assert content["rwkvseg"]["scores"][2]["label"] == "1+2"
    assert without["rwkvseg"]["regions"] == []


def test_the_report_shows_it_below_the_mean(evaluated, tmp_path):
    _, (scores, summary) = evaluated
    write_report(tmp_path / "report.html", summary, scores, {}, context={})
    page = (tmp_path / "report.html").read_text()
    result = page[page.index("<h2>Result</h2>") : page.index("<h2>Further metrics</h2>")]
    assert result.index(">mean</th>") < result.index(">organs (1+2)</th>")
    assert f"<td>{100 * summary.regions[0].dsc.mean:.2f}</td>" in result
    assert "Region organs (1+2), in no mean: absent 1" in page
    assert "organs: DSC (%)" in page
    assert distribution_plot(scores, "px") != distribution_plot([s for s in scores if not s.region], "px")


def test_the_command_line_and_recipes_name_labels_or_values():
    texts = parse_regions(["whole=1+2+3", " core = necrosis + 3 "])
    assert texts == {"whole": ("1", "2", "3"), "core": ("necrosis", "3")}
    assert resolve_regions(texts, FOUR) == WHOLE
    assert resolve_regions({"a": [3, "oedema", 3]}, FOUR) == {"a": (1, 3)}
    assert resolve_regions({"a": ["2"]}, {"bg": 0, "2": 1, "x": 2}) == {"a": (1,)}  # a name wins over a value


@pytest.mark.parametrize("text", ["whole", "=1+2", "whole=", "whole=1++2", "whole=1+"])
def test_what_is_no_region(text):
    with pytest.raises(UsageError, match="NAME=LABEL"):
        parse_regions([text])


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ({"a": ["heart"]}, "'heart', which is no structure; known are oedema"),
        ({"a": [1, 0]}, "joins 0"),
        ({"a": ["background", 1]}, "joins 'background'"),
        ({"a": [4]}, "joins 4"),
        ({"a": []}, "joins nothing"),
        ({"oedema": [1, 2]}, "called like a row"),
        ({"mean": [1, 2]}, "called like a row"),
        ({"a": [1, 2], "b": ["necrosis", 1]}, "'a' and 'b' join the same"),
    ],
    ids=str,
)
def test_what_no_region_can_be(regions, words):
    with pytest.raises(UsageError, match=words):
        resolve_regions(regions, FOUR)
    with pytest.raises(UsageError, match="two regions"):
        parse_regions(["a=1", "a=2"])
