"""Depthwise convolution of maps that are channels-last: kernels and how they are launched.

A lane is VECTOR channels of a patch of ROWS x COLS pixels, whose sums stay in registers. It goes through the
rows that its kernels see: the COLS + KW - 1 pixels of a row are read once and serve every tap of every row of
the patch; a weight serves the whole patch. Lanes lie side by side: GROUP channels of a patch, then the next.

One source in two languages. Gluon takes the layout of the lanes as given; Triton would search for one, which
takes minutes for as many sums, so that it gets smaller patches of one channel a lane. Triton's interpreter
runs the same source. Names: r: a row that kernels see, j: a row of the patch, q: its column, k, t: a tap.
"""

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

GLUON_VERSIONS = ("3.6.",)  # of Triton: Gluon is an experiment there
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IN_GLUON = triton.__version__.startswith(GLUON_VERSIONS) and torch.version.hip is None and not INTERPRETED
ROWS = 4 if IN_GLUON else 2  # of a patch of the convolution
ROWS_OF_FEW = 2  # where there would be FEW programs or less: on an H200 about 400 run at once
FEW = 400
COLS = 8 if IN_GLUON else 4
ROWS_OF_GRADIENT = 4 if IN_GLUON else 2  # of a patch of the weights' gradient
COLS_OF_GRADIENT = 8 if IN_GLUON else 4
TAPS = 32  # of the weights' gradient in a lane, or those of one row
VECTOR = 2 if IN_GLUON else 1  # channels of a lane where their number is even
WARPS = 4
WARPS_OF_GRADIENT = 4
REGISTERS = 168  # of a thread at most: three programs run on a multiprocessor
REGISTERS_OF_GRADIENT = 168
PROGRAMS = 792  # of the weights' gradient at most: two rounds of those that run at once

_jit = gluon.jit if IN_GLUON else triton.jit

if IN_GLUON:

    @gluon.jit
    def _lanes(BLOCK: tl.constexpr, VECTOR: tl.constexpr):
        """Return 0, 1, ..., VECTOR neighbours in a thread."""
        return gl.arange(0, BLOCK, layout=gl.BlockedLayout([VECTOR], [32], [gl.num_warps()], [0]))

else:

    @triton.jit
    def _lanes(BLOCK: tl.constexpr, VECTOR: tl.constexpr):
        """Return 0, 1, ..."""
        return tl.arange(0, BLOCK)


@triton.jit
def _nothing(lanes, NUMBER: tl.constexpr):
    """Return so many sums of zero, one a lane."""
    sums = ()
    for _ in tl.static_range(NUMBER):
        sums += ((lanes * 0).to(tl.float32),)
    return sums


@triton.jit
def _place(n, c, B, C, H, W, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return first row and column of patches n, the rows of their maps (none where nothing is), the map."""
    tiles_h, tiles_w = tl.cdiv(H, ROWS), tl.cdiv(W, COLS)
    image = n // (tiles_w * tiles_h)
    there = (c < C) & (image < B)
    start = image.to(tl.int64) * H * W * C + c
    return n // tiles_w % tiles_h * ROWS, n % tiles_w * COLS, tl.where(there, H, 0), start


@triton.jit
def _pixels(p, row, rows, column, C, H, W, FIRST: tl.constexpr, NUMBER: tl.constexpr):
    """Read pixels of a row from column + FIRST on as float32, zeros outside."""
    # a row inside the map, also because compilers would keep a pointer a pixel if rows were evenly apart
    p += tl.minimum(tl.maximum(row, 0), H - 1).to(tl.int64) * (W * C) + column * C
    there = row.to(tl.uint32) < rows.to(tl.uint32)
    pixels = ()
    for i in tl.static_range(NUMBER):
        # the first column is inside, so that one side is to be looked at
        inside = (column >= -(FIRST + i)) if FIRST + i < 0 else (column < W - (FIRST + i))
        pixel = tl.load(p + (FIRST + i) * C, mask=there & inside, other=0.0)
        if pixel.dtype == tl.bfloat16:  # the same number, by one instruction less for every other pixel
            pixels += ((pixel.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True),)
        else:
            pixels += (pixel.to(tl.float32),)
    return pixels


@triton.jit
def _add_row(
    sums, seen, p_taps, FIRST: tl.constexpr, LAST: tl.constexpr,
    KW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add what rows FIRST to LAST - 1 of the patch see of a row. p_taps: weights by which row 0 sees it."""
    new = ()
    for j in tl.static_range(ROWS):
        part = ()
        for q in tl.static_range(COLS):
            part += (sums[j * COLS + q],)
        if j >= FIRST and j < LAST:
            for k in tl.static_range(KW):
                weight = tl.load(p_taps + (k - j * KW) * GROUP)
                added = ()
                for q in tl.static_range(COLS):
                    added += (part[q] + weight * seen[q + k],)
                part = added
        new += part
    return new


@_jit(do_not_specialize=["B", "vectors", "H", "W"])
def depthwise_conv2d_kernel(
    p_x, p_taps, p_y, B, vectors, H, W,
    KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    GROUP: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x: (B, H, W, C = vectors * VECTOR), taps: (C in groups, KH, KW, GROUP) in float32 -> y as x."""
    C = vectors * VECTOR
    groups = tl.cdiv(C, GROUP)
    group = tl.program_id(0) % groups
    lanes = _lanes(BLOCK, VECTOR)
    n = tl.program_id(0) // groups * (BLOCK // GROUP) + lanes // GROUP
    row, column, rows, start = _place(n, group * GROUP + lanes % GROUP, B, C, H, W, ROWS, COLS)
    p_x += start
    p_taps += group * (KH * KW * GROUP) + lanes % GROUP
    sums = _nothing(lanes, ROWS * COLS)
    LEFT: tl.constexpr = KW // 2
    if KH > ROWS:  # first and last rows are seen by a part of the patch
        for r in tl.static_range(ROWS - 1):
            seen = _pixels(p_x, row + (r - KH // 2), rows, column, C, H, W, -LEFT, COLS + KW - 1)
            sums = _add_row(sums, seen, p_taps + r * KW * GROUP, 0, r + 1, KW, ROWS, COLS, GROUP)
        for r in range(ROWS - 1, KH):
            seen = _pixels(p_x, row + (r - KH // 2), rows, column, C, H, W, -LEFT, COLS + KW - 1)
            sums = _add_row(sums, seen, p_taps + r * (KW * GROUP), 0, ROWS, KW, ROWS, COLS, GROUP)
        for r in tl.static_range(KH, KH + ROWS - 1):
            seen = _pixels(p_x, row + (r - KH // 2), rows, column, C, H, W, -LEFT, COLS + KW - 1)
            sums = _add_row(sums, seen, p_taps + r * KW * GROUP, r - KH + 1, ROWS, KW, ROWS, COLS, GROUP)
    else:
        for r in tl.static_range(KH + ROWS - 1):
            seen = _pixels(p_x, row + (r - KH // 2), rows, column, C, H, W, -LEFT, COLS + KW - 1)
            p_r = p_taps + r * KW * GROUP
            sums = _add_row(sums, seen, p_r, r - KH + 1, r + 1, KW, ROWS, COLS, GROUP)
    for j in tl.static_range(ROWS):
        p_row = p_y + start + (row + j).to(tl.int64) * (W * C) + column * C
        there = (row + j).to(tl.uint32) < rows.to(tl.uint32)
        for q in tl.static_range(COLS):
            y = sums[j * COLS + q].to(p_y.dtype.element_ty)
            tl.store(p_row + q * C, y, mask=there & (column < W - q))


@_jit(do_not_specialize=["B", "vectors", "H", "W", "splits"])
def depthwise_conv2d_weight_kernel(
    p_x, p_g, p_parts, B, vectors, H, W, splits,
    KH: tl.constexpr, KW: tl.constexpr, TAPS_H: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    GROUP: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write (splits, KH, KW, C): sums of g times the x that each tap saw, over a share of all patches."""
    C = vectors * VECTOR
    groups: tl.constexpr = (KH + TAPS_H - 1) // TAPS_H
    i = tl.program_id(0) % groups * TAPS_H
    group = tl.program_id(0) // groups % tl.cdiv(C, GROUP)
    split = tl.program_id(0) // (groups * tl.cdiv(C, GROUP))
    lanes = _lanes(BLOCK, VECTOR)
    c = group * GROUP + lanes % GROUP
    PATCHES: tl.constexpr = BLOCK // GROUP
    pieces = tl.cdiv(B * tl.cdiv(H, ROWS) * tl.cdiv(W, COLS), PATCHES)
    sums = _nothing(lanes, TAPS_H * KW)
    piece = split
    while piece < pieces:  # the interpreter has no range of numbers that are computed
        n = piece * PATCHES + lanes // GROUP
        row, column, rows, start = _place(n, c, B, C, H, W, ROWS, COLS)
        g = ()
        for j in tl.static_range(ROWS):
            g += _pixels(p_g + start, row + j, rows, column, C, H, W, 0, COLS)
        for r in tl.static_range(ROWS + TAPS_H - 1):
            at = row + (i + r - KH // 2)
            seen = _pixels(p_x + start, at, rows, column, C, H, W, -(KW // 2), COLS + KW - 1)
            new = ()
            for t in tl.static_range(TAPS_H):
                for k in tl.static_range(KW):
                    part = sums[t * KW + k]
                    if r >= t and r - t < ROWS:
                        for q in tl.static_range(COLS):
                            part += g[(r - t) * COLS + q] * seen[q + k]
                    new += (part,)
            sums = new
        piece += splits
    of_sum = tl.max(tl.reshape(c, (PATCHES, GROUP)), 0)  # the channels, lying as the sums will
    p_parts += (split * KH + i).to(tl.int64) * KW * C
    for t in tl.static_range(TAPS_H):
        for k in tl.static_range(KW):
            total = tl.sum(tl.reshape(sums[t * KW + k], (PATCHES, GROUP)), 0)
            tl.store(p_parts + (t * KW + k) * C + of_sum, total, mask=(of_sum < C) & (i + t < KH))


@triton.jit(do_not_specialize=["C"])
def arrange_taps_kernel(
    p_weight, p_taps, C, SIZE: tl.constexpr, FLIPPED: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    """weight: (C, SIZE) -> taps (C in groups, SIZE, GROUP) in float32. FLIPPED: kernels turned round."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = i // (SIZE * GROUP) * GROUP + i % GROUP
    tap = i // GROUP % SIZE
    if FLIPPED:
        tap = SIZE - 1 - tap
    weight = tl.load(p_weight + c * SIZE + tap, mask=c < C, other=0.0).to(tl.float32)
    tl.store(p_taps + i, weight, mask=i < tl.cdiv(C, GROUP) * (SIZE * GROUP))


class Lanes(NamedTuple):
    """How lanes lie over C channels."""

    group: int
    """Channels side by side, a power of two."""
    vector: int
    block: int
    """Lanes of a program, times vector."""


def lanes_over(num_channels: int, warps: int) -> Lanes:
    """Few lanes are left over; 32 channels of 16 bit are two sectors of memory."""
    group = 32 if num_channels % 32 == 0 or num_channels > 96 else 16
    group = min(group, triton.next_power_of_2(num_channels))
    vector = VECTOR if num_channels % VECTOR == 0 else 1
    return Lanes(group, vector, max(32 * warps * vector, group))


def rows_and_programs(x: Tensor) -> tuple[int, int]:
    """Rows of a patch of x (B, C, H, W), and how many programs convolve it."""
    batch, num_channels, height, width = x.shape
    lanes = lanes_over(num_channels, WARPS)
    columns, groups = triton.cdiv(width, COLS), triton.cdiv(num_channels, lanes.group)

    def programs(rows: int) -> int:
        patches = batch * triton.cdiv(height, rows) * columns
        return int(triton.cdiv(patches, lanes.block // lanes.group) * groups)

    rows = ROWS if programs(ROWS) > FEW else ROWS_OF_FEW
    return rows, programs(rows)


def taps_of_lane(kernel_h: int, kernel_w: int) -> int:
    """Rows of a kernel whose weights' gradient is in one lane: shares as equal as can be."""
    shares = triton.cdiv(kernel_h, max(1, TAPS // kernel_w))
    return int(triton.cdiv(kernel_h, shares))


def _arranged(weight: Tensor, group: int, *, flipped: bool) -> Tensor:
    """Return the weights of every group of channels by themselves, tap by tap."""
    weight = weight.contiguous()
    num_channels, size = weight.shape[0], weight.shape[2] * weight.shape[3]
    taps = weight.new_empty((triton.cdiv(num_channels, group), size, group), dtype=torch.float32)
    arrange_taps_kernel[(triton.cdiv(taps.numel(), 256),)](
        weight, taps, num_channels, SIZE=size, FLIPPED=flipped, GROUP=group, BLOCK=256, num_warps=2
    )
    return taps


def convolve(x: Tensor, weight: Tensor, *, flipped: bool) -> Tensor:
    """Convolve x (B, C, H, W) with weight (C, 1, KH, KW), or with its kernels turned round; channels-last."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    batch, num_channels, height, width = x.shape
    group, vector, block = lanes_over(num_channels, WARPS)
    rows, programs = rows_and_programs(x)
    with torch.cuda.device_of(x):
        taps = _arranged(weight, group, flipped=flipped)
        depthwise_conv2d_kernel[(programs,)](
            x, taps, y, batch, num_channels // vector, height, width, *weight.shape[2:],
            ROWS=rows, COLS=COLS, GROUP=group, VECTOR=vector, BLOCK=block, num_warps=WARPS, maxnreg=REGISTERS,
        )  # fmt: skip
    return y


def gradient_of_weight(x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """Gradient of `convolve` by the weight, as the weight but float32."""
    x, g = (part.contiguous(memory_format=torch.channels_last) for part in (x, g))
    batch, num_channels, height, width = x.shape
    kernel_h, kernel_w = weight.shape[2:]
    group, vector, block = lanes_over(num_channels, WARPS_OF_GRADIENT)
    taps_h = taps_of_lane(kernel_h, kernel_w)
    others = triton.cdiv(num_channels, group) * triton.cdiv(kernel_h, taps_h)
    patches = batch * triton.cdiv(height, ROWS_OF_GRADIENT) * triton.cdiv(width, COLS_OF_GRADIENT)
    splits = min(triton.cdiv(patches, block // group), max(1, PROGRAMS // others))
    parts = torch.empty((splits, kernel_h, kernel_w, num_channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        depthwise_conv2d_weight_kernel[(splits * others,)](
            x, g, parts, batch, num_channels // vector, height, width, splits, kernel_h, kernel_w,
            TAPS_H=taps_h, ROWS=ROWS_OF_GRADIENT, COLS=COLS_OF_GRADIENT, GROUP=group, VECTOR=vector,
            BLOCK=block, num_warps=WARPS_OF_GRADIENT, maxnreg=REGISTERS_OF_GRADIENT,
        )  # fmt: skip
    return parts.sum(0).permute(2, 0, 1)[:, None].contiguous()
