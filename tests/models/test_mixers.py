"""The papers' other token mixers against their definitions, written slowly."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from onnx_files import check_onnx, open_onnx, write_onnx
from rwkvseg.errors import UsageError
from rwkvseg.models.mixers import BiMamba, CausalScan, FocusedLinearAttention, SelfAttention, create_mixer
from rwkvseg.models.mixing import SpatialMix
from rwkvseg.ops import selective_scan
from rwkvseg.ops.selective_scan import naive_selective_scan

SHAPES = [(1, 1, 1, 1), (2, 6, 3, 5), (1, 16, 4, 7), (2, 7, 5, 4)]  # (B, C, H, W)
NAMES = ["attention", "linear_attention", "bi_mamba"]


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module.double()


def tokens_of(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    return torch.stack([x[:, :, i, j] for i in range(height) for j in range(width)], 1)


def slow_attention(m: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = F.linear(tokens_of(x), m.project_in.weight).split(x.shape[1], 2)
    size = x.shape[1] // m.num_heads
    mixed = []
    for head in range(m.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.einsum("btc,bsc->bts", q[..., part], k[..., part]) / size**0.5
        weights = scores.exp() / scores.exp().sum(2, keepdim=True)
        mixed.append(torch.einsum("bts,bsc->btc", weights, v[..., part]))
    return F.linear(torch.cat(mixed, 2), m.output.weight).transpose(1, 2).reshape(x.shape)


def slow_focus(m: FocusedLinearAttention, x: Tensor) -> Tensor:
    x = (torch.where(x > 0, x, 0) + 1e-6) / F.softplus(m.scale)
    cube = x * x * x
    return cube * (x.square().sum(2, keepdim=True) / cube.square().sum(2, keepdim=True)).sqrt()


def slow_linear_attention(m: FocusedLinearAttention, x: Tensor) -> Tensor:
    q, k, v = F.linear(tokens_of(x), m.project_in.weight).split(x.shape[1], 2)
    size = x.shape[1] // m.num_heads
    q, k = slow_focus(m, q), slow_focus(m, k)
    mixed = []
    for head in range(m.num_heads):
        part = slice(head * size, (head + 1) * size)
        similarity = torch.einsum("btc,bsc->bts", q[..., part], k[..., part])  # positive, T x T
        weights = similarity / similarity.sum(2, keepdim=True)
        mixed.append(torch.einsum("bts,bsc->btc", weights, v[..., part]))
    local = F.conv2d(
        v.transpose(1, 2).reshape(x.shape), m.local.weight, m.local.bias, padding=2, groups=x.shape[1]
    )
    out = torch.cat(mixed, 2).transpose(1, 2).reshape(x.shape) + local
    return F.conv2d(out, m.output.weight[:, :, None, None])


def slow_causal_scan(m: CausalScan, x: Tensor) -> Tensor:
    taps = m.conv.weight[:, 0]  # (E, 4), the last one for the token itself
    padded = F.pad(x, (0, 0, taps.shape[1] - 1, 0))
    conv = sum(padded[:, i : i + x.shape[1]] * taps[:, i] for i in range(taps.shape[1])) + m.conv.bias
    u = conv * torch.sigmoid(conv)
    low_rank, b, c = F.linear(u, m.select.weight).split(m.splits, 2)
    step = torch.log1p(F.linear(low_rank, m.step.weight, m.step.bias).exp())
    rate = -m.log_rate.exp().reshape(x.shape[2], -1)
    return naive_selective_scan(u, step, rate, b, c) + m.skip * u


def slow_bi_mamba(m: BiMamba, x: Tensor) -> Tensor:
    values, gate = F.linear(tokens_of(x), m.project_in.weight).split(2 * x.shape[1], 2)
    forth = slow_causal_scan(m.forth, values)
    back = slow_causal_scan(m.back, values.flip(1)).flip(1)
    gate = gate * torch.sigmoid(gate)
    return F.linear(forth * gate + back * gate, m.output.weight).transpose(1, 2).reshape(x.shape)


SLOW = dict(zip(NAMES, [slow_attention, slow_linear_attention, slow_bi_mamba], strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_match_the_definition(name: str, shape: tuple[int, ...]) -> None:
    module = create_mixer(name, shape[1])
    assert module is not None
    randomise(module)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found, expected = module(x), SLOW[name](module, x)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    values = [x, *module.parameters()]
    upstream = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    got, want = (
        torch.autograd.grad(out, values, upstream, materialize_grads=True) for out in (found, expected)
    )
    for key, a, b in zip(["x", *(n for n, _ in module.named_parameters())], got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_the_far_corner_reaches_the_near_one(name: str) -> None:
    module = create_mixer(name, 8)
    assert module is not None
    randomise(module)
    x = torch.randn(1, 8, 6, 9, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[0, :, 0, 0].sum(), x)
    assert gradient[0, :, -1, -1].abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_stays_near_float32(name: str) -> None:
    torch.manual_seed(0)
    module = create_mixer(name, 16)
    assert module is not None
    x = torch.randn(2, 16, 7, 9)
    with torch.no_grad():
        expected = module(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = module(x)
    assert (low.float() - expected).abs().mean() < 0.03 * expected.std()


def test_dark_maps_give_numbers() -> None:
    attention = FocusedLinearAttention(8)
    x = torch.zeros(1, 8, 4, 5, requires_grad=True)
    attention(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("channels", "heads"), [(576, 8), (14, 7), (11, 1), (12, 6), (1, 1)])
def test_heads_divide_the_channels(channels: int, heads: int) -> None:
    assert SelfAttention(channels).num_heads == heads


def test_mamba_starts_as_published() -> None:
    torch.manual_seed(0)
    scan = CausalScan(32, rank=2)
    step = F.softplus(scan.step.bias.detach())
    assert 0.001 <= float(step.min()) < 0.01 < float(step.max()) <= 0.1
    torch.testing.assert_close(scan.log_rate.detach().exp().view(32, 16)[5], torch.arange(1.0, 17))
    assert scan.log_rate.ndim == 1  # weight decay is for matrices


def test_mixers_by_name() -> None:
    assert create_mixer("none", 4) is None
    assert isinstance(create_mixer("spatial_mix", 4), SpatialMix)
    with pytest.raises(UsageError, match=r"'mamba'.*attention, linear_attention, bi_mamba, none"):
        create_mixer("mamba", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_onnx_file_serves_every_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the scan in chunks of its own length has a file in tests/ops; a step of a chunk is a step of the export
    monkeypatch.setattr(selective_scan, "LENGTH", 2)
    module, path = create_mixer(name, 12), tmp_path / "mixer.onnx"
    assert module is not None
    if isinstance(module, BiMamba):
        module.back = torch.nn.Identity()  # the same module as the other direction, and long to export
    randomise(module).float()
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    write_onnx(module, (torch.randn(2, 12, 5, 6),), sizes, path)
    check_onnx(path)
    in_onnxruntime = open_onnx(path)
    for shape in [(2, 12, 5, 6), (1, 12, 1, 3), (3, 12, 14, 9), (1, 12, 32, 48)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = module(x)
        torch.testing.assert_close(in_onnxruntime(x), expected, rtol=0, atol=1e-4 * float(expected.std()))
