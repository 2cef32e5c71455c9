"""Bi-WKV on a GPU where a program takes a whole sequence. Legend: triton_states.py; launched by tiled.py."""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_fast import (
    add_entering,
    adjoint_pairs,
    fast_gradients,
    fast_totals,
    futures,
    put_outputs,
    read_rows,
    reference,
    sampled_key,
    send,
    unfit,
    weigh,
)
from rwkvseg.ops.wkv.triton_safe import safe_backward, safe_forward
from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    NOTHING,
    place,
    push_first,
    reach,
    rows_after,
    same_rows,
    store_sums,
    vector_of,
    write_mean,
)


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_fwd_kernel(
    p_w, p_u, p_k, p_v, p_y, p_mean, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write bi_wkv of k, v (B, T, C) to y, and a mean of it."""
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS)
    left = None if WHOLE else left
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    k, v, p_out = p_k + base + places, p_v + base + places, p_y + base + places
    nothing = (tl.zeros_like(w) + NOTHING, 0.0, 0.0)
    top = reference(sampled_key(p_k + base + c, C, i_s, T, span, c < C, WIDE), nothing, nothing, c < C)
    ln, ld, en, ed, pns, pds, _, keys, values = fast_totals(k, v, left, C, w, top, 0.0, BLOCK, BLOCKS)
    lam, far, decay, bonus = tl.exp2(-w), tl.exp2(-BLOCK * w), tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    pn, pd = reach(ln, ld, decay, 0.0, 0.0, False)
    fn, fd = reach(en, ed, decay, 0.0, 0.0, True)
    pns, pds = add_entering(pns, pds, pn, pd, far, BLOCKS, False)
    least, greatest, some = tl.zeros_like(pd) + float("inf"), tl.zeros_like(pd), tl.zeros_like(pd)
    for i in range(BLOCKS):  # from the last block back: what was read last is nearest
        s = BLOCKS - 1 - i
        ahead = tl.maximum(s - 1, 0)
        next_keys = read_rows(k, left, C, ahead, BLOCK, float("-inf"))
        next_values = read_rows(v, left, C, ahead, BLOCK, 0.0)
        n, d = weigh(keys, values, top, 0.0, BLOCK)
        from_n, from_d, fn, fd = futures(n, d, fn, fd, lam, BLOCK)
        past = (pns[BLOCKS - 1], pds[BLOCKS - 1])
        pns, pds = push_first(pns, past[0], BLOCKS), push_first(pds, past[1], BLOCKS)
        here = None if left is None else left - s * BLOCK
        least, greatest, some = put_outputs(
            rows_after(p_out, C, s * BLOCK), here, C, n, d, past, from_n, from_d, least, greatest, bonus, lam,
            BLOCK,
        )  # fmt: skip
        keys, values = next_keys, next_values
    if unfit(least, greatest, w, u, c < C, span, LIMIT):
        safe_forward(
            tl.program_id(0), p_w, p_u, p_k, p_v, p_y, p_mean, T, num_spans,
            C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, 1, WIDE,
        )  # fmt: skip
    else:
        write_mean(p_mean, i_b, c, C, some, left)


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_bwd_kernel(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_mean, p_keys, p_outs, T, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """Write gk, gv and the parts of gw and gu from g (B, T, C), the gradient of y."""
    span: tl.constexpr = BLOCK * BLOCKS * CHUNKS
    i_b, i_s, c, base, places, left = place(T, C, num_spans, BLOCK * BLOCKS, CHUNKS, CHANNELS)
    left = None if WHOLE else left
    w, u = vector_of(p_w, c, C, WIDE) * LOG2E, vector_of(p_u, c, C, WIDE) * LOG2E
    mean = tl.load(p_mean + i_b * C + c, mask=c < C, other=0.0).to(WIDE)
    k, v, g = p_k + base + places, p_v + base + places, p_g + base + places
    nothing = (tl.zeros_like(w) + NOTHING, 0.0, 0.0)
    top = reference(sampled_key(p_k + base + c, C, i_s, T, span, c < C, WIDE), nothing, nothing, c < C)
    lam, far, decay, bonus = tl.exp2(-w), tl.exp2(-BLOCK * w), tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    ln, ld, en, ed, pns, pds, _, keys, values = fast_totals(k, v, left, C, w, top, mean, BLOCK, BLOCKS)
    pn, pd = reach(ln, ld, decay, 0.0, 0.0, False)
    fn, fd = reach(en, ed, decay, 0.0, 0.0, True)
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
    if unfit(least, greatest, w, u, c < C, span, LIMIT):
        safe_backward(
            tl.program_id(0), p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_mean, p_mean, p_keys, p_outs,
            T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, 1, False, WIDE,
        )  # fmt: skip
    else:
        on = reach(lr, lq, decay, 0.0, 0.0, False)
        fr, fq = reach(er, eq, decay, 0.0, 0.0, True)
        frs, fqs = add_entering(ers, eqs, fr, fq, far, BLOCKS, True)
        gw, gu = fast_gradients(
            k, v, g, p_gk + base + places, p_gv + base + places, keys, values, rows_g,
            left, C, w, bonus, top, mean, (pn, pd), pns, pds, on, frs, fqs, BLOCK, BLOCKS,
        )  # fmt: skip
        store_sums(p_parts, i_b, i_s, num_spans, c, C, gw, gu)
