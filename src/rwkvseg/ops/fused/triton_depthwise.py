"""Depthwise convolution of volumes: Triton kernels and how they are launched.

A tile is BLOCK voxels of one channel of one volume, in the order of memory; the neighbours of its voxels come
from the caches. Of the kernel's KD planes one is taken after the other, the KH * KW taps in a plane at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512
BLOCK_OF_GRADIENT = 256
PROGRAMS = 2048  # of the weights' gradient at least, where there are so many tiles


@triton.jit
def _axes_of(v, D, H, W):
    """Place of voxels along the axes, from their index in a volume."""
    return v // (H * W), v // W % H, v % W


@triton.jit(do_not_specialize=["C", "D", "H", "W"])
def depthwise_conv3d_kernel(
    p_x, p_weight, p_y, C, D, H, W,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, FLIPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x: (B, C, D, H, W), weight: (C, KD, KH, KW) -> y as x. FLIPPED: by the kernels turned round."""
    num_voxels = D * H * W
    tiles = tl.cdiv(num_voxels, BLOCK)
    map_of = (tl.program_id(0) // tiles).to(tl.int64)
    v = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    z, y, x = _axes_of(v, D, H, W)
    p_map = p_x + map_of * num_voxels + v
    p_weight += map_of % C * (KD * KH * KW)
    sums = tl.zeros((BLOCK,), tl.float32)
    for i in range(KD):
        there = (v < num_voxels) & (z + i >= KD // 2) & (z + i < D + KD // 2)
        for j in tl.static_range(KH):
            in_row = there & (y + j >= KH // 2) & (y + j < H + KH // 2)
            p_row = p_map + ((i - KD // 2) * H + (j - KH // 2)) * W
            for k in tl.static_range(KW):
                tap = (i * KH + j) * KW + k
                weight = tl.load(p_weight + (KD * KH * KW - 1 - tap if FLIPPED else tap)).to(tl.float32)
                inside = in_row & (x + k >= KW // 2) & (x + k < W + KW // 2)
                sums += weight * tl.load(p_row + (k - KW // 2), mask=inside, other=0.0).to(tl.float32)
    tl.store(p_y + map_of * num_voxels + v, sums, mask=v < num_voxels)


@triton.jit(do_not_specialize=["B", "C", "D", "H", "W", "splits"])
def depthwise_conv3d_weight_kernel(
    p_x, p_g, p_parts, B, C, D, H, W, splits,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write (splits, C, KD, KH, KW): sums of g times the x that each tap saw, over a share of the tiles."""
    num_voxels = D * H * W
    tiles = tl.cdiv(num_voxels, BLOCK)
    i = tl.program_id(0) % KD
    c = tl.program_id(0) // KD % C
    split = tl.program_id(0) // KD // C
    sums = ()
    for _ in tl.static_range(KH * KW):
        sums += (tl.zeros((BLOCK,), tl.float32),)
    tile = split
    while tile < B * tiles:
        v = tile % tiles * BLOCK + tl.arange(0, BLOCK)
        z, y, x = _axes_of(v, D, H, W)
        start = (tile // tiles * C + c).to(tl.int64) * num_voxels
        g = tl.load(p_g + start + v, mask=v < num_voxels, other=0.0).to(tl.float32)
        there = (v < num_voxels) & (z + i >= KD // 2) & (z + i < D + KD // 2)
        new = ()
        for j in tl.static_range(KH):
            in_row = there & (y + j >= KH // 2) & (y + j < H + KH // 2)
            p_row = p_x + start + v + ((i - KD // 2) * H + (j - KH // 2)) * W
            for k in tl.static_range(KW):
                inside = in_row & (x + k >= KW // 2) & (x + k < W + KW // 2)
                seen = tl.load(p_row + (k - KW // 2), mask=inside, other=0.0).to(tl.float32)
                new += (sums[j * KW + k] + g * seen,)
        sums = new
        tile += splits
    p_parts += ((split * C + c) * KD + i) * (KH * KW)
    for tap in tl.static_range(KH * KW):
        tl.store(p_parts + tap, tl.sum(sums[tap], 0))


def convolve(x: Tensor, weight: Tensor, *, flipped: bool) -> Tensor:
    """Convolve x (B, C, D, H, W) with weight (C, 1, KD, KH, KW), or with its kernels turned round."""
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    num_channels, *size = x.shape[1:]
    tiles = triton.cdiv(size[0] * size[1] * size[2], BLOCK)
    with torch.cuda.device_of(x):
        depthwise_conv3d_kernel[(x.shape[0] * num_channels * tiles,)](
            x, weight, y, num_channels, *size, *weight.shape[2:], FLIPPED=flipped, BLOCK=BLOCK, num_warps=4
        )
    return y


def gradient_of_weight(x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """Gradient of `convolve` by the weight, as the weight but float32."""
    x, g = x.contiguous(), g.contiguous()
    batch, num_channels, *size = x.shape
    work = batch * triton.cdiv(size[0] * size[1] * size[2], BLOCK_OF_GRADIENT)
    splits = min(work, triton.cdiv(PROGRAMS, num_channels * weight.shape[2]))
    parts = torch.empty((splits, *weight.shape), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        depthwise_conv3d_weight_kernel[(splits * num_channels * weight.shape[2],)](
            x, g, parts, batch, num_channels, *size, splits, *weight.shape[2:],
            BLOCK=BLOCK_OF_GRADIENT, num_warps=4,
        )  # fmt: skip
    return parts.sum(0)
