"""Bi-WKV in linear time with one reference key per image and channel: fast, while nothing can overflow.

With E_i = exp(k_i - reference) and lam = exp(-w), the sums over the other tokens are two recurrences,
    past[t + 1] = lam past[t] + E_t (v_t, 1)          future[t - 1] = lam future[t] + E_t (v_t, 1),
run inside all chunks at once and once more over the chunks, with lam^L = exp(-w L) computed afresh. Then
    out[t] = first component of (past + future + exp(u) E_t (v_t, 1)) divided by the second.
The future is summed on its own and never got by subtraction: that would lose exp(w T) of the digits.

Legend: a pair tensor (2, B, n, L, C) holds numerator and denominator of B images, n chunks of L tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkvseg.ops.wkv.chunks import chunk_length


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Write bi_wkv of k, v (B, T, C) into out. w, u (C,) have the dtype to compute in; k, v, out any."""
    pairs = _chunks(w, k)
    num, weight = _tokens(pairs, k.shape[1])
    torch.mul(weight, v, out=num)
    total = torch.empty_like(pairs)
    lam = torch.exp(-w)
    x, t = pairs.unbind(3), total.unbind(3)
    past, future = _carries(x, w)
    _states(x, past, lam, out=t)
    for here, own in zip(t[::-1], x[::-1], strict=True):
        here.add_(future)
        torch.addcmul(own, future, lam, out=future)
    num, den = _tokens(total.addcmul_(pairs, torch.exp(u)), k.shape[1])
    torch.div(num, den, out=out)


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, g: Tensor, *, gk: Tensor, gv: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradients of k and v from g, that of the output; return those of w and u, (C,).

    With h = g / denominator and q = h out, the pair (h, q) is scanned like the values, its states are r:
        gv = E (r[0] + exp(u) h)        gk = E (v r[0] - r[1]) + exp(u) E h (v - out)
        gu = sum exp(u) E h (v - out)   gw = -lam sum (past[0] r_future[0] - past[1] r_future[1]) + mirrored
    """
    bonus, lam = torch.exp(u), torch.exp(-w)
    pairs = _chunks(w, k)
    num, weight = _tokens(pairs, k.shape[1])
    v = centred(weight, v)
    torch.mul(weight, v, out=num)
    past, future, adjoint = torch.empty_like(pairs), torch.empty_like(pairs), torch.zeros_like(pairs)
    x, p, f = pairs.unbind(3), past.unbind(3), future.unbind(3)
    from_past, from_future = _carries(x, w)
    _states(x, from_past, lam, out=p)
    _states(x[::-1], from_future, lam, out=f[::-1])

    others = _tokens(torch.add(past, future), k.shape[1])
    own, own_apart = adjoint_pairs(bonus, (num, weight), others, v, g, out=_tokens(adjoint, k.shape[1]))
    gw = -lam * _sum_across(adjoint, past, future, w)
    r, rq = _tokens(future, k.shape[1])
    torch.addcmul(own, weight, r, out=gv)
    torch.sub(r.mul_(v).sub_(rq).mul_(weight), own_apart, out=gk)
    return gw, -own_apart.sum((0, 1))


def centred(weight: Tensor, v: Tensor) -> Tensor:
    """Return v less its weighted mean over the tokens: gradients do not feel it, their rounding does.

    Where one key outweighs the others, or v is far from zero, gk is a small difference of large numbers.
    """
    return v - (weight * v).sum(1, keepdim=True) / weight.sum(1, keepdim=True)


def adjoint_pairs(
    bonus: Tensor,
    pair: tuple[Tensor, Tensor],
    others: tuple[Tensor, Tensor],
    v: Tensor,
    g: Tensor,
    *,
    out: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Write (h, q) into out, for the pair of each token and the sum over the others, all (B, T, C).

    Returns exp(u) E h and exp(u) E h (out - v); out - v is summed over the others only, so that it is exact
    where the token itself dominates.
    """
    num, den = others
    total = torch.addcmul(den, pair[1], bonus)
    torch.div(g, total, out=out[0])
    own = pair[1] * out[0] * bonus
    own_apart = torch.addcmul(num, den, v, value=-1).div_(total).mul_(own)
    torch.mul(torch.addcmul(num, pair[0], bonus).div_(total), out[0], out=out[1])
    return own, own_apart


def _sum_across(adjoint: Tensor, past: Tensor, future: Tensor, w: Tensor) -> Tensor:
    """Return the sum for gw over pairs of tokens on both sides of each token; future takes the states r."""
    lam = torch.exp(-w)
    a, p, f = adjoint.unbind(3), past.unbind(3), future.unbind(3)
    from_past, from_future = _carries(a, w)
    across = torch.zeros_like(from_past)
    for hq, here in zip(a, f, strict=True):
        across.addcmul_(from_past, here)
        here.copy_(from_past)
        torch.addcmul(hq, from_past, lam, out=from_past)
    for hq, before, here in zip(a[::-1], p[::-1], f[::-1], strict=True):
        across.addcmul_(from_future, before)
        here.add_(from_future)
        torch.addcmul(hq, from_future, lam, out=from_future)
    return (across[0] - across[1]).sum((0, 1))


def _chunks(w: Tensor, k: Tensor) -> Tensor:
    """Return a pair tensor whose second component is E; 0 beyond the last token."""
    batch, num_tokens, channels = k.shape
    length = chunk_length(num_tokens)
    n = -(-num_tokens // length)
    flat = torch.empty(2, batch, n * length, channels, dtype=w.dtype, device=k.device)
    flat[:, :, num_tokens:].zero_()
    torch.sub(k, k.amax(1, keepdim=True).to(w.dtype), out=flat[1, :, :num_tokens]).exp_()
    return flat.view(2, batch, n, length, channels)


def _carries(x: Sequence[Tensor], w: Tensor) -> tuple[Tensor, Tensor]:
    """Return what reaches the first token of every chunk from the past, and the last one from the future.

    x: the L tokens of every chunk, each (2, B, n, C); returns two tensors like them.
    """
    ends = torch.stack([_end(x, w), _end(x[::-1], w).flip(2)])  # (2, 2, B, n, C)
    states = torch.empty_like(ends)
    each = ends.unbind(3)
    _states(each, torch.zeros_like(each[0]), torch.exp(-w * len(x)), out=states.unbind(3))
    return states[0], states[1].flip(2)


def _end(x: Sequence[Tensor], w: Tensor) -> Tensor:
    """Return the state after the last token of every chunk when nothing enters it."""
    lam = torch.exp(-w)
    state = x[0].clone()
    for own in x[1:]:
        torch.addcmul(own, state, lam, out=state)
    return state


def _states(x: Sequence[Tensor], start: Tensor, lam: Tensor, *, out: Sequence[Tensor]) -> None:
    """Write the state before every token into out: out[0] = start, out[j + 1] = lam out[j] + x[j]."""
    out[0].copy_(start)
    for own, before, after in zip(x[:-1], out[:-1], out[1:], strict=True):
        torch.addcmul(own, before, lam, out=after)


def _tokens(pairs: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return both components as (B, T, C) views, without the padding."""
    first, second = pairs.flatten(2, 3)[:, :, :num_tokens].unbind(0)
    return first, second
