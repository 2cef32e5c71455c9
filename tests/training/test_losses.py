import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwkvseg.training.losses import SegmentationLoss


def plain_loss(logits, label, *, cross_entropy, dice):
    """The definition, pixel by pixel: arrays (B, K, N) and (B, N)."""
    batch, classes, number = logits.shape
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    apart = 0.0
    for b in range(batch):
        for n in range(number):
            apart -= math.log(probabilities[b, label[b, n], n])
    overlap = 0.0
    for k in range(classes):
        true = (label == k).astype(float)
        both = (probabilities[:, k] * true).sum()
        total = (probabilities[:, k] ** 2).sum() + (true**2).sum()
        overlap += 1 - (2 * both + 1e-5) / (total + 1e-5)
    return cross_entropy * apart / (batch * number) + dice * overlap / classes


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 1, 1), (3, 4, 3, 5, 2), (2, 9, 11, 3)])
@pytest.mark.parametrize("weights", [(0.5, 1.0), (1.0, 0.0), (0.0, 2.0)])
def test_loss_is_its_definition(shape, weights):
    generator = np.random.default_rng(3)
    logits = generator.normal(scale=3, size=shape).astype(np.float32)
    label = generator.integers(0, shape[1], (shape[0], *shape[2:]))
    cross_entropy, dice = weights
    loss = SegmentationLoss(cross_entropy=cross_entropy, dice=dice)
    value = loss(torch.from_numpy(logits), torch.from_numpy(label.astype(np.uint8)))
    flat = logits.reshape(*shape[:2], -1).astype(np.float64)
    expected = plain_loss(flat, label.reshape(shape[0], -1), cross_entropy=cross_entropy, dice=dice)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 3, 1), (2, 3, 3, 5)])
def test_gradient_is_the_difference_quotient(shape):
    generator = np.random.default_rng(7)
    logits = generator.normal(size=shape)
    label = generator.integers(0, shape[1], (shape[0], *shape[2:]))
    tensor = torch.tensor(logits, requires_grad=True)
    SegmentationLoss()(tensor, torch.from_numpy(label)).backward()
    for place in np.ndindex(shape):
        step = np.zeros(shape)
        step[place] = 1e-5
        values = [
            plain_loss(
                (logits + sign * step).reshape(*shape[:2], -1),
                label.reshape(shape[0], -1),
                cross_entropy=0.5,
                dice=1.0,
            )
            for sign in (1, -1)
        ]
        assert tensor.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-5)


@given(st.integers(2, 5), st.integers(0, 10**6))
def test_loss_falls_towards_the_truth_and_is_zero_there(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (2, 5, 3), generator=generator)
    truth = torch.nn.functional.one_hot(label, classes).movedim(-1, 1).float()
    loss = SegmentationLoss()
    values = [loss(scale * truth, label).item() for scale in (0.0, 1.0, 5.0, 50.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0, abs=1e-5)


def test_a_class_that_nothing_holds_costs_nothing_when_it_is_not_predicted():
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 60.0
    assert SegmentationLoss()(logits, label).item() == pytest.approx(0, abs=1e-5)


def test_bfloat16_logits_are_summed_in_float32():
    logits = torch.randn(2, 2, 64, 65, generator=torch.Generator().manual_seed(0)).bfloat16()
    label = torch.ones(2, 64, 65, dtype=torch.uint8)
    value = SegmentationLoss()(logits, label)
    assert value.dtype == torch.float32
    assert value.item() == SegmentationLoss()(logits.float(), label).item()
