"""Bi-WKV in linear time with a reference that follows the largest term: slow, for inputs of any size.

Every state is a sum held as exp(scale) value with |value| moderate, so no term overflows and the largest
never vanishes. The recurrences are those of fixed_reference.py; the backward pass scans with
-log(denominator) for keys.

Legend: keys and scales (B, n, L, C), pairs (2, B, n, L, C) of B images, n chunks of L tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvseg.ops.wkv.chunks import chunk_length

State = tuple[Tensor, Tensor]  # scale (..., C) and value (2, ..., C): the pair exp(scale) value


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Write bi_wkv of k, v (B, T, C) into out. w, u (C,) have the dtype to compute in; k, v, out any."""
    k, v = k.to(w.dtype), v.to(w.dtype)
    pairs = torch.stack([v, torch.ones_like(v)])
    (num, den), _ = _total(u + k, pairs, _both_ways(w, k, pairs))
    torch.div(num, den, out=out)


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, g: Tensor, *, gk: Tensor, gv: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradients of k and v from g, that of the output; return those of w and u, (C,)."""
    k, v, g = k.to(w.dtype), v.to(w.dtype), g.to(w.dtype)
    pairs = torch.stack([v, torch.ones_like(v)])
    before = _both_ways(w, k, pairs)
    (num, den), scale = _total(u + k, pairs, before)
    log_den = scale + den.log()
    adjoint = torch.stack([g, g * (num / den)])
    after = _both_ways(w, -log_den, adjoint)

    own = _weight(u + k - log_den) * adjoint  # weight of the token itself, times (g, g out)
    r = own + sum(_weight(k + scale) * value for scale, value in after)
    gk.copy_(v * r[0] - r[1])
    gv.copy_(r[0])
    gu = (own[0] * v - own[1]).sum((0, 1))
    (past, future), (past_adjoint, future_adjoint) = before, after
    gw = -_pair_weight(w, past, future_adjoint) - _pair_weight(w, future, past_adjoint)
    return gw, gu


def _pair_weight(w: Tensor, x: State, r: State) -> Tensor:
    """Return lam sum (x r)[0] - (x r)[1]: pairs of tokens that lie on both sides of each token."""
    scale = _weight(x[0] + r[0] - w)
    return (scale * (x[1][0] * r[1][0] - x[1][1] * r[1][1])).sum((0, 1))


def _weight(exponent: Tensor) -> Tensor:
    """Return exp of the logarithm of a softmax weight: above 0 there is only the rounding of huge keys."""
    return torch.exp(exponent.clamp(max=0))


def _total(own_scale: Tensor, own: Tensor, states: tuple[State, State]) -> tuple[Tensor, Tensor]:
    """Add both states and the token itself: (value (2, B, T, C), scale (B, T, C))."""
    (past_scale, past), (future_scale, future) = states
    scale = torch.maximum(torch.maximum(past_scale, future_scale), own_scale)
    total = torch.exp(past_scale - scale) * past + torch.exp(future_scale - scale) * future
    return total + torch.exp(own_scale - scale) * own, scale


def _both_ways(w: Tensor, keys: Tensor, pairs: Tensor) -> tuple[State, State]:
    """Return the states of past and future of every token: scales (B, T, C), values (2, B, T, C)."""
    past = _past(w, keys, pairs)
    scale, value = _past(w, keys.flip(1), pairs.flip(2))
    return past, (scale.flip(1), value.flip(2))


def _past(w: Tensor, keys: Tensor, pairs: Tensor) -> State:
    """Return the state before every token: within the chunks, over them, and within them once more."""
    batch, num_tokens, channels = keys.shape
    length = chunk_length(num_tokens)
    padding = (0, 0, 0, -num_tokens % length)
    keys = F.pad(keys, padding, value=_nothing(w)).view(batch, -1, length, channels)
    pairs = F.pad(pairs, padding).view(2, batch, -1, length, channels)
    nothing = torch.full_like(keys[:, :, 0], _nothing(w)), torch.zeros_like(pairs[:, :, :, 0])
    end_scale, end = _walk(w, keys, pairs, nothing)[1]  # over the L tokens of every chunk
    nothing = nothing[0][:, 0], nothing[1][:, :, 0]
    carries = _walk(w * length, end_scale, end, nothing)[0]  # over the chunks
    scale, value = _walk(w, keys, pairs, carries)[0]
    return scale.flatten(1, 2)[:, :num_tokens], value.flatten(2, 3)[:, :, :num_tokens]


def _walk(w: Tensor, keys: Tensor, pairs: Tensor, state: State) -> tuple[State, State]:
    """Walk along the axis before the channels: the states before every step, and the one after the last."""
    scales, values = [], []
    for key, pair in zip(keys.unbind(-2), pairs.unbind(-2), strict=True):
        scale, value = state
        scales.append(scale)
        values.append(value)
        largest = torch.maximum(scale - w, key)
        value = torch.exp(scale - w - largest) * value + torch.exp(key - largest) * pair
        state = largest, value
    return (torch.stack(scales, -2), torch.stack(values, -2)), state


def _nothing(w: Tensor) -> float:
    """Scale of an empty sum: exp of it is 0, and two of them still add up to a number."""
    return torch.finfo(w.dtype).min / 8
