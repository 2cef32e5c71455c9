"""Bi-WKV on a GPU where a sequence takes several programs. Legend: triton_states.py; launched by tiled.py.

A first launch goes through every span once and keeps what each of its blocks meets, some numbers for eight
tokens; when the states of the spans are joined, the last launch need not go through them again for that.

    kept  rows (B, spans, rows, CHUNKS, C), see KEPT_*: of a block's states there are BLOCKS rows, one a block
"""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_fast import (
    add_entering,
    adjoint_pairs,
    block_gradients,
    fast_totals,
    futures,
    largest_sum,
    put_outputs,
    read_rows,
    reference,
    sampled_key,
    send,
    unfit,
    weigh,
)
from rwkvseg.ops.wkv.triton_safe import safe_backward, safe_forward, safe_totals
from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    NOTHING,
    add_rows,
    enter,
    mean_value,
    place,
    plus,
    push_first,
    reach,
    read_centred,
    rows_after,
    safe_reach,
    store_sums,
    vector_of,
    write_state,
    write_totals,
)


def rows_kept(blocks: int, *, backward: bool) -> int:
    """Return how many numbers a lane of so many blocks keeps between launches."""
    return 6 + 6 * blocks if backward else 4 + 2 * blocks


@triton.jit
def kept_place(
    p, i_b, i_s, num_spans, c, C, ROWS: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Return pointers to the first row that a span's lanes keep."""
    return (
        p + (i_b * num_spans + i_s).to(tl.int64) * (ROWS * CHUNKS * C) + tl.arange(0, CHUNKS)[:, None] * C + c
    )


@triton.jit
def keep(p, row, C, x, ok, CHUNKS: tl.constexpr):
    """Write a row of what is kept."""
    tl.store(p + row * (CHUNKS * C), x, mask=ok)


@triton.jit
def kept(p, row, C, ok, CHUNKS: tl.constexpr):
    """Return a row of what is kept."""
    return tl.load(p + row * (CHUNKS * C), mask=ok, other=0.0)


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_totals_kernel(
    p_w, p_k, p_v, p_totals, p_kept, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write what every span sends on to later tokens and to earlier ones, and keep its lanes' sums."""
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS)
    left = None if WHOLE else left
    ok = c < C
    w = vector_of(p_w, c, C, WIDE) * LOG2E
    nothing = (tl.zeros_like(w) + NOTHING, 0.0, 0.0)
    top = reference(sampled_key(p_k + base + c, C, i_s, T, span, ok, WIDE), nothing, nothing, ok)
    ln, ld, en, ed, pns, pds, high, _, _ = fast_totals(
        p_k + base + places, p_v + base + places, left, C, w, top, 0.0, BLOCK, BLOCKS
    )  # fmt: skip
    here = kept_place(p_kept, i_b, i_s, num_spans, c, C, 4 + 2 * BLOCKS, CHUNKS)
    keep(here, 0, C, ln, ok, CHUNKS)
    keep(here, 1, C, ld, ok, CHUNKS)
    keep(here, 2, C, en, ok, CHUNKS)
    keep(here, 3, C, ed, ok, CHUNKS)
    for s in tl.static_range(BLOCKS):
        keep(here, 4 + s, C, pns[s], ok, CHUNKS)
        keep(here, 4 + BLOCKS + s, C, pds[s], ok, CHUNKS)
    zero, chunk = tl.zeros_like(ln), tl.arange(0, CHUNKS)[:, None]
    later = (CHUNKS - 1 - chunk).to(WIDE) * (-BLOCK * BLOCKS * w)
    earlier = chunk.to(WIDE) * (-BLOCK * BLOCKS * w)
    sum_later, sum_earlier = (
        tl.sum(tl.exp2(later) * ld, 0)[None, :],
        tl.sum(tl.exp2(earlier) * ed, 0)[None, :],
    )
    least, greatest = tl.minimum(sum_later, sum_earlier), tl.maximum(sum_later, sum_earlier)
    # where one token outweighs the others, gradients need its value taken off: too long a search for here
    alone = 2 * tl.max(high, 0)[None, :] > least
    greatest = tl.where(alone, float("inf"), greatest)
    if unfit(least, greatest, w, tl.zeros_like(w), ok, span, LIMIT):
        safe_totals(p_w, p_k, p_v, p_totals, T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, WIDE)
    else:
        write_totals(
            p_totals, i_b, i_s, num_spans, c, C, (zero + top, ln, ld), (zero + top, en, ed),
            0.0 * w, -BLOCK * BLOCKS * w, CHUNKS,
        )  # fmt: skip


@triton.jit
def join_states(
    i_p, p_w, p_totals, p_states, num_spans, C: tl.constexpr, SPAN: tl.constexpr, GROUPS,
    CHANNELS: tl.constexpr, CENTRED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Join the totals of any number of spans: write what enters each, a group of 64 spans at a time.

    i_p: the image and block of CHANNELS channels. CENTRED: take their mean value off all of them, and write
    it beside them.
    """
    num_blocks = tl.cdiv(C, CHANNELS)
    i_b = i_p // num_blocks
    c = (i_p % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
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


@triton.jit(do_not_specialize=["num_spans"])
def bi_wkv_join_kernel(
    p_w, p_totals, p_states, num_spans,
    C: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
    CENTRED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Do `join_states` for every image and block of channels."""
    join_states(
        tl.program_id(0), p_w, p_totals, p_states, num_spans, C, SPAN, GROUPS, CHANNELS, CENTRED, WIDE
    )


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_outputs_kernel(
    p_w, p_u, p_k, p_v, p_y, p_states, p_kept, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write bi_wkv of k, v (B, T, C) to y."""
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS, True)
    left = None if WHOLE else left
    ok = c < C
    k, v, p_out = p_k + base + places, p_v + base + places, p_y + base + places
    here = kept_place(p_kept, i_b, i_s, num_spans, c, C, 4 + 2 * BLOCKS, CHUNKS)
    keys = read_rows(k, left, C, BLOCKS - 1, BLOCK, float("-inf"))
    values = read_rows(v, left, C, BLOCKS - 1, BLOCK, 0.0)
    local_n, local_d = kept(here, 3 + BLOCKS, C, ok, CHUNKS), kept(here, 3 + 2 * BLOCKS, C, ok, CHUNKS)
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, 0.0, SPANS, WIDE)
    key = sampled_key(p_k + base + c, C, i_s, T, span, ok, WIDE)
    top = reference(key, past, future, ok)
    lam, decay, bonus = tl.exp2(-w), tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    x, y, scale = tl.exp2(past[0] - top), tl.exp2(future[0] - top), tl.exp2(tl.where(ok, key, 0.0) - top)
    ln, ld = kept(here, 0, C, ok, CHUNKS), kept(here, 1, C, ok, CHUNKS)
    en, ed = kept(here, 2, C, ok, CHUNKS), kept(here, 3, C, ok, CHUNKS)
    pn, pd = reach(scale * ln, scale * ld, decay, x * past[1], x * past[2], False)
    fn, fd = reach(scale * en, scale * ed, decay, y * future[1], y * future[2], True)
    # the span's own reference must have suited its sums: what overflowed there may vanish by the scale here
    fits = (ld < largest_sum(LIMIT)) & (ed < largest_sum(LIMIT))
    least, greatest = tl.zeros_like(pd) + float("inf"), tl.where(fits, 0.0, float("inf"))
    for i in range(BLOCKS):  # from the last block back, as in `bi_wkv_fwd_kernel`
        s = BLOCKS - 1 - i
        ahead = tl.maximum(s - 1, 0)
        next_keys = read_rows(k, left, C, ahead, BLOCK, float("-inf"))
        next_values = read_rows(v, left, C, ahead, BLOCK, 0.0)
        next_n = kept(here, 4 + ahead, C, ok, CHUNKS)
        next_d = kept(here, 4 + BLOCKS + ahead, C, ok, CHUNKS)
        n, d = weigh(keys, values, top, 0.0, BLOCK)
        from_n, from_d, fn, fd = futures(n, d, fn, fd, lam, BLOCK)
        far = tl.exp2(-s * BLOCK * w)
        before = (scale * local_n + far * pn, scale * local_d + far * pd)
        rest = None if left is None else left - s * BLOCK
        least, greatest, _ = put_outputs(
            rows_after(p_out, C, s * BLOCK), rest, C, n, d, before, from_n, from_d,
            least, greatest, bonus, lam, BLOCK,
        )  # fmt: skip
        keys, values, local_n, local_d = next_keys, next_values, next_n, next_d
    if unfit(least, greatest, w, u, ok, span, LIMIT):
        safe_forward(
            tl.program_id(0), p_w, p_u, p_k, p_v, p_y, p_states, T, num_spans,
            C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, SPANS, WIDE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_adjoint_kernel(
    p_w, p_u, p_k, p_v, p_g, p_states, p_adjoint, p_keys, p_outs, p_kept, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write what every span sends on in the adjoint sums, and keep what its blocks meet in both.

    Kept: what lanes send in the adjoint sums (4 rows), the reference or infinity where it does not suit, the
    mean, then of each block what enters: num and den from the past and from the future, adjoint from there.
    """
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS)
    left = None if WHOLE else left
    ok = c < C
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    mean = mean_value(p_states, i_b, i_s, num_spans, c, C, SPANS, WIDE)
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, mean, SPANS, WIDE)
    k, v, g = p_k + base + places, p_v + base + places, p_g + base + places
    top = reference(sampled_key(p_k + base + c, C, i_s, T, span, ok, WIDE), past, future, ok)
    lam, far, decay, bonus = tl.exp2(-w), tl.exp2(-BLOCK * w), tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    ln, ld, en, ed, pns, pds, _, keys, values = fast_totals(k, v, left, C, w, top, mean, BLOCK, BLOCKS)
    x, y = tl.exp2(past[0] - top), tl.exp2(future[0] - top)
    pn, pd = reach(ln, ld, decay, x * past[1], x * past[2], False)
    fn, fd = reach(en, ed, decay, y * future[1], y * future[2], True)
    pns, pds = add_entering(pns, pds, pn, pd, far, BLOCKS, False)
    zero = tl.zeros_like(pn)
    least, greatest = zero + float("inf"), zero
    lr, lq, er, eq, power = zero, zero, zero, zero, zero + 1.0
    here = kept_place(p_kept, i_b, i_s, num_spans, c, C, 6 + 6 * BLOCKS, CHUNKS)
    rows_g = read_rows(g, left, C, BLOCKS - 1, BLOCK, 0.0)
    for i in range(BLOCKS):  # from the last block back: what was read last is nearest
        s = BLOCKS - 1 - i
        n, d = weigh(keys, values, top, mean, BLOCK)
        before = (pns[BLOCKS - 1], pds[BLOCKS - 1])
        pns, pds = push_first(pns, before[0], BLOCKS), push_first(pds, before[1], BLOCKS)
        keep(here, 6 + s, C, before[0], ok, CHUNKS)
        keep(here, 6 + BLOCKS + s, C, before[1], ok, CHUNKS)
        keep(here, 6 + 2 * BLOCKS + s, C, fn, ok, CHUNKS)
        keep(here, 6 + 3 * BLOCKS + s, C, fd, ok, CHUNKS)
        keep(here, 6 + 4 * BLOCKS + s, C, er, ok, CHUNKS)
        keep(here, 6 + 5 * BLOCKS + s, C, eq, ok, CHUNKS)
        from_n, from_d, fn, fd = futures(n, d, fn, fd, lam, BLOCK)
        rest = None if left is None else left - s * BLOCK
        h, q, least, greatest = adjoint_pairs(
            rows_g, rest, n, d, before, from_n, from_d, least, greatest, bonus, lam, BLOCK
        )  # fmt: skip
        later_r, later_q, earlier_r, earlier_q = send(h, q, lam, BLOCK)
        er, eq = er * far + earlier_r, eq * far + earlier_q
        lr, lq = lr + power * later_r, lq + power * later_q
        power *= far
        ahead = tl.maximum(s - 1, 0)
        keys = read_rows(k, left, C, ahead, BLOCK, float("-inf"))
        values = read_rows(v, left, C, ahead, BLOCK, 0.0)
        rows_g = read_rows(g, left, C, ahead, BLOCK, 0.0)
    keep(here, 0, C, lr, ok, CHUNKS)
    keep(here, 1, C, lq, ok, CHUNKS)
    keep(here, 2, C, er, ok, CHUNKS)
    keep(here, 3, C, eq, ok, CHUNKS)
    keep(here, 5, C, zero + mean, ok, CHUNKS)
    if unfit(least, greatest, w, u, ok, span, LIMIT):
        keep(here, 4, C, zero + float("inf"), ok, CHUNKS)
        safe_backward(
            tl.program_id(0), p_w, p_u, p_k, p_v, p_g, p_k, p_v, p_adjoint, p_states, p_adjoint, p_keys,
            p_outs, T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, SPANS, True, WIDE,
        )  # fmt: skip
    else:
        keep(here, 4, C, zero + top, ok, CHUNKS)
        later, earlier = (zero - top, lr, lq), (zero - top, er, eq)
        write_totals(
            p_adjoint, i_b, i_s, num_spans, c, C, later, earlier, 0.0 * w, -BLOCK * BLOCKS * w, CHUNKS
        )


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_gradients_kernel(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs, p_kept, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write gk, gv and the parts of gw and gu from g (B, T, C), the gradient of y."""
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS, True)
    left = None if WHOLE else left
    ok = c < C
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    start, end = enter(p_adjoint, i_b, i_s, num_spans, c, C, -span * w, 0.0, SPANS, WIDE)
    here = kept_place(p_kept, i_b, i_s, num_spans, c, C, 6 + 6 * BLOCKS, CHUNKS)
    top = tl.max(kept(here, 4, C, ok, CHUNKS), 0)[None, :]
    # a token's weight may vanish below the reference where what meets it has grown beyond all bounds
    bad = ok & ~(tl.maximum(start[0], end[0]) + top <= LIMIT)
    if tl.max(tl.max(tl.where(bad, 1, 0), 1), 0) > 0:
        safe_backward(
            tl.program_id(0), p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys,
            p_outs, T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, SPANS, False, WIDE,
        )  # fmt: skip
    else:
        k, v, g = p_k + base + places, p_v + base + places, p_g + base + places
        keys, values = read_rows(k, left, C, 0, BLOCK, float("-inf")), read_rows(v, left, C, 0, BLOCK, 0.0)
        rows_g = read_rows(g, left, C, 0, BLOCK, 0.0)
        mean = tl.max(kept(here, 5, C, ok, CHUNKS), 0)[None, :]
        lam, decay, bonus = tl.exp2(-w), tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
        x, y = tl.exp2(start[0] + top), tl.exp2(end[0] + top)
        lr, lq = kept(here, 0, C, ok, CHUNKS), kept(here, 1, C, ok, CHUNKS)
        er, eq = kept(here, 2, C, ok, CHUNKS), kept(here, 3, C, ok, CHUNKS)
        on = reach(lr, lq, decay, x * start[1], x * start[2], False)
        fr, fq = reach(er, eq, decay, y * end[1], y * end[2], True)
        past = (kept(here, 6, C, ok, CHUNKS), kept(here, 6 + BLOCKS, C, ok, CHUNKS))
        gw, gu = tl.zeros_like(fr), tl.zeros_like(fr)
        for s in range(BLOCKS):
            ahead = tl.minimum(s + 1, BLOCKS - 1)
            next_keys = read_rows(k, left, C, ahead, BLOCK, float("-inf"))
            next_values = read_rows(v, left, C, ahead, BLOCK, 0.0)
            next_g = read_rows(g, left, C, ahead, BLOCK, 0.0)
            n, d = weigh(keys, values, top, mean, BLOCK)
            future = (
                kept(here, 6 + 2 * BLOCKS + s, C, ok, CHUNKS),
                kept(here, 6 + 3 * BLOCKS + s, C, ok, CHUNKS),
            )
            far = tl.exp2(-(BLOCKS - 1 - s) * BLOCK * w)
            back = (
                kept(here, 6 + 4 * BLOCKS + s, C, ok, CHUNKS) + far * fr,
                kept(here, 6 + 5 * BLOCKS + s, C, ok, CHUNKS) + far * fq,
            )
            past, on, by_w, by_u = block_gradients(
                rows_g, rows_after(p_gk + base + places, C, s * BLOCK),
                rows_after(p_gv + base + places, C, s * BLOCK), None if left is None else left - s * BLOCK, C,
                n, d, past, future, on, back, bonus, lam, BLOCK,
            )  # fmt: skip
            gw += by_w
            gu += by_u
            keys, values, rows_g = next_keys, next_values, next_g
        store_sums(p_parts, i_b, i_s, num_spans, c, C, -lam * gw, gu)
