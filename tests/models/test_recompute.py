"""Gradient checkpointing: nothing differs but the memory."""

import copy

import pytest
import torch
from study_cases import without_repeats
from torch import Tensor, nn

from rwkvseg.errors import UsageError
from rwkvseg.models import create_model

SMALL = {"depths": (1, 2, 2, 2), "widths": (6, 10, 12, 14), "stem_width": 5, "drop_path_rate": 0.4}


FEW_BLOCKS = {"depths": (1, 1, 1, 2)}  # still one of every kind; tracing takes long for each


def build(checkpointing: bool, **overrides: object) -> nn.Module:
    torch.manual_seed(0)
    return create_model("rwkv_unet_tiny", gradient_checkpointing=checkpointing, **{**SMALL, **overrides})


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def train_two_steps(network: nn.Module) -> list[Tensor]:
    """Logits, gradients and buffers after two steps, with the same draws of drop path."""
    torch.manual_seed(5)
    found = []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        logits = network(images(3, 3, 37, 53))
        logits.square().mean().backward()
        found += [logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
        optimizer.step()
    return [*found, torch.rand(3), *network.buffers()]


def test_logits_gradients_and_statistics_are_the_same_bits():
    plain, checkpointed = train_two_steps(build(False)), train_two_steps(build(True))
    assert len(plain) == len(checkpointed)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_batch_statistics_are_counted_once():
    network = build(True)
    network(images(2, 3, 32, 32)).sum().backward()
    counted = [b for name, b in network.named_buffers() if name.endswith("num_batches_tracked")]
    assert counted
    assert all(int(b) == 1 for b in counted)


def kept_bytes(network: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers()]}
    kept = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(images(2, 3, 64, 64))
    return sum(kept.values())


def test_less_is_kept_for_the_backward_pass():
    assert kept_bytes(build(True)) < 0.5 * kept_bytes(build(False))


def test_weights_and_predictions_are_exchanged_freely():
    plain, checkpointed = build(False).eval(), build(True).eval()
    plain.load_state_dict(checkpointed.state_dict(), strict=True)
    x = images(1, 3, 20, 30)
    with torch.no_grad():
        assert torch.equal(plain(x), checkpointed(x))


def test_a_copy_runs_its_own_weights():
    network = build(True).eval()
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    x = images(1, 3, 16, 16)
    assert not torch.equal(network(x), other(x))
    assert isinstance(other.encoder.stem, type(build(False).encoder.stem))  # type: ignore[union-attr, arg-type]


def test_under_autocast_gradients_agree():
    gradients = []
    for checkpointing in (False, True):
        network = build(checkpointing)
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = network(images(2, 3, 32, 32)).float().square().mean()
        loss.backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
def test_compiled_gradients_and_statistics_agree():
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = create_model(
            "rwkv_unet_tiny", gradient_checkpointing=True, **{**SMALL, **FEW_BLOCKS, "drop_path_rate": 0.0}
        )
        network = without_repeats(network, stages=(0, 3))
        if compiled:
            network.compile(backend="aot_eager")
        network(images(2, 3, 32, 32)).square().mean().backward()
        found.append([*(p.grad for p in network.parameters()), *network.buffers()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_exported_graph_knows_nothing_of_it():
    exported = torch.export.export(build(True, **FEW_BLOCKS).eval(), (images(1, 3, 32, 32),))
    assert "checkpoint" not in str(exported.graph)


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_what_is_no_truth_value_is_refused(wrong):
    with pytest.raises(UsageError, match="gradient_checkpointing"):
        create_model("rwkv_unet_tiny", gradient_checkpointing=wrong)
