"""Bi-WKV on a GPU, fast: one reference key for all tokens of a program. Legend: triton_states.py.

The sums and gradients are those of fixed_reference.py. Good while no denominator gets too small for the
reference, which `too_small` tells afterwards. What a program needs of a token again it reads again: by then
it is near at hand.
"""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    empty_blocks,
    exponents,
    get_block,
    key_of,
    put_block,
    reach,
    row_of,
)


@triton.jit
def reciprocal(x):
    """Return 1 / x of a normal positive number, to two units in the last place."""
    if x.dtype == tl.float32:
        root = tl.rsqrt(x)
        inverse = root * root
    else:
        inverse = 1.0 / x
    return inverse


@triton.jit
def highest(p_k, places, left, C, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDE: tl.constexpr):
    """Return the largest exponent of each channel (1, CHANNELS)."""
    high = tl.zeros_like(places).to(WIDE) + float("-inf")
    for s in range(BLOCKS):
        for j in tl.static_range(BLOCK):
            high = tl.maximum(high, key_of(p_k, places, left, C, s * BLOCK + j, WIDE))
    return tl.max(high, 0)[None, :] * LOG2E


@triton.jit
def highest_with_value(
    p_k, p_v, places, left, C, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Return the largest exponent of each channel and a value that has it.

    Gradients do not feel this value taken off all, their rounding does: where one key outweighs the others,
    or v is far from zero, gk is a small difference of large numbers.
    """
    high = tl.zeros_like(places).to(WIDE) + float("-inf")
    value = tl.zeros_like(high)
    for s in range(BLOCKS):
        for j in tl.static_range(BLOCK):
            k = key_of(p_k, places, left, C, s * BLOCK + j, WIDE)
            v = row_of(p_v, places, left, C, s * BLOCK + j, WIDE)
            value = tl.where(k > high, v, value)
            high = tl.maximum(high, k)
    top = tl.max(high, 0)[None, :]
    value = tl.max(tl.where(high == top, value, float("-inf")), 0)[None, :]
    return top * LOG2E, tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def pairs(p_k, p_v, places, left, C, top, mean, s, BLOCK: tl.constexpr):
    """Return (n, d) of the tokens of block s, two tuples: d = exp(k - reference), n = d (v - mean)."""
    n, d = (), ()
    for j in tl.static_range(BLOCK):
        x = tl.exp2(exponents(p_k, places, left, C, s * BLOCK + j, top.dtype) - top)
        n += (x * (row_of(p_v, places, left, C, s * BLOCK + j, top.dtype) - mean),)
        d += (x,)
    return n, d


@triton.jit
def send(n, d, lam, BLOCK: tl.constexpr):
    """Return what a block of tokens (n, d) sends to later ones and to earlier ones."""
    ln, ld, en, ed = n[0], d[0], n[BLOCK - 1], d[BLOCK - 1]
    for j in tl.static_range(1, BLOCK):
        ln, ld = ln * lam + n[j], ld * lam + d[j]
        en, ed = en * lam + n[BLOCK - 1 - j], ed * lam + d[BLOCK - 1 - j]
    return ln, ld, en, ed


@triton.jit
def futures(n, d, fn, fd, lam, BLOCK: tl.constexpr):
    """Return what reaches every token of a block from later ones, two tuples; (fn, fd): what enters it."""
    rows_n, rows_d = (), ()
    for j in tl.static_range(BLOCK - 1, -1, -1):
        rows_n, rows_d = (fn,) + rows_n, (fd,) + rows_d
        fn, fd = fn * lam + n[j], fd * lam + d[j]
    return rows_n, rows_d


@triton.jit
def spread(en, ed, fn, fd, far, BLOCKS: tl.constexpr):
    """Return what enters every block from later ones, two tuples, and what leaves the first.

    en, ed: what each sends to earlier ones; (fn, fd): what enters the last; far: decay of a block.
    """
    rows_n, rows_d = (), ()
    for s in tl.static_range(BLOCKS - 1, -1, -1):
        rows_n, rows_d = (fn,) + rows_n, (fd,) + rows_d
        fn, fd = fn * far + en[s], fd * far + ed[s]
    return rows_n, rows_d, fn, fd


@triton.jit
def fast_states(
    p_k, p_v, places, left, C, w, top, mean, past, future, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """Return what enters each lane from the past, and each of its blocks from the future."""
    lam, far = tl.exp2(-w), tl.exp2(-BLOCK * w)
    zero = tl.zeros_like(places).to(w.dtype)
    ln, ld = zero, zero
    en, ed = empty_blocks(zero, 0.0, BLOCKS), empty_blocks(zero, 0.0, BLOCKS)
    for s in range(BLOCKS):
        n, d = pairs(p_k, p_v, places, left, C, top, mean, s, BLOCK)
        later_n, later_d, earlier_n, earlier_d = send(n, d, lam, BLOCK)
        ln, ld = ln * far + later_n, ld * far + later_d
        en, ed = put_block(en, s, earlier_n, BLOCKS), put_block(ed, s, earlier_d, BLOCKS)
    sent = spread(en, ed, zero, zero, far, BLOCKS)
    decay = tl.exp2(-BLOCK * BLOCKS * w)
    x, y = tl.exp2(past[0] - top), tl.exp2(future[0] - top)
    pn, pd = reach(ln, ld, decay, x * past[1], x * past[2], False)
    fn, fd = reach(sent[2], sent[3], decay, y * future[1], y * future[2], True)
    fn, fd = spread(en, ed, fn, fd, far, BLOCKS)[:2]
    return pn, pd, fn, fd


@triton.jit
def too_small(least, w, u, ok, SPAN, LIMIT: tl.constexpr):
    """Return whether a denominator of the tile is too small for the fast form; least: of every lane.

    Two terms of a sum may lie 2^LIMIT apart: by their keys, which the denominators show, by the bonus, and by
    a decay that grows with distance.
    """
    grown = tl.maximum(-w, 0.0) * SPAN + tl.abs(u)
    enough = tl.where(grown < LIMIT, tl.exp2(grown - LIMIT), float("inf"))
    small = tl.where(ok & ~(tl.min(least, 0)[None, :] > enough), 1, 0)
    return tl.max(tl.max(small, 1), 0) > 0


@triton.jit
def adjoint(p_g, places, left, C, n, d, past, future, least, bonus, lam, s, BLOCK: tl.constexpr):
    """Return of the tokens of block s: h = g / den, q = h num / den, and their own part of gk, negated.

    Three tuples; then what the past is after the block, and the least denominator so far. Their own part is
    exp(u) d h (out - v) with out - v summed over the other tokens only: exact where the token dominates.
    """
    pn, pd = past
    fn, fd = futures(n, d, future[0], future[1], lam, BLOCK)
    hs, qs, owns = (), (), ()
    for j in tl.static_range(BLOCK):
        here = s * BLOCK + j < left
        num, den = pn + fn[j], pd + fd[j]
        total = tl.where(here, den + bonus * d[j], 1.0)
        least = tl.minimum(least, total)
        inverse = reciprocal(total)
        h = row_of(p_g, places, left, C, s * BLOCK + j, lam.dtype) * inverse
        hs += (h,)
        qs += (h * (num + bonus * n[j]) * inverse,)
        owns += (h * (num * d[j] - den * n[j]) * (bonus * inverse),)
        pn, pd = pn * lam + n[j], pd * lam + d[j]
    return hs, qs, owns, pn, pd, least


@triton.jit
def _step(x, r, r_w, lam):
    """Let state r, with its derivative by w, pass a token x."""
    return r * lam + x, lam * (r_w - r)


@triton.jit
def _block_gradients(
    p_gk, p_gv, places, left, C, n, d, h, q, own, from_past, from_future, lam, bonus, s, BLOCK: tl.constexpr
):  # fmt: skip
    """Write gk and gv of block s from the adjoint states that enter it on both sides.

    Returns the part of gw from tokens of the block, the derivatives of the adjoint states that leave it to
    earlier and to later tokens, and the latter states.
    """
    r, rq = from_future
    zero = tl.zeros_like(r)
    r_w, rq_w, gw = zero, zero, zero
    by_k, by_v = (), ()
    for j in tl.static_range(BLOCK - 1, -1, -1):
        by_k, by_v = (n[j] * r - d[j] * rq - own[j],) + by_k, (d[j] * (r + bonus * h[j]),) + by_v
        gw += n[j] * r_w - d[j] * rq_w
        r, r_w = _step(h[j], r, r_w, lam)
        rq, rq_w = _step(q[j], rq, rq_w, lam)
    back_w, back_q_w = r_w, rq_w
    r, rq = from_past
    r_w, rq_w = zero, zero
    for j in tl.static_range(BLOCK):
        here = s * BLOCK + j < left
        tl.store(p_gk + places + (s * BLOCK + j) * C, by_k[j] + (n[j] * r - d[j] * rq), mask=here)
        tl.store(p_gv + places + (s * BLOCK + j) * C, by_v[j] + d[j] * r, mask=here)
        gw += n[j] * r_w - d[j] * rq_w
        r, r_w = _step(h[j], r, r_w, lam)
        rq, rq_w = _step(q[j], rq, rq_w, lam)
    return gw, (back_w, back_q_w), (r_w, rq_w), (r, rq)


@triton.jit
def fast_gradients(
    p_k, p_v, p_g, p_gk, p_gv, places, left, C, w, bonus, top, mean,
    pn, pd, fn, fd, pr, pq, fr, fq, er, eq, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write gk and gv, return each lane's part of gw and gu.

    (pn, pd) and (pr, pq) enter the lane from the past, (fn, fd) its blocks and (fr, fq) it from the future;
    er, eq: what its blocks send to earlier tokens.
    """
    lam, far = tl.exp2(-w), tl.exp2(-BLOCK * w)
    fr, fq = spread(er, eq, fr, fq, far, BLOCKS)[:2]
    gw, gu = tl.zeros_like(pn), tl.zeros_like(pn)
    for s in range(BLOCKS):
        n, d = pairs(p_k, p_v, places, left, C, top, mean, s, BLOCK)
        after_n, after_d = get_block(fn, s, BLOCKS), get_block(fd, s, BLOCKS)
        h, q, own, next_n, next_d, unused = adjoint(
            p_g, places, left, C, n, d, (pn, pd), (after_n, after_d), pn, bonus, lam, s, BLOCK
        )  # fmt: skip
        enters = (get_block(fr, s, BLOCKS), get_block(fq, s, BLOCKS))
        by_w, back_w, on_w, on = _block_gradients(
            p_gk, p_gv, places, left, C, n, d, h, q, own, (pr, pq), enters, lam, bonus, s, BLOCK
        )  # fmt: skip
        # pairs of tokens of two blocks: the adjoint states that leave this one, met by the sums outside
        gw += by_w + on_w[0] * after_n - on_w[1] * after_d + back_w[0] * pn - back_w[1] * pd
        for j in tl.static_range(BLOCK):
            gu -= own[j]
        pn, pd = next_n, next_d
        pr, pq = on
    return gw, gu
