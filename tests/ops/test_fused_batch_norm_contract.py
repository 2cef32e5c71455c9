"""How batch_norm_act behaves as an operator of torch: compilation, autocast, export, which form runs."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from batch_norm_cases import EPS, case, fused, kept, shrink_tiles
from fused_cases import on_every_place, run, with_triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rwkvseg.errors import BackendError
from rwkvseg.ops import batch_norm_act
from rwkvseg.ops.backends import triton_is_installed
from rwkvseg.ops.fused import batch_norm_operators as operators


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_tiles(monkeypatch)


@pytest.mark.parametrize("training", [True, False])
@with_triton
def test_opcheck(training: bool, backend: str, device: str) -> None:
    leaves, gs = case((2, 3, 2, 4), torch.bfloat16)
    x, weight, bias, residual = (part.to(device) for part in leaves)
    mean, variance = (part.to(device) for part in kept(3))
    number = torch.tensor(0, device=device)
    for counted in (number, None):
        torch.library.opcheck(operators.triton_batch_statistics, (x, mean, variance, counted, 0.1))
    fixed = (x, weight, bias, mean, variance)
    torch.library.opcheck(
        operators.triton_batch_norm_act_backward, (*fixed, gs[0].to(device), EPS, "silu", training)
    )
    x, weight, bias, residual = (part.requires_grad_() for part in (x, weight, bias, residual))
    for added in (residual, None):
        arguments = (x, weight, bias, mean, variance, added, EPS, "relu", training)
        torch.library.opcheck(operators.triton_batch_norm_act, arguments)


@pytest.mark.parametrize("training", [True, False])
@on_every_place
def test_compiles_into_one_graph(training: bool, backend: str, device: str) -> None:
    def network(*leaves: Tensor) -> Tensor:
        x, *others = leaves
        return fused(backend, activation="silu", training=training)(x * 2, *others).tanh()

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3):
        leaves, gs = case((batch, 5, 3, 4))
        found, expected = (run(function, leaves, gs, device) for function in (compiled, network))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@with_triton
def test_a_compiled_step_changes_the_statistics(backend: str, device: str) -> None:
    (x, weight, bias, _), _ = case((2, 5, 3, 4))
    results = []
    for wrap in (lambda f: f, partial(torch.compile, fullgraph=True, backend="aot_eager")):
        statistics = [part.to(device, copy=True) for part in kept(5)]
        number = torch.tensor(0, device=device)

        def step(x: Tensor, statistics: list[Tensor] = statistics, number: Tensor = number) -> Tensor:
            return batch_norm_act(
                x, weight.to(device), bias.to(device), *statistics,
                training=True, num_batches_tracked=number, backend=backend,
            )  # fmt: skip

        out = wrap(step)(x.to(device))
        results.append([out, *statistics, number])
    assert not torch.equal(results[1][1].cpu(), kept(5)[0])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@on_every_place
def test_autocast_changes_no_bit_and_the_type_is_that_of_x(backend: str, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        leaves, gs = case((2, 5, 3, 4), dtype)

        def autocast(*x: Tensor) -> Tensor:
            with torch.autocast(device, dtype=torch.bfloat16):
                return fused(backend, activation="silu")(*x)

        found = run(autocast, leaves, gs, device)
        assert found[0].dtype == dtype
        expected = run(fused(backend, activation="silu"), leaves, gs, device)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@with_triton
def test_little_is_saved_and_the_rest_is_refused(backend: str, device: str) -> None:
    shapes: list[tuple[int, ...]] = []

    def pack(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x

    leaves = [x.to(device).requires_grad_() for x in case((2, 3, 2, 4))[0]]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = fused(backend, activation="silu")(*leaves)
    assert shapes == [(2, 3, 2, 4), (3,), (3,), (3,), (3,)]
    (gradient,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(BackendError, match=r"second derivative.*'torch'"):
        torch.autograd.grad(gradient.sum(), leaves[0])
    for training in (True, False):
        function = fused(backend, training=training)
        with pytest.raises(BackendError, match=r"vmap.*'torch'"):
            torch.vmap(function, (0, None, None))(leaves[0].detach()[:, None], *leaves[1:3])


def test_the_plain_form_takes_vmap() -> None:
    x, weight, bias, residual = case((2, 3, 2, 4))[0]
    function = fused("auto", activation="silu", training=False)
    found = torch.vmap(function, (0, None, None, 0))(x[:, None], weight, bias, residual[:, None])
    torch.testing.assert_close(found[:, 0], function(x, weight, bias, residual))


def test_exported_graphs_hold_standard_operators() -> None:
    class Block(torch.nn.Module):
        def forward(self, *leaves: Tensor) -> Tensor:
            return fused("auto", activation="silu", training=False)(*leaves)

    leaves = tuple(case((2, 5, 3, 4))[0])
    program = torch.export.export(Block(), leaves)
    assert "rwkvseg" not in str(program.graph)
    torch.testing.assert_close(program.module()(*leaves), Block()(*leaves))


@pytest.mark.skipif(not triton_is_installed(), reason="the package triton is not installed")
@pytest.mark.parametrize("change", ["nothing", "layout", "residual", "float64", "weight", "statistics"])
def test_what_runs_on_a_gpu(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    module = "rwkvseg.ops.fused.batch_norm"
    monkeypatch.setattr(f"{module}.naive_batch_norm_act", lambda *_, **__: seen.append("torch"))
    monkeypatch.setattr(f"{module}.triton_batch_norm_act", lambda *_: seen.append("triton"))
    monkeypatch.setattr(f"{module}.triton_batch_statistics", lambda *_: (None, None))
    monkeypatch.setattr("rwkvseg.ops.backends._C_COMPILER", "cc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=9))
    with FakeTensorMode():
        dtype = torch.float64 if change == "float64" else torch.float32
        maps = [torch.empty(2, 8, 8, 8, device="cuda", dtype=dtype) for _ in range(2)]
        x = maps[0] if change == "layout" else maps[0].permute(0, 3, 1, 2)
        residual = maps[1] if change == "residual" else maps[1].permute(0, 3, 1, 2)
        vectors: list[Any] = [torch.empty(8, device="cuda", dtype=dtype) for _ in range(4)]
        if change == "weight":
            vectors[0] = None
        if change == "statistics":
            vectors[2:] = None, None
        batch_norm_act(x, *vectors, training=True, residual=residual)
    assert seen == ["triton" if change == "nothing" else "torch"]
