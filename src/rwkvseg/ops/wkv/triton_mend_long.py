"""What follows Bi-WKV of several spans in one launch: sequences that it did not suit are done again, safely.

As a rule there are none, and the launch costs what looking at the flags does. Otherwise its programs, which
are all on the GPU at once, share the tiles of these sequences, and wait for each other between the steps.
flags: of each sequence whether it is unfit, then a number that counts these steps. Legend: triton_states.py.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from rwkvseg.ops.wkv.triton_long import join_states
from rwkvseg.ops.wkv.triton_safe import safe_backward, safe_forward, safe_totals


@triton.jit
def any_unfit(p_flags, num_sequences):
    """Return whether any sequence is unfit."""
    some = tl.zeros([1024], tl.int32)
    start = 0
    while start < num_sequences:
        i_q = start + tl.arange(0, 1024)
        some = tl.maximum(some, tl.load(p_flags + i_q, mask=i_q < num_sequences, other=0))
        start += 1024
    return tl.max(some, 0) > 0


@triton.jit
def tile_is_unfit(p_flags, tile, num_spans, TILES: tl.constexpr):
    """Return whether a tile, numbered as `place` does, belongs to an unfit sequence."""
    i_q = tile // (TILES * num_spans) * TILES + tile % TILES
    return tl.load(p_flags + i_q) > 0


@triton.jit
def wait_for_all(p_steps, steps):
    """Wait until every program has come to the end of so many steps."""
    tl.debug_barrier()  # all threads have stored before one says so
    done = tl.atomic_add(p_steps, 1, sem="acq_rel") + 1
    while done < steps * tl.num_programs(0):
        done = tl.atomic_add(p_steps, 0, sem="acq_rel")
    tl.debug_barrier()


@triton.jit
def join_unfit(
    p_w, p_totals, p_states, p_flags, num_sequences, num_spans,
    C: tl.constexpr, SPAN: tl.constexpr, JOINS: tl.constexpr, CHANNELS: tl.constexpr, CENTRED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Join the totals of the unfit sequences, each by one program."""
    i_q = tl.program_id(0)
    while i_q < num_sequences:
        if tl.load(p_flags + i_q) > 0:
            join_states(
                i_q, p_w, p_totals, p_states, num_spans, C, SPAN, JOINS, CHANNELS, CENTRED, WIDE,
            )  # fmt: skip
        i_q += tl.num_programs(0)


@triton.jit
def states_of_unfit(
    p_w, p_k, p_v, p_totals, p_states, p_flags, T, num_sequences, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    JOINS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write what enters the spans of unfit sequences: the first two steps."""
    tile = tl.program_id(0)
    while tile < num_sequences * num_spans:
        if tile_is_unfit(p_flags, tile, num_spans, C // CHANNELS):
            safe_totals(
                p_w, p_k, p_v, p_totals, T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, True, WIDE, tile
            )
        tile += tl.num_programs(0)
    wait_for_all(p_flags + num_sequences, 1)
    join_unfit(
        p_w, p_totals, p_states, p_flags, num_sequences, num_spans,
        C, BLOCK * BLOCKS * CHUNKS, JOINS, CHANNELS, True, WIDE,
    )  # fmt: skip
    wait_for_all(p_flags + num_sequences, 2)


@triton.jit
def gradients_of_unfit(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs, p_flags, T,
    num_sequences, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    TOTALS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write of unfit sequences what their spans send of the adjoint sums if TOTALS, or else the gradients."""
    tile = tl.program_id(0)
    while tile < num_sequences * num_spans:
        if tile_is_unfit(p_flags, tile, num_spans, C // CHANNELS):
            i_p = tile if TOTALS else tl.num_programs(0) - 1 - tile  # `place` counts from the other end then
            safe_backward(
                i_p, p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs,
                T, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, True, 0, TOTALS, WIDE,
            )  # fmt: skip
        tile += tl.num_programs(0)


@triton.jit
def sum_parts(
    p_parts, p_sums, num_parts, C: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Write the sums of the parts of gw and gu over images and spans, (2, C)."""
    i_c = tl.program_id(0)
    while i_c < C // CHANNELS:
        c = i_c * CHANNELS + tl.arange(0, CHANNELS)[None, :]
        by_w, by_u = tl.zeros([128, CHANNELS], WIDE), tl.zeros([128, CHANNELS], WIDE)
        start = 0
        while start < num_parts:
            row = start + tl.arange(0, 128)[:, None]
            part = p_parts + row.to(tl.int64) * 2 * C + c
            by_w += tl.load(part, mask=row < num_parts, other=0.0, cache_modifier=".cg")
            by_u += tl.load(part + C, mask=row < num_parts, other=0.0, cache_modifier=".cg")
            start += 128
        tl.store(p_sums + c, tl.sum(by_w, 0)[None, :])
        tl.store(p_sums + C + c, tl.sum(by_u, 0)[None, :])
        i_c += tl.num_programs(0)


@triton.jit(do_not_specialize=["T", "num_sequences", "num_spans"])
def bi_wkv_fwd_mend_long_kernel(
    p_w, p_u, p_k, p_v, p_y, p_states, p_flags, p_totals, T, num_sequences, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WIDE: tl.constexpr, EARLY: tl.constexpr, JOINS: tl.constexpr,
):  # fmt: skip
    """Write y and the states of unfit sequences anew. EARLY: launched before the kernel ahead has ended.

    JOINS: groups of 64 spans, to `join_states`.
    """
    if EARLY:
        gdc_wait()
    if any_unfit(p_flags, num_sequences):
        states_of_unfit(
            p_w, p_k, p_v, p_totals, p_states, p_flags, T, num_sequences, num_spans,
            C, BLOCK, BLOCKS, CHUNKS, CHANNELS, JOINS, WIDE,
        )  # fmt: skip
        tile = tl.program_id(0)
        while tile < num_sequences * num_spans:
            if tile_is_unfit(p_flags, tile, num_spans, C // CHANNELS):
                safe_forward(
                    tl.num_programs(0) - 1 - tile, p_w, p_u, p_k, p_v, p_y, p_states, T, num_spans,
                    C, BLOCK, BLOCKS, CHUNKS, CHANNELS, True, 0, WIDE,
                )  # fmt: skip
            tile += tl.num_programs(0)


@triton.jit(do_not_specialize=["T", "num_sequences", "num_spans"])
def bi_wkv_bwd_mend_long_kernel(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_flags, p_totals, p_states, p_adjoint, p_keys, p_outs,
    p_sums, T, num_sequences, num_spans,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WIDE: tl.constexpr, EARLY: tl.constexpr, JOINS: tl.constexpr,
):  # fmt: skip
    """Write gk, gv and the parts of gw and gu of unfit sequences anew, then the sums of the parts, (2, C)."""
    if EARLY:
        gdc_wait()
    if any_unfit(p_flags, num_sequences):
        states_of_unfit(
            p_w, p_k, p_v, p_totals, p_states, p_flags, T, num_sequences, num_spans,
            C, BLOCK, BLOCKS, CHUNKS, CHANNELS, JOINS, WIDE,
        )  # fmt: skip
        steps = p_flags + num_sequences
        gradients_of_unfit(
            p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_totals, p_keys, p_outs, p_flags, T,
            num_sequences, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, True, WIDE,
        )  # fmt: skip
        wait_for_all(steps, 3)
        join_unfit(
            p_w, p_totals, p_adjoint, p_flags, num_sequences, num_spans,
            C, BLOCK * BLOCKS * CHUNKS, JOINS, CHANNELS, False, WIDE,
        )  # fmt: skip
        wait_for_all(steps, 4)
        gradients_of_unfit(
            p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_states, p_adjoint, p_keys, p_outs, p_flags, T,
            num_sequences, num_spans, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, False, WIDE,
        )  # fmt: skip
        wait_for_all(steps, 5)
    sum_parts(p_parts, p_sums, num_sequences // (C // CHANNELS) * num_spans, C, CHANNELS, WIDE)
