"""The selective scan in chunks against its definition: values, every gradient, lengths, ranges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.export import Dim

from onnx_files import check_onnx, open_onnx, write_onnx
from rwkvseg.ops import selective_scan as module
from rwkvseg.ops.selective_scan import LENGTH, naive_selective_scan, selective_scan


def inputs(batch: int, tokens: int, channels: int, states: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    step = torch.nn.functional.softplus(normal(batch, tokens, channels))
    shares = [normal(batch, tokens, states) for _ in range(2)]
    return [normal(batch, tokens, channels), step, -normal(channels, states).exp(), *shares]


def assert_same_with_gradients(values: list[Tensor]) -> None:
    values = [value.detach().requires_grad_() for value in values]
    found, expected = selective_scan(*values), naive_selective_scan(*values)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    upstream = torch.randn_like(expected)
    got, want = (
        torch.autograd.grad(out, values, upstream, materialize_grads=True) for out in (found, expected)
    )
    for name, a, b in zip(("x", "step", "rate", "b", "c"), got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("tokens", [1, 2, LENGTH - 1, LENGTH, LENGTH + 1, 63, LENGTH**2 + 5, LENGTH**3 + 1])
def test_values_and_gradients_match_the_definition(tokens: int) -> None:
    assert_same_with_gradients(inputs(2, tokens, 3, 5))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_any_shape_matches_the_definition(
    batch: int, tokens: int, channels: int, states: int, seed: int
) -> None:
    assert_same_with_gradients(inputs(batch, tokens, channels, states, seed))


@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e6])
def test_steps_of_any_size_stay_finite_in_float32(scale: float) -> None:
    x, step, rate, b, c = inputs(1, 3 * LENGTH + 1, 3, 4)
    values = [value.float().requires_grad_() for value in (x, step * scale, rate, b, c)]
    found = selective_scan(*values)
    expected = naive_selective_scan(*[value.detach().double() for value in values])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    found.sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in values)


def test_low_precision_is_computed_in_float32() -> None:
    values = inputs(2, 45, 4, 3)
    low = [value.bfloat16() for value in values]
    found = selective_scan(*low)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, selective_scan(*[value.float() for value in low]).bfloat16())


def test_a_token_sees_no_later_one() -> None:
    x, *rest = inputs(1, 40, 2, 3)
    changed = x.clone()
    changed[:, 23:] += 1
    first, second = selective_scan(x, *rest), selective_scan(changed, *rest)
    assert torch.equal(first[:, :23], second[:, :23])
    assert not torch.equal(first[:, 23], second[:, 23])


class Scan(torch.nn.Module):
    def forward(self, x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return selective_scan(x, step, rate, b, c)


@pytest.mark.slow
def test_one_onnx_file_serves_every_length(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    length_of_chunk = 2  # each step of a chunk is some of the export's
    monkeypatch.setattr(module, "LENGTH", length_of_chunk)
    path, tokens = tmp_path / "scan.onnx", {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    example = tuple(value.float() for value in inputs(2, 40, 3, 4))
    write_onnx(Scan(), example, (tokens, tokens, None, tokens, tokens), path)
    check_onnx(path)
    in_onnxruntime = open_onnx(path)
    for batch, length in ((2, 40), (1, 1), (3, length_of_chunk), (1, 300), (1, 40 * length_of_chunk**3 + 7)):
        values = [value.float() for value in inputs(batch, length, 3, 4)]
        torch.testing.assert_close(in_onnxruntime(*values), selective_scan(*values), rtol=1e-4, atol=1e-4)
