"""The loss of several logits, its options, and the optimiser of the nnFormer recipe."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW

from rwkvseg.training.losses import SegmentationLoss
from rwkvseg.training.recipe import OptimizerSettings, Recipe
from rwkvseg.training.recipe_module import RecipeModule, learning_rate_factor


def example(shape=(8, 12, 4), classes=3, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((batch, classes, *shape), generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(classes, (batch, *shape), generator=generator)


def test_levels_weigh_half_of_the_finer_one():
    finest, label = example()
    coarser = [example((4, 6, 2), seed=1)[0], example((2, 3, 1), seed=2)[0]]
    loss = SegmentationLoss(stride=(4, 4, 4))
    labels = [label, label[:, 1::2, 1::2, 1::2], label[:, 2::4, 2::4, 2::4]]  # of two middles the latter
    parts = [loss(x, y) for x, y in zip([finest, *coarser], labels, strict=True)]
    total = loss((finest, *coarser), label)
    torch.testing.assert_close(total, (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75)
    total.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (finest, *coarser))


def test_the_label_is_padded_as_the_network_pads_the_image():
    """Of 5 x 7 x 4 padded to 8 x 8 x 4, a level of half the size sees the repeated border."""
    finest, label = example((5, 7, 4))
    half, _ = example((4, 4, 2), seed=1)
    loss = SegmentationLoss(stride=(8, 4, 2))
    padded = label[:, [0, 1, 2, 3, 4, 4, 4, 4]][:, :, [0, 1, 2, 3, 4, 5, 6, 6]]
    expected = (loss(finest, label) + loss(half, padded[:, 1::2, 1::2, 1::2]) / 2) / 1.5
    torch.testing.assert_close(loss((finest, half), label), expected)


def test_dice_of_a_case_at_a_time():
    logits, label = example()
    label[0] = 1  # overlaps of one case unlike those of the other
    whole, apart = (SegmentationLoss(cross_entropy=0, dice=1, batch_dice=batch) for batch in (True, False))
    each = torch.stack([whole(logits[i : i + 1], label[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(apart(logits, label), each.mean())
    assert abs(whole(logits, label) - each.mean()) > 1e-4


def test_one_logit_is_what_it_was():
    logits, label = example()
    plain = SegmentationLoss(cross_entropy=1, dice=0)
    torch.testing.assert_close(plain(logits, label), F.cross_entropy(logits, label))
    torch.testing.assert_close(plain((logits,), label), plain(logits, label))


class _Trainer:
    estimated_stepping_batches = 100


def optimizer_of(**settings):
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2, affine=True))
    module = RecipeModule(network, Recipe(name="x", optimizer=OptimizerSettings(**settings)))
    module._trainer = _Trainer()
    module._fabric = None
    return module.configure_optimizers()["optimizer"]


def test_sgd_with_nesterovs_momentum():
    optimizer = optimizer_of(name="sgd", learning_rate=1e-2, weight_decay=3e-5)
    assert isinstance(optimizer, SGD)
    kernels, vectors = optimizer.param_groups
    assert (kernels["momentum"], kernels["nesterov"], kernels["weight_decay"]) == (0.99, True, 3e-5)
    assert vectors["weight_decay"] == 0
    assert [len(group["params"]) for group in (kernels, vectors)] == [1, 3]
    assert optimizer_of(name="sgd", momentum=0.0).param_groups[0]["nesterov"] is False
    assert isinstance(optimizer_of(), AdamW)


@pytest.mark.parametrize("schedule", ["epoch", "step"])
def test_poly_decay(schedule):
    settings = OptimizerSettings(learning_rate=1e-2, decay="poly", schedule=schedule)
    factor = learning_rate_factor(settings, steps=100, epochs=10)
    for step in (0, 5, 37, 99, 100):
        progress = (step // 10) / 10 if schedule == "epoch" else step / 100
        assert factor(step) == pytest.approx((1 - progress) ** 0.9)
