"""Bi-WKV on a GPU: the Triton kernels. Legend: triton_states.py; what launches them: tiled.py."""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_fast import (
    add_entering,
    adjoint_pairs,
    fast_gradients,
    fast_totals,
    futures,
    read_rows,
    reciprocal,
    reference,
    send,
    unfit,
    weigh,
)
from rwkvseg.ops.wkv.triton_safe import safe_backward, safe_forward, safe_totals
from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    NOTHING,
    add_rows,
    column_sum,
    enter,
    mean_value,
    place,
    plus,
    push_first,
    put_row,
    reach,
    read_centred,
    rows_after,
    safe_reach,
    same_rows,
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
    top = reference(p_k + base + c, C, i_s, T, BLOCK * BLOCKS * CHUNKS, nothing, nothing, ok, WIDE)
    zero = tl.zeros(k.shape, WIDE)
    chunk = tl.arange(0, CHUNKS)[:, None]
    # decay to the last token of the span, and to its first, from each lane's token at hand
    to_end = ((CHUNKS - chunk) * (BLOCK * BLOCKS) - 1).to(WIDE) * w
    to_start = (chunk * (BLOCK * BLOCKS)).to(WIDE) * w
    ln, ld, en, ed, high = zero, zero, zero, zero, zero + NOTHING
    keys, values = read_rows(k, left, C, 0, BLOCK, float("-inf")), read_rows(v, left, C, 0, BLOCK, 0.0)
    for s in range(BLOCKS):
        ahead = tl.minimum(s + 1, BLOCKS - 1)
        next_keys = read_rows(k, left, C, ahead, BLOCK, float("-inf"))
        next_values = read_rows(v, left, C, ahead, BLOCK, 0.0)
        for j in tl.static_range(BLOCK):
            e, value = keys[j].to(WIDE) * LOG2E - top, values[j].to(WIDE)
            x, y = tl.exp2(e - (to_end - j * w)), tl.exp2(e - (to_start + j * w))
            ln, ld, en, ed = ln + x * value, ld + x, en + y * value, ed + y
            high = tl.maximum(high, e)
        to_end, to_start = to_end - BLOCK * w, to_start + BLOCK * w
        keys, values = next_keys, next_values
    ln, ld, en, ed = column_sum(ln), column_sum(ld), column_sum(en), column_sum(ed)
    least, greatest = tl.minimum(ld, ed), tl.maximum(ld, ed)
    # where one token outweighs the others, gradients need its value taken off: too long a search for here
    alone = 2 * tl.exp2(tl.max(high, 0)[None, :]) > least
    greatest = tl.where(alone, float("inf"), greatest)
    if unfit(least, greatest, w, zero, ok, BLOCK * BLOCKS * CHUNKS, LIMIT):
        safe_totals(p_w, p_k, p_v, p_totals, T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, WIDE)
    else:
        row = i_b * num_spans + i_s + tl.zeros_like(c)
        write_state(p_totals, row, c, C, ok, (top, ln, ld))
        write_state(p_totals + 3 * C, row, c, C, ok, (top, en, ed))
        tl.store(p_totals + (row.to(tl.int64) * 7 + 6) * C + c, tl.zeros_like(w), mask=ok)


@triton.jit(do_not_specialize=["num_spans"])
def bi_wkv_join_kernel(
    p_w, p_totals, p_states, num_spans,
    C: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
    CENTRED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Join the totals of any number of spans: write what enters each, a group of 64 spans at a time.

    CENTRED: take their mean value off all of them, and write it beside them.
    """
    num_blocks = tl.cdiv(C, CHANNELS)
    i_b = tl.program_id(0) // num_blocks
    c = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    decay = -LOG2E * vector_of(p_w, c, C, WIDE) * SPAN
    m = tl.arange(0, 64)[:, None]
    zero = tl.zeros_like(decay)
    everything = (zero + NOTHING, zero, zero)
    mean = zero
    if CENTRED:
        for group in range(GROUPS):
            row, mask = i_b * num_spans + group * 64 + m, (group * 64 + m < num_spans) & (c < C)
            o, n, d = read_centred(p_totals, row, c, C, mask, 0.0, False, WIDE)
            to, tn, td = add_rows(o, n, d)
            everything = plus(everything[0], everything[1], everything[2], to, tn, td)
        mean = tl.where(c < C, everything[1] / everything[2], 0.0)
    enters = (zero + NOTHING, zero, zero)
    for group in range(GROUPS):
        row, mask = i_b * num_spans + group * 64 + m, (group * 64 + m < num_spans) & (c < C)
        state = read_centred(p_totals, row, c, C, mask, mean, False, WIDE)
        write_state(p_states, row, c, C, mask, safe_reach(state, decay, enters, False))
        o, n, d = state
        so, sn, sd = enters
        to, tn, td = add_rows(o + (63 - m).to(WIDE) * decay, n, d)
        enters = plus(so + 64 * decay, sn, sd, to, tn, td)
    enters = (zero + NOTHING, zero, zero)
    for back in range(GROUPS):
        first = (GROUPS - 1 - back) * 64
        row, mask = i_b * num_spans + first + m, (first + m < num_spans) & (c < C)
        state = read_centred(p_totals, row, c, C, mask, mean, True, WIDE)
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
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, 0.0, SPANS, WIDE)
    k, v, p_out = p_k + base + places, p_v + base + places, p_y + base + places
    top = reference(p_k + base + c, C, i_s, T, span, past, future, c < C, WIDE)
    ln, ld, en, ed, pns, pds, keys, values = fast_totals(k, v, left, C, w, top, 0.0, BLOCK, BLOCKS)
    lam, far, decay, bonus = tl.exp2(-w), tl.exp2(-BLOCK * w), tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    x, y = tl.exp2(past[0] - top), tl.exp2(future[0] - top)
    pn, pd = reach(ln, ld, decay, x * past[1], x * past[2], False)
    fn, fd = reach(en, ed, decay, y * future[1], y * future[2], True)
    pns, pds = add_entering(pns, pds, pn, pd, far, BLOCKS, False)
    least, greatest, some = tl.zeros_like(pd) + float("inf"), tl.zeros_like(pd), tl.zeros_like(pd)
    for i in range(BLOCKS):  # from the last block back: what was read last is nearest
        s = BLOCKS - 1 - i
        ahead = tl.maximum(s - 1, 0)
        next_keys = read_rows(k, left, C, ahead, BLOCK, float("-inf"))
        next_values = read_rows(v, left, C, ahead, BLOCK, 0.0)
        n, d = weigh(keys, values, top, 0.0, BLOCK)
        from_n, from_d, fn, fd = futures(n, d, fn, fd, lam, BLOCK)
        pn, pd = pns[BLOCKS - 1], pds[BLOCKS - 1]
        pns, pds = push_first(pns, pn, BLOCKS), push_first(pds, pd, BLOCKS)
        rows = rows_after(p_out, C, s * BLOCK)
        here = None if left is None else left - s * BLOCK
        for j in tl.static_range(BLOCK):
            den = where_there(here, j, pd + from_d[j] + bonus * d[j], 1.0)
            least, greatest = tl.minimum(least, den), tl.maximum(greatest, den)
            out = (pn + from_n[j] + bonus * n[j]) * reciprocal(den)
            put_row(rows, here, C, j, out)
            if j == 0:
                some = out
            pn, pd = pn * lam + n[j], pd * lam + d[j]
        keys, values = next_keys, next_values
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
    mean = mean_value(p_states, i_b, i_s, num_spans, c, C, SPANS, WIDE)
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, mean, SPANS, WIDE)
    k, v, g = p_k + base + places, p_v + base + places, p_g + base + places
    top = reference(p_k + base + c, C, i_s, T, span, past, future, ok, WIDE)
    start, end = enter(p_adjoint, i_b, i_s, num_spans, c, C, -span * w, 0.0, 1 if TOTALS else SPANS, WIDE)
    lam, far, decay, bonus = tl.exp2(-w), tl.exp2(-BLOCK * w), tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    ln, ld, en, ed, pns, pds, keys, values = fast_totals(k, v, left, C, w, top, mean, BLOCK, BLOCKS)
    x, y = tl.exp2(past[0] - top), tl.exp2(future[0] - top)
    pn, pd = reach(ln, ld, decay, x * past[1], x * past[2], False)
    fn, fd = reach(en, ed, decay, y * future[1], y * future[2], True)
    pns, pds = add_entering(pns, pds, pn, pd, far, BLOCKS, False)
    zero = tl.zeros_like(pn)
    least, greatest = zero + float("inf"), zero
    lr, lq, er, eq, power = zero, zero, zero, zero, zero + 1.0
    ers, eqs = same_rows(zero, BLOCKS), same_rows(zero, BLOCKS)
    rows_g = read_rows(g, left, C, BLOCKS - 1, BLOCK, 0.0)
    for i in range(BLOCKS):  # from the last block back: what was read last is nearest
        s = BLOCKS - 1 - i
        n, d = weigh(keys, values, top, mean, BLOCK)
        before = (pns[BLOCKS - 1], pds[BLOCKS - 1])
        pns, pds = push_first(pns, fn, BLOCKS), push_first(pds, fd, BLOCKS)  # past goes, future comes
        from_n, from_d, fn, fd = futures(n, d, fn, fd, lam, BLOCK)
        here = None if left is None else left - s * BLOCK
        h, q, least, greatest = adjoint_pairs(
            rows_g, here, n, d, before, from_n, from_d, least, greatest, bonus, lam, BLOCK
        )  # fmt: skip
        ers, eqs = push_first(ers, er, BLOCKS), push_first(eqs, eq, BLOCKS)
        later_r, later_q, earlier_r, earlier_q = send(h, q, lam, BLOCK)
        er, eq = er * far + earlier_r, eq * far + earlier_q
        lr, lq = lr + power * later_r, lq + power * later_q
        power *= far
        ahead = tl.maximum(s - 1, 0)
        keys = read_rows(k, left, C, ahead, BLOCK, float("-inf"))
        values = read_rows(v, left, C, ahead, BLOCK, 0.0)
        rows_g = read_rows(g, left, C, ahead, BLOCK, 0.0)
    # a token's weight may vanish below the reference where what meets it has grown beyond all bounds
    greatest = tl.where(tl.maximum(start[0], end[0]) + top > LIMIT, float("inf"), greatest)
    if unfit(least, greatest, w, u, ok, span, LIMIT):
        safe_backward(
            p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs,
            T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, SPANS, TOTALS, WIDE,
        )  # fmt: skip
    elif TOTALS:
        later, earlier = (zero - top, lr, lq), (zero - top, er, eq)
        write_totals(
            p_adjoint, i_b, i_s, num_spans, c, C, later, earlier, 0.0 * w, -BLOCK * BLOCKS * w, CHUNKS
        )
    else:
        x, y = tl.exp2(start[0] + top), tl.exp2(end[0] + top)
        on = reach(lr, lq, decay, x * start[1], x * start[2], False)
        fr, fq = reach(er, eq, decay, y * end[1], y * end[2], True)
        frs, fqs = add_entering(ers, eqs, fr, fq, far, BLOCKS, True)
        gw, gu = fast_gradients(
            k, v, g, p_gk + base + places, p_gv + base + places, keys, values, rows_g,
            left, C, w, bonus, top, mean, (pn, pd), pns, pds, on, frs, fqs, BLOCK, BLOCKS,
        )  # fmt: skip
        store_sums(p_parts, i_b, i_s, num_spans, c, C, gw, gu)
