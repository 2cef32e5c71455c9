"""The definition itself, against loops that nobody can misread."""

import math

import pytest
import torch
from torch import Tensor
from wkv_cases import inputs

from rwkvseg.ops import naive_bi_wkv


def loops(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.zeros_like(k)
    batch, num_tokens, channels = k.shape
    for b in range(batch):
        for c in range(channels):
            for t in range(num_tokens):
                num = den = 0.0
                for i in range(num_tokens):
                    bias = u[c] if i == t else -(abs(t - i) - 1) * w[c]
                    weight = math.exp(float(bias + k[b, i, c]))
                    num += weight * float(v[b, i, c])
                    den += weight
                out[b, t, c] = num / den
    return out


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 3), (2, 7, 3)], ids=str)
def test_naive_is_the_formula(shape: tuple[int, int, int]) -> None:
    w, u, k, v, _ = inputs(shape, keys="3").to(torch.float64)
    torch.testing.assert_close(naive_bi_wkv(w, u, k, v), loops(w, u, k, v), rtol=1e-13, atol=1e-13)


def test_naive_computes_in_the_dtype_of_its_inputs() -> None:
    w, u, k, v, _ = inputs((1, 4, 2)).to(torch.bfloat16)
    assert naive_bi_wkv(w, u, k, v).dtype == torch.bfloat16
