"""spatial_shift against one index at a time."""

from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops import shift as shift_module
from rwkvseg.ops import spatial_shift
from rwkvseg.ops.shift import group_size

LOOKS = [(2, -1), (2, 1), (1, -1), (1, 1), (0, -1), (0, 1)]  # axis and side that each group looks at
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 7, 1, 3, 4),
    (1, 12, 4, 1, 2),
    (1, 14, 2, 5, 1),
    (2, 6, 3, 3, 3),
    (1, 5, 2, 2, 2),
]


def one_by_one(x: Tensor, shift: int = 1, pad: str = "zeros", gamma: Fraction = Fraction(1, 6)) -> Tensor:
    out = torch.zeros_like(x)
    batch, channels, *size = x.shape
    group = int(gamma * channels)
    for b, c, *place in product(range(batch), range(channels), *map(range, size)):
        if group == 0 or c >= 6 * group:
            source = place
        else:
            axis, side = LOOKS[c // group]
            source = list(place)
            if size[axis] > shift:
                source[axis] += side * shift
            if pad == "replicate":
                source[axis] = min(max(source[axis], 0), size[axis] - 1)
            elif not 0 <= source[axis] < size[axis]:
                continue
        out[b, c, *place] = x[b, c, *source]
    return out


def numbered(*shape: int) -> Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


@pytest.mark.parametrize("pad", ["zeros", "replicate"])
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_one_index_at_a_time(shape: tuple[int, ...], shift: int, pad: str) -> None:
    x = numbered(*shape)
    assert torch.equal(spatial_shift(x, shift=shift, pad=pad), one_by_one(x, shift, pad))


@given(
    shape=st.tuples(*[st.integers(1, top) for top in (2, 20, 4, 4, 4)]),
    shift=st.integers(0, 2),
    parts=st.integers(6, 9),
    pad=st.sampled_from(["zeros", "replicate"]),
)
@settings(max_examples=25)
def test_any_shape_and_share(shape: tuple[int, ...], shift: int, parts: int, pad: str) -> None:
    x = numbered(*shape)
    shifted = spatial_shift(x, shift=shift, gamma=1 / parts, pad=pad)
    assert torch.equal(shifted, one_by_one(x, shift, pad, Fraction(1, parts)))


def test_groups_are_whole_where_the_channels_divide() -> None:
    for sixth in range(200):
        assert group_size(6 * sixth) == group_size(6 * sixth + 5) == sixth


def test_gradcheck() -> None:
    x = torch.randn(1, 7, 2, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for pad in ("zeros", "replicate"):
        assert torch.autograd.gradcheck(partial(spatial_shift, pad=pad), x.clone().requires_grad_())


def test_layouts() -> None:
    x = numbered(2, 7, 3, 4, 2)
    assert torch.equal(spatial_shift(x.contiguous(memory_format=torch.channels_last_3d)), spatial_shift(x))
    assert spatial_shift(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("pad", ["zeros", "replicate"])
def test_autocast_changes_nothing(pad: str) -> None:
    x = numbered(1, 7, 3, 2, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shifted = spatial_shift(x, pad=pad)
    assert shifted.dtype == x.dtype
    assert torch.equal(shifted, spatial_shift(x, pad=pad))


@pytest.mark.parametrize("pad", ["zeros", "replicate"])
@pytest.mark.parametrize("shift", [1, 2])
def test_the_form_for_export_is_the_same(shift: int, pad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift_module, "is_exporting", lambda: True)
    for shape in SHAPES:
        x = numbered(*shape)
        assert torch.equal(spatial_shift(x, shift=shift, pad=pad), one_by_one(x, shift, pad))


def test_an_exported_graph_takes_axes_that_are_too_short() -> None:
    class Shift(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return spatial_shift(x, shift=2)

    sizes: Any = (dict.fromkeys((0, 2, 3, 4), Dim.DYNAMIC),)
    program = torch.export.export(Shift(), (numbered(2, 7, 5, 4, 3),), dynamic_shapes=sizes).module()
    for shape in [(2, 7, 5, 4, 3), (1, 7, 2, 6, 3), (3, 7, 3, 2, 2)]:
        assert torch.equal(program(numbered(*shape)), one_by_one(numbered(*shape), 2))


@pytest.mark.parametrize("shape", [(2, 6, 3, 3), (6, 3, 3, 3, 3, 3)])
def test_other_numbers_of_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(B, C, D, H, W\)"):
        spatial_shift(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shift": -1}, "shift is -1"),
        ({"shift": True}, "shift is True"),
        ({"gamma": 0.2}, "at most 1/6"),
        ({"gamma": 0}, "above 0"),
        ({"pad": "reflect"}, "'zeros', 'replicate'"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        spatial_shift(torch.zeros(1, 6, 2, 2, 2), **options)
