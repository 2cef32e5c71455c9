"""Figures and their numbers: receptive fields against their definition, sizes, and accuracy against size."""

import itertools
import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from rwkvseg.errors import DataError, ModelFileError, UsageError
from rwkvseg.evaluation.figures import draw_tradeoff
from rwkvseg.evaluation.tradeoff import pareto_front, read_points
from rwkvseg.inference.figures import read_sizes
from rwkvseg.inference.named_networks import named_networks
from rwkvseg.inference.receptive_field import area_shares, describe_field, receptive_field, share_beyond
from rwkvseg.inference.resolution import measure_sizes
from rwkvseg.models import create_model
from small import files_below

CPU = torch.device("cpu")
# a stage's first block has no mixer: one block a stage is a network without any
WITHOUT_MIXER = {"depths": [1, 1, 1, 1], "widths": [8, 8, 8, 8], "stem_width": 8}
WITH_MIXER = WITHOUT_MIXER | {"depths": [1, 1, 2, 2]}


class OneConvolution(nn.Module):
    """Its encoder's last map is one convolution of stride 2, with known weights."""

    def __init__(self):
        super().__init__()
        self.encoder = self
        self.convolution = nn.Conv2d(3, 2, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        return [self.convolution(x)]


def test_the_field_of_a_convolution_is_its_kernel():
    torch.manual_seed(0)
    network = OneConvolution()
    field = receptive_field(network, [torch.rand(1, 3, 8, 12), torch.rand(1, 3, 8, 12)])
    kernel = network.convolution.weight.detach().double().sum(0).abs().sum(0)
    expected = torch.zeros(8, 12, dtype=torch.float64)
    expected[3:6, 5:8] = kernel / kernel.sum()  # the middle pixel (2, 3) of a 4 x 6 map stands on (4, 6)
    torch.testing.assert_close(field, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_spatial_mix_reaches_across_the_image_and_none_does_not(seed):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(1, 3, 256, 256, generator=generator) for _ in range(2)]
    found = {}
    for name, overrides in (("mix", WITH_MIXER), ("none", WITHOUT_MIXER)):
        torch.manual_seed(seed)
        found[name] = receptive_field(create_model("rwkv_unet_tiny", **overrides).eval(), images)
    assert share_beyond(found["mix"], 0.4) > 0.2
    assert share_beyond(found["none"], 0.4) < 0.01
    described = {name: describe_field(field) for name, field in found.items()}
    held = {name: numbers["area_that_holds"]["99%"] for name, numbers in described.items()}
    assert held["mix"] > 4 * held["none"]
    above = {name: d["area_above_a_thousandth_of_the_largest"] for name, d in described.items()}
    assert above["mix"] > 0.8 > 0.3 > above["none"]


def test_the_network_is_left_as_it_was():
    network = create_model("rwkv_unet_tiny", **WITH_MIXER).eval()
    receptive_field(network, [torch.rand(1, 3, 32, 32)])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_cannot_be_looked_at_is_refused():
    with pytest.raises(UsageError, match="has no encoder"):
        receptive_field(nn.Conv2d(3, 3, 1), [torch.rand(1, 3, 16, 16)])
    with pytest.raises(UsageError, match="at least 1"):
        receptive_field(OneConvolution(), [])


@given(st.integers(1, 12), st.integers(1, 12))
def test_an_even_field_needs_just_its_shares(rows, columns):
    field = torch.full((rows, columns), 1 / (rows * columns), dtype=torch.float64)
    number = rows * columns
    shares = area_shares(field)
    for share in (0.2, 0.5, 0.9, 0.99):
        assert shares[f"{round(100 * share)}%"] == math.ceil(share * number - 1e-6) / number


def test_shares_of_a_single_pixel():
    field = torch.zeros(10, 10, dtype=torch.float64)
    field[5, 5] = 1
    assert set(area_shares(field).values()) == {0.01}
    assert share_beyond(field, 0.1) == 0
    assert share_beyond(field.roll((4, 4), (0, 1)), 0.5) == 1


def test_networks_by_name_override_and_folder(small_run):
    sources = ["a=rwkv_unet_tiny:depths=[1,1,1,1];decoder_kernel=3", f"run={small_run}", "rwkv_unet_nano"]
    networks = named_networks(sources, CPU)
    assert list(networks) == ["a", "run", "rwkv_unet_nano"]
    assert networks["a"].config.depths == (1, 1, 1, 1)
    assert networks["a"].config.decoder_kernel == 3
    assert networks["run"].config.stem_width == 4
    assert not any(network.training for network in networks.values())
    again = named_networks(["rwkv_unet_nano"], CPU)["rwkv_unet_nano"].state_dict()
    assert all(torch.equal(v, again[k]) for k, v in networks["rwkv_unet_nano"].state_dict().items())
    with pytest.raises(UsageError, match="two networks are called 'a'"):
        named_networks(["a=rwkv_unet_nano", "a=rwkv_unet_tiny"], CPU)
    with pytest.raises(UsageError, match="'depths' of rwkv_unet_tiny has no value"):
        named_networks(["rwkv_unet_tiny:depths"], CPU)
    with pytest.raises(UsageError, match="has no field 'kernel'"):
        named_networks(["rwkv_unet_tiny:kernel=3"], CPU)
    with pytest.raises(ModelFileError, match="there is no model at"):
        named_networks(["rwkv_unet_huge"], CPU)


def test_compute_grows_with_the_pixels_and_is_counted():
    network = nn.Conv2d(3, 5, 3, padding=1).eval()
    rows = measure_sizes(network, [8, 16], CPU, repeats=3)
    assert [row["macs"] for row in rows] == [27 * 5 * size**2 for size in (8, 16)]
    for row in rows:
        assert 0 < row["milliseconds_least"] <= row["milliseconds"] <= row["milliseconds_most"]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "-4", "1.5"])
def test_sizes_that_cannot_be_meant(text):
    with pytest.raises(UsageError, match="positive integers"):
        read_sizes(text)


def test_the_commands_write_picture_and_numbers(rwkvseg, tmp_path, phantom, small_run):
    small = "rwkv_unet_tiny:depths=[1,1,1,1];widths=[4,4,4,4];stem_width=4"
    out = tmp_path / "sub" / "erf.svg"
    command = ["-m", f"small={small}", "-m", small_run, "--size", 32, "--images", 2, "-i", phantom / "images"]
    code, text, err = rwkvseg("figure", "erf", *command, "-o", out, "--device", "cpu")
    assert (code, err) == (0, "")
    assert f"figure:  {out}\nnumbers: {out.with_suffix('.json')}\n" == text
    assert "<svg" in out.read_text()
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert list(numbers["results"]) == ["small", "run"]
    assert numbers["settings"] == {"size": 32, "images": 2, "seed": 0, "pictures": "images"}
    assert numbers["hardware"]
    out = tmp_path / "resolution.png"
    command = ["-m", small, "--sizes", "48,32", "--repeats", 2, "-o", out, "--device", "cpu"]
    assert rwkvseg("figure", "resolution", *command)[0] == 0
    (rows,) = json.loads(out.with_suffix(".json").read_text())["results"].values()
    assert [row["size"] for row in rows] == [32, 48]
    assert rows[1]["macs"] / rows[0]["macs"] == pytest.approx(2.25, rel=0.15)
    assert out.read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "pareto.pdf"
    assert rwkvseg("figure", "pareto", small_run, f"other={small_run}", "-o", out)[0] == 0
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert [point["label"] for point in numbers["points"]] == ["rwkv_unet_tiny", "other"]
    assert numbers["front"] == ["rwkv_unet_tiny", "other"]


def test_failures_leave_nothing(rwkvseg, tmp_path, phantom, small_run):
    for code, said, command in (
        (2, "End it in .png", ["erf", "-m", small_run, "-o", tmp_path / "a.gif"]),
        (2, "size is 40", ["erf", "-m", small_run, "--size", 40, "-o", tmp_path / "a.png"]),
        (1, "holds 20 pictures, 21", ["erf", "-m", small_run, "-i", phantom / "images", "--images", 21]),
        (2, "has no encoder", ["erf", "-m", "monai_basic_unet", "--size", 32]),
        (1, "no finished run", ["pareto", phantom]),
        (2, "positive integers", ["resolution", "-m", small_run, "--sizes", "a"]),
    ):
        out = [] if "-o" in command else ["-o", tmp_path / "a.png"]
        found, _, err = rwkvseg("figure", *command, *out)
        assert (found, said in err) == (code, True), err
    assert files_below(tmp_path) == []


@pytest.fixture
def runs(tmp_path, small_run):
    """Make run folders with the given (parameters, DSC)."""

    def make(*figures):
        folders = []
        for place, (parameters, dsc) in enumerate(figures):
            folder = tmp_path / f"run{place}"
            folder.mkdir()
            shutil.copy(small_run / "environment.json", folder)
            summary = json.loads((small_run / "summary.json").read_text()) | {"parameters": parameters}
            summary["results"]["test"]["mean"]["dsc"]["mean"] = dsc
            (folder / "summary.json").write_text(json.dumps(summary))
            folders.append(folder)
        return folders

    return make


def test_runs_of_one_label_are_pooled(runs):
    folders = runs((100, 0.8), (100, 0.9), (300, 0.7))
    points = read_points([f"a={folders[0]}", f"a={folders[1]}", f"b={folders[2]}"])
    assert [(p["label"], p["parameters"]) for p in points] == [("a", 100), ("b", 300)]
    assert points[0]["dsc"] == pytest.approx(0.85)
    assert points[0]["deviation"] == pytest.approx(math.sqrt(0.005))
    assert points[1]["deviation"] is None
    assert [run["run"] for run in points[0]["runs"]] == ["run0", "run1"]
    with pytest.raises(UsageError, match=r"have \[100, 300\] parameters"):
        read_points(map(str, folders))
    with pytest.raises(UsageError, match="at least one run"):
        read_points([])
    with pytest.raises(DataError, match="no finished run"):
        read_points([str(folders[0])], part="train")


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=8))
def test_the_front_is_what_nobody_beats(pairs):
    points = [
        {"label": str(place), "parameters": size, "dsc": dsc / 6} for place, (size, dsc) in enumerate(pairs)
    ]
    front = pareto_front(points)
    for place, (size, dsc) in enumerate(pairs):
        beaten = any((s < size and d >= dsc) or (s <= size and d > dsc) for s, d in pairs)
        assert (str(place) in front) == (not beaten)


def test_labels_of_points_close_to_each_other_do_not_overlap(tmp_path, monkeypatch):
    labels = []
    remember = Figure.savefig

    def look(figure, *args, **kwargs):
        labels.extend(text.get_window_extent() for text in figure.axes[0].texts)
        remember(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", look)
    points = [
        {"label": f"network {place}", "parameters": size, "dsc": dsc, "deviation": None, "runs": [1]}
        for place, (size, dsc) in enumerate([(3.0e6, 0.890), (3.1e6, 0.889), (3.0e6, 0.868), (9e6, 0.85)])
    ]
    draw_tradeoff(points, ["network 0"], tmp_path / "pareto.png", "test")
    assert len(labels) == len(points)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(labels, 2))
