"""Scan orders: token by token, there and back."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops.scan_order import SCAN_ORDERS, from_tokens, to_tokens


def numbered(*shape: int) -> Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


@pytest.mark.parametrize("order", SCAN_ORDERS)
def test_the_last_letter_is_the_fastest_axis(order: str) -> None:
    x = numbered(2, 3, 4, 2, 5)
    size = dict(zip("dhw", (3, 4, 2), strict=True))
    tokens = to_tokens(x, [order])
    for t, places in enumerate(product(*(range(size[letter]) for letter in order))):
        at = dict(zip(order, places, strict=True))
        assert torch.equal(tokens[:, t], x[:, at["d"], at["h"], at["w"]])


def test_every_axis_is_slowest_once_and_fastest_once() -> None:
    assert {order[0] for order in SCAN_ORDERS} == {order[-1] for order in SCAN_ORDERS} == set("dhw")


@given(
    shape=st.tuples(*[st.integers(1, top) for top in (2, 4, 4, 4, 3)]),
    orders=st.lists(st.sampled_from(SCAN_ORDERS), min_size=1, max_size=3),
)
@settings(max_examples=40)
def test_there_and_back(shape: tuple[int, ...], orders: list[str]) -> None:
    x = numbered(*shape)
    tokens = to_tokens(x, orders)
    assert tokens.shape == (shape[0], shape[1] * shape[2] * shape[3], len(orders) * shape[4])
    back = from_tokens(tokens, shape[1:4], orders)
    assert len(back) == len(orders)
    assert all(torch.equal(volume, x) for volume in back)


def test_channels_last_maps_are_read_alike() -> None:
    x = numbered(2, 5, 3, 4, 2)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(to_tokens(last.permute(0, 2, 3, 4, 1)), to_tokens(x.permute(0, 2, 3, 4, 1)))


def test_gradcheck() -> None:
    x = numbered(1, 2, 3, 1, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: from_tokens(to_tokens(x).square(), (2, 3, 1))[1], x)


def test_what_is_no_volume_or_order_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(B, D, H, W, C\)"):
        to_tokens(torch.zeros(2, 3, 4, 5))
    with pytest.raises(ShapeError, match=r"\(2, 24, 4\) for 3 orders"):
        from_tokens(torch.zeros(2, 24, 4), (2, 3, 4))
    for orders in ([], ["hdw"]):
        with pytest.raises(UsageError, match="dhw, hwd, wdh"):
            to_tokens(torch.zeros(1, 2, 2, 2, 1), orders)
