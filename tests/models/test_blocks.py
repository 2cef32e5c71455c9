"""Stochastic depth, and the norm that is added to a residual in one pass."""

import pytest
import torch

from rwkvseg.models.blocks import DropPath, LayerNorm2d, add_normed


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
