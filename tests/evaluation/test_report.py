"""The report is valid HTML, holds every number, and runs and loads nothing."""

import base64
import io
import math
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from rwkvseg.errors import OutputError
from rwkvseg.evaluation.pictures import make_picture, representative_cases
from rwkvseg.evaluation.plots import distribution_plot
from rwkvseg.evaluation.protocols import score_case
from rwkvseg.evaluation.report import write_report
from rwkvseg.evaluation.report_text import further_heading
from rwkvseg.evaluation.summary import summarise

EVIL = '<script>alert("1")</script>&\'$x^2$'
LABELS = {"background": 0, EVIL: 1, "kidney": 2}
VOID = {"meta", "img", "br", "hr", "link"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text, attributes and tags."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.tags, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def example(number=7, protocol="strict"):
    generator = np.random.default_rng(0)
    scores, cases = [], {}
    for index in range(number):
        truth = np.zeros((20, 24), dtype=np.uint8)
        truth[4:12, 4 : 10 + index] = 1
        truth[14:18, 5:9] = 2 * (index not in (2, 5))
        prediction = np.roll(truth, index % 3, axis=0)
        if index == 2:
            prediction[15, 20] = 2
        if index == 4:
            prediction[prediction == 2] = 0
        image = generator.integers(0, 255, (1, 20, 24), dtype=np.uint8)
        case = f"{EVIL}{index}"
        cases[case] = (image, truth, prediction)
        scores += score_case(case, prediction, truth, labels=LABELS, spacing=(0.5, 0.7), protocol=protocol)
    return scores, cases


def written(path, number=7, protocol="strict", context=None):
    scores, cases = example(number, protocol)
    summary = summarise(scores, protocol=protocol, unit="mm" if protocol == "strict" else "px", resamples=300)
    means = {case.case: case.dsc for case in summary.cases}
    pictures = {
        heading: [make_picture(case, *cases[case], means[case], spacing=(0.5, 0.7)) for case in group]
        for heading, group in representative_cases(scores).items()
    }
    write_report(
        path, summary, scores, pictures, context=context or {"title": EVIL, "data": EVIL, "date": "today"}
    )
    page = Page()
    source = path.read_text(encoding="utf-8")
    page.feed(source)
    page.close()
    assert page.open == []
    return summary, scores, pictures, page, source


@pytest.mark.parametrize("protocol", ["strict", "transunet"])
def test_every_number_is_there(tmp_path, protocol):
    summary, scores, pictures, page, _ = written(tmp_path / "report.html", protocol=protocol)
    text = " ".join(page.text)
    cells = {part.strip() for part in page.text}
    for row in (*summary.classes, summary.mean):
        assert f"{100 * row.dsc.mean:.2f}" in cells
        assert f"{100 * row.dsc.low:.2f} \N{EN DASH} {100 * row.dsc.high:.2f}" in cells
        assert f"{row.hd95.mean:.2f}" in cells
        assert f"{row.hd95.low:.2f} \N{EN DASH} {row.hd95.high:.2f}" in cells
        assert f"{row.hd95_found.mean:.2f}" in cells
        empty = [row.outcomes[outcome] for outcome in ("absent", "false_positive", "missed")]
        for number in (row.dsc.cases, row.hd95.cases, *empty):
            assert str(number) in cells
    for score in scores:
        if score.outcome == "scored":
            assert f"{100 * score.dsc:.2f}" in cells
            assert f"{score.hd95:.2f}" in cells
    for picture in (picture for group in pictures.values() for picture in group):
        assert f"DSC {100 * picture.dsc:.2f} %" in text
    for outcome, effect in {
        "strict": "Dice 0, left out of the HD95",
        "transunet": "Dice 1 and HD95 0",
    }.items():
        assert (effect in text) == (outcome == protocol)
    assert f"HD95 ({summary.unit})" in cells
    assert f"{summary.mean.outcomes['scored']} were held by prediction and truth both" in text
    assert "1 absent (kidney 1)" in text
    assert "1 false positive (kidney 1)" in text
    assert "1 missed (kidney 1)" in text


def test_every_name_is_escaped_and_nothing_is_loaded_or_run(tmp_path):
    *_, page, source = written(tmp_path / "report.html")
    assert "<script" not in source
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert any(EVIL in text for text in page.text)
    assert "http" not in source
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name == "src":
            assert value.startswith("data:image/png;base64,")


def test_pictures_are_inside(tmp_path):
    _, _, pictures, page, _ = written(tmp_path / "report.html", number=9)
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 1 + sum(len(group) for group in pictures.values()) == 10
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
            image.load()
            assert image.width > 500


def test_one_case_says_that_there_is_no_interval(tmp_path):
    *_, page, _ = written(tmp_path / "report.html", number=1)
    text = " ".join(page.text)
    assert "undefined" in text
    assert "there is no interval" in text
    assert "nan" not in text


def test_without_pictures_and_context_there_is_still_a_report(tmp_path):
    scores, _ = example()
    write_report(tmp_path / "r.html", summarise(scores, resamples=50), scores, {}, context={})
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Segmentation report" in text
    assert "Cases in pictures" not in text


def test_the_same_evaluation_gives_the_same_file(tmp_path):
    for name in ("a.html", "b.html"):
        written(tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_report_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        written(tmp_path / "file" / "report.html")


def test_plot_touches_no_global_setting_and_takes_empty_classes():
    before = dict(mpl.rcParams)
    truth = np.zeros((5, 5), dtype=int)
    scores = score_case("a", truth, truth, labels=LABELS)
    assert all(math.isnan(score.dsc) for score in scores)
    assert distribution_plot(scores, "mm").startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before


def test_numbers_need_no_picture_library():
    code = (
        "import sys, rwkvseg.evaluation, rwkvseg.evaluation.report\n"
        "loaded = {'matplotlib', 'PIL', 'torch', 'monai', 'lightning', 'nibabel'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "import rwkvseg.evaluation.plots as plots, rwkvseg.evaluation as e, numpy as np\n"
        "one = np.eye(3, dtype=int)\n"
        "plots.distribution_plot(e.score_case('a', one, one, labels={'x': 1}), 'px')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("iou", "IoU (%)"),
        ("recall", "recall (%)"),
        ("hd95_larger_mm", "HD95, larger of both directions (mm)"),
        ("assd_px", "ASSD (px)"),
        ("nsd_1.5mm", "NSD at 1.5 mm (%)"),
        ("volume_difference_ml", "volume difference (ml)"),
    ],
)
def test_metrics_have_the_names_that_people_know(name, heading):
    assert further_heading(name) == heading


def test_pictures_and_columns_are_described(tmp_path):
    _, _, pictures, page, source = written(tmp_path / "report.html")
    described = [value for key, value in page.attributes if key == "alt"]
    assert len(described) == 1 + sum(map(len, pictures.values()))
    assert all(name in described[0] for name in (EVIL, "kidney"))
    for picture in (picture for group in pictures.values() for picture in group):
        (own,) = [text for text in described if text.startswith(f"{picture.case},")]
        assert f"DSC {100 * picture.dsc:.2f} %" in own
    assert "<th>" not in source  # every heading says whether it is of a row or of a column
