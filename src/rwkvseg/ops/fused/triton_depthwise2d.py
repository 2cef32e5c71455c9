"""Depthwise convolution of maps that are channels-last: Triton kernels and how they are launched.

A tile of the convolution is ROWS x COLS pixels of CHANNELS channels. It goes through the rows that its
kernels see; what it reads of a row at one shift serves all its rows, whose sums it holds.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4
WIDEST = 64  # pixels of a tile along a row
WIDEST_OF_GRADIENT = 32
PROGRAMS = 1024  # of the weights' gradient at least, where there is so much work


@triton.jit
def _at(p, row, columns, c, H, W, C):
    """Read (COLS, CHANNELS) pixels of a row as float32, zeros outside."""
    inside = (row >= 0) & (row < H) & (columns >= 0) & (columns < W)
    there = inside[:, None] & (c < C)[None, :]
    p_row = p + row.to(tl.int64) * W * C
    return tl.load(p_row + columns[:, None] * C + c[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["H", "W"])
def depthwise_conv2d_kernel(
    p_x, p_weight, p_y, C, H, W,
    KH: tl.constexpr, KW: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """x: (B, H, W, C), weight: (KH + 2 ROWS - 2, KW, C to whole tiles), zeros around -> y as x."""
    i = tl.program_id(0)
    tiles_c, tiles_w, tiles_h = tl.cdiv(C, CHANNELS), tl.cdiv(W, COLS), tl.cdiv(H, ROWS)
    c = i % tiles_c * CHANNELS + tl.arange(0, CHANNELS)
    columns = i // tiles_c % tiles_w * COLS + tl.arange(0, COLS)
    first = i // (tiles_c * tiles_w) % tiles_h * ROWS
    image = (i // (tiles_c * tiles_w * tiles_h)).to(tl.int64) * H * W * C
    p_x += image
    p_y += image
    sums = ()
    for _ in tl.static_range(ROWS):
        sums += (tl.zeros((COLS, CHANNELS), tl.float32),)
    for r in range(ROWS + KH - 1):
        row = first + r - KH // 2
        for k in tl.static_range(KW):
            seen = _at(p_x, row, columns + (k - KW // 2), c, H, W, C)
            new = ()
            for j in tl.static_range(ROWS):
                p_tap = p_weight + ((r - j + ROWS - 1) * KW + k) * (tiles_c * CHANNELS)
                weight = tl.load(p_tap + c).to(tl.float32)
                new += (sums[j] + weight[None, :] * seen,)
            sums = new
    there = (columns < W)[:, None] & (c < C)[None, :]
    for j in tl.static_range(ROWS):
        p_row = p_y + (first + j).to(tl.int64) * W * C
        tl.store(p_row + columns[:, None] * C + c[None, :], sums[j], mask=there & (first + j < H))


@triton.jit(do_not_specialize=["B", "H", "W", "splits"])
def depthwise_conv2d_weight_kernel(
    p_x, p_g, p_parts, B, C, H, W, splits,
    KH: tl.constexpr, KW: tl.constexpr, COLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write (splits, KH, KW, C): sums of g times the x that each tap saw, over a share of all rows."""
    tiles_c, tiles_w = tl.cdiv(C, CHANNELS), tl.cdiv(W, COLS)
    c = tl.program_id(0) % tiles_c * CHANNELS + tl.arange(0, CHANNELS)
    i = tl.program_id(0) // tiles_c % KH
    split = tl.program_id(0) // (tiles_c * KH)
    sums = ()
    for _ in tl.static_range(KW):
        sums += (tl.zeros((COLS, CHANNELS), tl.float32),)
    piece = split
    while piece < B * H * tiles_w:
        columns = piece % tiles_w * COLS + tl.arange(0, COLS)
        row = piece // tiles_w % H
        image = (piece // (tiles_w * H)).to(tl.int64) * H * W * C
        g = _at(p_g + image, row, columns, c, H, W, C)
        new = ()
        for k in tl.static_range(KW):
            seen = _at(p_x + image, row + i - KH // 2, columns + (k - KW // 2), c, H, W, C)
            new += (sums[k] + g * seen,)
        sums = new
        piece += splits
    p_parts += (split * KH + i).to(tl.int64) * KW * C
    for k in tl.static_range(KW):
        tl.store(p_parts + k * C + c, tl.sum(sums[k], 0), mask=c < C)


def _channels(number: int) -> int:
    """Channels of a tile: few are left over."""
    return 32 if number % 32 == 0 or number > 96 else 16


def _columns(width: int, widest: int) -> int:
    wide: int = triton.next_power_of_2(width)
    return min(widest, max(16, wide))


def convolve(x: Tensor, weight: Tensor, *, flipped: bool) -> Tensor:
    """Convolve x (B, C, H, W) with weight (C, 1, KH, KW), or with its kernels turned round; channels-last."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    batch, num_channels, height, width = x.shape
    columns, channels = _columns(width, WIDEST), _channels(num_channels)
    taps = (weight.flip(2, 3) if flipped else weight).permute(2, 3, 1, 0)
    taps = F.pad(taps, (0, -num_channels % channels, 0, 0, 0, 0, ROWS - 1, ROWS - 1)).contiguous()
    tiles = triton.cdiv(height, ROWS) * triton.cdiv(width, columns) * triton.cdiv(num_channels, channels)
    with torch.cuda.device_of(x):
        depthwise_conv2d_kernel[(batch * tiles,)](
            x, taps, y, num_channels, height, width, *weight.shape[2:],
            ROWS=ROWS, COLS=columns, CHANNELS=channels, num_warps=4, maxnreg=168,
        )  # fmt: skip
    return y


def gradient_of_weight(x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """Gradient of `convolve` by the weight, as the weight but float32."""
    x, g = (part.contiguous(memory_format=torch.channels_last) for part in (x, g))
    batch, num_channels, height, width = x.shape
    kernel = weight.shape[2:]
    columns, channels = _columns(width, WIDEST_OF_GRADIENT), _channels(num_channels)
    others = triton.cdiv(num_channels, channels) * kernel[0]
    splits = min(batch * height * triton.cdiv(width, columns), triton.cdiv(PROGRAMS, others))
    parts = torch.empty((splits, *kernel, num_channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        depthwise_conv2d_weight_kernel[(splits * others,)](
            x, g, parts, batch, num_channels, height, width, splits, *kernel,
            COLS=columns, CHANNELS=channels, num_warps=2,
        )  # fmt: skip
    return parts.sum(0).permute(2, 0, 1)[:, None].contiguous()
