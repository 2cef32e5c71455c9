"""Bi-WKV on a GPU, fast: one reference key for all tokens of a program. Legend: triton_states.py.

The sums and gradients are those of fixed_reference.py. The reference is the largest of a few keys, which
does unless a denominator turns out very small or very large for it; `unfit` tells afterwards. What a program
needs of a token again it reads again: by then it is near at hand. What its blocks meet it keeps in memory, not
in registers: more programs run at a time.

    here    where a lane keeps its numbers, rows as in triton_states.py; ok: where there is such a channel
"""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    keep,
    kept,
    key_of,
    put_row,
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
def read_keys(p_k, left, C, s, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Return the keys of block s, a tuple."""
    p_k, left = rows_after(p_k, C, s * BLOCK), None if left is None else left - s * BLOCK
    rows = ()
    for j in tl.static_range(BLOCK):
        rows += (key_of(p_k, left, C, j, WIDE),)
    return rows


@triton.jit
def read_rows(p, left, C, s, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Return the tokens of block s, a tuple."""
    p, left = rows_after(p, C, s * BLOCK), None if left is None else left - s * BLOCK
    rows = ()
    for j in tl.static_range(BLOCK):
        rows += (row_of(p, left, C, j, WIDE),)
    return rows


@triton.jit
def weigh(keys, values, top, mean, BLOCK: tl.constexpr):
    """Return (n, d) of the tokens of a block, two tuples: d = exp(k - reference), n = d (v - mean)."""
    n, d = (), ()
    for j in tl.static_range(BLOCK):
        x = tl.exp2(keys[j] * LOG2E - top)
        n += (x * (values[j] - mean),)
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
def fast_totals(p_k, p_v, left, C, w, top, mean, here, ok, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Go through the blocks: return what each lane sends to later ones and to earlier ones.

    Then its largest weight, and keys and values of its last block. Kept, num in BLOCKS rows, den in the next: what
    reaches each block from earlier tokens of the lane.
    """
    lam, far = tl.exp2(-w), tl.exp2(-BLOCK * w)
    zero = tl.zeros(p_k.shape, w.dtype)
    ln, ld, en, ed, power, high = zero, zero, zero, zero, zero + 1.0, zero
    keys, values = read_keys(p_k, left, C, 0, BLOCK, w.dtype), read_rows(p_v, left, C, 0, BLOCK, w.dtype)
    for s in range(BLOCKS):
        ahead = tl.minimum(s + 1, BLOCKS - 1)
        next_keys = read_keys(p_k, left, C, ahead, BLOCK, w.dtype)
        next_values = read_rows(p_v, left, C, ahead, BLOCK, w.dtype)
        n, d = weigh(keys, values, top, mean, BLOCK)
        for j in tl.static_range(BLOCK):
            high = tl.maximum(high, d[j])
        keep(here, s, C, ln, ok)
        keep(here, BLOCKS + s, C, ld, ok)
        later_n, later_d, earlier_n, earlier_d = send(n, d, lam, BLOCK)
        ln, ld = ln * far + later_n, ld * far + later_d
        en, ed = en + power * earlier_n, ed + power * earlier_d
        power *= far
        keys, values = next_keys, next_values
    return ln, ld, en, ed, high, keys, values


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


@triton.jit
def fast_outputs(
    p_k, p_v, p_out, keys, values, left, C, w, bonus, top, scale, pn, pd, fn, fd, here, ok, greatest,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write the outputs; return the least and greatest denominator of each lane, and its first output.

    (pn, pd), (fn, fd): what enters each lane. keys, values: of the last block, from which it goes back: what was
    read last is nearest. scale: of what `fast_totals` has kept. greatest: to begin with.
    """
    lam = tl.exp2(-w)
    zero = tl.zeros_like(pd)
    least, some = zero + float("inf"), zero
    for i in range(BLOCKS):
        s = BLOCKS - 1 - i
        local_n, local_d = kept(here, s, C, ok), kept(here, BLOCKS + s, C, ok)
        ahead = tl.maximum(s - 1, 0)
        next_keys = read_keys(p_k, left, C, ahead, BLOCK, w.dtype)
        next_values = read_rows(p_v, left, C, ahead, BLOCK, w.dtype)
        n, d = weigh(keys, values, top, 0.0, BLOCK)
        from_n, from_d, fn, fd = futures(n, d, fn, fd, lam, BLOCK)
        far = zero + tl.exp2(-s * BLOCK * w)
        past = (tl.fma(far, pn, scale * local_n), tl.fma(far, pd, scale * local_d))
        least, greatest, some = put_outputs(
            rows_after(p_out, C, s * BLOCK), None if left is None else left - s * BLOCK, C, n, d, past,
            from_n, from_d, least, greatest, bonus, lam, BLOCK,
        )  # fmt: skip
        keys, values = next_keys, next_values
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
        h = rows_g[j] * inverse
        hs += (h,)
        qs += (h * ((pn + fn[j] + bonus * n[j]) * inverse),)
        pn, pd = pn * lam + n[j], pd * lam + d[j]
    return hs, qs, least, greatest


@triton.jit
def fast_adjoint(
    p_k, p_v, p_g, keys, values, left, C, w, bonus, top, mean, pn, pd, fn, fd, here, ok,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return what each lane sends in the adjoint sums, to later and to earlier ones.

    Then the least and greatest denominator. (pn, pd), (fn, fd): what enters each lane; keys, values: of its last
    block, from which it goes back: what was read last is nearest. Kept, in BLOCKS rows each: num and den that
    enter the blocks from the future, in place of what `fast_totals` kept, and, of the adjoint sums, what reaches
    them from later tokens of the lane.
    """
    lam, far_block = tl.exp2(-w), tl.exp2(-BLOCK * w)
    zero = tl.zeros_like(pd)
    least, greatest = zero + float("inf"), zero
    lr, lq, er, eq, power = zero, zero, zero, zero, zero + 1.0
    rows_g = read_rows(p_g, left, C, BLOCKS - 1, BLOCK, w.dtype)
    for i in range(BLOCKS):
        s = BLOCKS - 1 - i
        local_n, local_d = kept(here, s, C, ok), kept(here, BLOCKS + s, C, ok)
        n, d = weigh(keys, values, top, mean, BLOCK)
        keep(here, s, C, fn, ok)
        keep(here, BLOCKS + s, C, fd, ok)
        keep(here, 2 * BLOCKS + s, C, er, ok)
        keep(here, 3 * BLOCKS + s, C, eq, ok)
        from_n, from_d, fn, fd = futures(n, d, fn, fd, lam, BLOCK)
        far = zero + tl.exp2(-s * BLOCK * w)
        h, q, least, greatest = adjoint_pairs(
            rows_g, None if left is None else left - s * BLOCK, n, d,
            (tl.fma(far, pn, local_n), tl.fma(far, pd, local_d)), from_n, from_d, least, greatest, bonus, lam, BLOCK,
        )  # fmt: skip
        later_r, later_q, earlier_r, earlier_q = send(h, q, lam, BLOCK)
        er, eq = er * far_block + earlier_r, eq * far_block + earlier_q
        lr, lq = lr + power * later_r, lq + power * later_q
        power *= far_block
        ahead = tl.maximum(s - 1, 0)
        keys = read_keys(p_k, left, C, ahead, BLOCK, w.dtype)
        values = read_rows(p_v, left, C, ahead, BLOCK, w.dtype)
        rows_g = read_rows(p_g, left, C, ahead, BLOCK, w.dtype)
    return lr, lq, er, eq, least, greatest


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
        h = rows_g[j] * inverse
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
    p_k, p_v, p_g, p_gk, p_gv, left, C, w, bonus, top, mean,
    past, on, fr, fq, here, ok, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write gk and gv, return each lane's part of gw and gu.

    past, on: what enters the lane; fr, fq: what enters it in the adjoint sums from the future; kept: see
    `fast_adjoint`.
    """
    lam = tl.exp2(-w)
    zero = tl.zeros_like(fr)
    gw, gu = zero, zero
    keys, values = read_keys(p_k, left, C, 0, BLOCK, w.dtype), read_rows(p_v, left, C, 0, BLOCK, w.dtype)
    rows_g = read_rows(p_g, left, C, 0, BLOCK, w.dtype)
    for s in range(BLOCKS):
        future = kept(here, s, C, ok), kept(here, BLOCKS + s, C, ok)
        back_r, back_q = kept(here, 2 * BLOCKS + s, C, ok), kept(here, 3 * BLOCKS + s, C, ok)
        ahead = tl.minimum(s + 1, BLOCKS - 1)
        next_keys = read_keys(p_k, left, C, ahead, BLOCK, w.dtype)
        next_values = read_rows(p_v, left, C, ahead, BLOCK, w.dtype)
        next_g = read_rows(p_g, left, C, ahead, BLOCK, w.dtype)
        n, d = weigh(keys, values, top, mean, BLOCK)
        far = zero + tl.exp2(-(BLOCKS - 1 - s) * BLOCK * w)
        back = (tl.fma(far, fr, back_r), tl.fma(far, fq, back_q))
        past, on, by_w, by_u = block_gradients(
            rows_g, rows_after(p_gk, C, s * BLOCK), rows_after(p_gv, C, s * BLOCK),
            None if left is None else left - s * BLOCK, C, n, d, past, future, on, back, bonus, lam, BLOCK,
        )  # fmt: skip
        gw += by_w
        gu += by_u
        keys, values, rows_g = next_keys, next_values, next_g
    return -lam * gw, gu
