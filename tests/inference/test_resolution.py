"""Cost against size: counts against their definition, straight lines, and figures of volumes."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rwkvseg.inference.resolution import fit_line, measure_sizes
from rwkvseg.models import create_model

CPU = torch.device("cpu")
SMALL = "urwkv3d_tiny:in_channels=1;num_classes=2;widths=[4,4,4,4,4];depths=[0,1,0,0]"


class OneConvolution(nn.Conv3d):
    """A network for volumes of two channels."""

    spatial_dims = 3

    def __init__(self):
        super().__init__(2, 5, 3, padding=1)


def test_cubes_are_counted_and_their_memory_too():
    rows = measure_sizes(OneConvolution().eval(), [4, 7], CPU, repeats=3)
    for row, size in zip(rows, (4, 7), strict=True):
        assert row["macs"] == 2 * 27 * 5 * size**3
        assert row["peak_bytes"] == (2 + 5) * 4 * size**3
        assert 0 < row["milliseconds_least"] <= row["milliseconds"] <= row["milliseconds_most"]


def test_compute_and_memory_of_a_network_for_volumes_are_proportional_to_voxels():
    network = create_model("urwkv3d_tiny", in_channels=1, num_classes=2, widths=[4] * 5).eval()
    rows = measure_sizes(network, [16, 32], CPU, repeats=1)
    for key in ("macs", "peak_bytes"):
        fit = fit_line(rows, key, 3)
        assert fit["exponent"] == pytest.approx(1, abs=0.02), key
        assert fit["farthest"] < 0.02, key


@given(st.floats(1e-3, 1e3), st.floats(0, 1e3), st.sampled_from([2, 3]))
def test_a_straight_line_is_found(slope, start, dimensions):
    rows = [{"size": size, "ms": start + slope * size**dimensions} for size in (3, 5, 8, 13)]
    fit = fit_line(rows, "ms", dimensions)
    assert fit["per_pixel"] == pytest.approx(slope, rel=1e-6)
    assert fit["at_zero"] == pytest.approx(start, abs=1e-6 * (start + slope * 13**dimensions))
    assert fit["farthest"] < 1e-6
    assert fit["exponent"] <= 1 + 1e-9


def test_what_is_not_proportional_shows():
    rows = [{"size": size, "ms": float(size**6)} for size in (4, 8, 16)]
    fit = fit_line(rows, "ms", 3)
    assert fit["exponent"] == pytest.approx(2)
    assert fit["farthest"] > 0.5
    assert all(value != value for value in fit_line(rows[:1], "ms", 3).values())


def test_the_command_draws_volumes(rwkvseg, tmp_path):
    out = tmp_path / "volumes.svg"
    command = ["-m", f"small={SMALL}", "--sizes", "32,16", "--repeats", 1, "-o", out, "--device", "cpu"]
    code, _, err = rwkvseg("figure", "resolution", *command)
    assert (code, err) == (0, "")
    assert "voxels" in out.read_text()
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["settings"]["dimensions"] == 3
    assert numbers["settings"]["fits"]["small"]["macs"]["exponent"] == pytest.approx(1, abs=0.02)
    assert [row["size"] for row in numbers["results"]["small"]] == [16, 32]


def test_pictures_and_volumes_are_drawn_apart(rwkvseg, tmp_path):
    command = ["-m", f"small={SMALL}", "-m", "rwkv_unet_nano", "-o", tmp_path / "a.png", "--sizes", "16"]
    code, _, err = rwkvseg("figure", "resolution", *command, "--device", "cpu")
    assert code == 2
    assert "small takes 3 axes, rwkv_unet_nano takes 2 axes" in err
    assert list(tmp_path.iterdir()) == []
