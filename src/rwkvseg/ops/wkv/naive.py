"""Bi-WKV by its definition: read this file to know what the operator is; every test compares against it."""

import torch
from torch import Tensor


def naive_bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bidirectional WKV by its definition: O(T^2) time and memory, in the dtype of its inputs.

    out[t] = sum_i weight[t, i] v[i],  weight[t] = softmax_i(bias[t, i] + k[i])
    bias[t, t] = u,  bias[t, i] = -(|t - i| - 1) w   (Vision-RWKV, arXiv:2403.02308, with w = decay / T)

    Args:
        w: Decay (C,), any sign.
        u: Bonus (C,), any sign.
        k: Keys (B, T, C).
        v: Values (B, T, C).

    Returns:
        (B, T, C)

    Example:
        >>> zero, k = torch.zeros(1), torch.zeros(1, 3, 1)  # no preference: the mean of all values
        >>> naive_bi_wkv(zero, zero, k, torch.tensor([[[1.0], [2.0], [6.0]]])).flatten()
        tensor([3., 3., 3.])
    """
    i = torch.arange(k.shape[1], device=k.device)
    gap = (i[:, None] - i).abs().unsqueeze(-1)  # (T, T, 1)
    bias = torch.where(gap == 0, u, -(gap - 1) * w)  # (T, T, C)
    weight = (bias + k.unsqueeze(1)).softmax(dim=2)  # (B, T, T, C)
    return torch.einsum("btic,bic->btc", weight, v)
