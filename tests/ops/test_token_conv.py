"""causal_conv_silu: values and gradients against the definition, in both directions and every layout."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fused_cases import assert_as_good, errors, exact, on_every_place, random, run, spread, with_triton
from torch import Tensor

from rwkvseg.errors import BackendError, ShapeError, UsageError
from rwkvseg.ops.scan import operators
from rwkvseg.ops.token_conv import causal_conv_silu

# (B, T, E, K): one token, fewer than taps, one more than a tile, more than a span of tiles
SHAPES = [(1, 1, 1, 4), (2, 3, 5, 4), (1, 17, 70, 4), (2, 130, 3, 2), (1, 7, 3, 1)]


@pytest.fixture(autouse=True)
def exact_convolutions() -> object:
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def definition(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool = False) -> Tensor:
    """Token by token and tap by tap."""
    taps = weight.shape[2]
    tokens = []
    for t in range(x.shape[1]):
        z = bias.to(x.dtype)
        for k in range(taps):
            seen = t + (taps - 1 - k) * (1 if reverse else -1)
            if 0 <= seen < x.shape[1]:
                z = z + weight[:, 0, k].to(x.dtype) * x[:, seen]
        tokens.append(F.silu(z.expand(x.shape[0], -1)))
    return torch.stack(tokens, 1)


def case(shape: tuple[int, int, int, int]) -> tuple[list[Tensor], list[Tensor]]:
    batch, tokens, channels, taps = shape
    parameters = [random(channels, 1, taps, seed=2), random(channels, seed=3)]
    return [random(batch, tokens, channels, seed=1), *parameters], [random(batch, tokens, channels, seed=4)]


@pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_every_place
def test_values_and_gradients_match_the_definition(
    shape: tuple[int, int, int, int], reverse: bool, backend: str, device: str
) -> None:
    leaves, gs = case(shape)
    found = run(partial(causal_conv_silu, reverse=reverse, backend=backend), leaves, gs, device)
    assert max(errors(found, exact(partial(definition, reverse=reverse), leaves, gs))) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@with_triton
def test_low_precision_is_as_good_as_the_definition(dtype: torch.dtype, backend: str, device: str) -> None:
    (x, *parameters), gs = case((2, 19, 5, 4))
    leaves, gs = [x.to(dtype), *parameters], [g.to(dtype) for g in gs]
    fused = partial(causal_conv_silu, backend=backend)
    assert_as_good(fused, definition, leaves, gs, backend=backend, device=device)


@with_triton
def test_layouts_and_the_same_bits_twice(backend: str, device: str) -> None:
    leaves, gs = case((2, 18, 5, 4))
    operator = partial(causal_conv_silu, backend=backend)
    expected, again = (run(operator, leaves, gs, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    found = run(operator, [spread(x) for x in leaves], [spread(g) for g in gs], device)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    half = torch.cat([leaves[0], leaves[0]], 2).chunk(2, dim=2)[1]  # as a layer gives it
    found = run(operator, [half, *leaves[1:]], gs, device)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@with_triton
def test_opcheck_and_refusals(backend: str, device: str) -> None:
    leaves, gs = case((2, 5, 3, 4))
    x, weight, bias = (part.to(device) for part in leaves)
    x, g = x.bfloat16(), gs[0].to(device).bfloat16()
    torch.library.opcheck(operators.triton_causal_conv_silu_backward, (x, weight, bias, g, True))
    parts = [part.requires_grad_() for part in (x, weight, bias)]
    torch.library.opcheck(operators.triton_causal_conv_silu, (*parts, False))
    operator = partial(causal_conv_silu, backend=backend)
    (gradient,) = torch.autograd.grad(operator(*parts).square().sum(), parts[0], create_graph=True)
    with pytest.raises(BackendError, match=r"second derivative.*'torch'"):
        torch.autograd.grad(gradient.sum(), parts[0])
    with pytest.raises(BackendError, match=r"vmap.*'torch'"):
        torch.vmap(operator, (0, None, None))(parts[0][:, None], *parts[1:])


@pytest.mark.parametrize(
    ("number", "shape", "says"),
    [
        (0, (2, 3), r"x has shape \(2, 3\)"),
        (0, (2, 0, 3), "at least 1"),
        (1, (3, 2, 4), r"weight has shape \(3, 2, 4\).*3 channels"),
        (2, (4,), r"bias has shape \(4,\)"),
    ],
)
def test_shapes_are_checked(number: int, shape: tuple[int, ...], says: str) -> None:
    leaves, _ = case((2, 5, 3, 4))
    leaves[number] = torch.zeros(shape)
    with pytest.raises(ShapeError, match=says):
        causal_conv_silu(*leaves)


def test_kinds_are_checked() -> None:
    (x, *parameters), _ = case((2, 5, 3, 4))
    with pytest.raises(UsageError, match=r"x torch\.int64 on cpu"):
        causal_conv_silu(x.long(), *parameters)
    with pytest.raises(BackendError, match="'torch', 'triton'"):
        causal_conv_silu(x, *parameters, backend="fast")
