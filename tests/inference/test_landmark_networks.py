"""Why the landmark phantom proves what it shall: who cannot solve it, whatever the weights, and who can."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from rwkvseg.data.landmark import (
    LANDMARK_PICTURE_SIZE,
    LANDMARK_VOLUME_SIZE,
    Ball,
    draw_balls,
    landmark_gap,
)
from rwkvseg.inference.receptive_field import reach
from rwkvseg.models import create_model
from rwkvseg.models.blocks import SqueezeExcite
from rwkvseg.training.recipe import Recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SIZES = {"2d": LANDMARK_PICTURE_SIZE, "3d": LANDMARK_VOLUME_SIZE}
ROWS = [
    (study, row)
    for study in yaml.safe_load((RECIPES / "studies" / "landmark.yaml").read_text())
    for row in study["rows"]
]
IDS = [f"{study['study']}: {row['name']}" for study, row in ROWS]


def network_of(study, row, seed=0):
    """Network of a row with random weights, decays and norms included, in double precision."""
    recipe = Recipe.from_file(RECIPES / f"{study['recipe']}.yaml", changes=row["set"])
    torch.manual_seed(seed)
    network = create_model(recipe.model.name, in_channels=1, num_classes=3, **recipe.model.overrides)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 3.0 if name.endswith("decay") else 1.5)
    return network.double().eval()


def image_of(size):
    """Noise-free image whose two targets stand a multiple of 16 pixels apart, and the rows of both."""
    gap, short = landmark_gap(size), min(size[1:])
    across = tuple(short / 2 for _ in size[1:])
    apart = -(-(gap + short) // 16) * 16
    rows = (size[0] / 2 - apart / 2 + 4, size[0] / 2 + apart / 2 + 4)
    balls = [Ball((row, *across), 0.2 * short) for row in (8.0, *rows, size[0] - 8.0)]
    level, _ = draw_balls(balls, size, first_is_bright=True, last_is_bright=False)
    return torch.from_numpy(level).double()[None, None] / 255, [int(row) for row in rows]


@pytest.mark.parametrize(("study", "row"), ROWS, ids=IDS)
@torch.no_grad()
def test_logits_of_both_targets_are_alike_just_in_networks_that_cannot_solve_it(study, row):
    """Same surroundings, and means over the same image: without WKV the same logits, whatever the weights."""
    size = SIZES[study["study"]]
    image, (first, second) = image_of(size)
    logits = network_of(study, row)(image)
    around = 2
    at_first, at_second = (logits[0, :, place - around : place + around] for place in (first, second))
    differs = float((at_first - at_second).abs().max() / at_first.std())
    assert (differs > 1e-6) if row["solves"] else (differs < 1e-9), differs


@pytest.mark.parametrize(("study", "row"), ROWS, ids=IDS)
def test_only_networks_that_solve_it_reach_a_landmark(study, row):
    size = SIZES[study["study"]]
    short = (min(size[0], 2 * landmark_gap(size) + 32), *([16, 8][len(size) - 2] for _ in size[1:]))
    found = reach(network_of(study, row), short, stride={2: 16, 3: 4}[len(size)])
    assert (found > landmark_gap(size)) == row["solves"], found


def test_pooled_networks_would_tell_the_kinds_of_landmarks():
    """The squeeze-excite of the twin does see far: it is the task that makes this useless."""
    study, row = next((s, r) for s, r in ROWS if s["study"] == "2d" and "mixer=none" in str(r["set"]))
    network = network_of(study, row)
    assert any(isinstance(module, SqueezeExcite) for module in network.modules())
    image, (first, _) = image_of((576, 32))
    changed = image.clone()
    changed[:, :, :16] = 1.0  # a brighter first landmark
    with torch.no_grad():
        difference = (network(image) - network(changed))[0, :, first].abs().max()
    assert difference > 1e-9


def test_reach_of_convolutions_is_their_kernels():
    network = nn.Sequential(
        nn.Conv2d(3, 2, 5, padding=2), nn.InstanceNorm2d(2), nn.Conv2d(2, 2, (7, 3), padding=(3, 1))
    )
    assert reach(network, (40, 12), stride=4) == 5
    assert reach(network, (12, 40), axis=1, stride=4) == 3
    assert isinstance(network[1], nn.InstanceNorm2d)
    assert next(network.parameters()).dtype == torch.float32
