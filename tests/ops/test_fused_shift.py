"""shift_and_mix: values and gradients of its forms against the definition, and that against the formula."""

from functools import partial

import pytest
import torch
from fused_cases import assert_as_good, errors, exact, on_every_place, random, run, spread, with_triton
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops import q_shift, shift_and_mix
from rwkvseg.ops.fused.shift import naive_shift_and_mix

# (B, C, H, W): fewer channels than groups, one row, one column, cuts of all alignments, several tiles
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (1, 6, 4, 1), (2, 9, 3, 4), (1, 32, 3, 2), (2, 70, 9, 8)]


def case(shape: tuple[int, ...], num_mixes: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """x and the mixes, and upstream gradients."""
    batch, channels, height, width = shape
    mixes = [random(channels, seed=10 + m).mul(0.5).add(0.5) for m in range(num_mixes)]
    gs = [random(batch, height, width, channels, seed=20 + m) for m in range(num_mixes)]
    return [random(*shape, seed=1), *mixes], gs


def operator(backend: str, x: Tensor, *mixes: Tensor) -> tuple[Tensor, ...]:
    return shift_and_mix(x, mixes, backend=backend)


def definition(x: Tensor, *mixes: Tensor) -> tuple[Tensor, ...]:
    return naive_shift_and_mix(x, mixes)


def test_the_definition_is_the_formula() -> None:
    (x, mix), _ = case((2, 9, 3, 4), 1)
    (mixed,) = naive_shift_and_mix(x, [mix])
    share = mix[:, None, None]
    expected = share * x + (1 - share) * q_shift(x)
    torch.testing.assert_close(mixed, expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_every_place
def test_float32_agrees_with_the_definition(shape: tuple[int, ...], backend: str, device: str) -> None:
    leaves, gs = case(shape)
    found = run(partial(operator, backend), leaves, gs, device)
    assert max(errors(found, exact(definition, leaves, gs))) < 2e-6


@pytest.mark.parametrize("num_mixes", [1, 2])
@on_every_place
def test_fewer_mixes(num_mixes: int, backend: str, device: str) -> None:
    leaves, gs = case((2, 7, 3, 5), num_mixes)
    found = run(partial(operator, backend), leaves, gs, device)
    assert len(found) == 2 * num_mixes + 1
    assert max(errors(found, exact(definition, leaves, gs))) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("both", [True, False], ids=["16-bit mixes", "float32 mixes"])
@on_every_place
def test_low_precision_is_as_good_as_the_definition(
    dtype: torch.dtype, both: bool, backend: str, device: str
) -> None:
    (x, *mixes), gs = case((2, 12, 5, 3))
    leaves = [x.to(dtype), *(mix.to(dtype) if both else mix for mix in mixes)]
    gs = [g.to(dtype) for g in gs]
    assert_as_good(partial(operator, backend), definition, leaves, gs, backend=backend, device=device)


@on_every_place
def test_layouts_of_maps_and_gradients(backend: str, device: str) -> None:
    leaves, gs = case((2, 8, 3, 5))
    expected = run(partial(operator, backend), leaves, gs, device)
    channels_last = leaves[0].contiguous(memory_format=torch.channels_last)
    found = run(partial(operator, backend), [channels_last, *leaves[1:]], gs, device)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    found = run(partial(operator, backend), [spread(x) for x in leaves], [spread(g) for g in gs], device)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@with_triton
def test_maps_come_out_contiguous(backend: str, device: str) -> None:
    (x, *mixes), _ = case((2, 8, 3, 5))
    for layout in (torch.channels_last, torch.contiguous_format):
        mixed = operator(backend, x.to(device, memory_format=layout), *(mix.to(device) for mix in mixes))
        assert all(m.is_contiguous() for m in mixed)


@with_triton
def test_an_unused_result_has_no_gradient(backend: str, device: str) -> None:
    leaves, gs = case((1, 5, 2, 3))
    found = run(lambda *x: operator(backend, *x)[1], leaves, gs[1:2], device)
    truth = exact(lambda *x: definition(*x)[1] + 0 * (x[1] + x[3]), leaves, gs[1:2])
    assert max(errors(found, truth)) < 2e-6


@on_every_place
def test_the_same_bits_twice(backend: str, device: str) -> None:
    leaves, gs = case((2, 6, 3, 5))
    first, second = (run(partial(operator, backend), leaves, gs, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("num_mixes", [1, 3])
def test_gradcheck(num_mixes: int) -> None:
    leaves, _ = case((1, 5, 2, 3), num_mixes)
    assert torch.autograd.gradcheck(partial(operator, "auto"), [x.double().requires_grad_() for x in leaves])


@pytest.mark.parametrize(
    ("x", "mixes", "says"),
    [
        ((2, 9, 4), [(4,)], r"\(2, 9, 4\)"),
        ((2, 4, 0, 3), [(4,)], r"\(2, 4, 0, 3\)"),
        ((2, 4, 3, 3), [(4,), (3,)], r"\(3,\).*4 channels"),
        ((2, 4, 3, 3), [], "got 0 mixes"),
        ((2, 4, 3, 3), [(4,)] * 4, "got 4 mixes"),
    ],
)
def test_shapes_are_checked(x: tuple[int, ...], mixes: list[tuple[int, ...]], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        shift_and_mix(torch.zeros(x), [torch.zeros(mix) for mix in mixes])


def test_kinds_are_checked() -> None:
    x, mix = torch.zeros(1, 4, 2, 2), torch.zeros(4)
    with pytest.raises(UsageError, match=r"x torch\.int64 on cpu"):
        shift_and_mix(x.long(), [mix])
    with pytest.raises(UsageError, match=r"mix_1 torch\.float32 on meta"):
        shift_and_mix(x, [mix, mix.to("meta")])
