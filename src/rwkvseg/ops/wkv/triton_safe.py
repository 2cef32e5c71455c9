"""Bi-WKV on a GPU, safe: every state carries its exponent, and the tokens of a block are taken pair by pair.

Sums are taken less their largest exponent, so that nothing overflows or vanishes for any finite keys, decays
and bonuses. Programs that the fast form does not suit end up here; as functions of their own, these make the
fast form no slower to compile. Legend: triton_states.py.
"""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    NOTHING,
    enter,
    exponents,
    get_block,
    key_of,
    mean_value,
    place,
    plus,
    put_block,
    put_row,
    row_of,
    safe_reach,
    same_rows,
    store_sums,
    vector_of,
    where_there,
    write_mean,
    write_totals,
)


@triton.jit
def _value_of_highest(p_k, p_v, left, C, LENGTH: tl.constexpr, WIDE: tl.constexpr):
    """Return a value that has the largest key of each channel (1, CHANNELS), 0 where it is not finite."""
    high = tl.zeros(p_k.shape, WIDE) + float("-inf")
    value = tl.zeros(p_k.shape, WIDE)
    for j in range(LENGTH):
        k = key_of(p_k, left, C, j, WIDE)
        value = tl.where(k > high, row_of(p_v, left, C, j, WIDE), value)
        high = tl.maximum(high, k)
    value = tl.where(high == tl.max(high, 0)[None, :], value, float("-inf"))
    value = tl.max(value, 0)[None, :]
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def _gap(i, j, w, u):
    """Return what is added to the key of token i where token j looks at it."""
    return tl.where(i == j, u, -(tl.abs(i - j) - 1) * w)


@triton.jit
def _send(p_k, p_v, left, C, w, mean, s, BLOCK: tl.constexpr, LATER: tl.constexpr):
    """Return the state that block s sends to later tokens, or to earlier ones."""
    o = tl.zeros(p_k.shape, w.dtype) + NOTHING
    for j in range(BLOCK):
        gap = BLOCK - 1 - j if LATER else j
        o = tl.maximum(o, exponents(p_k, left, C, s * BLOCK + j, w.dtype) - gap * w)
    n = tl.zeros_like(o)
    d = tl.zeros_like(o)
    for j in range(BLOCK):
        gap = BLOCK - 1 - j if LATER else j
        x = tl.exp2(exponents(p_k, left, C, s * BLOCK + j, w.dtype) - gap * w - o)
        n += x * (row_of(p_v, left, C, s * BLOCK + j, w.dtype) - mean)
        d += x
    return o, n, d


@triton.jit
def _spread(eo, en, ed, state, decay, BLOCKS: tl.constexpr):
    """`spread` of states that carry their exponents; decay: of a block, to base 2."""
    o, n, d = state
    rows_o, rows_n, rows_d = (), (), ()
    for s in tl.static_range(BLOCKS - 1, -1, -1):
        rows_o, rows_n, rows_d = (o,) + rows_o, (n,) + rows_n, (d,) + rows_d
        o, n, d = plus(o + decay, n, d, eo[s], en[s], ed[s])
    return rows_o, rows_n, rows_d, (o, n, d)


@triton.jit
def _states(
    p_k, p_v, left, C, w, mean, past, future, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """`fast_states` of states that carry their exponents."""
    zero = tl.zeros(p_k.shape, w.dtype)
    nothing = (zero + NOTHING, zero, zero)
    o, n, d = nothing
    eo, en, ed = (
        same_rows(zero + NOTHING, BLOCKS),
        same_rows(zero, BLOCKS),
        same_rows(zero, BLOCKS),
    )
    for s in range(BLOCKS):
        lo, ln, ld = _send(p_k, p_v, left, C, w, mean, s, BLOCK, True)
        o, n, d = plus(o - BLOCK * w, n, d, lo, ln, ld)
        lo, ln, ld = _send(p_k, p_v, left, C, w, mean, s, BLOCK, False)
        eo, en, ed = put_block(eo, s, lo, BLOCKS), put_block(en, s, ln, BLOCKS), put_block(ed, s, ld, BLOCKS)
    sent = _spread(eo, en, ed, nothing, -BLOCK * w, BLOCKS)[3]
    before = safe_reach((o, n, d), -BLOCK * BLOCKS * w, past, False)
    after = safe_reach(sent, -BLOCK * BLOCKS * w, future, True)
    fo, fn, fd, first = _spread(eo, en, ed, after, -BLOCK * w, BLOCKS)
    return before, fo, fn, fd


@triton.jit
def _sum(p_k, p_v, left, C, w, u, mean, past, future, s, j, BLOCK: tl.constexpr):
    """Return the state that token j of block s sees, its own key and value included."""
    po, pn, pd = past
    fo, fn, fd = future
    po -= j * w
    fo -= (BLOCK - 1 - j) * w
    o = tl.maximum(po, fo)
    for i in range(BLOCK):
        o = tl.maximum(o, exponents(p_k, left, C, s * BLOCK + i, w.dtype) + _gap(i, j, w, u))
    x, y = tl.exp2(po - o), tl.exp2(fo - o)
    n, d = x * pn + y * fn, x * pd + y * fd
    for i in range(BLOCK):
        x = tl.exp2(exponents(p_k, left, C, s * BLOCK + i, w.dtype) + _gap(i, j, w, u) - o)
        n += x * (row_of(p_v, left, C, s * BLOCK + i, w.dtype) - mean)
        d += x
    return o, n, d


@triton.jit(noinline=True)
def safe_forward(
    i_p, p_w, p_u, p_k, p_v, p_y, p_states, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write y of program i_p, which need not be this one."""
    i_b, i_s, c, base, places, left = place(
        T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS, SPANS != 1, i_p
    )
    left = None if WHOLE else left
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, 0.0, SPANS, WIDE)
    k, v, y = p_k + base + places, p_v + base + places, p_y + base + places
    past, fo, fn, fd = _states(k, v, left, C, w, 0.0, past, future, BLOCK, BLOCKS)
    some = tl.zeros(k.shape, WIDE)
    for s in range(BLOCKS):
        after = (get_block(fo, s, BLOCKS), get_block(fn, s, BLOCKS), get_block(fd, s, BLOCKS))
        for j in range(BLOCK):
            o, num, den = _sum(k, v, left, C, w, u, 0.0, past, after, s, j, BLOCK)
            put_row(y, left, C, s * BLOCK + j, num / den)
            some = tl.where(s + j == 0, num / den, some)
        o, n, d = _send(k, v, left, C, w, 0.0, s, BLOCK, True)
        past = plus(past[0] - BLOCK * w, past[1], past[2], o, n, d)
    if SPANS == 1:
        write_mean(p_states, i_b, c, C, some, left)


@triton.jit(noinline=True)
def safe_totals(
    p_w, p_k, p_v, p_totals, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, i_p=None,
):  # fmt: skip
    """Write what a span sends on to later tokens and to earlier ones. i_p: see `place`."""
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS, False, i_p)
    left = None if WHOLE else left
    w = vector_of(p_w, c, C, WIDE) * LOG2E
    k, v = p_k + base + places, p_v + base + places
    zero = tl.zeros(k.shape, WIDE)
    value = _value_of_highest(k, v, left, C, BLOCK * BLOCKS, WIDE)
    nothing = (zero + NOTHING, zero, zero)
    later = nothing
    earlier = nothing
    for s in range(BLOCKS):
        o, n, d = _send(k, v, left, C, w, value, s, BLOCK, True)
        later = plus(later[0] - BLOCK * w, later[1], later[2], o, n, d)
        o, n, d = _send(k, v, left, C, w, value, s, BLOCK, False)
        earlier = plus(earlier[0], earlier[1], earlier[2], o - s * BLOCK * w, n, d)
    write_totals(p_totals, i_b, i_s, num_spans, c, C, later, earlier, value, -BLOCK * BLOCKS * w, CHUNKS)


@triton.jit(noinline=True)
def safe_backward(
    i_p, p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, SPANS: tl.constexpr, TOTALS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write gk, gv and the parts of gw and gu of a program, or, if TOTALS, the totals of the adjoint states.

    keys and outs are (B, T, C) in memory: -log2(den), the key of each token in the adjoint sums, and its out.
    """
    turned: tl.constexpr = SPANS != 1 and not TOTALS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS, turned, i_p)
    left = None if WHOLE else left
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    mean = mean_value(p_states, i_b, i_s, num_spans, c, C, SPANS, WIDE)
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, mean, SPANS, WIDE)
    start, end = enter(p_adjoint, i_b, i_s, num_spans, c, C, -span * w, 0.0, 1 if TOTALS else SPANS, WIDE)
    k, v, g = p_k + base + places, p_v + base + places, p_g + base + places
    gk, gv = p_gk + base + places, p_gv + base + places
    keys, outs = p_keys + base + places, p_outs + base + places
    zero = tl.zeros(k.shape, w.dtype)
    nothing = (zero + NOTHING, zero, zero)
    before, fo, fn, fd = _states(k, v, left, C, w, mean, past, future, BLOCK, BLOCKS)
    past = before
    for s in range(BLOCKS):
        after = (get_block(fo, s, BLOCKS), get_block(fn, s, BLOCKS), get_block(fd, s, BLOCKS))
        for j in range(BLOCK):
            o, num, den = _sum(k, v, left, C, w, u, mean, past, after, s, j, BLOCK)
            put_row(keys, left, C, s * BLOCK + j, -o - tl.log2(den))
            put_row(outs, left, C, s * BLOCK + j, num / den)
        o, n, d = _send(k, v, left, C, w, mean, s, BLOCK, True)
        past = plus(past[0] - BLOCK * w, past[1], past[2], o, n, d)
    tl.debug_barrier()  # what one thread has stored another may load
    later = nothing
    eo, er, eq = (
        same_rows(zero + NOTHING, BLOCKS),
        same_rows(zero, BLOCKS),
        same_rows(zero, BLOCKS),
    )
    for s in range(BLOCKS):
        sent = _send_adjoint(g, keys, outs, left, C, w, s, BLOCK, True)[0]
        later = plus(later[0] - BLOCK * w, later[1], later[2], sent[0], sent[1], sent[2])
        sent = _send_adjoint(g, keys, outs, left, C, w, s, BLOCK, False)[0]
        eo, er, eq = (
            put_block(eo, s, sent[0], BLOCKS),
            put_block(er, s, sent[1], BLOCKS),
            put_block(eq, s, sent[2], BLOCKS),
        )
    earlier = _spread(eo, er, eq, nothing, -BLOCK * w, BLOCKS)[3]
    if TOTALS:
        write_totals(
            p_adjoint, i_b, i_s, num_spans, c, C, later, earlier, 0.0 * w, -BLOCK * BLOCKS * w, CHUNKS
        )
    else:
        from_past = safe_reach(later, -BLOCK * BLOCKS * w, start, False)
        from_future = safe_reach(earlier, -BLOCK * BLOCKS * w, end, True)
        ro, rr, rq, first = _spread(eo, er, eq, from_future, -BLOCK * w, BLOCKS)
        past = before
        gw, gu = zero, zero
        for s in range(BLOCKS):
            after = (get_block(fo, s, BLOCKS), get_block(fn, s, BLOCKS), get_block(fd, s, BLOCKS))
            enters = (get_block(ro, s, BLOCKS), get_block(rr, s, BLOCKS), get_block(rq, s, BLOCKS))
            on, on_w = _send_adjoint(g, keys, outs, left, C, w, s, BLOCK, True)
            back, back_w = _send_adjoint(g, keys, outs, left, C, w, s, BLOCK, False)
            gw += _between(from_past, after, on[0], on_w, w, BLOCK)
            gw += _between(enters, past, back[0], back_w, w, BLOCK)
            for i in range(BLOCK):
                by_k, by_v, by_w, by_u = _gradient(
                    k, v, g, keys, outs, left, C, w, u, mean, from_past, enters, s, i, BLOCK
                )  # fmt: skip
                put_row(gk, left, C, s * BLOCK + i, by_k)
                put_row(gv, left, C, s * BLOCK + i, by_v)
                gw += where_there(left, s * BLOCK + i, by_w, 0.0)
                gu += where_there(left, s * BLOCK + i, by_u, 0.0)
            o, n, d = _send(k, v, left, C, w, mean, s, BLOCK, True)
            past = plus(past[0] - BLOCK * w, past[1], past[2], o, n, d)
            from_past = plus(from_past[0] - BLOCK * w, from_past[1], from_past[2], on[0], on[1], on[2])
        store_sums(p_parts, i_b, i_s, num_spans, c, C, gw, gu)


@triton.jit
def _send_adjoint(
    p_g, p_keys, p_outs, left, C, w, s, BLOCK: tl.constexpr, LATER: tl.constexpr
):  # fmt: skip
    """Return the adjoint state (exponent, r, q) that block s sends, and the derivatives of r and q by w."""
    o = tl.zeros(p_keys.shape, w.dtype) + NOTHING
    for j in range(BLOCK):
        gap = BLOCK - 1 - j if LATER else j
        o = tl.maximum(o, key_of(p_keys, left, C, s * BLOCK + j, w.dtype) - gap * w)
    r, q = tl.zeros_like(o), tl.zeros_like(o)
    r_w, q_w = tl.zeros_like(o), tl.zeros_like(o)
    for j in range(BLOCK):
        gap = BLOCK - 1 - j if LATER else j
        x = tl.exp2(key_of(p_keys, left, C, s * BLOCK + j, w.dtype) - gap * w - o)
        x *= row_of(p_g, left, C, s * BLOCK + j, w.dtype)
        y = x * row_of(p_outs, left, C, s * BLOCK + j, w.dtype)
        r += x
        q += y
        r_w -= gap * x
        q_w -= gap * y
    return (o, r, q), (r_w, q_w)


@triton.jit
def _between(adjoint, pairs, o_w, by_w, w, BLOCK: tl.constexpr):
    """Return the part of gw from pairs of tokens of two blocks but what `_gradient` adds."""
    o, r, q = adjoint
    po, pn, pd = pairs
    r_w, q_w = by_w
    between = -BLOCK * tl.exp2(o + po - BLOCK * w) * (r * pn - q * pd)
    return between + tl.exp2(o_w + po) * (r_w * pn - q_w * pd)


@triton.jit
def _gradient(
    p_k, p_v, p_g, p_keys, p_outs, left, C, w, u, mean, before, after, s, i, BLOCK: tl.constexpr
):  # fmt: skip
    """Return of token i of block s: gk, gv and what it adds to gw and gu."""
    k = exponents(p_k, left, C, s * BLOCK + i, w.dtype)
    v = row_of(p_v, left, C, s * BLOCK + i, w.dtype) - mean
    o, r, q = before
    x = tl.exp2(k - i * w + o)
    by_v, by_k = x * r, x * (v * r - q)
    by_w = -i * by_k
    o, r, q = after
    x = tl.exp2(k - (BLOCK - 1 - i) * w + o)
    apart = x * (v * r - q)
    by_v += x * r
    by_k += apart
    by_w -= (BLOCK - 1 - i) * apart
    by_u = tl.zeros_like(by_v)
    for j in range(BLOCK):
        e = k + _gap(i, j, w, u) + key_of(p_keys, left, C, s * BLOCK + j, w.dtype)
        x = tl.exp2(e) * row_of(p_g, left, C, s * BLOCK + j, w.dtype)
        apart = x * (v - row_of(p_outs, left, C, s * BLOCK + j, w.dtype))
        by_v += x
        by_k += apart
        by_w -= tl.where(i == j, 0, tl.abs(i - j) - 1) * apart
        by_u += tl.where(i == j, apart, 0.0)
    return by_k, by_v, by_w, by_u
