"""Bi-WKV on a GPU: the Triton kernels. Legend: triton_states.py; what launches them: tiled.py."""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_fast import (
    adjoint_pairs,
    fast_enter,
    fast_gradients,
    fast_states,
    fast_totals,
    futures,
    pairs,
    reciprocal,
    reference,
    send,
    spread,
    unfit,
)
from rwkvseg.ops.wkv.triton_safe import safe_backward, safe_forward, safe_totals
from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    NOTHING,
    add_rows,
    empty_blocks,
    enter,
    get_block,
    mean_value,
    place,
    plus,
    put_block,
    put_row,
    read_state,
    rows_after,
    safe_reach,
    store_sums,
    vector_of,
    where_there,
    write_mean,
    write_state,
    write_totals,
)


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_totals_kernel(
    p_w, p_k, p_v, p_totals, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write what every span sends on to later tokens and to earlier ones."""
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS)
    left = None if WHOLE else left
    ok = c < C
    w = vector_of(p_w, c, C, WIDE) * LOG2E
    k, v = p_k + base + places, p_v + base + places
    nothing = (tl.zeros_like(w) + NOTHING, 0.0, 0.0)
    top = reference(k, left, C, nothing, nothing, ok, WIDE)
    ln, ld, en, ed = fast_totals(k, v, left, C, w, top, 0.0, BLOCK, BLOCKS)
    zero = tl.zeros_like(ln)
    sent = spread(en, ed, zero, zero, tl.exp2(-BLOCK * w), BLOCKS)
    chunk, decay = tl.arange(0, CHUNKS)[:, None].to(WIDE), -BLOCK * BLOCKS * w
    x, y = tl.exp2((CHUNKS - 1 - chunk) * decay), tl.exp2(chunk * decay)
    ln, ld = tl.sum(x * ln, 0)[None, :], tl.sum(x * ld, 0)[None, :]
    en, ed = tl.sum(y * sent[2], 0)[None, :], tl.sum(y * sent[3], 0)[None, :]
    if unfit(tl.minimum(ld, ed), tl.maximum(ld, ed), w, zero, ok, BLOCK * BLOCKS * CHUNKS, LIMIT):
        safe_totals(p_w, p_k, p_v, p_totals, T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, WIDE)
    else:
        row = i_b * num_spans + i_s + tl.zeros_like(c)
        write_state(p_totals, row, c, C, ok, (top, ln, ld))
        write_state(p_totals + 3 * C, row, c, C, ok, (top, en, ed))
        tl.store(p_totals + (row.to(tl.int64) * 7 + 6) * C + c, tl.zeros_like(w), mask=ok)


@triton.jit(do_not_specialize=["num_spans"])
def bi_wkv_join_kernel(
    p_w, p_totals, p_states, num_spans,
    C: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Join the totals of any number of spans: write what enters each, a group of 64 spans at a time."""
    num_blocks = tl.cdiv(C, CHANNELS)
    i_b = tl.program_id(0) // num_blocks
    c = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    decay = -LOG2E * vector_of(p_w, c, C, WIDE) * SPAN
    m = tl.arange(0, 64)[:, None]
    zero = tl.zeros_like(decay)
    enters = (zero + NOTHING, zero, zero)
    everything = (zero + NOTHING, zero, zero)
    for group in range(GROUPS):
        row, mask = i_b * num_spans + group * 64 + m, (group * 64 + m < num_spans) & (c < C)
        state = read_state(p_totals, row, c, C, mask, WIDE)
        write_state(p_states, row, c, C, mask, safe_reach(state, decay, enters, False))
        o, n, d = state
        so, sn, sd = enters
        to, tn, td = add_rows(o + (63 - m).to(WIDE) * decay, n, d)
        enters = plus(so + 64 * decay, sn, sd, to, tn, td)
        so, sn, sd = everything
        to, tn, td = add_rows(o, n, d)
        everything = plus(so, sn, sd, to, tn, td)
    mean = tl.where(c < C, everything[1] / everything[2], 0.0)
    enters = (zero + NOTHING, zero, zero)
    for back in range(GROUPS):
        first = (GROUPS - 1 - back) * 64
        row, mask = i_b * num_spans + first + m, (first + m < num_spans) & (c < C)
        state = read_state(p_totals + 3 * C, row, c, C, mask, WIDE)
        write_state(p_states + 3 * C, row, c, C, mask, safe_reach(state, decay, enters, True))
        tl.store(p_states + (row.to(tl.int64) * 7 + 6) * C + c, mean + tl.zeros_like(state[0]), mask=mask)
        o, n, d = state
        so, sn, sd = enters
        to, tn, td = add_rows(o + m.to(WIDE) * decay, n, d)
        enters = plus(so + 64 * decay, sn, sd, to, tn, td)


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_fwd_kernel(
    p_w, p_u, p_k, p_v, p_y, p_states, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write bi_wkv of k, v (B, T, C) to y."""
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS)
    left = None if WHOLE else left
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, SPANS, WIDE)
    k, v, y = p_k + base + places, p_v + base + places, p_y + base + places
    top = reference(k, left, C, past, future, c < C, WIDE)
    pn, pd, fn, fd = fast_states(k, v, left, C, w, top, 0.0, past, future, BLOCK, BLOCKS)
    lam, bonus = tl.exp2(-w), tl.exp2(u)
    least, greatest, some = tl.zeros_like(pd) + float("inf"), tl.zeros_like(pd), tl.zeros_like(pd)
    for s in range(BLOCKS):
        n, d = pairs(k, v, left, C, top, 0.0, s, BLOCK)
        from_n, from_d = futures(n, d, get_block(fn, s, BLOCKS), get_block(fd, s, BLOCKS), lam, BLOCK)
        rows = rows_after(y, C, s * BLOCK)
        here = None if left is None else left - s * BLOCK
        for j in tl.static_range(BLOCK):
            den = where_there(here, j, pd + from_d[j] + bonus * d[j], 1.0)
            least, greatest = tl.minimum(least, den), tl.maximum(greatest, den)
            out = (pn + from_n[j] + bonus * n[j]) * reciprocal(den)
            put_row(rows, here, C, j, out)
            if j == 0:
                some = tl.where(s == 0, out, some)
            pn, pd = pn * lam + n[j], pd * lam + d[j]
    if unfit(least, greatest, w, u, c < C, span, LIMIT):
        safe_forward(
            p_w, p_u, p_k, p_v, p_y, p_states, T, num_spans,
            C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, SPANS, WIDE,
        )  # fmt: skip
    elif SPANS == 1:
        write_mean(p_states, i_b, c, C, some, left)


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_bwd_kernel(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, SPANS: tl.constexpr, TOTALS: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write gk, gv and the parts of gw and gu from g (B, T, C), the gradient of y.

    Or, if TOTALS, write the totals of the adjoint states: of several spans the former needs them.
    """
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS)
    left = None if WHOLE else left
    ok = c < C
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, SPANS, WIDE)
    k, v, g = p_k + base + places, p_v + base + places, p_g + base + places
    mean = mean_value(p_states, i_b, i_s, num_spans, c, C, SPANS, WIDE)
    top = reference(k, left, C, past, future, ok, WIDE)
    past = (past[0], past[1] - mean * past[2], past[2])
    future = (future[0], future[1] - mean * future[2], future[2])
    start, end = enter(p_adjoint, i_b, i_s, num_spans, c, C, -span * w, 1 if TOTALS else SPANS, WIDE)
    lam, far, bonus = tl.exp2(-w), tl.exp2(-BLOCK * w), tl.exp2(u)
    pn, pd, fn, fd = fast_states(k, v, left, C, w, top, mean, past, future, BLOCK, BLOCKS)
    an, ad = pn, pd
    zero = tl.zeros_like(pn)
    least, greatest = zero + float("inf"), zero
    lr, lq, er, eq = zero, zero, empty_blocks(zero, 0.0, BLOCKS), empty_blocks(zero, 0.0, BLOCKS)
    for s in range(BLOCKS):
        n, d = pairs(k, v, left, C, top, mean, s, BLOCK)
        enters = (get_block(fn, s, BLOCKS), get_block(fd, s, BLOCKS))
        h, q, an, ad, least, greatest = adjoint_pairs(
            g, left, C, n, d, (an, ad), enters, least, greatest, bonus, lam, s, BLOCK
        )  # fmt: skip
        later_r, later_q, earlier_r, earlier_q = send(h, q, lam, BLOCK)
        lr, lq = lr * far + later_r, lq * far + later_q
        er, eq = put_block(er, s, earlier_r, BLOCKS), put_block(eq, s, earlier_q, BLOCKS)
    if unfit(least, greatest, w, u, ok, span, LIMIT):
        safe_backward(
            p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs,
            T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, SPANS, TOTALS, WIDE,
        )  # fmt: skip
    elif TOTALS:
        sent = spread(er, eq, zero, zero, far, BLOCKS)
        later, earlier = (zero - top, lr, lq), (zero - top, sent[2], sent[3])
        write_totals(p_adjoint, i_b, i_s, num_spans, c, C, later, earlier, -BLOCK * BLOCKS * w, CHUNKS)
    else:
        x, y = tl.exp2(start[0] + top), tl.exp2(end[0] + top)
        pr, pq, fr, fq = fast_enter(lr, lq, er, eq, w, x, start, y, end, BLOCK, BLOCKS)
        gw, gu = fast_gradients(
            k, v, g, p_gk + base + places, p_gv + base + places, left, C, w, bonus, top, mean,
            pn, pd, fn, fd, pr, pq, fr, fq, BLOCK, BLOCKS,
        )  # fmt: skip
        store_sums(p_parts, i_b, i_s, num_spans, c, C, gw, gu)
