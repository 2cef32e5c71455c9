"""Spatial shift and interpolation in one pass: Triton kernels and how they are launched.

A tile is BLOCK_P voxels of BLOCK_C channels; the neighbours of its voxels come from the caches. Every
channel looks at one voxel: groups 0 and 1 along W, 2 and 3 along H, 4 and 5 along D, even ones before, odd
ones behind, and group 6 at its own. So does a group whose axis is too short.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_CHANNELS = 64  # of a tile: a cache line of 16-bit values
TILE = 2048  # elements
TILES_OF_GRADIENT = 8  # a program of the backward pass works on so many half tiles, one after the other


@triton.jit
def _group_of(c, GROUP: tl.constexpr, VECTOR: tl.constexpr):
    # the cuts are multiples of VECTOR: said this way, the compiler sees that vectors never straddle one
    group = c * 0 + 6
    if GROUP > 0:
        group = tl.minimum(c // VECTOR // (GROUP // VECTOR), 6)
    return group


@triton.jit
def _step_of(group, D, H, W, C: tl.constexpr, SHIFT: tl.constexpr):
    """Elements from a voxel to the one that this group looks at."""
    across = tl.where(W > SHIFT, SHIFT * C, 0)
    down = tl.where(H > SHIFT, SHIFT * W * C, 0)
    deep = tl.where(D > SHIFT, SHIFT * H * W * C, 0)
    distance = tl.where(group < 2, across, tl.where(group < 4, down, tl.where(group < 6, deep, 0)))
    return tl.where(group % 2 == 0, -distance, distance)


@triton.jit
def _has(place, size, SHIFT: tl.constexpr):
    """Bits 0 and 1: is there a voxel before, behind? An axis that is too short offers the voxel itself."""
    before = (place >= SHIFT) | (size <= SHIFT)
    behind = (place < size - SHIFT) | (size <= SHIFT)
    return before.to(tl.int32) + 2 * behind.to(tl.int32)


@triton.jit
def _neighbours_of(along, D, H, W, SHIFT: tl.constexpr):
    """Which voxels exist: bit g is set if the one of group g does. along: index in a volume."""
    column, row, slab = along % W, along // W % H, along // (W * H) % D
    return _has(column, W, SHIFT) + 4 * _has(row, H, SHIFT) + 16 * _has(slab, D, SHIFT) + 192  # itself


@triton.jit(do_not_specialize=["num_voxels", "D", "H", "W"])
def spatial_shift_and_mix_fwd_kernel(
    p_x, p_mixes, p_outs, num_voxels, D, H, W,
    C: tl.constexpr, NUM_MIXES: tl.constexpr, GROUP: tl.constexpr, SHIFT: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x: (num_voxels, C), mixes: (NUM_MIXES, C), outs: (NUM_MIXES, num_voxels, C). One tile per program."""
    i_p = tl.program_id(0) // tl.cdiv(C, BLOCK_C)
    c = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = _group_of(c, GROUP, VECTOR)
    first = i_p.to(num_voxels.dtype) * BLOCK_P
    voxel = tl.arange(0, BLOCK_P)
    inside = (voxel < num_voxels - first)[:, None] & (c < C)[None, :]
    neighbours = _neighbours_of((first % (D * H * W)).to(tl.int32) + voxel, D, H, W, SHIFT)[:, None]
    exists = (neighbours >> group[None, :]) & 1 == 1
    tile = first.to(tl.int64) * C  # offsets within a volume fit in 32 bits, those of volumes need 64
    offset = voxel[:, None] * C + c[None, :]
    here = tl.load(p_x + tile + offset, mask=inside, other=0.0).to(tl.float32)
    there = offset + _step_of(group, D, H, W, C, SHIFT)[None, :]
    beside = tl.load(p_x + tile + there, mask=inside & exists, other=0.0).to(tl.float32)
    for m in tl.static_range(NUM_MIXES):
        mix = tl.load(p_mixes + m * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        out = p_outs + m * num_voxels.to(tl.int64) * C + tile
        tl.store(out + offset, beside + mix * (here - beside), mask=inside)


@triton.jit(do_not_specialize=["num_voxels", "D", "H", "W"])
def spatial_shift_and_mix_bwd_kernel(
    p_x, p_mixes, p_gs, p_gx, p_sums, num_voxels, D, H, W,
    C: tl.constexpr, NUM_MIXES: tl.constexpr, GROUP: tl.constexpr, SHIFT: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """gs: gradients of the outs. gx: (num_voxels, C), sums: (programs along voxels, NUM_MIXES, C)."""
    i_p = tl.program_id(0) // tl.cdiv(C, BLOCK_C)
    c = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = _group_of(c, GROUP, VECTOR)
    step = _step_of(group, D, H, W, C, SHIFT)[None, :]
    first = i_p.to(num_voxels.dtype) * (TILES * BLOCK_P)
    place = (first % (D * H * W)).to(tl.int32)
    offset = tl.arange(0, BLOCK_P)[:, None] * C + c[None, :]
    mixes, sums = (), ()
    for m in tl.static_range(NUM_MIXES):
        mixes += (tl.load(p_mixes + m * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :],)
        sums += (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
    for i_tile in range(TILES):
        voxel = i_tile * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (voxel < num_voxels - first)[:, None] & (c < C)[None, :]
        neighbours = _neighbours_of(place + voxel, D, H, W, SHIFT)[:, None]
        exists = (neighbours >> group[None, :]) & 1 == 1
        tile = (first.to(tl.int64) + i_tile * BLOCK_P) * C
        here = tl.load(p_x + tile + offset, mask=inside, other=0.0).to(tl.float32)
        beside = tl.load(p_x + tile + (offset + step), mask=inside & exists, other=0.0).to(tl.float32)
        # the voxel that looks here lies on the other side: the two groups of an axis change places
        looks_here = inside & ((neighbours >> (group ^ 1)[None, :]) & 1 == 1)
        gx = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        new_sums = ()
        for m in tl.static_range(NUM_MIXES):
            of_mix = p_gs + m * num_voxels.to(tl.int64) * C + tile
            g = tl.load(of_mix + offset, mask=inside, other=0.0).to(tl.float32)
            g_there = tl.load(of_mix + (offset - step), mask=looks_here, other=0.0).to(tl.float32)
            gx += mixes[m] * g + (1 - mixes[m]) * g_there
            new_sums += (sums[m] + g * (here - beside),)
        sums = new_sums
        tl.store(p_gx + tile + offset, gx, mask=inside)
    for m in tl.static_range(NUM_MIXES):
        row = (i_p * NUM_MIXES + m).to(tl.int64)
        tl.store(p_sums + row * C + c, tl.sum(sums[m], 0), mask=c < C)


def forward(x: Tensor, mixes: Tensor, shift: int, group: int) -> Tensor:
    """x: (B, D, H, W, C), mixes: (M, C), `group` channels a direction -> (M, B, D, H, W, C)."""
    x = x.contiguous()
    outs = x.new_empty((len(mixes), *x.shape))
    block_p, block_c = _tile(x, TILE)
    num_voxels = x.numel() // x.shape[4]
    grid = (triton.cdiv(num_voxels, block_p) * triton.cdiv(x.shape[4], block_c),)
    with torch.cuda.device_of(x):
        spatial_shift_and_mix_fwd_kernel[grid](
            x, mixes.contiguous(), outs, num_voxels, *x.shape[1:],
            NUM_MIXES=len(mixes), GROUP=group, SHIFT=shift, VECTOR=_vector(group),
            BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return outs


def backward(x: Tensor, mixes: Tensor, gradients: Tensor, shift: int, group: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, and of the mixes in float32, from those of the outs (M, B, D, H, W, C)."""
    x = x.contiguous()
    gx = torch.empty_like(x)
    block_p, block_c = _tile(x, TILE // 2)
    channels, num_voxels = x.shape[4], x.numel() // x.shape[4]
    programs = triton.cdiv(num_voxels, TILES_OF_GRADIENT * block_p)
    sums = x.new_empty((programs, len(mixes), channels), dtype=torch.float32)
    with torch.cuda.device_of(x):
        spatial_shift_and_mix_bwd_kernel[(programs * triton.cdiv(channels, block_c),)](
            x, mixes.contiguous(), gradients.contiguous(), gx, sums, num_voxels, *x.shape[1:],
            NUM_MIXES=len(mixes), GROUP=group, SHIFT=shift, VECTOR=_vector(group),
            BLOCK_P=block_p, BLOCK_C=block_c, TILES=TILES_OF_GRADIENT, num_warps=4,
        )  # fmt: skip
    return gx, sums.sum(0)


def _tile(x: Tensor, elements: int) -> tuple[int, int]:
    block_c = min(MOST_CHANNELS, triton.next_power_of_2(x.shape[4]))
    return elements // block_c, block_c


def _vector(group: int) -> int:
    """Largest power of two, at most 16, that divides the cuts between the groups."""
    return math.gcd(group, 16)
