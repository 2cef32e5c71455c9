"""Token shift and interpolation in one pass: Triton kernels and how they are launched.

A tile is BLOCK_P pixels of BLOCK_C channels; the neighbours of its pixels come from the caches. Every
channel looks at one neighbour: groups 0 to 3 look left, right, up and down.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_CHANNELS = 64  # of a tile: a cache line of 16-bit values, and it divides the networks' widths
TILE = 2048  # elements
TILES_OF_GRADIENT = 8  # a program of the backward pass works on so many half tiles, one after the other


@triton.jit
def _group_of(c, C: tl.constexpr, VECTOR: tl.constexpr):
    # the three cuts are multiples of VECTOR: said this way, the compiler sees that vectors never straddle one
    v = c // VECTOR
    second, third, fourth = C // 4 // VECTOR, C // 2 // VECTOR, 3 * C // 4 // VECTOR
    return (v >= second).to(tl.int32) + (v >= third).to(tl.int32) + (v >= fourth).to(tl.int32)


@triton.jit
def _step_of(group, W, C: tl.constexpr):
    """Elements from a pixel to the neighbour that this group looks at."""
    distance = tl.where(group < 2, C, W * C)
    return tl.where(group % 2 == 0, -distance, distance)


@triton.jit
def _neighbours_of(along, H, W):
    """Which neighbours pixels have: bit g is set if the one of group g exists. along: index in an image."""
    column, row = along % W, along // W % H
    left, right = (column > 0).to(tl.int32), (column < W - 1).to(tl.int32)
    up, down = (row > 0).to(tl.int32), (row < H - 1).to(tl.int32)
    return left + 2 * right + 4 * up + 8 * down


@triton.jit(do_not_specialize=["num_pixels", "pixels_per_image", "H", "W"])
def shift_and_mix_fwd_kernel(
    p_x,
    p_mixes,
    p_outs,
    num_pixels,
    pixels_per_image,
    H,
    W,
    C: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """x: (num_pixels, C), mixes: tuple of (C,), outs: tuple of (num_pixels, C). One tile per program."""
    i_p = tl.program_id(0) // tl.cdiv(C, BLOCK_C)
    c = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = _group_of(c, C, VECTOR)
    first = i_p.to(num_pixels.dtype) * BLOCK_P
    pixel = tl.arange(0, BLOCK_P)
    inside = (pixel < num_pixels - first)[:, None] & (c < C)[None, :]
    neighbours = _neighbours_of((first % pixels_per_image).to(tl.int32) + pixel, H, W)[:, None]
    exists = (neighbours >> group[None, :]) & 1 == 1
    tile = first.to(tl.int64) * C  # the only offset that needs 64 bits
    offset = pixel[:, None] * C + c[None, :]
    here = tl.load(p_x + tile + offset, mask=inside, other=0.0).to(tl.float32)
    there = offset + _step_of(group, W, C)[None, :]
    beside = tl.load(p_x + tile + there, mask=inside & exists, other=0.0).to(tl.float32)
    for m in tl.static_range(len(p_mixes)):
        mix = tl.load(p_mixes[m] + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        tl.store(p_outs[m] + tile + offset, beside + mix * (here - beside), mask=inside)


@triton.jit(do_not_specialize=["num_pixels", "pixels_per_image", "H", "W"])
def shift_and_mix_bwd_kernel(
    p_x,
    p_mixes,
    p_gs,
    p_gx,
    p_sums,
    num_pixels,
    pixels_per_image,
    H,
    W,
    C: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILES: tl.constexpr,
):
    """gs: gradients of the outs. gx: (num_pixels, C), sums: (programs along pixels, mixes, C) in float32."""
    i_p = tl.program_id(0) // tl.cdiv(C, BLOCK_C)
    c = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = _group_of(c, C, VECTOR)
    step = _step_of(group, W, C)[None, :]
    first = i_p.to(num_pixels.dtype) * (TILES * BLOCK_P)
    place = (first % pixels_per_image).to(tl.int32)
    offset = tl.arange(0, BLOCK_P)[:, None] * C + c[None, :]
    mixes, sums = (), ()
    for m in tl.static_range(len(p_mixes)):
        mixes += (tl.load(p_mixes[m] + c, mask=c < C, other=0.0).to(tl.float32)[None, :],)
        sums += (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
    for i_tile in range(TILES):
        pixel = i_tile * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (pixel < num_pixels - first)[:, None] & (c < C)[None, :]
        neighbours = _neighbours_of(place + pixel, H, W)[:, None]
        exists = (neighbours >> group[None, :]) & 1 == 1
        tile = (first.to(tl.int64) + i_tile * BLOCK_P) * C  # the only offset that needs 64 bits
        here = tl.load(p_x + tile + offset, mask=inside, other=0.0).to(tl.float32)
        beside = tl.load(p_x + tile + (offset + step), mask=inside & exists, other=0.0).to(tl.float32)
        # the pixel that looks here lies on the other side: groups 0 and 1 change places, 2 and 3 as well
        looks_here = inside & ((neighbours >> (group ^ 1)[None, :]) & 1 == 1)
        gx = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        new_sums = ()
        for m in tl.static_range(len(p_mixes)):
            g = tl.load(p_gs[m] + tile + offset, mask=inside, other=0.0).to(tl.float32)
            g_there = tl.load(p_gs[m] + tile + (offset - step), mask=looks_here, other=0.0).to(tl.float32)
            gx += mixes[m] * g + (1 - mixes[m]) * g_there
            new_sums += (sums[m] + g * (here - beside),)
        sums = new_sums
        tl.store(p_gx + tile + offset, gx, mask=inside)
    for m in tl.static_range(len(p_mixes)):
        row = (i_p * len(p_mixes) + m).to(tl.int64)
        tl.store(p_sums + row * C + c, tl.sum(sums[m], 0), mask=c < C)


def forward(x: Tensor, mixes: Sequence[Tensor]) -> list[Tensor]:
    """x: (B, H, W, C) -> one map of its shape for each of `mixes` (C,)."""
    x = x.contiguous()
    outs = [torch.empty_like(x) for _ in mixes]
    block_p, block_c = _tile(x, TILE)
    num_pixels = x.numel() // x.shape[3]
    grid = (triton.cdiv(num_pixels, block_p) * triton.cdiv(x.shape[3], block_c),)
    with torch.cuda.device_of(x):
        shift_and_mix_fwd_kernel[grid](
            x,
            _contiguous(mixes),
            tuple(outs),
            num_pixels,
            x.shape[1] * x.shape[2],
            *x.shape[1:],
            VECTOR=_vector(x.shape[3]),
            BLOCK_P=block_p,
            BLOCK_C=block_c,
            num_warps=4,
        )
    return outs


def backward(x: Tensor, mixes: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, and of the mixes as one (len(mixes), C) in float32."""
    x = x.contiguous()
    gx = torch.empty_like(x)
    block_p, block_c = _tile(x, TILE // 2)
    channels, num_pixels = x.shape[3], x.numel() // x.shape[3]
    programs = triton.cdiv(num_pixels, TILES_OF_GRADIENT * block_p)
    sums = x.new_empty((programs, len(mixes), channels), dtype=torch.float32)
    with torch.cuda.device_of(x):
        shift_and_mix_bwd_kernel[(programs * triton.cdiv(channels, block_c),)](
            x,
            _contiguous(mixes),
            _contiguous(gradients),
            gx,
            sums,
            num_pixels,
            x.shape[1] * x.shape[2],
            *x.shape[1:],
            VECTOR=_vector(channels),
            BLOCK_P=block_p,
            BLOCK_C=block_c,
            TILES=TILES_OF_GRADIENT,
            num_warps=4,
        )
    return gx, sums.sum(0)


def _tile(x: Tensor, elements: int) -> tuple[int, int]:
    block_c = min(MOST_CHANNELS, triton.next_power_of_2(x.shape[3]))
    return elements // block_c, block_c


def _vector(channels: int) -> int:
    """Largest power of two, at most 16, that divides all three cuts between the groups."""
    return math.gcd(channels // 4, channels // 2, 3 * channels // 4, 16)


def _contiguous(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in tensors)
