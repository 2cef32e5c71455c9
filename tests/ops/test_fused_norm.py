"""layer_norm, also gated or with a residual: forms against definitions, definitions against formulas."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from fused_cases import (
    Operator,
    assert_as_good,
    errors,
    exact,
    on_every_place,
    random,
    run,
    spread,
    with_triton,
)
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops import gated_layer_norm, layer_norm, residual_layer_norm
from rwkvseg.ops.fused.norm import naive_gated_layer_norm, naive_layer_norm, naive_residual_layer_norm

EPS = 1e-5
# one channel, one row, one chunk and several with a tail, several programs, rows that span warps
SHAPES = [(1, 1), (3, 1), (1, 1, 5), (2, 7, 33), (2, 3, 2, 20), (2, 150, 3), (2, 2, 130), (1, 2, 1025)]


def case(shape: tuple[int, ...], operator: Operator | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """y, what stands beside it unless the operator takes y alone, weight, bias; and the upstream gradient."""
    y = random(*shape, seed=1) * 2 + (0 if operator is squared else 3)
    beside = [] if operator in ALONE else [random(*shape, seed=2)]
    vectors = [random(shape[-1], seed=seed) for seed in (3, 4)]
    return [y, *beside, *vectors], [random(*shape, seed=5)]


def factors(y: Tensor) -> Tensor:
    return torch.linspace(0, 1.3, y.shape[0], device=y.device)


def plain(backend: str, *x: Tensor) -> Tensor:
    return layer_norm(*x, EPS, backend=backend)


def squared(backend: str, *x: Tensor) -> Tensor:
    return layer_norm(*x, EPS, squared_relu=True, backend=backend)


def gated(backend: str, *x: Tensor) -> Tensor:
    return gated_layer_norm(*x, EPS, backend=backend)


def residual(backend: str, *x: Tensor) -> Tensor:
    return residual_layer_norm(*x, EPS, backend=backend)


def scaled(backend: str, *x: Tensor) -> Tensor:
    return residual_layer_norm(*x, EPS, scale=factors(x[0]), backend=backend)


def scaled_definition(*x: Tensor) -> Tensor:
    return naive_residual_layer_norm(*x, EPS, scale=factors(x[0]))


ALONE = (plain, squared)
KINDS = {
    "plain": (plain, lambda *x: naive_layer_norm(*x, EPS)),
    "squared": (squared, lambda *x: naive_layer_norm(*x, EPS, squared_relu=True)),
    "gated": (gated, lambda *x: naive_gated_layer_norm(*x, EPS)),
    "residual": (residual, lambda *x: naive_residual_layer_norm(*x, EPS)),
    "scaled": (scaled, scaled_definition),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[Callable[..., Tensor], Operator]:
    """An operator, which takes the backend first, and its definition."""
    return KINDS[request.param]


def test_the_definitions_are_the_formulas() -> None:
    (y, beside, weight, bias), _ = case((2, 7, 33))
    centred = y - y.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * weight + bias
    gate = 1 / (1 + (-beside).exp())
    torch.testing.assert_close(naive_gated_layer_norm(y, beside, weight, bias, EPS), normed * gate)
    torch.testing.assert_close(naive_layer_norm(y, weight, bias, EPS), normed)
    squares = y.clamp(min=0) ** 2
    expected = naive_layer_norm(squares, weight, bias, EPS)
    torch.testing.assert_close(naive_layer_norm(y, weight, bias, EPS, squared_relu=True), expected)
    expected = beside + torch.tensor([0.0, 1.3])[:, None, None] * normed
    torch.testing.assert_close(scaled_definition(y, beside, weight, bias), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_every_place
def test_float32_agrees_with_the_definition(kind, shape: tuple[int, ...], backend: str, device: str) -> None:
    operator, definition = kind
    leaves, gs = case(shape, operator)
    truth = exact(definition, leaves, gs)
    found = errors(run(partial(operator, backend), leaves, gs, device), truth)
    allowed = errors(run(definition, leaves, gs, "cpu"), truth)
    least = 1e-5 if shape[-1] > 1 else 1e-4  # one channel leaves nothing but rounding
    assert all(a <= max(2 * b, least) for a, b in zip(found, allowed, strict=True)), (found, allowed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("both", [True, False], ids=["16-bit weights", "float32 weights"])
@on_every_place
def test_low_precision_is_as_good_as_the_definition(
    kind, dtype: torch.dtype, both: bool, backend: str, device: str
) -> None:
    operator, definition = kind
    (*maps, weight, bias), gs = case((2, 9, 33), operator)
    leaves = [x.to(dtype) for x in maps] + [x.to(dtype) if both else x for x in (weight, bias)]
    gs = [g.to(dtype) for g in gs]
    assert_as_good(partial(operator, backend), definition, leaves, gs, backend=backend, device=device)


@on_every_place
def test_maps_may_differ_in_precision(kind, backend: str, device: str) -> None:
    operator, definition = kind
    (y, *beside, weight, bias), _ = case((2, 3, 6), operator)
    for dtypes in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        leaves = [y.to(dtypes[0]), *(x.to(dtypes[1]) for x in beside), weight, bias]
        wanted = dtypes[0] if operator in (gated, *ALONE) else dtypes[1]
        gs = [random(2, 3, 6, seed=5, dtype=wanted)]
        results = run(partial(operator, backend), leaves, gs, device)
        assert results[0].dtype == wanted
        assert max(errors(results, exact(definition, leaves, gs))) < 2e-2


@on_every_place
def test_strided_inputs_and_gradients(kind, backend: str, device: str) -> None:
    operator, _ = kind
    leaves, gs = case((2, 5, 6), operator)
    expected = run(partial(operator, backend), leaves, gs, device)
    found = run(partial(operator, backend), [spread(x) for x in leaves], [spread(g) for g in gs], device)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    one = torch.ones(()).expand(2, 5, 6)
    ones = run(partial(operator, backend), leaves, [one], device)
    again = run(partial(operator, backend), leaves, [one.contiguous()], device)
    torch.testing.assert_close(ones, again)


@with_triton
def test_large_means_do_not_cancel(kind, backend: str, device: str) -> None:
    operator, definition = kind
    (y, *others), gs = case((2, 3, 40), operator)
    leaves = [y + 1000, *others]
    found = errors(run(partial(operator, backend), leaves, gs, device), exact(definition, leaves, gs))
    allowed = errors(run(definition, leaves, gs, "cpu"), exact(definition, leaves, gs))
    assert all(a <= max(2 * b, 1e-5) for a, b in zip(found, allowed, strict=True)), (found, allowed)


@with_triton
def test_eps_of_zero(backend: str, device: str) -> None:
    leaves, gs = case((2, 5, 6))
    found = run(lambda *x: gated_layer_norm(*x, 0.0, backend=backend), leaves, gs, device)
    truth = exact(lambda *x: naive_gated_layer_norm(*x, 0.0), leaves, gs)
    assert max(errors(found, truth)) < 1e-5


@on_every_place
def test_squares_beyond_16_bits(backend: str, device: str) -> None:
    y = torch.tensor([[300.0, -500.0, 299.0, 3.0]], dtype=torch.float16)  # 300**2 is infinite in float16
    found = layer_norm(y.to(device), *torch.eye(4, device=device)[:2], squared_relu=True, backend=backend)
    if (backend, device) != ("torch", "cpu"):  # there the map stays as it is
        wide = naive_layer_norm(y.float(), *torch.eye(4)[:2], 1e-5, squared_relu=True)
        torch.testing.assert_close(found.cpu(), wide.half())


@with_triton
def test_not_a_number_is_not_rectified(backend: str, device: str) -> None:
    y = torch.tensor([[1.0, torch.nan], [1.0, 2.0]], device=device)
    found = layer_norm(y, *torch.ones(2, 2, device=device), squared_relu=True, backend=backend)
    assert found.isnan().tolist() == [[True, True], [False, False]]


@on_every_place
def test_the_same_bits_twice(kind, backend: str, device: str) -> None:
    operator, _ = kind
    leaves, gs = case((2, 5, 6), operator)
    first, second = (run(partial(operator, backend), leaves, gs, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradcheck(kind) -> None:
    operator, _ = kind
    leaves = [x.double().requires_grad_() for x in case((2, 3, 4), operator)[0]]
    assert torch.autograd.gradcheck(partial(operator, "auto"), leaves)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("y", (6,), r"\(6,\)"),
        ("y", (2, 0, 6), r"\(2, 0, 6\)"),
        ("beside", (2, 4, 6), r"\(2, 4, 6\) and y \(2, 3, 6\)"),
        ("weight", (5,), r"\(5,\).*6 channels"),
        ("bias", (1, 6), r"\(1, 6\).*6 channels"),
    ],
)
def test_shapes_are_checked(kind, name: str, shape: tuple[int, ...], says: str) -> None:
    operator, _ = kind
    if operator in ALONE and name == "beside":
        pytest.skip("there is nothing beside it")
    names = [part for part in ("y", "beside", "weight", "bias") if operator not in ALONE or part != "beside"]
    arguments = dict(zip(names, case((2, 3, 6), operator)[0], strict=True))
    with pytest.raises(ShapeError, match=says):
        operator("auto", *(arguments | {name: torch.zeros(shape)}).values())


@pytest.mark.parametrize(
    ("y", "weight", "bias"),
    [
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.int64, torch.int64, torch.int64),
    ],
)
def test_kinds_are_checked(kind, y: torch.dtype, weight: torch.dtype, bias: torch.dtype) -> None:
    operator, _ = kind
    leaves, _ = case((2, 3, 6), operator)
    dtypes = (*[y] * (len(leaves) - 2), weight, bias)
    with pytest.raises(UsageError, match=str(weight)):
        operator("auto", *(x.to(dtype) for x, dtype in zip(leaves, dtypes, strict=True)))


def test_scales_are_checked() -> None:
    leaves, _ = case((2, 3, 6))
    with pytest.raises(ShapeError, match=r"\(3,\).*2 images"):
        residual_layer_norm(*leaves, scale=torch.ones(3))
    with pytest.raises(UsageError, match="detach"):
        residual_layer_norm(*leaves, scale=torch.ones(2, requires_grad=True))
    with pytest.raises(UsageError, match="meta"):
        residual_layer_norm(*leaves, scale=torch.ones(2, device="meta"))
