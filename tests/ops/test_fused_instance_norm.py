"""instance_norm: values and gradients against the definition, and that against torch."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fused_cases import assert_as_good, errors, exact, on_every_place, random, run, spread, with_triton
from torch import Tensor

from rwkvseg.errors import BackendError, ShapeError, UsageError
from rwkvseg.ops import instance_norm
from rwkvseg.ops.fused import operators
from rwkvseg.ops.fused.instance_norm import naive_instance_norm

# (B, C, *spatial): one or two pixels, a row shorter than a block, one longer than the largest
SHAPES = [(1, 2, 3), (2, 1, 2, 1), (2, 5, 3, 4, 5), (1, 2, 21, 20, 20)]


def case(shape: tuple[int, ...], mean: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
    """x, weight and bias, and the upstream gradient."""
    x = random(*shape, seed=1) + mean
    return [x, random(shape[1], seed=2), random(shape[1], seed=3)], [random(*shape, seed=4)]


def operator(backend: str, gelu: bool, *leaves: Tensor) -> Tensor:
    return instance_norm(*leaves, gelu=gelu, backend=backend)


@pytest.mark.parametrize("gelu", [True, False])
def test_the_definition_is_that_of_torch(gelu: bool) -> None:
    (x, weight, bias), _ = case((2, 5, 3, 4, 5))
    expected = F.instance_norm(x, weight=weight, bias=bias)
    torch.testing.assert_close(
        naive_instance_norm(x, weight, bias, gelu=gelu), F.gelu(expected) if gelu else expected
    )


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_every_place
def test_float32_agrees_with_the_definition(
    shape: tuple[int, ...], gelu: bool, backend: str, device: str
) -> None:
    leaves, gs = case(shape)
    found = run(partial(operator, backend, gelu), leaves, gs, device)
    assert max(errors(found, exact(partial(naive_instance_norm, gelu=gelu), leaves, gs))) < 1e-5


@on_every_place
def test_a_large_mean_costs_no_digits(backend: str, device: str) -> None:
    leaves, gs = case((1, 3, 9, 8, 7), mean=1000.0)
    found = run(partial(operator, backend, True), leaves, gs, device)
    assert max(errors(found, exact(partial(naive_instance_norm, gelu=True), leaves, gs))) < 1e-3


@pytest.mark.parametrize("gelu", [True, False])
@on_every_place
def test_of_a_single_pixel_the_bias_is_left(gelu: bool, backend: str, device: str) -> None:
    leaves, gs = case((2, 3, 1, 1, 1))
    out, gx, gw, gb = run(partial(operator, backend, gelu), leaves, gs, device)
    bias = F.gelu(leaves[2]) if gelu else leaves[2]
    torch.testing.assert_close(out, bias.view(1, 3, 1, 1, 1).expand(2, -1, -1, -1, -1))
    rounding = 1e-7 / math.sqrt(1e-5)  # of what is left after the mean, over a deviation of zero
    assert gx.abs().max() <= rounding * gs[0].abs().max()
    assert gw.abs().max() <= rounding * gs[0].abs().max()
    assert gb.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("both", [True, False], ids=["16-bit weights", "float32 weights"])
@with_triton  # the other form is torch's own operator
def test_low_precision_is_as_good_as_the_definition(
    dtype: torch.dtype, both: bool, backend: str, device: str
) -> None:
    (x, *weights), gs = case((2, 4, 5, 6, 7))
    leaves = [x.to(dtype), *(part.to(dtype) if both else part for part in weights)]
    gs = [g.to(dtype) for g in gs]
    definition = partial(naive_instance_norm, gelu=True)
    assert_as_good(partial(operator, backend, True), definition, leaves, gs, backend=backend, device=device)


@on_every_place
def test_layouts_and_the_same_bits_twice(backend: str, device: str) -> None:
    leaves, gs = case((2, 3, 2, 3, 4))
    expected, again = (run(partial(operator, backend, True), leaves, gs, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    channels_last = leaves[0].contiguous(memory_format=torch.channels_last_3d)
    found = run(partial(operator, backend, True), [channels_last, *leaves[1:]], gs, device)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found = run(
        partial(operator, backend, True), [spread(x) for x in leaves], [spread(g) for g in gs], device
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradcheck() -> None:
    leaves, _ = case((2, 3, 2, 1, 3))
    gradients = [x.double().requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(partial(operator, "auto", True), gradients)


@with_triton
def test_opcheck(backend: str, device: str) -> None:
    x, g = (random(2, 3, 2, 4, seed=s, dtype=torch.bfloat16).to(device) for s in (1, 2))
    weight, bias = (random(3, seed=s).to(device) for s in (3, 4))
    stats = random(2, 3, 2, seed=5).to(device)
    torch.library.opcheck(operators.triton_instance_norm_backward, (x, weight, bias, stats, g, True))
    leaves = [part.requires_grad_() for part in (x, weight, bias)]
    torch.library.opcheck(operators.triton_instance_norm, (*leaves, 1e-5, True))


@with_triton
def test_little_is_saved_and_the_rest_is_refused(backend: str, device: str) -> None:
    kept: list[tuple[int, ...]] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    leaves = [x.to(device).requires_grad_() for x in case((2, 3, 2, 4))[0]]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = operator(backend, True, *leaves)
    assert kept == [(2, 3, 2, 4), (3,), (3,), (2, 3, 2)]
    (gradient,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(BackendError, match=r"second derivative.*'torch'"):
        torch.autograd.grad(gradient.sum(), leaves[0])
    with pytest.raises(BackendError, match=r"vmap.*'torch'"):
        torch.vmap(partial(operator, backend, True), (0, None, None))(leaves[0][:, None], *leaves[1:])


@pytest.mark.parametrize(
    ("x", "weight", "says"),
    [((2, 3), 3, r"\(2, 3\)"), ((2, 3, 0), 3, r"\(2, 3, 0\)"), ((2, 3, 4), 2, r"\(2,\).*3 channels")],
)
def test_shapes_are_checked(x: tuple[int, ...], weight: int, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        instance_norm(torch.zeros(x), torch.zeros(weight), torch.zeros(weight))


def test_kinds_are_checked() -> None:
    x, weight = torch.zeros(1, 3, 2), torch.zeros(3)
    with pytest.raises(UsageError, match=r"x torch\.int64 on cpu"):
        instance_norm(x.long(), weight, weight)
    with pytest.raises(UsageError, match="one floating dtype"):
        instance_norm(x, weight.double(), weight.double())
    with pytest.raises(BackendError, match="'torch', 'triton'"):
        instance_norm(x, weight, weight, backend="fast")
