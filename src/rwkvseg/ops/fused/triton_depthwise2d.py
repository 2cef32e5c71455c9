"""Depthwise convolution of maps that are channels-last: kernels and how they are launched.

A lane is VECTOR channels of a patch of ROWS x COLS results, whose sums stay in registers. It goes through the
rows that its kernels see: the STRIDE * (COLS - 1) + KW pixels of a row are read once and serve every tap of
every row of the patch; a weight serves the whole patch. Lanes lie side by side: GROUP channels of a patch,
then the next.

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

from rwkvseg.ops.backends import gluon_was_tried

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IN_GLUON = gluon_was_tried() and torch.version.hip is None and not INTERPRETED
ROWS = 4 if IN_GLUON else 2  # of a patch of the convolution
ROWS_OF_FEW = 2  # where there would be FEW programs or less: on an H200 about 400 run at once
FEW = 400
COLS = 8 if IN_GLUON else 4
ROWS_OF_GRADIENT = 4 if IN_GLUON else 2  # of a patch of the weights' gradient
COLS_OF_GRADIENT = 8 if IN_GLUON else 4
ROWS_STRIDED = 2  # the same for stride 2: of a patch of results
COLS_STRIDED = 8 if IN_GLUON else 4
ROWS_OF_GRADIENT_STRIDED = 4 if IN_GLUON else 2
COLS_OF_GRADIENT_STRIDED = 4
ROWS_OF_INPUT = 4 if IN_GLUON else 2  # of a patch of the input's gradient for stride 2: even
COLS_OF_INPUT = 8 if IN_GLUON else 4
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
def _place(n, c, B, C, H, W, H_SEEN, W_SEEN, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return first row and column of patches n, then two maps: rows (none where nothing is) and start.

    The first is (H, W), whose patches they are, the second (H_SEEN, W_SEEN).
    """
    tiles_h, tiles_w = tl.cdiv(H, ROWS), tl.cdiv(W, COLS)
    image = n // (tiles_w * tiles_h)
    there = (c < C) & (image < B)
    start = image.to(tl.int64) * H * W * C + c
    start_seen = image.to(tl.int64) * H_SEEN * W_SEEN * C + c
    row, column = n // tiles_w % tiles_h * ROWS, n % tiles_w * COLS
    return row, column, tl.where(there, H, 0), start, tl.where(there, H_SEEN, 0), start_seen


@triton.jit
def _strided(size, STRIDE: tl.constexpr):
    """Return the number of results along an axis."""
    return size if STRIDE == 1 else tl.cdiv(size, STRIDE)


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
    KW: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add what rows FIRST to LAST - 1 of the patch see of a row. p_taps: weights by which row 0 sees it."""
    new = ()
    for j in tl.static_range(ROWS):
        part = ()
        for q in tl.static_range(COLS):
            part += (sums[j * COLS + q],)
        if j >= FIRST and j < LAST:
            for k in tl.static_range(KW):
                weight = tl.load(p_taps + (k - STRIDE * j * KW) * GROUP)
                added = ()
                for q in tl.static_range(COLS):
                    added += (part[q] + weight * seen[STRIDE * q + k],)
                part = added
        new += part
    return new


@triton.jit
def _store_patch(p, sums, row, rows, column, C, W, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Write the sums of a patch where its map is."""
    for j in tl.static_range(ROWS):
        p_row = p + (row + j).to(tl.int64) * (W * C) + column * C
        there = (row + j).to(tl.uint32) < rows.to(tl.uint32)
        for q in tl.static_range(COLS):
            tl.store(p_row + q * C, sums[j * COLS + q].to(p.dtype.element_ty), mask=there & (column < W - q))


@_jit(do_not_specialize=["B", "vectors", "H", "W"])
def depthwise_conv2d_kernel(
    p_x, p_taps, p_y, B, vectors, H, W,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    GROUP: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x: (B, H, W, C = vectors * VECTOR), taps: (C in groups, KH, KW, GROUP) in float32 -> y.

    y: (B, ceil(H / STRIDE), ceil(W / STRIDE), C).
    """
    C = vectors * VECTOR
    groups = tl.cdiv(C, GROUP)
    group = tl.program_id(0) % groups
    lanes = _lanes(BLOCK, VECTOR)
    n = tl.program_id(0) // groups * (BLOCK // GROUP) + lanes // GROUP
    c = group * GROUP + lanes % GROUP
    H_Y, W_Y = _strided(H, STRIDE), _strided(W, STRIDE)
    row, column, rows_y, start_y, rows, start = _place(n, c, B, C, H_Y, W_Y, H, W, ROWS, COLS)
    p_x += start
    p_taps += group * (KH * KW * GROUP) + lanes % GROUP
    sums = _nothing(lanes, ROWS * COLS)
    top, left = row * STRIDE, column * STRIDE
    LEFT: tl.constexpr = KW // 2
    SEEN: tl.constexpr = STRIDE * (COLS - 1) + KW
    LATER: tl.constexpr = STRIDE * (ROWS - 1)  # so many rows further down is what the last row sees first
    if KH > LATER + 1:  # first and last rows are seen by a part of the patch
        for r in tl.static_range(LATER):
            seen = _pixels(p_x, top + (r - KH // 2), rows, left, C, H, W, -LEFT, SEEN)
            p_r = p_taps + r * KW * GROUP
            sums = _add_row(sums, seen, p_r, 0, r // STRIDE + 1, KW, STRIDE, ROWS, COLS, GROUP)
        for r in range(LATER, KH):
            seen = _pixels(p_x, top + (r - KH // 2), rows, left, C, H, W, -LEFT, SEEN)
            p_r = p_taps + r * (KW * GROUP)
            sums = _add_row(sums, seen, p_r, 0, ROWS, KW, STRIDE, ROWS, COLS, GROUP)
        for r in tl.static_range(KH, KH + LATER):
            seen = _pixels(p_x, top + (r - KH // 2), rows, left, C, H, W, -LEFT, SEEN)
            p_r = p_taps + r * KW * GROUP
            sums = _add_row(sums, seen, p_r, (r - KH) // STRIDE + 1, ROWS, KW, STRIDE, ROWS, COLS, GROUP)
    else:
        for r in tl.static_range(KH + LATER):
            seen = _pixels(p_x, top + (r - KH // 2), rows, left, C, H, W, -LEFT, SEEN)
            p_r, last = p_taps + r * KW * GROUP, r // STRIDE + 1
            sums = _add_row(sums, seen, p_r, (r - KH) // STRIDE + 1, last, KW, STRIDE, ROWS, COLS, GROUP)
    _store_patch(p_y + start_y, sums, row, rows_y, column, C, W_Y, ROWS, COLS)


@_jit(do_not_specialize=["B", "vectors", "H", "W", "splits"])
def depthwise_conv2d_weight_kernel(
    p_x, p_g, p_parts, B, vectors, H, W, splits,
    KH: tl.constexpr, KW: tl.constexpr, TAPS_H: tl.constexpr, STRIDE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, GROUP: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
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
    H_Y, W_Y = _strided(H, STRIDE), _strided(W, STRIDE)
    pieces = tl.cdiv(B * tl.cdiv(H_Y, ROWS) * tl.cdiv(W_Y, COLS), PATCHES)
    SEEN: tl.constexpr = STRIDE * (COLS - 1) + KW
    sums = _nothing(lanes, TAPS_H * KW)
    piece = split
    while piece < pieces:  # the interpreter has no range of numbers that are computed
        n = piece * PATCHES + lanes // GROUP
        row, column, rows_g, start_g, rows, start = _place(n, c, B, C, H_Y, W_Y, H, W, ROWS, COLS)
        g = ()
        for j in tl.static_range(ROWS):
            g += _pixels(p_g + start_g, row + j, rows_g, column, C, H_Y, W_Y, 0, COLS)
        for r in tl.static_range(STRIDE * (ROWS - 1) + TAPS_H):
            at = row * STRIDE + (i + r - KH // 2)
            seen = _pixels(p_x + start, at, rows, column * STRIDE, C, H, W, -(KW // 2), SEEN)
            new = ()
            for t in tl.static_range(TAPS_H):
                for k in tl.static_range(KW):
                    part = sums[t * KW + k]
                    if r >= t and r - t < STRIDE * ROWS and (r - t) % STRIDE == 0:
                        for q in tl.static_range(COLS):
                            part += g[(r - t) // STRIDE * COLS + q] * seen[STRIDE * q + k]
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


def rows_and_programs(y: Tensor, rows: int, cols: int) -> tuple[int, int]:
    """Rows of a patch of y (B, C, H, W), ROWS_OF_FEW where programs would be few, and how many programs."""
    batch, num_channels, height, width = y.shape
    lanes = lanes_over(num_channels, WARPS)
    columns, groups = triton.cdiv(width, cols), triton.cdiv(num_channels, lanes.group)

    def programs(rows: int) -> int:
        patches = batch * triton.cdiv(height, rows) * columns
        return int(triton.cdiv(patches, lanes.block // lanes.group) * groups)

    rows = rows if programs(rows) > FEW else ROWS_OF_FEW
    return rows, programs(rows)


def taps_of_lane(kernel_h: int, kernel_w: int) -> int:
    """Rows of a kernel whose weights' gradient is in one lane: shares as equal as can be."""
    shares = triton.cdiv(kernel_h, max(1, TAPS // kernel_w))
    return int(triton.cdiv(kernel_h, shares))


def arranged(weight: Tensor, group: int, *, flipped: bool) -> Tensor:
    """Return the weights of every group of channels by themselves, tap by tap."""
    weight = weight.contiguous()
    num_channels, size = weight.shape[0], weight.shape[2] * weight.shape[3]
    taps = weight.new_empty((triton.cdiv(num_channels, group), size, group), dtype=torch.float32)
    arrange_taps_kernel[(triton.cdiv(taps.numel(), 256),)](
        weight, taps, num_channels, SIZE=size, FLIPPED=flipped, GROUP=group, BLOCK=256, num_warps=2
    )
    return taps


def convolve(x: Tensor, weight: Tensor, *, flipped: bool, stride: int = 1) -> Tensor:
    """Convolve x (B, C, H, W) with weight (C, 1, KH, KW), or with its kernels turned round; channels-last."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, num_channels, height, width = x.shape
    y = torch.empty(
        (batch, num_channels, triton.cdiv(height, stride), triton.cdiv(width, stride)),
        dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
    )  # fmt: skip
    group, vector, block = lanes_over(num_channels, WARPS)
    cols = COLS if stride == 1 else COLS_STRIDED
    rows, programs = rows_and_programs(y, ROWS if stride == 1 else ROWS_STRIDED, cols)
    with torch.cuda.device_of(x):
        taps = arranged(weight, group, flipped=flipped)
        depthwise_conv2d_kernel[(programs,)](
            x, taps, y, batch, num_channels // vector, height, width, *weight.shape[2:], STRIDE=stride,
            ROWS=rows, COLS=cols, GROUP=group, VECTOR=vector, BLOCK=block, num_warps=WARPS, maxnreg=REGISTERS,
        )  # fmt: skip
    return y


def gradient_of_weight(x: Tensor, weight: Tensor, g: Tensor, *, stride: int = 1) -> Tensor:
    """Gradient of `convolve` by the weight, as the weight but float32."""
    x, g = (part.contiguous(memory_format=torch.channels_last) for part in (x, g))
    batch, num_channels, height, width = x.shape
    kernel_h, kernel_w = weight.shape[2:]
    group, vector, block = lanes_over(num_channels, WARPS_OF_GRADIENT)
    rows, cols = ROWS_OF_GRADIENT, COLS_OF_GRADIENT
    if stride == 2:
        rows, cols = ROWS_OF_GRADIENT_STRIDED, COLS_OF_GRADIENT_STRIDED
    taps_h = taps_of_lane(kernel_h, kernel_w)
    others = triton.cdiv(num_channels, group) * triton.cdiv(kernel_h, taps_h)
    patches = batch * triton.cdiv(g.shape[2], rows) * triton.cdiv(g.shape[3], cols)
    splits = min(triton.cdiv(patches, block // group), max(1, PROGRAMS // others))
    parts = torch.empty((splits, kernel_h, kernel_w, num_channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        depthwise_conv2d_weight_kernel[(splits * others,)](
            x, g, parts, batch, num_channels // vector, height, width, splits, kernel_h, kernel_w,
            TAPS_H=taps_h, STRIDE=stride, ROWS=rows, COLS=cols, GROUP=group, VECTOR=vector, BLOCK=block,
            num_warps=WARPS_OF_GRADIENT, maxnreg=REGISTERS_OF_GRADIENT,
        )  # fmt: skip
    return parts.sum(0).permute(2, 0, 1)[:, None].contiguous()
