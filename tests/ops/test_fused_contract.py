"""How the fused operators behave as operators of torch: checks, compilation, autocast, export, refusals."""

from functools import partial
from typing import Any

import pytest
import torch
from fused_cases import on_every_place, on_gpu, random, run, with_triton
from torch import Tensor, nn

from rwkvseg.errors import BackendError
from rwkvseg.ops import gated_layer_norm, layer_norm, residual_layer_norm, shift_and_mix
from rwkvseg.ops.fused import operators

EPS = 1e-5


def shifted(x: Tensor, first: Tensor, second: Tensor, *, backend: str = "auto") -> tuple[Tensor, ...]:
    return shift_and_mix(x, [first, second], backend=backend)


def case(name: str, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, list[Tensor]]:
    """Return an operator and its leaves."""
    if name == "shift":
        return shifted, [random(batch, 5, 2, 3, seed=1, dtype=dtype), *(random(5, seed=s) for s in (2, 3))]
    maps = [random(batch, 3, 5, seed=s, dtype=dtype) for s in (1, 2)]
    if name == "squared":
        return partial(layer_norm, squared_relu=True), [maps[0], *(random(5, seed=s) for s in (3, 4))]
    function = gated_layer_norm if name == "gated" else residual_layer_norm
    return function, [*maps, *(random(5, seed=s) for s in (3, 4))]


on_every_operator = pytest.mark.parametrize("name", ["shift", "squared", "gated", "residual"])


def upstream(function: Any, leaves: list[Tensor]) -> list[Tensor]:
    outs = function(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    return [random(*out.shape, seed=9 + i, dtype=out.dtype) for i, out in enumerate(outs)]


@with_triton
def test_opcheck_of_the_shift(backend: str, device: str) -> None:
    dtype = torch.bfloat16  # unlike the mixes and sums, which the stand-ins for tracing must know
    x = random(1, 2, 3, 5, seed=1, dtype=dtype).to(device)
    mixes = [random(5, seed=s).to(device) for s in (2, 3)]
    gs = [random(1, 2, 3, 5, seed=s, dtype=dtype).to(device) for s in (4, 5)]
    torch.library.opcheck(operators.triton_shift_and_mix_backward, (x, mixes, gs))
    leaves = (x.requires_grad_(), [mix.requires_grad_() for mix in mixes])
    torch.library.opcheck(operators.triton_shift_and_mix, leaves)


@with_triton
def test_opcheck_of_the_norms(backend: str, device: str) -> None:
    y, beside, g = (random(2, 3, 5, seed=s, dtype=torch.bfloat16).to(device) for s in (1, 2, 3))
    weight, bias = (random(5, seed=s).to(device) for s in (4, 5))
    scale = torch.tensor([0.5, 2.0], device=device)
    for squared_relu in (False, True):
        torch.library.opcheck(operators.triton_layer_norm_backward, (y, weight, g, EPS, squared_relu))
    torch.library.opcheck(operators.triton_gated_layer_norm_backward, (y, beside, weight, bias, g, EPS))
    torch.library.opcheck(operators.triton_residual_layer_norm_backward, (y, weight, scale, g, EPS))
    leaves = [x.requires_grad_() for x in (y, beside, weight, bias)]
    for squared_relu in (False, True):
        alone = (leaves[0], *leaves[2:], EPS, squared_relu)
        torch.library.opcheck(operators.triton_layer_norm, alone)
    torch.library.opcheck(operators.triton_gated_layer_norm, (*leaves, EPS))
    torch.library.opcheck(operators.triton_residual_layer_norm, (*leaves, None, EPS))
    torch.library.opcheck(operators.triton_residual_layer_norm, (*leaves, scale, EPS))


@on_every_operator
@on_every_place
def test_compiles_into_one_graph(name: str, backend: str, device: str) -> None:
    def network(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        outs = function(x * 2, *others, backend=backend)
        return tuple(out.tanh() for out in (outs if isinstance(outs, tuple) else (outs,)))

    torch.compiler.reset()  # it counts how often `network` was compiled, whatever `function` is
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3):
        function, leaves = case(name, batch)
        gs = upstream(network if device == "cpu" else partial(function, backend="torch"), leaves)
        found, expected = (run(operator, leaves, gs, device) for operator in (compiled, network))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@on_every_operator
@on_every_place
def test_autocast_changes_no_bit(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    function, leaves = case(name, dtype=dtype)
    gs = upstream(partial(function, backend="torch"), leaves)

    def autocast(*x: Tensor) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return function(*x, backend=backend)

    expected = run(partial(function, backend=backend), leaves, gs, device)
    torch.testing.assert_close(run(autocast, leaves, gs, device), expected, rtol=0, atol=0)


class Everything(nn.Module):
    """The operators one after the other."""

    def forward(self, x: Tensor, share: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, r = shift_and_mix(x, [share, 1 - share])
        gated = gated_layer_norm(layer_norm(y, weight, bias, squared_relu=True), r, weight, bias)
        return residual_layer_norm(gated, y, weight, bias)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_exported_graphs_hold_standard_operators(device: str) -> None:
    arguments = tuple(random(*shape, seed=1).to(device) for shape in ((2, 5, 3, 4), (5,), (5,), (5,)))
    program = torch.export.export(Everything(), arguments)
    assert "rwkvseg" not in str(program.graph)
    torch.testing.assert_close(program.module()(*arguments), Everything()(*arguments))


@on_every_operator
@with_triton
def test_second_derivatives_are_refused(name: str, backend: str, device: str) -> None:
    function, leaves = case(name)
    leaves = [x.to(device).requires_grad_() for x in leaves]
    out = function(*leaves, backend=backend)
    out = out[0] if isinstance(out, tuple) else out
    (gradient,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(BackendError, match=r"second derivative.*'torch'"):
        torch.autograd.grad(gradient.sum(), leaves[0])


@on_every_operator
@with_triton
def test_vmap_is_refused(name: str, backend: str, device: str) -> None:
    function, leaves = case(name)
    leaves = [x.to(device) for x in leaves]
    stacked = [x[:, None] if x.ndim > 1 else x for x in leaves]
    axes = tuple(0 if x.ndim > 1 else None for x in leaves)
    with pytest.raises(BackendError, match=r"vmap.*'torch'"):
        torch.vmap(partial(function, backend=backend), in_dims=axes)(*stacked)


@on_every_operator
def test_the_plain_form_takes_vmap(name: str) -> None:
    function, leaves = case(name)
    stacked = [x[:, None] if x.ndim > 1 else x for x in leaves]
    axes = tuple(0 if x.ndim > 1 else None for x in leaves)
    found = torch.vmap(function, in_dims=axes)(*stacked)
    expected = function(*leaves)
    pairs = zip(found, expected, strict=True) if name == "shift" else [(found, expected)]
    for a, b in pairs:
        torch.testing.assert_close(a.flatten(0, 1), b)


@on_every_operator
@with_triton
def test_only_inputs_are_saved(name: str, backend: str, device: str) -> None:
    kept: list[tuple[int, ...]] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    function, leaves = case(name)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        function(*(x.to(device).requires_grad_() for x in leaves), backend=backend)
    expected = {
        "shift": [(2, 2, 3, 5), (5,), (5,)],
        "squared": [(2, 3, 5), (5,)],
        "gated": [(2, 3, 5), (2, 3, 5), (5,), (5,)],
        "residual": [(2, 3, 5), (5,)],
    }
    assert kept == expected[name]


@on_every_operator
@pytest.mark.parametrize(("backend", "says"), [("fast", "'torch', 'triton'"), ("naive", "unknown")])
def test_an_unknown_backend_is_refused(name: str, backend: str, says: str) -> None:
    function, leaves = case(name)
    with pytest.raises(BackendError, match=says):
        function(*leaves, backend=backend)


@on_every_operator
def test_triton_refuses_float64(name: str) -> None:
    function, leaves = case(name)
    with pytest.raises(BackendError, match="triton"):
        function(*(x.double() for x in leaves), backend="triton")
