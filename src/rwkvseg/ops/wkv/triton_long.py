"""Bi-WKV on a GPU where a sequence takes several programs. Legend: triton_states.py; launched by tiled.py.

A first launch goes through every span once and keeps what each of its blocks meets, some numbers for eight
tokens; when the states of the spans are joined, the last launch need not go through them again for that.

    kept  rows (B, spans, rows, CHUNKS, C), see KEPT_*: of a block's states there are BLOCKS rows, one a block
"""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_fast import (
    fast_adjoint,
    fast_gradients,
    fast_outputs,
    fast_totals,
    largest_sum,
    read_keys,
    read_rows,
    reference,
    sampled_key,
    unfit,
)
from rwkvseg.ops.wkv.triton_safe import safe_backward, safe_forward, safe_totals
from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    NOTHING,
    add_rows,
    enter,
    keep,
    kept,
    kept_place,
    mean_value,
    place,
    plus,
    reach,
    read_centred,
    safe_reach,
    store_sums,
    vector_of,
    write_state,
    write_totals,
)


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
    here = kept_place(p_kept, i_b, i_s, num_spans, c, C, 2 * BLOCKS + 4, CHUNKS)
    ln, ld, en, ed, high, _, _ = fast_totals(
        p_k + base + places, p_v + base + places, left, C, w, top, 0.0, here, ok, BLOCK, BLOCKS
    )  # fmt: skip
    keep(here, 2 * BLOCKS, C, ln, ok)
    keep(here, 2 * BLOCKS + 1, C, ld, ok)
    keep(here, 2 * BLOCKS + 2, C, en, ok)
    keep(here, 2 * BLOCKS + 3, C, ed, ok)
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
    here = kept_place(p_kept, i_b, i_s, num_spans, c, C, 2 * BLOCKS + 4, CHUNKS)
    keys = read_keys(k, left, C, BLOCKS - 1, BLOCK, WIDE)
    values = read_rows(v, left, C, BLOCKS - 1, BLOCK, WIDE)
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    past, future = enter(p_states, i_b, i_s, num_spans, c, C, -span * w, 0.0, SPANS, WIDE)
    key = sampled_key(p_k + base + c, C, i_s, T, span, ok, WIDE)
    top = reference(key, past, future, ok)
    decay, bonus = tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    x, y, scale = tl.exp2(past[0] - top), tl.exp2(future[0] - top), tl.exp2(tl.where(ok, key, 0.0) - top)
    ln, ld = kept(here, 2 * BLOCKS, C, ok), kept(here, 2 * BLOCKS + 1, C, ok)
    en, ed = kept(here, 2 * BLOCKS + 2, C, ok), kept(here, 2 * BLOCKS + 3, C, ok)
    pn, pd = reach(scale * ln, scale * ld, decay, x * past[1], x * past[2], False)
    fn, fd = reach(scale * en, scale * ed, decay, y * future[1], y * future[2], True)
    # the span's own reference must have suited its sums: what overflowed there may vanish by the scale here
    fits = (ld < largest_sum(LIMIT)) & (ed < largest_sum(LIMIT))
    greatest = tl.where(fits, 0.0, float("inf"))
    least, greatest, _ = fast_outputs(
        k, v, p_out, keys, values, left, C, w, bonus, top, scale, pn, pd, fn, fd, here, ok, greatest,
        BLOCK, BLOCKS,
    )  # fmt: skip
    if unfit(least, greatest, w, u, ok, span, LIMIT):
        safe_forward(
            p_w, p_u, p_k, p_v, p_y, p_states, T, num_spans,
            C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, SPANS, WIDE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_adjoint_kernel(
    p_w, p_u, p_k, p_v, p_g, p_states, p_adjoint, p_keys, p_outs, p_kept, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write what every span sends on in the adjoint sums, and keep what its blocks meet in both.

    Kept besides the rows of `fast_adjoint`: what lanes send in the adjoint sums (4 rows), the reference or infinity
    where it does not suit, the mean, and (num, den) that enters each lane from the past.
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
    decay, bonus = tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    here = kept_place(p_kept, i_b, i_s, num_spans, c, C, 4 * BLOCKS + 8, CHUNKS)
    ln, ld, en, ed, _, keys, values = fast_totals(k, v, left, C, w, top, mean, here, ok, BLOCK, BLOCKS)
    x, y = tl.exp2(past[0] - top), tl.exp2(future[0] - top)
    pn, pd = reach(ln, ld, decay, x * past[1], x * past[2], False)
    fn, fd = reach(en, ed, decay, y * future[1], y * future[2], True)
    tl.debug_barrier()  # what one thread has kept another may load
    lr, lq, er, eq, least, greatest = fast_adjoint(
        k, v, g, keys, values, left, C, w, bonus, top, mean, pn, pd, fn, fd, here, ok, BLOCK, BLOCKS
    )  # fmt: skip
    zero, lanes = tl.zeros_like(pn), 4 * BLOCKS
    keep(here, lanes, C, lr, ok)
    keep(here, lanes + 1, C, lq, ok)
    keep(here, lanes + 2, C, er, ok)
    keep(here, lanes + 3, C, eq, ok)
    keep(here, lanes + 5, C, zero + mean, ok)
    keep(here, lanes + 6, C, pn, ok)
    keep(here, lanes + 7, C, pd, ok)
    if unfit(least, greatest, w, u, ok, span, LIMIT):
        keep(here, lanes + 4, C, zero + float("inf"), ok)
        safe_backward(
            p_w, p_u, p_k, p_v, p_g, p_k, p_v, p_adjoint, p_states, p_adjoint, p_keys, p_outs,
            T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, SPANS, True, WIDE,
        )  # fmt: skip
    else:
        keep(here, lanes + 4, C, zero + top, ok)
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
    here, lanes = kept_place(p_kept, i_b, i_s, num_spans, c, C, 4 * BLOCKS + 8, CHUNKS), 4 * BLOCKS
    top = tl.max(kept(here, lanes + 4, C, ok), 0)[None, :]
    # a token's weight may vanish below the reference where what meets it has grown beyond all bounds
    bad = ok & ~(tl.maximum(start[0], end[0]) + top <= LIMIT)
    if tl.max(tl.max(tl.where(bad, 1, 0), 1), 0) > 0:
        safe_backward(
            p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs,
            T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, SPANS, False, WIDE,
        )  # fmt: skip
    else:
        k, v, g = p_k + base + places, p_v + base + places, p_g + base + places
        mean = tl.max(kept(here, lanes + 5, C, ok), 0)[None, :]
        decay, bonus = tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
        x, y = tl.exp2(start[0] + top), tl.exp2(end[0] + top)
        lr, lq = kept(here, lanes, C, ok), kept(here, lanes + 1, C, ok)
        er, eq = kept(here, lanes + 2, C, ok), kept(here, lanes + 3, C, ok)
        on = reach(lr, lq, decay, x * start[1], x * start[2], False)
        fr, fq = reach(er, eq, decay, y * end[1], y * end[2], True)
        past = (kept(here, lanes + 6, C, ok), kept(here, lanes + 7, C, ok))
        gw, gu = fast_gradients(
            k, v, g, p_gk + base + places, p_gv + base + places, left, C, w, bonus, top, mean,
            past, on, fr, fq, here, ok, BLOCK, BLOCKS,
        )  # fmt: skip
        store_sums(p_parts, i_b, i_s, num_spans, c, C, gw, gu)
