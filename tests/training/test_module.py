import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.optim.lr_scheduler import CosineAnnealingLR

from rwkvseg.evaluation.metrics import dice
from rwkvseg.training.module import mean_dsc, overlap_counts
from rwkvseg.training.recipe import OptimizerSettings
from rwkvseg.training.recipe_module import learning_rate_factor


@pytest.mark.parametrize(("epochs", "per_epoch"), [(7, 3), (30, 1), (4, 11)])
def test_epoch_schedule_is_torchs_cosine_annealing(epochs, per_epoch):
    settings = OptimizerSettings(learning_rate=1e-3, min_learning_rate=1e-5, schedule="epoch")
    factor = learning_rate_factor(settings, steps=epochs * per_epoch, epochs=epochs)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = CosineAnnealingLR(optimizer, T_max=epochs, eta_min=1e-5)
    for epoch in range(epochs):
        expected = optimizer.param_groups[0]["lr"]
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            assert 1e-3 * factor(step) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        schedule.step()


@given(
    warmup=st.integers(0, 20),
    steps=st.integers(21, 500),
    ratio=st.floats(0, 1),
)
def test_step_schedule_warms_up_falls_and_ends_at_the_minimum(warmup, steps, ratio):
    settings = OptimizerSettings(
        learning_rate=2e-3, min_learning_rate=2e-3 * ratio, warmup_steps=warmup, schedule="step"
    )
    factor = learning_rate_factor(settings, steps=steps, epochs=1)
    values = [factor(step) for step in range(steps + 1)]
    assert values[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert values[warmup] == pytest.approx(1)
    assert all(a >= b - 1e-12 for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False))
    assert values[-1] == pytest.approx(ratio, abs=1e-9)
    assert factor(10 * steps) == pytest.approx(ratio, abs=1e-9)  # beyond the end it stays there
    middle = warmup + (steps - warmup) / 2
    if middle == int(middle):
        assert factor(int(middle)) == pytest.approx((1 + ratio) / 2)


def test_more_warm_up_than_steps_only_rises():
    settings = OptimizerSettings(warmup_steps=50, schedule="step")
    factor = learning_rate_factor(settings, steps=10, epochs=2)
    assert [factor(step) for step in range(10)] == pytest.approx([(step + 1) / 50 for step in range(10)])
    assert math.isfinite(factor(50))


maps = arrays(np.int64, (3, 5, 7), elements=st.integers(0, 3))


@given(maps, maps)
def test_counts_and_mean_are_those_of_the_metric(prediction, label):
    counts = overlap_counts(torch.from_numpy(prediction), torch.from_numpy(label), 4)
    assert counts.shape == (3, 4, 3)
    means = []
    for case in range(3):
        scores = []
        for value in range(4):
            ours, theirs = prediction[case] == value, label[case] == value
            assert counts[case, value].tolist() == [(ours & theirs).sum(), ours.sum(), theirs.sum()]
            if value and not math.isnan(dice(ours, theirs)):
                scores.append(dice(ours, theirs))
        if scores:
            means.append(np.mean(scores))
    value = mean_dsc(counts.double())
    if means:
        assert value.item() == pytest.approx(np.mean(means), rel=1e-6)
    else:
        assert torch.isnan(value)


def test_slices_of_one_volume_count_together():
    prediction = torch.zeros(2, 3, 3, dtype=torch.long)
    label = torch.zeros(2, 3, 3, dtype=torch.long)
    prediction[0, 0] = 1  # 3 of 3 found in one slice
    label[0, 0] = 1
    label[1, :] = 1  # 0 of 9 in the other
    counts = overlap_counts(prediction, label, 2).sum(0, keepdim=True).double()
    assert mean_dsc(counts).item() == pytest.approx(dice(prediction.numpy() == 1, label.numpy() == 1))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 3, 4)])
def test_counts_take_any_number_of_axes(shape):
    label = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1))
    counts = overlap_counts(label, label, 2)
    assert counts[..., 0].sum() == label.numel()
    assert torch.equal(counts[..., 0], counts[..., 1])
