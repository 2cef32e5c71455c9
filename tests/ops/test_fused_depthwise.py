"""depthwise_conv3d: torch's convolution in float64 as the truth, kernels at odd sizes, every gradient."""

from functools import partial

import pytest
import torch
from fused_cases import assert_as_good, depthwise_case, on_every_place, random, run, with_triton
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops import depthwise_conv3d
from rwkvseg.ops.backends import why_not_triton
from rwkvseg.ops.fused import operators
from rwkvseg.ops.fused.depthwise import naive_depthwise_conv

CASES = [
    ((1, 1, 1, 1, 1), (1, 1, 1), torch.float32),
    ((2, 2, 3, 4, 5), (3, 3, 3), torch.float32),
    ((2, 1, 9, 8, 9), (1, 3, 1), torch.float32),  # tiles end inside a volume
    ((1, 3, 1, 6, 2), (5, 1, 3), torch.bfloat16),
    ((1, 1, 2, 3, 4), (1, 5, 5), torch.float16),
]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a program of the weights' gradient has several tiles; the interpreter is slow."""
    if why_not_triton([torch.empty(1)]) is None:
        monkeypatch.setattr("rwkvseg.ops.fused.triton_depthwise.PROGRAMS", 2)


def by_hand(x: Tensor, weight: Tensor) -> Tensor:
    """Add up what every tap sees, one voxel at a time."""
    y = torch.zeros_like(x)
    sides, kernel = x.shape[2:], weight.shape[2:]
    for place in torch.cartesian_prod(*map(torch.arange, sides)).tolist():
        for tap in torch.cartesian_prod(*map(torch.arange, kernel)).tolist():
            seen = [p + t - side // 2 for p, t, side in zip(place, tap, kernel, strict=True)]
            if all(0 <= s < side for s, side in zip(seen, sides, strict=True)):
                at, of = (slice(None), slice(None), *place), (slice(None), slice(None), *seen)
                y[at] += weight[:, 0, tap[0], tap[1], tap[2]] * x[of]
    return y


def test_the_definition_is_the_sum_over_taps() -> None:
    x, weight = random(2, 3, 2, 3, 4, seed=1).double(), random(3, 1, 3, 1, 5, seed=2).double()
    torch.testing.assert_close(naive_depthwise_conv(x, weight), by_hand(x, weight))


@pytest.mark.parametrize(("shape", "kernel", "dtype"), CASES, ids=str)
@on_every_place
def test_values_and_gradients(
    shape: tuple[int, ...], kernel: tuple[int, ...], dtype: torch.dtype, backend: str, device: str
) -> None:
    fused, case = partial(depthwise_conv3d, backend=backend), depthwise_case(shape, kernel, dtype)
    assert_as_good(fused, naive_depthwise_conv, *case, backend=backend, device=device)


@with_triton
def test_strided_volumes_and_the_same_bits_twice(backend: str, device: str) -> None:
    x, weight, g = random(2, 2, 2, 3, 4, seed=1), random(2, 1, 1, 3, 3, seed=2), random(2, 2, 2, 3, 4, seed=3)
    apart = x.to(memory_format=torch.channels_last_3d)
    results = [
        run(lambda x, w: depthwise_conv3d(x, w, backend=backend), [part, weight], [g], device)
        for part in (x, apart, x)
    ]
    for again in results[1:]:
        for first, second in zip(results[0], again, strict=True):
            assert torch.equal(first, second)


@with_triton
def test_it_is_an_operator_of_torch(backend: str, device: str) -> None:
    x, g = (random(1, 1, 1, 2, 3, seed=s, dtype=torch.bfloat16).to(device) for s in (1, 2))
    weight = random(1, 1, 1, 1, 3, seed=3).to(device)
    torch.library.opcheck(operators.triton_depthwise_conv_backward, (x, weight, g, 1))
    leaves = x.requires_grad_(), weight.requires_grad_()
    torch.library.opcheck(operators.triton_depthwise_conv, (*leaves, 1))


@on_every_place
def test_autocast_leaves_the_type(backend: str, device: str) -> None:
    x, weight = random(1, 2, 3, 4, 5, seed=1).to(device), random(2, 1, 3, 3, 3, seed=2).to(device)
    plain = depthwise_conv3d(x, weight, backend=backend)
    with torch.autocast(device, torch.bfloat16):
        mixed = depthwise_conv3d(x, weight, backend=backend)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0 if backend == "triton" else 0.1)


def test_refusals() -> None:
    x, weight = torch.zeros(1, 2, 3, 3, 3), torch.zeros(2, 1, 3, 3, 3)
    with pytest.raises(ShapeError, match=r"give volumes \(B, C, D, H, W\)"):
        depthwise_conv3d(x[0], weight)
    with pytest.raises(ShapeError, match=r"give \(2, 1, odd, odd, odd\)"):
        depthwise_conv3d(x, torch.zeros(2, 1, 2, 3, 3))
    with pytest.raises(UsageError):
        depthwise_conv3d(x.long(), weight)
