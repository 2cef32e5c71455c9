"""Bi-WKV on a GPU where a program takes a whole sequence. Legend: triton_states.py; launched by tiled.py."""

import triton
import triton.language as tl

from rwkvseg.ops.wkv.triton_fast import (
    fast_adjoint,
    fast_gradients,
    fast_outputs,
    fast_totals,
    reference,
    sampled_key,
    unfit,
)
from rwkvseg.ops.wkv.triton_safe import safe_backward, safe_forward
from rwkvseg.ops.wkv.triton_states import (
    LOG2E,
    NOTHING,
    kept_place,
    place,
    reach,
    store_sums,
    vector_of,
    write_mean,
)


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_fwd_kernel(
    p_w, p_u, p_k, p_v, p_y, p_mean, p_kept, T, num_spans,
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
    here = kept_place(p_kept, i_b, i_s, num_spans, c, C, 2 * BLOCKS, CHUNKS)
    ln, ld, en, ed, _, keys, values = fast_totals(k, v, left, C, w, top, 0.0, here, c < C, BLOCK, BLOCKS)
    decay, bonus = tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    pn, pd = reach(ln, ld, decay, 0.0, 0.0, False)
    fn, fd = reach(en, ed, decay, 0.0, 0.0, True)
    tl.debug_barrier()  # what one thread has kept another may load
    least, greatest, some = fast_outputs(
        k, v, p_out, keys, values, left, C, w, bonus, top, 1.0, pn, pd, fn, fd, here, c < C,
        tl.zeros_like(pd), BLOCK, BLOCKS,
    )  # fmt: skip
    if unfit(least, greatest, w, u, c < C, span, LIMIT):
        safe_forward(
            p_w, p_u, p_k, p_v, p_y, p_mean, T, num_spans,
            C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, 1, WIDE,
        )  # fmt: skip
    else:
        write_mean(p_mean, i_b, c, C, some, left)


@triton.jit(do_not_specialize=["T", "num_spans"])
def bi_wkv_bwd_kernel(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_mean, p_keys, p_outs, p_kept, T, num_spans,
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
    here = kept_place(p_kept, i_b, i_s, num_spans, c, C, 4 * BLOCKS, CHUNKS)
    decay, bonus = tl.exp2(-BLOCK * BLOCKS * w), tl.exp2(u)
    ln, ld, en, ed, _, keys, values = fast_totals(k, v, left, C, w, top, mean, here, c < C, BLOCK, BLOCKS)
    pn, pd = reach(ln, ld, decay, 0.0, 0.0, False)
    fn, fd = reach(en, ed, decay, 0.0, 0.0, True)
    tl.debug_barrier()  # what one thread has kept another may load
    lr, lq, er, eq, least, greatest = fast_adjoint(
        k, v, g, keys, values, left, C, w, bonus, top, mean, pn, pd, fn, fd, here, c < C, BLOCK, BLOCKS
    )  # fmt: skip
    if unfit(least, greatest, w, u, c < C, span, LIMIT):
        safe_backward(
            p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_mean, p_mean, p_keys, p_outs,
            T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, WHOLE, 1, False, WIDE,
        )  # fmt: skip
    else:
        on = reach(lr, lq, decay, 0.0, 0.0, False)
        fr, fq = reach(er, eq, decay, 0.0, 0.0, True)
        tl.debug_barrier()
        gw, gu = fast_gradients(
            k, v, g, p_gk + base + places, p_gv + base + places, left, C, w, bonus, top, mean,
            (pn, pd), on, fr, fq, here, c < C, BLOCK, BLOCKS,
        )  # fmt: skip
        store_sums(p_parts, i_b, i_s, num_spans, c, C, gw, gu)
