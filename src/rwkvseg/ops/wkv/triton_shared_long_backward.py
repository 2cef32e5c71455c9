"""Bi-WKV of several spans in one launch from shared memory, backward. Legend: triton_shared_long.py.

Programs wait twice, for what the spans send and for what they send of the adjoint sums. The first could come
from the forward pass; but there no value has been taken off, and where one key outweighs all others gradients
need that before anything is summed.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from rwkvseg.ops.wkv.triton_shared import (
    LOG2E,
    add_entering,
    chunk_decay,
    misfits,
    sampled_reference,
    totals,
    wait_for_last,
    wait_turn,
)
from rwkvseg.ops.wkv.triton_shared_backward import SPARE, adjoint_pass, gradient_pass, sum_and_any
from rwkvseg.ops.wkv.triton_shared_copies import start_gradients, start_keys
from rwkvseg.ops.wkv.triton_shared_layouts import lanes_layout, plain_layout, warp_layout
from rwkvseg.ops.wkv.triton_shared_long import GROUP, anew, reach_spans, start_of


@gluon.jit(do_not_specialize=["T", "num_spans", "num_tiles", "pause", "processors"])
def bi_wkv_bwd_long_kernel(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_flags, p_sent, T, num_spans, num_tiles,
    pause, processors,
    C: gl.constexpr, BLOCK: gl.constexpr, BLOCKS: gl.constexpr, CHUNKS: gl.constexpr, CHANNELS: gl.constexpr,
    LIMIT: gl.constexpr, WARPS: gl.constexpr, GROUPS: gl.constexpr,
    UNROLLED: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Write gk, gv and the parts of gw and gu, (B, spans, 2, C), from g (B, T, C), the gradient of y."""
    L: gl.constexpr = lanes_layout(CHUNKS, CHANNELS, WARPS)
    W: gl.constexpr = warp_layout(CHUNKS, CHANNELS, WARPS)
    LENGTH: gl.constexpr = BLOCK * BLOCKS
    k_s = gl.allocate_shared_memory(p_k.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    v_s = gl.allocate_shared_memory(p_v.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    g_s = gl.allocate_shared_memory(p_g.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    c = gl.arange(0, CHANNELS, gl.SliceLayout(0, L))
    wait_turn(pause, processors)
    tile = gl.program_id(0)
    while tile < num_tiles:
        i_s = tile % num_spans
        i_q = tile // num_spans
        i_c = i_q % (C // CHANNELS)
        i_b = i_q // (C // CHANNELS)
        first, base = start_of(tile, num_spans, T, C, LENGTH * CHUNKS, CHANNELS)
        if tile >= gl.num_programs(0):
            async_copy.wait_group(0)
        else:
            start_keys(k_s, v_s, p_k + base, p_v + base, C, BLOCKS, LENGTH, WARPS)
            start_gradients(g_s, p_g + base, C, BLOCKS, LENGTH, WARPS)
        w = gl.load(p_w + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        u = gl.load(p_u + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        state = p_states + ((i_b * num_spans + i_s).to(gl.int64) * 7 + 6) * C + i_c * CHANNELS
        mean = gl.load(state + c[None, :])
        top = sampled_reference(p_k + first + c[None, :], T, C)
        decay = chunk_decay(p_w + i_c * CHANNELS, LENGTH, CHANNELS, W)
        lam, far, bonus = gl.exp2(-w), gl.exp2(-BLOCK * w), gl.exp2(u)
        ln, ld, en, ed, pns, pds = totals(k_s, v_s, top, mean, lam, far, 1, BLOCK, BLOCKS, L)
        if EARLY:
            wait_for_last()
        past_n, past_d, fn, fd, _ = reach_spans(
            ln, ld, en, ed, p_sent, i_q, i_s, num_spans, num_tiles, decay, GROUPS, L, W
        )
        pns, pds = add_entering(pns, pds, past_n, past_d, far, BLOCKS, False)
        async_copy.wait_group(0)
        rows, lr, lq, er, eq, least, total = adjoint_pass(
            k_s, v_s, g_s, top, mean, lam, far, bonus, pns, pds, fn, fd, BLOCK, BLOCKS, L, False, UNROLLED
        )
        # registers are scarce: what follows from a thread's number, or can be read again, is not kept
        c = anew(gl.arange(0, CHANNELS, gl.SliceLayout(0, L)))
        w = gl.load(p_w + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        u = gl.load(p_u + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        bad = misfits(least, total, w, u, T, LIMIT, SPARE, BLOCK)
        num_groups = (num_spans + GROUP - 1) // GROUP
        seconds = p_sent + (num_tiles + num_tiles // num_spans * num_groups) * (4 * CHANNELS)
        r, rq, back_r, back_q, _ = reach_spans(
            lr, lq, er, eq, seconds, i_q, i_s, num_spans, num_tiles, decay, GROUPS, L, W
        )
        c = anew(gl.arange(0, CHANNELS, gl.SliceLayout(0, L)))
        w = gl.load(p_w + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        u = gl.load(p_u + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        state = p_states + ((i_b * num_spans + i_s).to(gl.int64) * 7 + 6) * C + i_c * CHANNELS
        mean = gl.load(state + c[None, :])
        top = sampled_reference(p_k + first + c[None, :], T, C)
        lam, far, bonus = gl.exp2(-w), gl.exp2(-BLOCK * w), gl.exp2(u)
        chunk = anew(gl.arange(0, CHUNKS, gl.SliceLayout(1, L)))[:, None]
        places = base + (chunk * (LENGTH * C) + c[None, :])
        after = tile + gl.num_programs(0)
        _, place = start_of(after, num_spans, T, C, LENGTH * CHUNKS, CHANNELS)
        later = after < num_tiles, p_k + place, p_v + place, p_g + place
        gw, gu = gradient_pass(
            k_s, v_s, g_s, p_gk + places, p_gv + places, top, mean, w, lam, far, bonus,
            (past_n, past_d), (r, rq), rows, (back_r, back_q), C, BLOCK, BLOCKS, L, False, False, UNROLLED,
            later, WARPS,
        )  # fmt: skip
        parts = p_parts + (i_b * num_spans + i_s).to(gl.int64) * 2 * C + i_c * CHANNELS + c
        gw, gu, bad = gl.reduce((-lam * gw, bonus * gu, bad), 0, sum_and_any)
        gl.store(p_flags + i_q, 1, mask=gl.max(bad, 0) > 0)
        gl.store(parts, gw)
        gl.store(parts + C, gu)
        gl.thread_barrier()  # nobody copies the next tile where one still reads this
        tile += gl.num_programs(0)
