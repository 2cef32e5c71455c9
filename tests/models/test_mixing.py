"""SpatialMix and ChannelMix against a slow form written straight from the specification."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkvseg.models.mixing import ChannelMix, SpatialMix

SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (1, 4, 4, 1), (2, 5, 3, 4), (1, 9, 4, 7)]  # (B, C, H, W)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "mix_" in name:
                parameter.uniform_(generator=generator)
            else:
                parameter.normal_(std=1.5, generator=generator)
    return module.double()


def slow_shift(x: Tensor) -> Tensor:
    """Pixel by pixel: where each channel group looks."""
    shifted = torch.zeros_like(x)
    _, channels, height, width = x.shape
    cuts = [channels // 4, channels // 2, 3 * channels // 4]
    for c in range(channels):
        down, right = [(0, 1), (0, -1), (1, 0), (-1, 0)][sum(c >= cut for cut in cuts)]
        for i in range(height):
            for j in range(width):
                if 0 <= i - down < height and 0 <= j - right < width:
                    shifted[:, c, i, j] = x[:, c, i - down, j - right]
    return shifted


def tokens_of(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return torch.stack([x[:, :, i, j] for i in range(height) for j in range(width)], dim=1).reshape(
        batch, height * width, channels
    )


def slow_spatial_mix(m: SpatialMix, x: Tensor) -> Tensor:
    t, s = tokens_of(x), tokens_of(slow_shift(x))
    k = F.linear(m.mix_k * t + (1 - m.mix_k) * s, m.key.weight)
    v = F.linear(m.mix_v * t + (1 - m.mix_v) * s, m.value.weight)
    r = F.linear(m.mix_r * t + (1 - m.mix_r) * s, m.receptance.weight)
    total = t.shape[1]
    rows = []
    for here in range(total):
        numerator, denominator = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0])
        for there in range(total):
            bias = m.bonus / total if here == there else -(abs(here - there) - 1) * m.decay / total
            weight = (bias + k[:, there]).exp()
            numerator, denominator = numerator + weight * v[:, there], denominator + weight
        rows.append(numerator / denominator)
    y = F.layer_norm(torch.stack(rows, 1), m.norm.normalized_shape, m.norm.weight, m.norm.bias, 1e-5)
    out = F.linear(torch.sigmoid(r) * y, m.output.weight)
    return out.transpose(1, 2).reshape(x.shape)


def slow_channel_mix(m: ChannelMix, x: Tensor) -> Tensor:
    t, s = tokens_of(x), tokens_of(slow_shift(x))
    k = F.linear(m.mix_k * t + (1 - m.mix_k) * s, m.key.weight)
    r = F.linear(m.mix_r * t + (1 - m.mix_r) * s, m.receptance.weight)
    hidden = torch.where(k > 0, k * k, 0)
    normed = F.layer_norm(hidden, m.norm.normalized_shape, m.norm.weight, m.norm.bias, 1e-5)
    return (torch.sigmoid(r) * F.linear(normed, m.value.weight)).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "slow"),
    [(SpatialMix, slow_spatial_mix), (ChannelMix, slow_channel_mix)],
    ids=["spatial", "channel"],
)
def test_values_and_gradients_match_the_definition(kind, slow, shape, channels_last) -> None:
    module = randomise(kind(shape[1]))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    upstream = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mixed, expected = module(x), slow(module, x)
    torch.testing.assert_close(mixed, expected, rtol=1e-8, atol=1e-9)
    inputs = [x, *module.parameters()]
    got = torch.autograd.grad(mixed, inputs, upstream)
    want = torch.autograd.grad(expected, inputs, upstream, materialize_grads=True)  # T = 1: no decay
    for name, a, b in zip(["x", *(n for n, _ in module.named_parameters())], got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


def test_published_initial_values() -> None:
    torch.manual_seed(0)
    module = SpatialMix(64)
    assert not module.decay.any()
    assert not module.bonus.any()
    assert all((p == 0.5).all() for p in (module.mix_k, module.mix_v, module.mix_r))
    for linear in (module.key, module.value, module.receptance, module.output):
        assert linear.bias is None
        assert abs(float(linear.weight.detach().std()) - 0.02) < 1e-3


def test_hidden_rate_of_channel_mix() -> None:
    assert ChannelMix(6).key.weight.shape == (12, 6)
    assert ChannelMix(6, rate=3)(torch.randn(1, 6, 2, 5)).shape == (1, 6, 2, 5)


@pytest.mark.parametrize("kind", [SpatialMix, ChannelMix])
def test_channels_last_maps_stay_channels_last(kind) -> None:
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    assert kind(8)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(2, 12, 3, 4), (1, 33, 9, 7)], ids=str)
@pytest.mark.parametrize("kind", [SpatialMix, ChannelMix])
def test_float32_on_the_gpu_agrees_with_the_cpu(kind, shape) -> None:
    module, x = randomise(kind(shape[1])).float(), torch.randn(shape)
    results = []
    for device in ("cpu", "cuda"):
        module, leaf = module.to(device), x.to(device).requires_grad_()
        mixed = module(leaf)
        gradients = torch.autograd.grad(mixed.square().sum(), [leaf, *module.parameters()])
        results.append([mixed.detach().cpu(), *(g.cpu() for g in gradients)])
    for ours, truth in zip(results[1], results[0], strict=True):
        assert (ours - truth).abs().max() <= 1e-4 * max(float(truth.abs().max()), 1.0)
