"""spatial_shift_and_mix: values and gradients against the definition, and that against the formula."""

from functools import partial
from typing import Any

import pytest
import torch
from fused_cases import assert_as_good, errors, exact, on_every_place, random, run, spread, with_triton
from torch import Tensor

from rwkvseg.errors import BackendError, ShapeError, UsageError
from rwkvseg.ops import spatial_shift, spatial_shift_and_mix
from rwkvseg.ops.fused import operators
from rwkvseg.ops.fused.shift3d import naive_spatial_shift_and_mix

# (B, C, D, H, W): fewer channels than directions, short axes, a rest, cuts of all alignments, several tiles
SHAPES = [(1, 1, 1, 1, 1), (2, 6, 1, 3, 5), (1, 14, 4, 1, 2), (1, 100, 2, 3, 2), (2, 48, 3, 5, 7)]


def case(shape: tuple[int, ...], num_mixes: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """x and the mixes, and the upstream gradient."""
    batch, channels, *size = shape
    mixes = random(num_mixes, channels, seed=10).mul(0.5).add(0.5)
    return [random(*shape, seed=1), mixes], [random(num_mixes, batch, *size, channels, seed=20)]


def operator(backend: str, shift: int, x: Tensor, mixes: Tensor) -> Tensor:
    return spatial_shift_and_mix(x, mixes, shift=shift, backend=backend)


@pytest.mark.parametrize("pad", ["zeros", "replicate"])
def test_the_definition_is_the_formula(pad: str) -> None:
    (x, mixes), _ = case((2, 15, 2, 3, 4), 2)
    mixed = naive_spatial_shift_and_mix(x, mixes, shift=1, gamma=1 / 7, pad=pad)
    shifted = spatial_shift(x, gamma=1 / 7, pad=pad)
    for found, mix in zip(mixed, mixes, strict=True):
        share = mix[:, None, None, None]
        torch.testing.assert_close(found, (share * x + (1 - share) * shifted).permute(0, 2, 3, 4, 1))


@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_every_place
def test_float32_agrees_with_the_definition(
    shape: tuple[int, ...], shift: int, backend: str, device: str
) -> None:
    leaves, gs = case(shape)
    found = run(partial(operator, backend, shift), leaves, gs, device)
    truth = exact(partial(naive_spatial_shift_and_mix, shift=shift), leaves, gs)
    assert max(errors(found, truth)) < 2e-6


@pytest.mark.parametrize(("num_mixes", "gamma"), [(1, 1 / 8), (2, 1 / 9)])
@on_every_place
def test_fewer_mixes_and_smaller_shares(num_mixes: int, gamma: float, backend: str, device: str) -> None:
    leaves, gs = case((1, 18, 3, 2, 4), num_mixes)
    found = run(partial(spatial_shift_and_mix, gamma=gamma, backend=backend), leaves, gs, device)
    truth = exact(partial(naive_spatial_shift_and_mix, gamma=gamma), leaves, gs)
    assert max(errors(found, truth)) < 2e-6


@on_every_place
def test_without_a_shift_it_is_the_map(backend: str, device: str) -> None:
    leaves, gs = case((1, 12, 2, 2, 3), 1)
    mixed, gx, of_mixes = run(partial(operator, backend, 0), leaves, gs, device)
    torch.testing.assert_close(mixed[0], leaves[0].permute(0, 2, 3, 4, 1))
    torch.testing.assert_close(gx, gs[0][0].permute(0, 4, 1, 2, 3))
    assert torch.equal(of_mixes, torch.zeros_like(of_mixes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("both", [True, False], ids=["16-bit mixes", "float32 mixes"])
@on_every_place
def test_low_precision_is_as_good_as_the_definition(
    dtype: torch.dtype, both: bool, backend: str, device: str
) -> None:
    (x, mixes), gs = case((2, 13, 2, 3, 3))
    leaves, gs = [x.to(dtype), mixes.to(dtype) if both else mixes], [g.to(dtype) for g in gs]
    assert_as_good(
        partial(operator, backend, 1), naive_spatial_shift_and_mix, leaves, gs, backend=backend, device=device
    )


@on_every_place
def test_layouts_of_maps_and_gradients(backend: str, device: str) -> None:
    leaves, gs = case((2, 8, 2, 3, 2))
    expected = run(partial(operator, backend, 1), leaves, gs, device)
    channels_last = leaves[0].contiguous(memory_format=torch.channels_last_3d)
    found = run(partial(operator, backend, 1), [channels_last, leaves[1]], gs, device)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    found = run(partial(operator, backend, 1), [spread(x) for x in leaves], [spread(g) for g in gs], device)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@on_every_place
def test_the_same_bits_twice(backend: str, device: str) -> None:
    leaves, gs = case((2, 7, 2, 3, 5))
    first, second = (run(partial(operator, backend, 1), leaves, gs, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradcheck() -> None:
    leaves, _ = case((1, 7, 1, 2, 3), 2)
    for pad in ("zeros", "replicate"):
        mixed = partial(spatial_shift_and_mix, pad=pad)
        assert torch.autograd.gradcheck(mixed, [x.double().requires_grad_() for x in leaves])


@with_triton
def test_opcheck(backend: str, device: str) -> None:
    x = random(1, 1, 2, 3, 7, seed=1, dtype=torch.bfloat16).to(device)
    mixes, g = random(2, 7, seed=2).to(device), random(2, 1, 1, 2, 3, 7, seed=3, dtype=x.dtype).to(device)
    torch.library.opcheck(operators.triton_spatial_shift_and_mix_backward, (x, mixes, g, 1, 1))
    leaves = (x.requires_grad_(), mixes.requires_grad_(), 1, 1)
    torch.library.opcheck(operators.triton_spatial_shift_and_mix, leaves)


@with_triton
def test_compiles_into_one_graph(backend: str, device: str) -> None:
    def network(x: Tensor, mixes: Tensor) -> Tensor:
        return spatial_shift_and_mix(x * 2, mixes, backend=backend).tanh()

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 7, 2, 3, 4), (3, 7, 4, 2, 3)):
        leaves, gs = case(shape)
        found, expected = (run(form, leaves, gs, device) for form in (compiled, network))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@with_triton
def test_only_inputs_are_saved_and_the_rest_is_refused(backend: str, device: str) -> None:
    kept: list[tuple[int, ...]] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    leaves, _ = case((2, 6, 1, 2, 3), 2)
    leaves = [x.to(device).requires_grad_() for x in leaves]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = operator(backend, 1, *leaves)
    assert kept == [(2, 1, 2, 3, 6), (2, 6)]
    (gradient,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(BackendError, match=r"second derivative.*'torch'"):
        torch.autograd.grad(gradient.sum(), leaves[0])
    with pytest.raises(BackendError, match=r"vmap.*'torch'"):
        torch.vmap(partial(operator, backend, 1), (0, None))(leaves[0][:, None], leaves[1])


@pytest.mark.parametrize(
    ("x", "mixes", "says"),
    [
        ((2, 6, 4, 4), (1, 6), r"\(2, 6, 4, 4\)"),
        ((2, 6, 0, 3, 3), (1, 6), r"\(2, 6, 0, 3, 3\)"),
        ((2, 6, 3, 3, 3), (1, 5), r"\(1, 5\).*6 channels"),
        ((2, 6, 3, 3, 3), (6,), r"\(6,\)"),
        ((2, 6, 3, 3, 3), (4, 6), "one to 3"),
        ((2, 6, 3, 3, 3), (0, 6), "one to 3"),
    ],
    ids=str,
)
def test_shapes_are_checked(x: tuple[int, ...], mixes: tuple[int, ...], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        spatial_shift_and_mix(torch.zeros(x), torch.zeros(mixes))


def test_kinds_and_options_are_checked() -> None:
    x, mixes = torch.zeros(1, 6, 2, 2, 2), torch.zeros(1, 6)
    with pytest.raises(UsageError, match=r"x torch\.int64 on cpu"):
        spatial_shift_and_mix(x.long(), mixes)
    wrong: list[tuple[Any, Any, str]] = [
        (UsageError, {"shift": -1}, "shift"),
        (UsageError, {"gamma": 0.2}, "1/6"),
        (BackendError, {"backend": "fast"}, "'torch', 'triton'"),
        (BackendError, {"backend": "triton", "pad": "replicate"}, "replicate"),
    ]
    for error, options, says in wrong:
        with pytest.raises(error, match=says):
            spatial_shift_and_mix(x, mixes, **options)
    with pytest.raises(BackendError, match="triton"):
        spatial_shift_and_mix(x.double(), mixes.double(), backend="triton")
