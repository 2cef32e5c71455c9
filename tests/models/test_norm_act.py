"""Norm and activation of ConvNormAct as one operator: when it is taken, and that nothing else differs."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rwkvseg.models import blocks, create_model
from rwkvseg.models.blocks import ConvNormAct, norm_act
from rwkvseg.models.rwkv_unet import PerceptionBlock
from rwkvseg.ops.backends import launches_are_recorded, launches_recorded, triton_is_installed
from rwkvseg.training.cuda_graphs import graphed

Calls = list[dict[str, Any]]
SMALL = {"widths": (8, 16, 16, 16), "depths": (1, 2, 2, 1), "expansions": (2.0, 2.0, 2.0, 2.0)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The operator's calls, as if launches were recorded and every tensor taken for one on a GPU."""
    seen: Calls = []
    operator = blocks.batch_norm_act

    def call(*tensors: Tensor, **options: Any) -> Tensor:
        seen.append(options)
        return operator(*tensors, **options)

    monkeypatch.setattr(blocks, "launches_are_recorded", lambda: True)
    monkeypatch.setattr(blocks, "batch_norm_act", call)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True), raising=False)
    return seen


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(network: nn.Module, call: Callable[[], Tensor]) -> list[Tensor]:
    """Results of two calls, gradients of the second, buffers."""
    first, second = call(), call()
    gradients = torch.autograd.grad(second.square().sum(), list(network.parameters()))
    return [first.detach(), second.detach(), *gradients, *network.buffers()]


def test_it_is_for_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(blocks, "batch_norm_act")
    with launches_recorded():
        assert ConvNormAct(3, 5, activation=nn.ReLU)(images(2, 3, 4, 4)).shape == (2, 5, 4, 4)


def test_it_is_for_recorded_launches_only(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "launches_are_recorded", launches_are_recorded)
    block, x = ConvNormAct(3, 5, activation=nn.ReLU), images(2, 3, 4, 4)
    block(x)
    assert not calls

    def record(call: Any, example: tuple[Tensor, ...], **_: Any) -> None:
        call(*example)

    monkeypatch.setenv("RWKVSEG_COMPILE_AHEAD", "0")  # these images only say that they are on a GPU
    monkeypatch.setattr("torch.cuda.make_graphed_callables", record)
    for name in ("graph_pool_handle", "current_stream"):  # of a GPU
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    assert graphed(block, (x,)) is not None
    assert len(calls) == 1
    block(x)
    assert len(calls) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Identity])
def test_it_is_its_parts(
    activation: type[nn.Module], residual: bool, training: bool, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = nn.BatchNorm2d(5, eps=1e-3, momentum=0.3).train(training)
    nn.init.uniform_(norm.weight)
    twin = copy.deepcopy(norm)
    x, added = images(2, 5, 3, 4), images(2, 5, 3, 4, seed=2) if residual else None
    found = trained(norm, lambda: norm_act(x, norm, activation(), added))
    assert len(calls) == 2
    monkeypatch.setattr(blocks, "launches_are_recorded", lambda: False)
    expected = trained(twin, lambda: norm_act(x, twin, activation(), added))
    assert len(calls) == 2, "the switch does nothing"
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def watched() -> nn.Module:
    norm = nn.BatchNorm2d(5)
    norm.register_forward_hook(lambda *_: None)
    return norm


@pytest.mark.parametrize(
    ("norm", "activation"),
    [
        (nn.BatchNorm2d(5, momentum=None), nn.ReLU()),
        (nn.BatchNorm2d(5, affine=False), nn.ReLU()),
        (nn.BatchNorm2d(5, track_running_stats=False), nn.ReLU()),
        (nn.InstanceNorm2d(5), nn.ReLU()),
        (nn.BatchNorm2d(5), nn.GELU()),
        (watched(), nn.ReLU()),
    ],
    ids=["cumulative", "no weights", "no statistics", "another norm", "another activation", "a hook"],
)
def test_what_the_operator_does_not_know_runs_as_modules(
    norm: nn.Module, activation: nn.Module, calls: Calls
) -> None:
    x = images(2, 5, 3, 4)
    found = norm_act(x, copy.deepcopy(norm), activation, x)
    assert torch.equal(found, x + activation(norm(x)))
    assert not calls


def test_a_residual_of_another_type_widens_the_result(calls: Calls) -> None:
    x = images(2, 5, 3, 4)
    norm = nn.BatchNorm2d(5)
    assert norm_act(x.bfloat16(), norm, nn.SiLU(), x).dtype == torch.float32
    assert norm_act(x.bfloat16(), norm, nn.SiLU(), x.bfloat16()).dtype == torch.bfloat16
    assert len(calls) == 1


@pytest.mark.parametrize("squeeze", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_blocks_are_the_same(
    residual: bool, squeeze: bool, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = PerceptionBlock(4, 4, 6, norm=nn.BatchNorm2d(4), residual=residual, squeeze=squeeze)
    twin, x = copy.deepcopy(block), images(2, 4, 5, 7)
    found = trained(block, lambda: block(x))
    added = [options["residual"] is not None for options in calls]
    assert added == [False, residual and not squeeze] * 2
    monkeypatch.setattr(blocks, "launches_are_recorded", lambda: False)
    assert all(torch.equal(a, b) for a, b in zip(found, trained(twin, lambda: twin(x)), strict=True))
    inner = twin.expand(twin.norm(x))
    local = twin.squeeze_excite(twin.local(inner))
    projected = twin.project(inner + local if residual else local)
    assert torch.equal(twin.train()(x), x + projected if residual else projected)


def test_norms_for_several_gpus_are_found_and_left_alone(calls: Calls) -> None:
    network = create_model("rwkv_unet_tiny", in_channels=3, num_classes=2, **SMALL)
    x = images(1, 3, 32, 32)
    network.eval()(x)
    assert calls
    assert not any(options["training"] for options in calls)
    calls.clear()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    converted(x)
    assert not calls


def test_frozen_parts_keep_their_statistics(calls: Calls) -> None:
    block = ConvNormAct(3, 5, activation=nn.ReLU).train()
    block.norm.eval()
    before = [buffer.clone() for buffer in block.buffers()]
    block(images(2, 3, 4, 4))
    assert [options["training"] for options in calls] == [False]
    assert all(torch.equal(a, b) for a, b in zip(before, block.buffers(), strict=True))


def step_on_a_gpu(network: nn.Module, autocast: torch.dtype | None, recorded: bool) -> tuple[Tensor, ...]:
    """Logits, gradient of all weights as one vector, running statistics as one vector."""
    twin = copy.deepcopy(network)
    x = images(4, 3, 96, 80).cuda().contiguous(memory_format=torch.channels_last)
    call: Any = graphed(twin, (x,), autocast=autocast) if recorded else twin
    with torch.autocast("cuda", autocast, autocast is not None):
        logits = call(x).float()
    gradients = torch.autograd.grad(logits.square().mean(), list(twin.parameters()), allow_unused=True)
    parts = [part.flatten() for part in gradients if part is not None]
    return logits.detach(), torch.cat(parts), torch.cat([part.float().flatten() for part in twin.buffers()])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_networks_step_is_the_same_on_a_gpu() -> None:
    torch.manual_seed(0)
    network = create_model("rwkv_unet_tiny", in_channels=3, num_classes=2, drop_path_rate=0.0)
    network = network.cuda().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        truth, plain = (step_on_a_gpu(network, dtype, False) for dtype in (None, torch.bfloat16))
        found, mixed = (step_on_a_gpu(network, dtype, True) for dtype in (None, torch.bfloat16))
    assert not torch.equal(plain[0], mixed[0]), "recording changes nothing"
    for wanted, exact, theirs, ours in zip(truth, found, plain, mixed, strict=True):
        assert (exact - wanted).norm() <= 1e-3 * wanted.norm()
        # 16 bits are far from float32 in a network not yet trained, so the measure is what they cost anyway
        assert (ours - wanted).norm() <= 1.5 * (theirs - wanted).norm() + 1e-3 * wanted.norm()


@pytest.mark.skipif(not triton_is_installed(), reason="the package triton is not installed")
@pytest.mark.parametrize("fused", [True, False])
def test_it_is_one_operator_of_a_compiled_graph(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "launches_are_recorded", lambda: fused)
    monkeypatch.setattr("rwkvseg.ops.backends.why_not_triton", lambda *_: None)
    seen: list[str] = []

    def keep(graph: Any, example_inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    device = "cuda" if fused else "cpu"  # torch's own norm asks a GPU, even a pretended one
    with FakeTensorMode():
        x = torch.empty(2, 6, 7, 5, device=device).permute(0, 3, 1, 2)
        norm, activation = nn.BatchNorm2d(5, device=device).requires_grad_(False), nn.SiLU()
        torch.compile(norm_act, fullgraph=True, backend=keep)(x, norm, activation, x)
    assert any("rwkvseg" in target for target in seen) == fused, seen
