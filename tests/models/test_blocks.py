"""Stochastic depth, layer norms over channels, the one that is added to a residual in one pass, and which
convolutions go by our operator.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkvseg.models import blocks
from rwkvseg.models.blocks import ConvNormAct, DropPath, LayerNorm2d, SquaredReLUNorm, add_normed
from rwkvseg.models.blocks3d import LayerNorm3d

NORMS = [(LayerNorm2d, (2, 5, 3, 4)), (LayerNorm3d, (2, 5, 3, 4, 2)), (SquaredReLUNorm, (2, 3, 4, 5))]


@pytest.mark.parametrize(("kind", "shape"), NORMS)
def test_norms_are_torchs_to_the_bit(kind: type[nn.LayerNorm], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm, x = kind(5), torch.randn(shape).requires_grad_()
    assert set(norm.state_dict()) == {"weight", "bias"}
    rows = x.relu().square() if kind is SquaredReLUNorm else x.movedim(1, -1)
    normed = F.layer_norm(rows, (5,), norm.weight, norm.bias, norm.eps)
    expected = normed if kind is SquaredReLUNorm else normed.movedim(-1, 1)
    assert torch.equal(norm(x), expected)
    leaves = [x, *norm.parameters()]
    g = torch.randn(shape)
    pairs = zip(*(torch.autograd.grad(y, leaves, g) for y in (norm(x), expected)), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("kind", "shape"), NORMS)
def test_autocast_widens_no_map(kind: type[nn.LayerNorm], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    norm, x = kind(5).cuda(), torch.randn(shape, device="cuda", dtype=dtype)
    with torch.autocast("cuda", torch.bfloat16):
        normed = norm(x)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed, norm(x.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_add_normed_is_its_parts(training: bool, dtype: torch.dtype) -> None:
    x, branch = torch.randn(2, 7, 5, 3, 4, dtype=dtype).unbind()
    norm = LayerNorm2d(5).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_()
        norm.bias.uniform_()
    drop_path = DropPath(0.4).train(training)
    torch.manual_seed(3)
    added = add_normed(x, branch, norm, drop_path)
    torch.manual_seed(3)
    assert torch.equal(added, x + drop_path(norm(branch)))


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    x = torch.ones(3, 2)
    assert DropPath(0.0).draw(x) is None
    assert DropPath(0.5).eval().draw(x) is None
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        drawn = DropPath(0.5).draw(x.to(dtype))
        assert drawn is not None
        assert (drawn.shape, drawn.dtype) == ((3,), wide)


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "ours"),
    [(5, 1, 4, True), (5, 2, 4, True), (5, 3, 4, False), (4, 2, 4, False), (5, 2, 2, False)],
)
def test_depthwise_convolutions_go_by_the_operator_on_a_gpu(
    kernel: int, stride: int, groups: int, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = ConvNormAct(4, 4, kernel, stride=stride, groups=groups, activation=nn.SiLU).eval()
    x, operator, strides = torch.randn(2, 4, 7, 6), blocks.depthwise_conv2d, []

    def call(x: Tensor, weight: Tensor, *, stride: int) -> Tensor:
        strides.append(stride)
        return operator(x, weight, stride=stride)

    expected = block(x)
    monkeypatch.setattr(blocks, "depthwise_conv2d", call)
    assert torch.equal(block(x), expected)
    assert not strides
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True), raising=False)
    assert torch.equal(block(x), expected)
    assert strides == [stride] * ours
