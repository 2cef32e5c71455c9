"""Bi-WKV on a GPU, fast: one reference key for all tokens of a program. Legend: triton_states.py.

The sums and gradients are those of fixed_reference.py. The reference is the largest of a few keys, which
does unless a denominator turns out very small or very large for it; `unfit` tells afterwards. What a program
needs of a token again it reads again: by then it is near at hand.
"""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    push_last,
    put_row,
    rows_after,
    same_rows,
    stored_row,
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
def sampled_key(p_k, C, i_s, T, SPAN: tl.constexpr, ok, WIDE: tl.constexpr):
    """Return the largest of a few exponents for each channel (1, CHANNELS), nothing of no channel.

    p_k: keys of the span's first token. All threads look at the same: no exchange, no wait.
    """
    top = tl.load(p_k + tl.minimum(SPAN // 8, T - 1 - i_s * SPAN) * C, mask=ok, other=0.0).to(WIDE) * LOG2E
    for part in tl.static_range(1, 4):
        token = tl.minimum(part * (SPAN // 4) + SPAN // 8, T - 1 - i_s * SPAN)
        top = tl.maximum(top, tl.load(p_k + token * C, mask=ok, other=0.0).to(WIDE) * LOG2E)
    return top


@triton.jit
def reference(key, past, future, ok):
    """Return an exponent for each channel (1, CHANNELS) not far from the largest; 0 of no channel."""
    return tl.where(ok, tl.maximum(key, tl.maximum(past[0], future[0])), 0.0)


@triton.jit
def read_rows(p, left, C, s, BLOCK: tl.constexpr, fill):
    """Return the tokens of block s as they are stored, a tuple."""
    p = rows_after(p, C, s * BLOCK)
    left = None if left is None else left - s * BLOCK
    rows = ()
    for j in tl.static_range(BLOCK):
        rows += (stored_row(p, left, C, j, fill),)
    return rows


@triton.jit
def weigh(keys, values, top, mean, BLOCK: tl.constexpr):
    """Return (n, d) of the tokens of a block, two tuples: d = exp(k - reference), n = d (v - mean)."""
    n, d = (), ()
    for j in tl.static_range(BLOCK):
        x = tl.exp2(keys[j].to(top.dtype) * LOG2E - top)
        n += (x * (values[j].to(top.dtype) - mean),)
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
    """Return what reaches every token of a block from later ones, two tuples, and what leaves it.

    (fn, fd): what enters the block from there.
    """
    rows_n, rows_d = (), ()
    for j in tl.static_range(BLOCK - 1, -1, -1):
        rows_n, rows_d = (fn,) + rows_n, (fd,) + rows_d
        fn, fd = fn * lam + n[j], fd * lam + d[j]
    return rows_n, rows_d, fn, fd


@triton.jit
def fast_totals(p_k, p_v, left, C, w, top, mean, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Go through the blocks: return what each lane sends to later ones and to earlier ones.

    Then what reaches its blocks from earlier tokens of it, two tuples, its largest weight, and keys and
    values of its last block.
    """
    lam, far = tl.exp2(-w), tl.exp2(-BLOCK * w)
    zero = tl.zeros(p_k.shape, w.dtype)
    ln, ld, en, ed, power, high = zero, zero, zero, zero, zero + 1.0, zero
    pns, pds = same_rows(zero, BLOCKS), same_rows(zero, BLOCKS)
    keys, values = read_rows(p_k, left, C, 0, BLOCK, float("-inf")), read_rows(p_v, left, C, 0, BLOCK, 0.0)
    for s in range(BLOCKS):
        ahead = tl.minimum(s + 1, BLOCKS - 1)
        next_keys = read_rows(p_k, left, C, ahead, BLOCK, float("-inf"))
        next_values = read_rows(p_v, left, C, ahead, BLOCK, 0.0)
        n, d = weigh(keys, values, top, mean, BLOCK)
        for j in tl.static_range(BLOCK):
            high = tl.maximum(high, d[j])
        pns, pds = push_last(pns, ln, BLOCKS), push_last(pds, ld, BLOCKS)
        later_n, later_d, earlier_n, earlier_d = send(n, d, lam, BLOCK)
        ln, ld = ln * far + later_n, ld * far + later_d
        en, ed = en + power * earlier_n, ed + power * earlier_d
        power *= far
        keys, values = next_keys, next_values
    return ln, ld, en, ed, pns, pds, high, keys, values


@triton.jit
def add_entering(rows_n, rows_d, n, d, far, BLOCKS: tl.constexpr, REVERSE: tl.constexpr):
    """Return what reaches each block when (n, d) enters the first, or the last if REVERSE; two tuples."""
    new_n, new_d = (), ()
    for i in tl.static_range(BLOCKS):
        if REVERSE:
            new_n = (rows_n[BLOCKS - 1 - i] + n,) + new_n
            new_d = (rows_d[BLOCKS - 1 - i] + d,) + new_d
        else:
            new_n, new_d = new_n + (rows_n[i] + n,), new_d + (rows_d[i] + d,)
        n, d = n * far, d * far
    return new_n, new_d


@triton.jit
def put_outputs(
    p_out, left, C, n, d, past, fn, fd, least, greatest, bonus, lam, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the outputs of a block; return the least and greatest denominator so far, and the first output.

    past: what enters the block; fn, fd: what reaches its tokens from later ones.
    """
    pn, pd = past
    some = pn
    for j in tl.static_range(BLOCK):
        den = where_there(left, j, pd + fd[j] + bonus * d[j], 1.0)
        least, greatest = tl.minimum(least, den), tl.maximum(greatest, den)
        out = (pn + fn[j] + bonus * n[j]) * reciprocal(den)
        put_row(p_out, left, C, j, out)
        if j == 0:
            some = out
        pn, pd = pn * lam + n[j], pd * lam + d[j]
    return least, greatest, some


@triton.constexpr_function
def largest_sum(limit):
    """Return what a sum of weights must stay below: squares of it must not overflow."""
    return 2.0 ** (0.5 * limit + 14)


@triton.jit
def unfit(least, greatest, w, u, ok, SPAN, LIMIT: tl.constexpr):
    """Return whether the reference does not suit a denominator; least, greatest: of each lane.

    Two terms of a sum may lie 2^LIMIT apart: by their keys, which the denominators show, by the bonus, and by
    a decay that grows with distance. Above the reference less will do, see `largest_sum`.
    """
    grown = tl.maximum(-w, 0.0) * SPAN + tl.abs(u)
    enough = tl.where(grown < LIMIT, tl.exp2(grown - LIMIT), float("inf"))
    bad = tl.where(ok & ~((least > enough) & (greatest < largest_sum(LIMIT))), 1, 0)
    return tl.max(tl.max(bad, 1), 0) > 0


@triton.jit
def adjoint_pairs(
    rows_g, left, n, d, past, fn, fd, least, greatest, bonus, lam, BLOCK: tl.constexpr
):  # fmt: skip
    """Return of the tokens of a block: h = g / den, q = h num / den, two tuples.

    Then the least and the greatest denominator so far. fn, fd: what reaches the tokens from later ones.
    """
    pn, pd = past
    hs, qs = (), ()
    for j in tl.static_range(BLOCK):
        total = where_there(left, j, pd + fd[j] + bonus * d[j], 1.0)
        least, greatest = tl.minimum(least, total), tl.maximum(greatest, total)
        inverse = reciprocal(total)
        h = rows_g[j].to(lam.dtype) * inverse
        hs += (h,)
        qs += (h * ((pn + fn[j] + bonus * n[j]) * inverse),)
        pn, pd = pn * lam + n[j], pd * lam + d[j]
    return hs, qs, least, greatest


@triton.jit
def block_gradients(
    rows_g, p_gk, p_gv, left, C, n, d, past, future, on, back, bonus, lam, BLOCK: tl.constexpr
):  # fmt: skip
    """Write gk and gv of a block from the states that enter it on both sides; on, back: the adjoint ones.

    A token's own part of gk is exp(u) d h (v - out) with v - out summed over the other tokens only: exact
    where the token dominates. gw: at each token what comes from one side meets the adjoint from the other.
    Returns both states that leave it to later tokens, and the parts of gw, but for -lam, and of gu.
    """
    pn, pd = past
    r, rq = on
    fn, fd = futures(n, d, future[0], future[1], lam, BLOCK)[:2]
    gw, gu = tl.zeros_like(pn), tl.zeros_like(pn)
    hs, qs, by_k, by_v, pns, pds = (), (), (), (), (), ()
    for j in tl.static_range(BLOCK):
        num, den = pn + fn[j], pd + fd[j]
        inverse = reciprocal(where_there(left, j, den + bonus * d[j], 1.0))
        h = rows_g[j].to(lam.dtype) * inverse
        q = h * ((num + bonus * n[j]) * inverse)
        own = h * (den * n[j] - num * d[j]) * (bonus * inverse)
        gu += own
        gw += r * fn[j]
        gw -= rq * fd[j]
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
        gw += r * pns[j]
        gw -= rq * pds[j]
        r, rq = r * lam + hs[j], rq * lam + qs[j]
    return (pn, pd), on, gw, gu


@triton.jit
def fast_gradients(
    p_k, p_v, p_g, p_gk, p_gv, keys, values, rows_g, left, C, w, bonus, top, mean,
    past, fns, fds, on, frs, fqs, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write gk and gv, return each lane's part of gw and gu.

    past, on: what enters the lane, (fns, fds) and (frs, fqs) its blocks from the future; keys, values,
    rows_g: of the first block.
    """
    lam = tl.exp2(-w)
    gw, gu = tl.zeros_like(past[0]), tl.zeros_like(past[0])
    for s in range(BLOCKS):
        ahead = tl.minimum(s + 1, BLOCKS - 1)
        next_keys = read_rows(p_k, left, C, ahead, BLOCK, float("-inf"))
        next_values = read_rows(p_v, left, C, ahead, BLOCK, 0.0)
        next_g = read_rows(p_g, left, C, ahead, BLOCK, 0.0)
        n, d = weigh(keys, values, top, mean, BLOCK)
        future, back = (fns[0], fds[0]), (frs[0], fqs[0])
        fns, fds = push_last(fns, fns[0], BLOCKS), push_last(fds, fds[0], BLOCKS)
        frs, fqs = push_last(frs, frs[0], BLOCKS), push_last(fqs, fqs[0], BLOCKS)
        past, on, by_w, by_u = block_gradients(
            rows_g, rows_after(p_gk, C, s * BLOCK), rows_after(p_gv, C, s * BLOCK),
            None if left is None else left - s * BLOCK, C, n, d, past, future, on, back, bonus, lam, BLOCK,
        )  # fmt: skip
        gw += by_w
        gu += by_u
        keys, values, rows_g = next_keys, next_values, next_g
    return -lam * gw, gu
