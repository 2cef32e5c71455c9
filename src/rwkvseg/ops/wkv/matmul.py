"""Bi-WKV by chunked matrix products: few operations, each once over the data, for devices such as a GPU.

The sums of fixed_reference.py, with its one reference key per image and channel. Within a chunk the sum over
the other tokens is a product, per channel, with the table
    table[i, j] = lam^(|i - j| - 1), and 0 where i = j        lam = exp(-w)
The rows of the token just before and of the one just after a chunk tell what the chunk sends out and how it
takes what enters; between chunks, these act as tokens with decay w L. What a token takes from the others is
divided by exp(u), so that its own weight is E alone.

Legend: pairs (C, 2, B, n, L) hold numerator and denominator of B images, n chunks of L tokens, 0 after the
last token; a plane (C, B, T) is one of the two. Of 2 directions, the way to later tokens comes first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LONG = 1024  # tokens from which longer chunks, with fewer states to carry, are worth their padding
DIRECT = 64  # chunks up to which one matrix joins each with each; more are joined in groups of 32


class _Weights(NamedTuple):
    within: Tensor  # (C, L, L) the table divided by exp(u)
    enter: Tensor  # (C, 2, L) the same for what comes in from both sides
    leave: Tensor  # (C, 2, L) what tokens send out; (C, 4, L) followed by its derivatives
    between: list[tuple[Tensor, Tensor]]  # see _between


class _Sums(NamedTuple):
    others: Tensor  # like pairs, divided by exp(u)
    sent: Tensor  # (C, 2 or 4, 2 B n) what every chunk sends out
    carried: Tensor  # (C, 2, 2 B n) what reaches it


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Write bi_wkv of k, v (B, T, C) into out. w, u (C,) have the dtype to compute in; k, v, out any."""
    with _full_precision(k.device.type):
        pairs = _keys(w, k)
        num, weight = _planes(pairs, k.shape[1])
        torch.mul(weight, _plane(v), out=num)
        weights, _ = _weights(w, u, pairs)
        weights.within.diagonal(dim1=1, dim2=2).fill_(1)  # the token itself
        num, den = _planes(_sum(weights, pairs).others, k.shape[1])
        torch.div(num, den, out=_plane(out))


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, g: Tensor, *, gk: Tensor, gv: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradients of k and v from g, that of the output; return those of w and u, (C,).

    The formulas stand in fixed_reference.py. As there, v is taken less its weighted mean, here with its sign
    turned: with -v, and so -q, in all sums the gradients are sums, which save a pass over the data each.
    """
    with _full_precision(k.device.type):
        pairs = _keys(w, k)
        num, weight = _planes(pairs, k.shape[1])
        torch.mul(weight, _plane(v), out=num)
        total = pairs.sum((3, 4))
        mean = (total[:, 0] / total[:, 1]).unsqueeze(2)
        v = torch.sub(mean, _plane(v), out=w.new_empty(weight.shape))
        torch.mul(weight, v, out=num)
        weights, exponent = _weights(w, u, pairs, slopes=True)
        sums = _sum(weights, pairs)
        adjoint, own, own_apart = _adjoint(pairs, sums.others, v, g)
        sums_r = _sum(weights, adjoint)
        r, rq = _planes(sums_r.others, k.shape[1])
        torch.addcmul(own, weight, r, out=_plane(gv))
        torch.addcmul(own_apart, weight, rq.addcmul_(v, r, value=-1), out=_plane(gk))
        gw = _within_chunks(pairs, adjoint, weights.within * exponent)
        gw.addcmul_(_between_chunks(w, pairs, sums, sums_r), torch.exp(-u))
        return gw, own_apart.sum((1, 2))


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Keep float32 products exact: without TF32, bfloat16 and autocast, whatever the settings outside."""
    mkldnn: Any = torch.backends.mkldnn  # its matmul is not in the type stubs
    before = {x: x.fp32_precision for x in (torch.backends.cuda.matmul, mkldnn.matmul)}
    reduced = {x: precision for x, precision in before.items() if precision not in ("ieee", "none")}
    try:
        for settings in reduced:
            settings.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for settings, precision in reduced.items():
            settings.fp32_precision = precision


def _keys(w: Tensor, k: Tensor) -> Tensor:
    """Return pairs whose second component is E."""
    batch, num_tokens, channels = k.shape
    length = 32 if num_tokens >= LONG else min(16, num_tokens)  # <= T: the guard knows no longer distances
    pairs = w.new_empty(channels, 2, batch, -(-num_tokens // length), length)
    pairs.flatten(3)[..., num_tokens:].zero_()
    reference = k.amax(1, keepdim=True).to(w.dtype)
    torch.sub(_plane(k), _plane(reference), out=_planes(pairs, num_tokens)[1]).exp_()
    return pairs


def _adjoint(pairs: Tensor, others: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs (h, -q) and the planes E h and E h (v - out); all with exp(u) in h. others is used up.

    v - out is summed over the others only, so that it is exact where the token itself dominates.
    """
    num_tokens = g.shape[1]
    num, den = _planes(others, num_tokens)
    own_apart = torch.addcmul(num, den, v, value=-1)
    others += pairs
    adjoint = torch.empty_like(pairs)
    adjoint.flatten(3)[..., num_tokens:].zero_()
    h, q = _planes(adjoint, num_tokens)
    torch.div(_plane(g), den, out=h)
    torch.div(num, den, out=q).mul_(h)
    own = _planes(pairs, num_tokens)[1] * h
    return adjoint, own, own_apart.div_(den).mul_(own)


def _weights(w: Tensor, u: Tensor, pairs: Tensor, *, slopes: bool = False) -> tuple[_Weights, Tensor]:
    """Return the weights for chunks like those of pairs, and the exponents (L, L) of weights.within."""
    n, length = pairs.shape[-2:]
    table, exponent = _table(w, length + 2)  # with the token before the chunk and the one after it
    edges = table[:, :: length + 1, 1:-1]
    leave = edges.flip(1)
    if slopes:
        leave = torch.cat([leave, edges * exponent[:: length + 1, 1:-1]], 1)
    apart = torch.exp(-u).view(-1, 1, 1)
    within = table[:, 1:-1, 1:-1] * apart
    return _Weights(within, edges * apart, leave, _between(w * length, n)), exponent[1:-1, 1:-1]


def _between(w: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """Return the weights that join n chunks, then those that join groups of them, until one group is left.

    Each is a pair: one_way (2 C, n, n), to later chunks and to earlier ones, and edges (C, 2, n), for what
    comes in from beside the group.
    """
    size = n if n <= DIRECT else 32
    table, _ = _table(w, size + 2)
    inside = table[:, 1:-1, 1:-1]
    one_way = torch.stack([inside.triu(), inside.tril()], 1).flatten(0, 1)
    wider = _between(w * size, -(-n // size)) if n > size else []
    return [(one_way, table[:, :: size + 1, 1:-1]), *wider]


def _table(w: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return exp(w exponent), 0 on the diagonal, (C, size, size), and the exponent 1 - |i - j|."""
    i = torch.arange(size, dtype=w.dtype, device=w.device)
    exponent = 1 - (i - i.unsqueeze(1)).abs_()
    table = torch.exp(w.view(-1, 1, 1) * exponent)
    table.diagonal(dim1=1, dim2=2).zero_()
    return table, exponent


def _sum(weights: _Weights, pairs: Tensor) -> _Sums:
    """Sum over the other tokens of every token, each weighed by lam to their distance."""
    channels, _, batch, n, length = pairs.shape
    rows = pairs.view(channels, -1, length)
    sent = torch.bmm(weights.leave, rows.transpose(1, 2))
    carried = _carry(weights.between, sent[:, :2].view(channels, 2, 2 * batch, n)).flatten(2)
    others = torch.bmm(rows, weights.within).baddbmm_(carried.transpose(1, 2), weights.enter)
    return _Sums(others.view(pairs.shape), sent, carried)


def _carry(between: list[tuple[Tensor, Tensor]], sent: Tensor) -> Tensor:
    """Return what reaches each of n chunks when each sends its part of sent (C, 2 directions, rows, n)."""
    (one_way, edges), *wider = between
    channels, _, rows, n = sent.shape
    size = one_way.shape[-1]
    groups = F.pad(sent, (0, -n % size)).reshape(2 * channels, -1, size)
    carried = torch.bmm(groups, one_way)
    if wider:
        onward = torch.bmm(groups, edges.flip(1).reshape(2 * channels, size, 1))
        entering = _carry(wider, onward.view(channels, 2, rows, -1)).reshape(2 * channels, -1, 1)
        carried.baddbmm_(entering, edges.reshape(2 * channels, 1, size))
    return carried.view(channels, 2, rows, -1)[..., :n]


def _within_chunks(pairs: Tensor, adjoint: Tensor, slope: Tensor) -> Tensor:
    """Return the part of gw (C,) from tokens of one chunk; slope (C, L, L): derivative of the weights."""
    (num, weight), (h, q) = pairs.flatten(2, 3).unbind(1), adjoint.flatten(2, 3).unbind(1)
    both = torch.bmm(weight.transpose(1, 2), q).baddbmm_(num.transpose(1, 2), h, alpha=-1)
    return both.mul_(slope).sum((1, 2))


def _between_chunks(w: Tensor, pairs: Tensor, x: _Sums, r: _Sums) -> Tensor:
    """Return the part of gw (C,) from tokens of different chunks, times exp(u).

    Their exponent has three terms: to the edge of one chunk, from that of the other, L for each in between.
    """
    channels, length = pairs.shape[0], pairs.shape[-1]
    per_chunk = (-length * torch.exp(-length * w)).view(-1, 1, 1)
    across = x.carried * r.carried.flip(1) * per_chunk
    across.addcmul_(x.sent[:, 2:], r.carried).addcmul_(r.sent[:, 2:], x.carried)
    num, den = across.view(channels, 2, 2, -1).sum((1, 3)).unbind(1)
    return den - num


def _plane(x: Tensor) -> Tensor:
    """Return a (B, T, C) tensor as (C, B, T)."""
    return x.permute(2, 0, 1)


def _planes(pairs: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return both components as (C, B, T) views, without the padding."""
    first, second = pairs.flatten(3)[..., :num_tokens].unbind(1)
    return first, second
