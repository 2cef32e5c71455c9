"""Instance norm and GELU in one kernel: Triton kernels and how they are launched.

A program has one channel of one image, a row of N voxels that lie together, and reads it twice: for the sums,
and for what they are wanted for. Sums are of differences to the row's first value, so that a large mean costs
no digits.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_BLOCK = 8192  # voxels of a row at a time


@triton.jit
def _bell(a):
    """GELU's share of a, the normal distribution function."""
    return 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))


@triton.jit(do_not_specialize=["num_vectors", "C", "eps"])
def instance_norm_fwd_kernel(
    p_x, p_weight, p_bias, p_out, p_stats, num_vectors, C, eps,
    GELU: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, out: (rows, N), weight, bias: (C,), stats: mean and 1 / deviation of each row (rows, 2)."""
    N = num_vectors * VECTOR
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    start = tl.load(p_x + row * N).to(tl.float32)
    total, squares = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    block = 0
    while block * BLOCK < N:
        first = block * BLOCK
        inside = i < N - first
        x = tl.load(p_x + row * N + first + i, mask=inside, other=0.0).to(tl.float32)
        apart = tl.where(inside, x - start, 0.0)
        total += apart
        squares += apart * apart
        block += 1
    apart_mean = tl.sum(total, 0) / N
    variance = tl.maximum(tl.sum(squares, 0) / N - apart_mean * apart_mean, 0.0)
    mean, scale = start + apart_mean, 1.0 / tl.sqrt(variance + eps)
    tl.store(p_stats + row * 2, mean)
    tl.store(p_stats + row * 2 + 1, scale)
    channel = tl.program_id(0) % C
    weight = tl.load(p_weight + channel).to(tl.float32)
    bias = tl.load(p_bias + channel).to(tl.float32)
    block = 0
    while block * BLOCK < N:
        first = block * BLOCK
        inside = i < N - first
        x = tl.load(p_x + row * N + first + i, mask=inside, other=0.0).to(tl.float32)
        a = (x - mean) * scale * weight + bias
        if GELU:
            a = a * _bell(a)
        tl.store(p_out + row * N + first + i, a, mask=inside)
        block += 1


@triton.jit
def _normed_and_gradient(x, g, mean, scale, weight, bias, GELU: tl.constexpr):
    """Return the normalised value, and the gradient of what the weight and bias make of it."""
    normed = (x - mean) * scale
    if GELU:
        a = normed * weight + bias
        g = g * (_bell(a) + a * 0.3989422804014327 * tl.exp(-0.5 * a * a))
    return normed, g


@triton.jit(do_not_specialize=["num_vectors", "C"])
def instance_norm_bwd_kernel(
    p_x, p_weight, p_bias, p_stats, p_g, p_gx, p_sums, num_vectors, C,
    GELU: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """g: gradient of out. gx: (rows, N), sums: of the gradients of weight and bias, row by row (rows, 2)."""
    N = num_vectors * VECTOR
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    mean, scale = tl.load(p_stats + row * 2), tl.load(p_stats + row * 2 + 1)
    channel = tl.program_id(0) % C
    weight = tl.load(p_weight + channel).to(tl.float32)
    bias = tl.load(p_bias + channel).to(tl.float32)
    of_weight, of_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    block = 0
    while block * BLOCK < N:
        first = block * BLOCK
        inside = i < N - first
        x = tl.load(p_x + row * N + first + i, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(p_g + row * N + first + i, mask=inside, other=0.0).to(tl.float32)
        normed, g = _normed_and_gradient(x, g, mean, scale, weight, bias, GELU)
        of_weight += g * normed
        of_bias += g
        block += 1
    sum_weight, sum_bias = tl.sum(of_weight, 0), tl.sum(of_bias, 0)
    tl.store(p_sums + row * 2, sum_weight)
    tl.store(p_sums + row * 2 + 1, sum_bias)
    block = 0
    while block * BLOCK < N:
        first = block * BLOCK
        inside = i < N - first
        x = tl.load(p_x + row * N + first + i, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(p_g + row * N + first + i, mask=inside, other=0.0).to(tl.float32)
        normed, g = _normed_and_gradient(x, g, mean, scale, weight, bias, GELU)
        gx = scale * weight * (g - (sum_bias + normed * sum_weight) / N)
        tl.store(p_gx + row * N + first + i, gx, mask=inside)
        block += 1


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool) -> tuple[Tensor, Tensor]:
    """x: (B, C, *spatial), weight, bias: (C,) -> out as x; mean and 1 / deviation (B, C, 2) in float32."""
    x = x.contiguous()
    out, stats = torch.empty_like(x), x.new_empty((*x.shape[:2], 2), dtype=torch.float32)
    rows, size, vector, block, warps = _rows(x)
    with torch.cuda.device_of(x):
        instance_norm_fwd_kernel[(rows,)](
            x, weight.contiguous(), bias.contiguous(), out, stats, size // vector, x.shape[1], eps,
            GELU=gelu, VECTOR=vector, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return out, stats


def backward(
    x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, g: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, and of weight and bias as one (C, 2) in float32."""
    x = x.contiguous()
    gx, sums = torch.empty_like(x), torch.empty_like(stats)
    rows, size, vector, block, warps = _rows(x)
    with torch.cuda.device_of(x):
        instance_norm_bwd_kernel[(rows,)](
            x, weight.contiguous(), bias.contiguous(), stats, g.contiguous(), gx, sums,
            size // vector, x.shape[1], GELU=gelu, VECTOR=vector, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return gx, sums.sum(0)


def _rows(x: Tensor) -> tuple[int, int, int, int, int]:
    """Rows, voxels of a row, the power of two up to 16 that divides them, voxels at a time, warps."""
    rows = x.shape[0] * x.shape[1]
    size = x.numel() // rows
    block = min(LARGEST_BLOCK, triton.next_power_of_2(size))
    return rows, size, math.gcd(size, 16), block, max(1, block // 512)
