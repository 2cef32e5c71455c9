"""batch_norm_act on a GPU, with the tiles that users get: the networks' own shapes, recorded, compiled."""

from functools import partial
from typing import Any

import pytest
import torch
from fused_cases import HAS_CUDA
from torch import Tensor, nn

from rwkvseg.ops import batch_norm_act
from rwkvseg.ops.backends import why_not_triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device"),
]
# of RWKV-UNet base and tiny: stem, stages, deepest stage, decoder; at sizes of no use to a tile
SHAPES = [
    (3, 3, 61, 63),
    (4, 96, 64, 64),
    (3, 180, 32, 32),
    (2, 576, 17, 15),
    (24, 960, 14, 14),
    (8, 24, 128, 128),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def laid_out(*shape: int, dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    x = torch.randn(shape, device="cuda").add_(mean).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def step(backend: str, tensors: list[Tensor], g: Tensor, **options: Any) -> list[Tensor]:
    """Result, gradients and running statistics; the first leaf is x, the last may be a residual."""
    x, weight, bias, *residual = leaves = [part.detach().clone().requires_grad_() for part in tensors]
    mean, variance = torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
    number = torch.tensor(0, device=x.device)
    out = batch_norm_act(
        x, weight, bias, mean, variance,
        residual=residual[0] if residual else None, num_batches_tracked=number, backend=backend, **options,
    )  # fmt: skip
    gradients = torch.autograd.grad(out, leaves, g.to(out.dtype))
    return [out.detach(), *gradients, mean, variance, number]


def case(shape: tuple[int, ...], dtype: torch.dtype, residual: bool = True) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    x = laid_out(*shape, dtype=dtype, mean=0.7)
    vectors = [torch.rand(shape[1], device="cuda") + 0.5, torch.randn(shape[1], device="cuda")]
    added = [laid_out(*shape, dtype=dtype)] if residual else []
    return [x, *vectors, *added], laid_out(*shape, dtype=dtype)


def test_it_is_the_default() -> None:
    assert why_not_triton([torch.empty(1, device="cuda")]) is None
    tensors, g = case((2, 5, 3, 4), torch.float32)
    found, wanted = (step(backend, tensors, g, training=True) for backend in ("auto", "triton"))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
def test_it_is_as_good_as_torch_at_the_networks_shapes(
    activation: str, training: bool, dtype: torch.dtype
) -> None:
    options = {"activation": activation, "training": training, "eps": 1e-6}
    for shape in SHAPES:
        for residual in (True, False):
            tensors, g = case(shape, dtype, residual)
            wide = [part.double() for part in tensors]
            z = step("torch", wide[:3], g, training=training, eps=1e-6)[0]
            g = g * (z.abs() > 1e-3)  # on which side of ReLU's corner rounding puts a number is no fault
            truth = step("torch", wide, g, **options)
            plain, found = (step(backend, tensors, g, **options) for backend in ("torch", "triton"))
            for index, (a, b, e) in enumerate(zip(found, plain, truth, strict=True)):
                size = max(float(e.double().abs().max()), 1.0)
                ours, theirs = (float((part.double() - e.double()).abs().max()) / size for part in (a, b))
                assert a.dtype == b.dtype
                assert ours <= max(2 * theirs, 1e-5), (shape, residual, index, ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_twice(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        tensors, g = case(shape, dtype)
        first, second = (step("triton", tensors, g, training=True, activation="silu") for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), shape


def test_a_large_mean_costs_no_digits() -> None:
    x = laid_out(32, 96, 64, 64, dtype=torch.float32, mean=100.0)
    ones = torch.ones(96, device="cuda")
    mean, variance = torch.zeros_like(ones), torch.zeros_like(ones)
    batch_norm_act(x, ones, ones, mean, variance, training=True, momentum=1.0, backend="triton")
    wide = x.double()
    torch.testing.assert_close(mean.double(), wide.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), wide.var((0, 2, 3)), rtol=1e-4, atol=0)


class Two(nn.Module):
    """A convolution between two fused norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(24, 24, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(24) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        call = partial(self.normed, activation="silu")
        return call(self.norms[1], self.conv(call(self.norms[0], x)), residual=x)

    def normed(self, norm: Any, x: Tensor, **options: Any) -> Tensor:
        return batch_norm_act(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
            training=norm.training, num_batches_tracked=norm.num_batches_tracked, **options,
        )  # fmt: skip


def trained(call: Any, network: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output and buffers; gradients."""
    out = call(x)
    gradients = torch.autograd.grad(out.square().sum(), list(network.parameters()))
    return [part.detach().clone() for part in (out, *network.buffers())], [part.clone() for part in gradients]


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # recording has a stream of its own
@pytest.mark.parametrize("how", ["recorded", "compiled"])
def test_recorded_and_compiled_steps_are_the_steps(how: str) -> None:
    torch.manual_seed(0)
    network = Two().cuda().to(memory_format=torch.channels_last)
    twin = Two().cuda().to(memory_format=torch.channels_last)
    x = laid_out(3, 24, 33, 20, dtype=torch.float32)
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        if how == "recorded":
            state = {name: value.clone() for name, value in network.state_dict().items()}
            call = torch.cuda.make_graphed_callables(network, (x,))
            network.load_state_dict(state)
        else:
            call = torch.compile(network, fullgraph=True)
        twin.load_state_dict(network.state_dict())
        for seed in range(3):
            torch.manual_seed(seed)
            batch = x + torch.randn_like(x)
            found, found_gradients = trained(call, network, batch)
            wanted, wanted_gradients = trained(twin, twin, batch)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
            # the bias before a norm has none but rounding, so all are held against the largest
            largest = max(float(gradient.abs().max()) for gradient in wanted_gradients)
            torch.testing.assert_close(found_gradients, wanted_gradients, rtol=0, atol=1e-5 * largest)
    assert [int(norm.num_batches_tracked) for norm in network.norms] == [3, 3]
