"""What follows Bi-WKV from shared memory: tiles that it did not suit are done again, by the safe form.

As a rule there are none, and a launch costs what looking at the flags does. Its programs start while the
last tiles are still at work, and wait for them. Legend: triton_states.py; launched by tiled.py.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from rwkvseg.ops.wkv.triton_safe import safe_backward, safe_forward


@triton.jit(do_not_specialize=["T", "num_tiles"])
def bi_wkv_fwd_mend_kernel(
    p_w, p_u, p_k, p_v, p_y, p_mean, p_unfit, T, num_tiles,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WIDE: tl.constexpr, EACH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Write y and the mean anew of those of EACH tiles that triton_shared.py found unfit, as a rule none.

    EARLY: whether this was launched before that kernel came to its end.
    """
    if EARLY:
        gdc_wait()
    tile = tl.program_id(0) * EACH + tl.arange(0, EACH)
    if tl.max(tl.load(p_unfit + tile, mask=tile < num_tiles, other=0), 0) > 0:
        for i in range(EACH):
            i_p = tl.program_id(0) * EACH + i
            if tl.load(p_unfit + i_p, mask=i_p < num_tiles, other=0) > 0:
                safe_forward(
                    i_p, p_w, p_u, p_k, p_v, p_y, p_mean, T, 1,
                    C, BLOCK, BLOCKS, CHUNKS, CHANNELS, True, 1, WIDE,
                )  # fmt: skip


@triton.jit
def sum_parts(
    p_parts, p_unfit, i_c, num_images, C: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Return whether a tile of channels i_c is unfit in any image and, if PARTS, both sums of its parts."""
    c = i_c * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    sum_w, sum_u = tl.zeros([32, CHANNELS], WIDE), tl.zeros([32, CHANNELS], WIDE)
    some = tl.zeros([32], tl.int32)
    start = 0
    while start < num_images:
        row = start + tl.arange(0, 32)
        there = row < num_images
        some = tl.maximum(some, tl.load(p_unfit + row * (C // CHANNELS) + i_c, mask=there, other=0))
        if PARTS:
            part = p_parts + row[:, None].to(tl.int64) * 2 * C + c
            sum_w += tl.load(part, mask=there[:, None], other=0.0, cache_modifier=".cg")
            sum_u += tl.load(part + C, mask=there[:, None], other=0.0, cache_modifier=".cg")
        start += 32
    return tl.max(some, 0) > 0, tl.sum(sum_w, 0), tl.sum(sum_u, 0)


@triton.jit
def store_totals(p_sums, i_c, gw, gu, C: tl.constexpr, CHANNELS: tl.constexpr):
    """Write the sums of some channels to (2, C)."""
    c = i_c * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(p_sums + c, gw)
    tl.store(p_sums + C + c, gu)


@triton.jit(do_not_specialize=["T", "num_images"])
def bi_wkv_bwd_mend_kernel(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_mean, p_keys, p_outs, p_unfit, p_sums,
    T, num_images,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    WIDE: tl.constexpr, EACH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Write gk, gv and the parts of gw and gu anew where triton_shared_backward.py found a tile unfit.

    Then the sums of the parts over all images, (2, C). A program looks at EACH images of some channels. Where
    none is unfit the first of those channels sums. Else the last to be done does: which that is, is left to
    chance, what it sums is not.
    """
    if EARLY:
        gdc_wait()
    tiles: tl.constexpr = C // CHANNELS
    i_c = tl.program_id(0) % tiles
    first = tl.program_id(0) // tiles * EACH
    if first == 0:
        some, gw, gu = sum_parts(p_parts, p_unfit, i_c, num_images, C, CHANNELS, WIDE, True)
        if not some:
            store_totals(p_sums, i_c, gw, gu, C, CHANNELS)
    else:
        some, gw, gu = sum_parts(p_parts, p_unfit, i_c, num_images, C, CHANNELS, WIDE, False)
    if some:
        for i in range(EACH):
            i_p = (first + i) * tiles + i_c
            if tl.load(p_unfit + i_p, mask=first + i < num_images, other=0) > 0:
                safe_backward(
                    i_p, p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_mean, p_mean, p_keys, p_outs,
                    T, 1, C, BLOCK, BLOCKS, CHUNKS, CHANNELS, True, 1, False, WIDE,
                )  # fmt: skip
        tl.debug_barrier()  # all threads have stored before one says so
        done = tl.atomic_add(p_unfit + num_images * tiles + i_c, 1, sem="acq_rel")
        if done == tl.num_programs(0) // tiles - 1:
            _, gw, gu = sum_parts(p_parts, p_unfit, i_c, num_images, C, CHANNELS, WIDE, True)
            store_totals(p_sums, i_c, gw, gu, C, CHANNELS)
