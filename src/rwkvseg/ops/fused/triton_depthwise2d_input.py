"""Gradient of the input of a depthwise convolution of stride 2: its kernel and how it is launched.

A lane is VECTOR channels of a patch of ROWS x COLS pixels of the input, as in triton_depthwise2d.py. A patch
begins at an even row and column, so that the compiler knows by which taps a pixel took part in results: a
quarter of all, as every other row and column of results is not there. Rows of g are read once for a patch.

Names: t: a row of g that has to do with the patch, j: a row of the patch, q: its column, k: a tap of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rwkvseg.ops.fused import triton_depthwise2d as strided
from rwkvseg.ops.fused.triton_depthwise2d import _jit, _lanes, _nothing, _pixels, _place, _store_patch


@triton.jit
def _add_row(
    sums, seen, p_taps, FIRST: tl.constexpr, LAST: tl.constexpr,
    KW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add what a row of g brings rows FIRST to LAST - 1. p_taps: weights by which row 0 took part in it."""
    HALF: tl.constexpr = KW // 2
    new = ()
    for j in tl.static_range(ROWS):
        part = ()
        for q in tl.static_range(COLS):
            part += (sums[j * COLS + q],)
        if j >= FIRST and j < LAST:
            for k in tl.static_range(KW):
                weight = tl.load(p_taps + (j * KW + k) * GROUP)
                added = ()
                for q in tl.static_range(COLS):
                    if (q + HALF + k) % 2 == 0:
                        added += (part[q] + weight * seen[(q + HALF + HALF // 2 * 2 - k) // 2],)
                    else:
                        added += (part[q],)
                part = added
        new += part
    return new


@_jit(do_not_specialize=["B", "vectors", "H", "W"])
def depthwise_conv2d_input_kernel(
    p_g, p_taps, p_gx, B, vectors, H, W,
    KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    GROUP: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """g: (B, ceil(H / 2), ceil(W / 2), C), taps: (C in groups, KH, KW, GROUP) in float32 -> (B, H, W, C)."""
    C = vectors * VECTOR
    groups = tl.cdiv(C, GROUP)
    group = tl.program_id(0) % groups
    lanes = _lanes(BLOCK, VECTOR)
    n = tl.program_id(0) // groups * (BLOCK // GROUP) + lanes // GROUP
    c = group * GROUP + lanes % GROUP
    H_G, W_G = tl.cdiv(H, 2), tl.cdiv(W, 2)
    row, column, rows, start, rows_g, start_g = _place(n, c, B, C, H, W, H_G, W_G, ROWS, COLS)
    p_g += start_g
    p_taps += group * (KH * KW * GROUP) + lanes % GROUP
    sums = _nothing(lanes, ROWS * COLS)
    ABOVE: tl.constexpr = KH // 2 // 2  # rows of g before the one that stands for the patch's first
    LEFT: tl.constexpr = KW // 2 // 2
    SEEN: tl.constexpr = (COLS - 1 + KW // 2) // 2 + LEFT + 1
    # row j took part in row t of g by row TOP + j - 2 * t of its kernel, where there is such a row
    TOP: tl.constexpr = KH // 2 + 2 * ABOVE
    END: tl.constexpr = (TOP + ROWS - 1) // 2 + 1
    FULL: tl.constexpr = (TOP + ROWS - KH + 1) // 2 < TOP // 2 + 1  # there are rows for the whole patch
    FULL_FROM: tl.constexpr = (TOP + ROWS - KH + 1) // 2 if FULL else END
    FULL_TO: tl.constexpr = TOP // 2 + 1 if FULL else END
    top, left = row >> 1, column >> 1
    for t in tl.static_range(FULL_FROM):
        seen = _pixels(p_g, top + (t - ABOVE), rows_g, left, C, H_G, W_G, -LEFT, SEEN)
        p_t, last = p_taps + (TOP - 2 * t) * KW * GROUP, KH - TOP + 2 * t
        sums = _add_row(sums, seen, p_t, 2 * t - TOP, last, KW, ROWS, COLS, GROUP)
    for t in range(FULL_FROM, FULL_TO):
        seen = _pixels(p_g, top + (t - ABOVE), rows_g, left, C, H_G, W_G, -LEFT, SEEN)
        p_t = p_taps + (TOP - 2 * t) * (KW * GROUP)
        sums = _add_row(sums, seen, p_t, 0, ROWS, KW, ROWS, COLS, GROUP)
    for t in tl.static_range(FULL_TO, END):
        seen = _pixels(p_g, top + (t - ABOVE), rows_g, left, C, H_G, W_G, -LEFT, SEEN)
        p_t = p_taps + (TOP - 2 * t) * KW * GROUP
        sums = _add_row(sums, seen, p_t, 2 * t - TOP, ROWS, KW, ROWS, COLS, GROUP)
    _store_patch(p_gx + start, sums, row, rows, column, C, W, ROWS, COLS)


def gradient_of_input(x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """Gradient of `triton_depthwise2d.convolve` of stride 2 by x (B, C, H, W), channels-last.

    weight: (C, 1, KH, KW), g: (B, C, ceil(H / 2), ceil(W / 2)). Of x it needs the shape alone.
    """
    g = g.contiguous(memory_format=torch.channels_last)
    gx = torch.empty_like(x, memory_format=torch.channels_last)
    batch, num_channels, height, width = x.shape
    group, vector, block = strided.lanes_over(num_channels, strided.WARPS)
    cols = strided.COLS_OF_INPUT
    rows, programs = strided.rows_and_programs(x, strided.ROWS_OF_INPUT, cols)
    with torch.cuda.device_of(x):
        taps = strided.arranged(weight, group, flipped=False)
        depthwise_conv2d_input_kernel[(programs,)](
            g, taps, gx, batch, num_channels // vector, height, width, *weight.shape[2:],
            ROWS=rows, COLS=cols, GROUP=group, VECTOR=vector, BLOCK=block,
            num_warps=strided.WARPS, maxnreg=strided.REGISTERS,
        )  # fmt: skip
    return gx
