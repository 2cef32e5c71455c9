"""Bi-WKV on a GPU, fast: one reference key for all tokens of a program. Legend: triton_states.py.

The sums and gradients are those of fixed_reference.py. The reference is the largest of a few keys, which
does unless a denominator turns out very small or very large for it; `unfit` tells afterwards. What a program
needs of a token again it reads again: by then it is near at hand.
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
    put_row,
    reach,
    row_of,
    rows_after,
    where_there,
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
def reference(p_k, left, C, past, future, ok, WIDE: tl.constexpr):
    """Return an exponent for each channel (1, CHANNELS) about as large as the largest; 0 of no channel."""
    high = tl.max(key_of(p_k, left, C, 0, WIDE), 0)[None, :] * LOG2E
    return tl.where(ok, tl.maximum(tl.maximum(high, past[0]), future[0]), 0.0)


@triton.jit
def pairs(p_k, p_v, left, C, top, mean, s, BLOCK: tl.constexpr):
    """Return (n, d) of the tokens of block s, two tuples: d = exp(k - reference), n = d (v - mean)."""
    p_k, p_v = rows_after(p_k, C, s * BLOCK), rows_after(p_v, C, s * BLOCK)
    left = None if left is None else left - s * BLOCK
    n, d = (), ()
    for j in tl.static_range(BLOCK):
        x = tl.exp2(exponents(p_k, left, C, j, top.dtype) - top)
        n += (x * (row_of(p_v, left, C, j, top.dtype) - mean),)
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
def fast_totals(p_k, p_v, left, C, w, top, mean, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Return what each lane sends to later ones, and what each of its blocks sends to earlier ones."""
    lam, far = tl.exp2(-w), tl.exp2(-BLOCK * w)
    zero = tl.zeros(p_k.shape, w.dtype)
    ln, ld = zero, zero
    en, ed = empty_blocks(zero, 0.0, BLOCKS), empty_blocks(zero, 0.0, BLOCKS)
    for s in range(BLOCKS):
        n, d = pairs(p_k, p_v, left, C, top, mean, s, BLOCK)
        later_n, later_d, earlier_n, earlier_d = send(n, d, lam, BLOCK)
        ln, ld = ln * far + later_n, ld * far + later_d
        en, ed = put_block(en, s, earlier_n, BLOCKS), put_block(ed, s, earlier_d, BLOCKS)
    return ln, ld, en, ed


@triton.jit
def fast_states(
    p_k, p_v, left, C, w, top, mean, past, future, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """Return what enters each lane from the past, and each of its blocks from the future."""
    ln, ld, en, ed = fast_totals(p_k, p_v, left, C, w, top, mean, BLOCK, BLOCKS)
    return fast_enter(
        ln, ld, en, ed, w, tl.exp2(past[0] - top), past, tl.exp2(future[0] - top), future, BLOCK, BLOCKS
    )


@triton.jit
def fast_enter(
    ln, ld, en, ed, w, x, past, y, future, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """The same from what lanes and blocks send; past and future, times x and y, enter the program."""
    decay, far = tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(-BLOCK * w)
    zero = tl.zeros_like(ln)
    sent = spread(en, ed, zero, zero, far, BLOCKS)
    pn, pd = reach(ln, ld, decay, x * past[1], x * past[2], False)
    fn, fd = reach(sent[2], sent[3], decay, y * future[1], y * future[2], True)
    fn, fd = spread(en, ed, fn, fd, far, BLOCKS)[:2]
    return pn, pd, fn, fd


@triton.jit
def unfit(least, greatest, w, u, ok, SPAN, LIMIT: tl.constexpr):
    """Return whether the reference does not suit the denominators of the tile, of which each lane has two.

    Two terms of a sum may lie 2^LIMIT apart: by their keys, which the denominators show, by the bonus, and by
    a decay that grows with distance. Above the reference there is half of that: squares occur.
    """
    grown = tl.maximum(-w, 0.0) * SPAN + tl.abs(u)
    enough = tl.where(grown < LIMIT, tl.exp2(grown - LIMIT), float("inf"))
    least, greatest = tl.min(least, 0)[None, :], tl.max(greatest, 0)[None, :]
    fit = (least > enough) & (greatest < tl.exp2(tl.zeros_like(w) + 0.5 * LIMIT))
    small = tl.where(ok & ~fit, 1, 0)
    return tl.max(tl.max(small, 1), 0) > 0


@triton.jit
def adjoint_pairs(
    p_g, left, C, n, d, past, future, least, greatest, bonus, lam, s, BLOCK: tl.constexpr
):  # fmt: skip
    """Return of the tokens of block s: h = g / den, q = h num / den, two tuples.

    Then what the past is after the block, and the least and the greatest denominator so far.
    """
    p_g = rows_after(p_g, C, s * BLOCK)
    left = None if left is None else left - s * BLOCK
    pn, pd = past
    fn, fd = futures(n, d, future[0], future[1], lam, BLOCK)
    hs, qs = (), ()
    for j in tl.static_range(BLOCK):
        total = where_there(left, j, pd + fd[j] + bonus * d[j], 1.0)
        least, greatest = tl.minimum(least, total), tl.maximum(greatest, total)
        inverse = reciprocal(total)
        h = row_of(p_g, left, C, j, lam.dtype) * inverse
        hs += (h,)
        qs += (h * ((pn + fn[j] + bonus * n[j]) * inverse),)
        pn, pd = pn * lam + n[j], pd * lam + d[j]
    return hs, qs, pn, pd, least, greatest


@triton.jit
def _block_gradients(
    p_g, p_gk, p_gv, left, C, n, d, past, future, on, back, bonus, lam, BLOCK: tl.constexpr
):  # fmt: skip
    """Write gk and gv of a block from the states that enter it on both sides; on, back: the adjoint ones.

    A token's own part of gk is exp(u) d h (v - out) with v - out summed over the other tokens only: exact
    where the token dominates. gw: at each token what comes from one side meets the adjoint from the other.
    Returns both states that leave it to later tokens, and the parts of gw, but for -lam, and of gu.
    """
    pn, pd = past
    r, rq = on
    fn, fd = futures(n, d, future[0], future[1], lam, BLOCK)
    gw, gu = tl.zeros_like(pn), tl.zeros_like(pn)
    hs, qs, by_k, by_v, pns, pds = (), (), (), (), (), ()
    for j in tl.static_range(BLOCK):
        num, den = pn + fn[j], pd + fd[j]
        inverse = reciprocal(where_there(left, j, den + bonus * d[j], 1.0))
        h = row_of(p_g, left, C, j, lam.dtype) * inverse
        q = h * ((num + bonus * n[j]) * inverse)
        own = h * (den * n[j] - num * d[j]) * (bonus * inverse)
        gu += own
        gw += r * fn[j] - rq * fd[j]
        hs += (h,)
        qs += (q,)
        by_k += (own + (n[j] * r - d[j] * rq),)
        by_v += (r + bonus * h,)
        pns += (pn,)
        pds += (pd,)
        pn, pd = pn * lam + n[j], pd * lam + d[j]
        r, rq = r * lam + h, rq * lam + q
    on = r, rq
    r, rq = back
    for j in tl.static_range(BLOCK - 1, -1, -1):
        put_row(p_gk, left, C, j, by_k[j] + (n[j] * r - d[j] * rq))
        put_row(p_gv, left, C, j, d[j] * (by_v[j] + r))
        gw += r * pns[j] - rq * pds[j]
        r, rq = r * lam + hs[j], rq * lam + qs[j]
    return (pn, pd), on, gw, gu


@triton.jit
def fast_gradients(
    p_k, p_v, p_g, p_gk, p_gv, left, C, w, bonus, top, mean,
    pn, pd, fn, fd, pr, pq, fr, fq, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write gk and gv, return each lane's part of gw and gu.

    (pn, pd) and (pr, pq) enter the lane from the past, (fn, fd) and (fr, fq) its blocks from the future.
    """
    lam = tl.exp2(-w)
    gw, gu = tl.zeros_like(pn), tl.zeros_like(pn)
    past, on = (pn, pd), (pr, pq)
    for s in range(BLOCKS):
        n, d = pairs(p_k, p_v, left, C, top, mean, s, BLOCK)
        future = (get_block(fn, s, BLOCKS), get_block(fd, s, BLOCKS))
        back = (get_block(fr, s, BLOCKS), get_block(fq, s, BLOCKS))
        past, on, by_w, by_u = _block_gradients(
            rows_after(p_g, C, s * BLOCK), rows_after(p_gk, C, s * BLOCK), rows_after(p_gv, C, s * BLOCK),
            None if left is None else left - s * BLOCK, C, n, d, past, future, on, back, bonus, lam, BLOCK,
        )  # fmt: skip
        gw += by_w
        gu += by_u
    return -lam * gw, gu
