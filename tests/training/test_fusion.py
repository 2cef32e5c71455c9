"""Weights of scan orders: read from the network, kept over a resume, told in the report."""

import csv

import pytest
import torch
from torch import nn

from rwkvseg.models import create_model
from rwkvseg.training.fusion import fusion_section, preference, read_sections, read_weights
from rwkvseg.training.history import History
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from small_volumes import OVERRIDES, small_volume_recipe

SMALL = OVERRIDES | {"depths": [0, 1, 1, 0]}
BLOCKS = ["encoder.levels.1.blocks.0", "encoder.levels.2.blocks.0"]


class Stopped(Exception):
    """Stands for whatever ends a process."""


def network_with(logits, **overrides):
    network = create_model("urwkv3d_tiny", in_channels=1, num_classes=2, **SMALL, **overrides)
    for name, parameter in network.named_parameters():
        if name.endswith("fusion.logits"):
            parameter.data = torch.tensor(logits).float()
    return network


@pytest.mark.parametrize(
    ("logits", "overrides", "expected"),
    [
        ([0.0, 0.0, 0.0], {}, [1 / 3, 1 / 3, 1 / 3]),
        ([1.0, 0.0, -1.0], {}, torch.tensor([1.0, 0.0, -1.0]).softmax(0).tolist()),
        ([0.3, -0.2, 2.0], {"fusion": "free"}, [0.3, -0.2, 2.0]),
        (
            [0.0] * 8 + [2.0] * 8 + [0.0] * 8,
            {"fusion": "softmax_channel"},
            torch.tensor([0, 2.0, 0]).softmax(0),
        ),
    ],
)
def test_weights_are_read_as_the_network_has_them(logits, overrides, expected):
    rows = read_weights(network_with(logits, **overrides), 4)
    assert [row["block"] for row in rows] == BLOCKS
    for row in rows:
        assert row["epoch"] == 4
        found = [row["dhw"], row["hwd"], row["wdh"]]
        assert found == pytest.approx([float(weight) for weight in expected], abs=1e-6)


def test_two_orders_have_two_weights():
    (row, _) = read_weights(network_with([0.0, 0.0], scans=["wdh", "dhw"]), 0)
    assert list(row) == ["epoch", "block", "wdh", "dhw"]


@pytest.mark.parametrize(
    "network",
    [
        nn.Conv3d(1, 2, 1),
        create_model("urwkv3d_tiny", in_channels=1, mixer="none", **SMALL),
        create_model("urwkv3d_tiny", in_channels=1, fusion="sum", **SMALL),
        create_model("urwkv3d_tiny", in_channels=1, scans=1, **SMALL),
    ],
    ids=["other", "none", "sum", "one scan"],
)
def test_nothing_is_read_where_nothing_is_learned(network):
    assert read_weights(network, 0) == []


def test_an_axis_is_named_where_it_stands_out():
    row = {"epoch": 0, "block": "a", "dhw": 0.33, "hwd": 0.33, "wdh": 0.34}
    assert preference(row) == "no axis"
    assert preference(row | {"wdh": 0.5, "dhw": 0.2}) == "W"
    section = fusion_section([row, row | {"epoch": 1, "hwd": 0.6}])
    assert section.table[0] == ["block", "D (dhw)", "H (hwd)", "W (wdh)", "looks along"]
    assert section.table[1:] == [["a", "0.330", "0.600", "0.340", "H"]]
    assert section.png.startswith(b"\x89PNG")


def table(run):
    with (run / "fusion_weights.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_resumed_run_has_the_weights_of_all_epochs_and_its_report_shows_them(
    tmp_path, phantom_3d, monkeypatch
):
    content = small_volume_recipe(phantom_3d, epochs=3, validate_every=3)
    content["model"]["overrides"] = SMALL
    recipe = Recipe.from_mapping(content)
    original = History.on_train_epoch_end

    def stop(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 1:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_end", stop)
        with pytest.raises(Stopped):
            train(recipe, tmp_path, device="cpu")
    assert len(table(tmp_path)) == 2 * len(BLOCKS)  # the start and one whole epoch
    before = table(tmp_path)
    train(recipe, tmp_path, device="cpu", resume=True)
    found = table(tmp_path)
    assert found[: len(before)] == before
    assert [(row["epoch"], row["block"]) for row in found] == [
        (str(epoch), block) for epoch in (-1, 0, 1, 2) for block in BLOCKS
    ]
    assert {row["dhw"] for row in found[: len(BLOCKS)]} == {"0.333333"}
    assert found[-1]["dhw"] != found[0]["dhw"]
    assert all(
        sum(float(row[o]) for o in ("dhw", "hwd", "wdh")) == pytest.approx(1, abs=1e-5) for row in found
    )
    plot = (tmp_path / "fusion_weights.png").read_bytes()
    assert plot.startswith(b"\x89PNG")
    assert read_sections(tmp_path)[0].png == plot
    (tmp_path / "fusion_weights.png").unlink()
    assert read_sections(tmp_path)[0].png == plot, "of a run whose plot was thrown away"
    text = (tmp_path / "evaluation" / "val" / "report.html").read_text()
    assert "Which axis the network looks along" in text
    assert f"{float(found[-1]['dhw']):.3f}</td>" in text


def test_runs_without_such_weights_have_no_table(small_run):
    assert not (small_run / "fusion_weights.csv").exists()
    assert read_sections(small_run) == []
    assert "looks along" not in (small_run / "evaluation" / "test" / "report.html").read_text()
