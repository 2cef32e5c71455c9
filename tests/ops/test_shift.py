"""q_shift against one index at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rwkvseg.errors import ShapeError
from rwkvseg.ops import q_shift


def one_by_one(x: Tensor) -> Tensor:
    """Each pixel looks left, right, up, down: its group moves right, left, down, up."""
    out = torch.zeros_like(x)
    _, channels, height, width = x.shape
    looks = [(0, -1), (0, 1), (-1, 0), (1, 0)]
    ends = [channels // 4, channels // 2, 3 * channels // 4, channels]
    for c in range(channels):
        down, right = looks[next(group for group, end in enumerate(ends) if c < end)]
        for row in range(height):
            for column in range(width):
                y, z = row + down, column + right
                if 0 <= y < height and 0 <= z < width:
                    out[:, c, row, column] = x[:, c, y, z]
    return out


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 2), st.integers(1, 13), st.integers(1, 6), st.integers(1, 6)))
def test_q_shift_moves_each_group_by_one_pixel(shape: tuple[int, ...]) -> None:
    x = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    assert torch.equal(q_shift(x), one_by_one(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_q_shift_keeps_dtype_and_takes_strided_maps(dtype: torch.dtype) -> None:
    x = torch.randn(2, 9, 4, 3).to(dtype).transpose(2, 3)
    assert torch.equal(q_shift(x), one_by_one(x))
    assert torch.equal(q_shift(x.contiguous(memory_format=torch.channels_last)), one_by_one(x))


def test_q_shift_gradcheck() -> None:
    x = torch.randn(1, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(q_shift, (x,))


def test_q_shift_refuses_tokens() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 9, 4\)"):
        q_shift(torch.zeros(2, 9, 4))
