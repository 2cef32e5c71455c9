"""What a plan says of memory: exact where it can be, above what was measured, the largest batch that fits."""

import json
from pathlib import Path

import pytest
import torch

from rwkvseg.errors import UsageError
from rwkvseg.models import live_memory
from rwkvseg.models.live_memory import step_bytes
from rwkvseg.training import plan_memory
from rwkvseg.training.losses import SegmentationLoss
from rwkvseg.training.plan_memory import CONTEXT, MIXED, Candidate, estimate_memory, fit_batch, refuse

NANO = Candidate("rwkv_unet_nano", 3, 2, (64, 32))
PATCH = Candidate("urwkv3d_tiny", 1, 3, (16, 32, 16))
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "kvasir_seg_scratch"


@pytest.mark.parametrize("candidate", [NANO, PATCH], ids=lambda c: c.name)
@pytest.mark.parametrize("batch", [2, 5])
def test_the_estimate_is_that_of_the_whole_step(candidate, batch):
    """A batch of two is run and the others follow; never too little, hardly too much."""
    network = candidate.build()
    stride = getattr(network, "stride", ())
    loss = SegmentationLoss(stride=stride if isinstance(stride, tuple) else ())
    exact = step_bytes(network, (batch, candidate.channels, *candidate.sides), loss)
    found = estimate_memory(candidate, batch)
    assert exact <= found.step / MIXED + 2 <= 1.01 * exact
    assert found.weights == 16 * sum(parameter.numel() for parameter in network.parameters())
    assert found.total == CONTEXT + found.weights + found.step
    assert sum(found.as_object().values()) == 2 * found.total


@pytest.mark.parametrize(
    "candidate",
    [NANO, Candidate("rwkv_unet_tiny", 1, 4, (32, 32)), PATCH],
    ids=lambda c: c.name,
)
def test_a_step_under_autocast_stays_below_the_estimate(candidate):
    """Real tensors in bfloat16 on the CPU: the share that the estimate takes leaves room for workspaces."""
    network = candidate.build().train()
    stride = getattr(network, "stride", ())
    loss = SegmentationLoss(stride=stride if isinstance(stride, tuple) else ())
    counter = live_memory._Live()
    with counter:
        image = torch.zeros(2, candidate.channels, *candidate.sides)
        label = torch.zeros((2, *candidate.sides), dtype=torch.uint8)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(image)
        loss(outputs, label).backward()
    share = counter.most / (estimate_memory(candidate, 2).step / MIXED)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    within = weights / (estimate_memory(candidate, 2).step / MIXED)  # whose copies small maps do not outweigh
    assert 0.4 < share < 0.6 + within


@pytest.mark.parametrize(("run", "name"), [("tiny0", "rwkv_unet_tiny"), ("nano0", "rwkv_unet_nano")])
def test_what_was_measured_on_a_gpu_stays_below_the_estimate(run, name):
    """Peaks of torch's allocator on an H200, bfloat16, 32 pictures of 256 x 256."""
    measured = json.loads((RESULTS / run / "summary.json").read_text())["peak_gpu_memory_gib"] * 2**30
    found = estimate_memory(Candidate(name, 3, 2, (256, 256)), 32)
    assert measured < found.total - CONTEXT < 1.25 * measured


def test_the_first_batch_that_fits_is_taken():
    sixteen = estimate_memory(NANO, 16).total
    fitted = fit_batch(NANO, (32, 16, 8), sixteen)
    assert (fitted.batch_size, fitted.memory.total) == (16, sixteen)
    assert fit_batch(NANO, (32, 16, 8), sixteen - 1).batch_size == 8
    assert fit_batch(NANO, (32, 16), sixteen - 1) is None
    told = f"{sixteen / 2**20:.0f} MiB"
    assert fitted.told == f"takes about {told} of {told}"


def test_the_refusal_names_the_least_that_would_do():
    least = estimate_memory(NANO, 2).total
    error = refuse(NANO, 2, 2**20)
    assert isinstance(error, UsageError)
    told = "even rwkv_unet_nano on 2 pictures of 64 x 32 would take about"
    assert str(error).startswith(f"--gpu-memory allows 1 MiB; {told} {-(-least // 2**20)} MiB")


def test_equal_candidates_are_measured_once(monkeypatch):
    calls = []
    plan_memory._measured.cache_clear()
    monkeypatch.setattr(plan_memory, "step_bytes", lambda *_: calls.append(1) or 1000)
    estimate_memory(NANO, 2)
    estimate_memory(Candidate("rwkv_unet_nano", 3, 2, (64, 32)), 64)
    assert len(calls) == 1
    plan_memory._measured.cache_clear()
