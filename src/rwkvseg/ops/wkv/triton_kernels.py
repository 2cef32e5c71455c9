"""Bi-WKV on a GPU: the Triton kernels. Legend: triton_states.py; what launches them: tiled.py."""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_fast import (
    adjoint,
    fast_gradients,
    fast_states,
    futures,
    highest,
    highest_with_value,
    pairs,
    reciprocal,
    send,
    spread,
    too_small,
)
from rwkvseg.ops.wkv.triton_safe import safe_backward, safe_forward
from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    NOTHING,
    add_rows,
    empty_blocks,
    enter,
    exponents,
    get_block,
    mean_value,
    place,
    plus,
    put_block,
    reach,
    read_state,
    row_of,
    safe_reach,
    store_sums,
    vector_of,
    write_state,
    write_totals,
)


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_totals_kernel(
    p_w, p_k, p_v, p_totals, T, C, num_spans,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    EVEN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write what every span sends on to later tokens and to earlier ones."""
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS, EVEN)
    ok = c < C
    w = vector_of(p_w, c, C, WIDE) * LOG2E
    p_k += base
    p_v += base
    zero = tl.zeros_like(places).to(WIDE)
    chunk = tl.arange(0, CHUNKS)[:, None]
    to_end, to_start = (
        ((CHUNKS - chunk) * (BLOCK * BLOCKS) - 1).to(WIDE) * w,
        (chunk * (BLOCK * BLOCKS)).to(WIDE) * w,
    )
    lo, eo = zero + NOTHING, zero + NOTHING
    for s in range(BLOCKS):
        for j in tl.static_range(BLOCK):
            e = exponents(p_k, places, left, C, s * BLOCK + j, WIDE)
            lo = tl.maximum(lo, e - (to_end - (s * BLOCK + j) * w))
            eo = tl.maximum(eo, e - (to_start + (s * BLOCK + j) * w))
    lo, eo = tl.max(lo, 0)[None, :], tl.max(eo, 0)[None, :]
    ln, ld, en, ed = zero, zero, zero, zero
    for s in range(BLOCKS):
        for j in tl.static_range(BLOCK):
            e = exponents(p_k, places, left, C, s * BLOCK + j, WIDE)
            v = row_of(p_v, places, left, C, s * BLOCK + j, WIDE)
            x = tl.exp2(e - (to_end - (s * BLOCK + j) * w) - lo)
            y = tl.exp2(e - (to_start + (s * BLOCK + j) * w) - eo)
            ln, ld, en, ed = ln + x * v, ld + x, en + y * v, ed + y
    row = i_b * num_spans + i_s + tl.zeros_like(c)
    write_state(p_totals, row, c, C, ok, (lo, tl.sum(ln, 0)[None, :], tl.sum(ld, 0)[None, :]))
    write_state(p_totals + 3 * C, row, c, C, ok, (eo, tl.sum(en, 0)[None, :], tl.sum(ed, 0)[None, :]))
    tl.store(p_totals + (row.to(tl.int64) * 7 + 6) * C + c, tl.zeros_like(w), mask=ok)


@triton.jit(do_not_specialize=["num_spans"])
def bi_wkv_join_kernel(
    p_w, p_totals, p_states, C, num_spans,
    SPAN: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
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
    p_w, p_u, p_k, p_v, p_y, p_states, T, C, num_spans,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    EVEN: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write bi_wkv of k, v (B, T, C) to y."""
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS, EVEN)
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, SPANS, WIDE)
    k, v, y = p_k + base, p_v + base, p_y + base
    top = highest(k, places, left, C, BLOCK, BLOCKS, WIDE)
    top = tl.where(c < C, tl.maximum(tl.maximum(top, past[0]), future[0]), 0.0)
    pn, pd, fn, fd = fast_states(
        k, v, places, left, C, w, top, 0.0, past, future, BLOCK, BLOCKS
    )  # fmt: skip
    lam, bonus = tl.exp2(-w), tl.exp2(u)
    least = tl.zeros_like(pd) + float("inf")
    for s in range(BLOCKS):
        n, d = pairs(k, v, places, left, C, top, 0.0, s, BLOCK)
        from_n, from_d = futures(n, d, get_block(fn, s, BLOCKS), get_block(fd, s, BLOCKS), lam, BLOCK)
        for j in tl.static_range(BLOCK):
            here = s * BLOCK + j < left
            num, den = pn + from_n[j] + bonus * n[j], tl.where(here, pd + from_d[j] + bonus * d[j], 1.0)
            least = tl.minimum(least, den)
            tl.store(y + places + (s * BLOCK + j) * C, num * reciprocal(den), mask=here)
            pn, pd = pn * lam + n[j], pd * lam + d[j]
    if too_small(least, w, u, c < C, span, LIMIT):
        safe_forward(
            p_w, p_u, p_k, p_v, p_y, p_states, T, C, num_spans,
            BLOCK, BLOCKS, CHUNKS, CHANNELS, EVEN, SPANS, WIDE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_bwd_kernel(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs, T, C, num_spans,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    EVEN: tl.constexpr, SPANS: tl.constexpr, TOTALS: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write gk, gv and the parts of gw and gu from g (B, T, C), the gradient of y.

    Or, if TOTALS, write the totals of the adjoint states: of several spans the former needs them.
    """
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS, EVEN)
    ok = c < C
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, SPANS, WIDE)
    k, v, g = p_k + base, p_v + base, p_g + base
    if SPANS == 1:
        top, mean = highest_with_value(k, v, places, left, C, BLOCK, BLOCKS, WIDE)
        top = tl.where(ok, top, 0.0)
    else:
        mean = mean_value(p_states, i_b, i_s, num_spans, c, C, SPANS, WIDE)
        top = highest(k, places, left, C, BLOCK, BLOCKS, WIDE)
        top = tl.where(ok, tl.maximum(tl.maximum(top, past[0]), future[0]), 0.0)
    past = (past[0], past[1] - mean * past[2], past[2])
    future = (future[0], future[1] - mean * future[2], future[2])
    start, end = enter(p_adjoint, i_b, i_s, num_spans, c, C, -span * w, 1 if TOTALS else SPANS, WIDE)
    lam, far, decay, bonus = tl.exp2(-w), tl.exp2(-BLOCK * w), tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    pn, pd, fn, fd = fast_states(
        k, v, places, left, C, w, top, mean, past, future, BLOCK, BLOCKS
    )  # fmt: skip
    an, ad = pn, pd
    zero = tl.zeros_like(pn)
    least = zero + float("inf")
    lr, lq, er, eq = zero, zero, empty_blocks(zero, 0.0, BLOCKS), empty_blocks(zero, 0.0, BLOCKS)
    for s in range(BLOCKS):
        n, d = pairs(k, v, places, left, C, top, mean, s, BLOCK)
        enters = (get_block(fn, s, BLOCKS), get_block(fd, s, BLOCKS))
        h, q, own, an, ad, least = adjoint(
            g, places, left, C, n, d, (an, ad), enters, least, bonus, lam, s, BLOCK
        )  # fmt: skip
        later_r, later_q, earlier_r, earlier_q = send(h, q, lam, BLOCK)
        lr, lq = lr * far + later_r, lq * far + later_q
        er, eq = put_block(er, s, earlier_r, BLOCKS), put_block(eq, s, earlier_q, BLOCKS)
    sent = spread(er, eq, zero, zero, far, BLOCKS)
    if too_small(least, w, u, ok, span, LIMIT):
        safe_backward(
            p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs,
            T, C, num_spans, BLOCK, BLOCKS, CHUNKS, CHANNELS, EVEN, SPANS, TOTALS, WIDE,
        )  # fmt: skip
    elif TOTALS:
        later, earlier = (zero - top, lr, lq), (zero - top, sent[2], sent[3])
        write_totals(p_adjoint, i_b, i_s, num_spans, c, C, later, earlier, -BLOCK * BLOCKS * w, CHUNKS)
    else:
        x, y = tl.exp2(start[0] + top), tl.exp2(end[0] + top)
        pr, pq = reach(lr, lq, decay, x * start[1], x * start[2], False)
        fr, fq = reach(sent[2], sent[3], decay, y * end[1], y * end[2], True)
        gw, gu = fast_gradients(
            k, v, g, p_gk + base, p_gv + base, places, left, C, w, bonus, top, mean,
            pn, pd, fn, fd, pr, pq, fr, fq, er, eq, BLOCK, BLOCKS,
        )  # fmt: skip
        store_sums(p_parts, i_b, i_s, num_spans, c, C, gw, gu)
