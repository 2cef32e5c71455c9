"""Gradients of batch norm with activation: Triton kernels and how they are launched.

Maps are channels-last; triton_lines.py says how a kernel goes through them.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rwkvseg.ops.fused.triton_lines import (
    COLS,
    PROGRAMS,
    PROGRAMS_OF_SUMS,
    REGISTERS,
    WARPS,
    channels_last,
    empty_parts,
    grid_of,
    load_tile,
    of_channels,
    rows_of_tile,
    sigmoid,
    strip_of_program,
    taken_at_once,
    tile_at,
)

LOADS = 2  # of each map and 16 bytes, which a thread has under way at a time


@triton.jit
def _through_activation(x, g, mean, scale, bias, ACTIVATION: tl.constexpr):
    """Return the centred value, and the gradient of what scale and bias make of it."""
    centred = x - mean
    z = centred * scale + bias
    if ACTIVATION == "relu":
        g = tl.where(z <= 0, 0.0, g)
    elif ACTIVATION == "silu":
        share = sigmoid(z)
        g *= share * (1 + z * (1 - share))
    return centred, g


@triton.jit(do_not_specialize=["lines", "C", "strip", "num_parts", "eps"])
def batch_norm_act_sums_kernel(
    p_x, p_g, p_mean, p_variance, p_weight, p_bias, p_gx, p_parts, lines, C, L, strip, num_parts, eps,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """parts: gradients of weight and bias (2, num_parts, C). gx: None if mean and variance are those of x."""
    j, line, end = strip_of_program(lines, L, strip, COLS)
    p_part = p_parts + line // strip * L + j
    mean, scale, bias, inverse = of_channels(p_mean, p_variance, p_weight, p_bias, j % C, eps)
    along, total = tl.zeros((ROWS, COLS), tl.float32), tl.zeros((ROWS, COLS), tl.float32)
    while line < end:
        xs, gs = (), ()
        for i in tl.static_range(UNROLL):
            at, there = tile_at(line + i * ROWS, end, j, L, ROWS)
            xs += (load_tile(p_x, at, there),)
            gs += (load_tile(p_g, at, there),)
        for i in tl.static_range(UNROLL):
            centred, g = _through_activation(xs[i], gs[i], mean, scale, bias, ACTIVATION)
            along += g * centred
            total += g
            if p_gx is not None:
                at, there = tile_at(line + i * ROWS, end, j, L, ROWS)
                tl.store(p_gx + at, g * scale, mask=there)
        line += UNROLL * ROWS
    tl.store(p_part, tl.sum(along, 0) * inverse, mask=j < L)
    tl.store(p_part + num_parts.to(tl.int64) * C, tl.sum(total, 0), mask=j < L)


@triton.jit(do_not_specialize=["C", "num_parts"])
def sum_parts_kernel(p_parts, p_sums, C, num_parts, PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    """parts: (2, num_parts, C) -> sums: (2, C)."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    p_parts += tl.program_id(1).to(tl.int64) * num_parts * C
    total = tl.zeros((PARTS, CHANNELS), tl.float32)
    first = 0
    while first < num_parts:
        part = (first + tl.arange(0, PARTS))[:, None]
        there = (part < num_parts) & (c < C)[None, :]
        total += tl.load(p_parts + part.to(tl.int64) * C + c[None, :], mask=there, other=0.0)
        first += PARTS
    tl.store(p_sums + tl.program_id(1) * C + c, tl.sum(total, 0), mask=c < C)


@triton.jit(do_not_specialize=["lines", "C", "strip", "eps"])
def batch_norm_act_gradient_kernel(
    p_x, p_g, p_mean, p_variance, p_weight, p_bias, p_sums, p_gx, lines, C, L, strip, eps,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """gx, where mean and variance are those of x. sums: gradients of weight and bias (2, C)."""
    j, line, end = strip_of_program(lines, L, strip, COLS)
    c, N = j % C, lines.to(tl.float32) * (L // C)
    mean, scale, bias, inverse = of_channels(p_mean, p_variance, p_weight, p_bias, c, eps)
    along = (tl.load(p_sums + c) * inverse / N)[None, :]
    total = (tl.load(p_sums + C + c) / N)[None, :]
    while line < end:
        at, there = tile_at(line, end, j, L, ROWS)
        x, g = load_tile(p_x, at, there), load_tile(p_g, at, there)
        centred, g = _through_activation(x, g, mean, scale, bias, ACTIVATION)
        # it loses its mean and what points along the centred channel: neither could change the result
        tl.store(p_gx + at, scale * (g - total - centred * along), mask=there)
        line += ROWS


def backward(
    x: Tensor, parameters: Sequence[Tensor], g: Tensor, eps: float, activation: str, of_x: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of weight and bias as one (2, C) in float32.

    x, g: (B, C, H, W); parameters: mean, variance, weight, bias (C,); of_x: mean and variance are those of x.
    """
    x, g = channels_last(x), channels_last(g)
    parameters = [part.contiguous() for part in parameters]
    gx = torch.empty_like(x, memory_format=torch.channels_last)
    rows = rows_of_tile(x)
    grid = grid_of(x, rows * LOADS, PROGRAMS_OF_SUMS)
    parts, sums = empty_parts(x, grid), torch.empty((2, x.shape[1]), dtype=torch.float32, device=x.device)
    taken = taken_at_once(x.shape[1])
    with torch.cuda.device_of(x):
        batch_norm_act_sums_kernel[(grid.programs,)](
            x, g, *parameters, None if of_x else gx, parts, **grid.arguments, num_parts=grid.parts, eps=eps,
            ACTIVATION=activation, ROWS=rows, COLS=COLS, UNROLL=LOADS, num_warps=WARPS, maxnreg=REGISTERS,
        )  # fmt: skip
        sum_parts_kernel[(triton.cdiv(x.shape[1], taken["CHANNELS"]), 2)](
            parts, sums, x.shape[1], grid.parts, **taken, num_warps=WARPS
        )
        if of_x:
            grid = grid_of(x, rows * LOADS, PROGRAMS)
            batch_norm_act_gradient_kernel[(grid.programs,)](
                x, g, *parameters, sums, gx, **grid.arguments, eps=eps,
                ACTIVATION=activation, ROWS=rows * LOADS, COLS=COLS, num_warps=WARPS, maxnreg=REGISTERS,
            )  # fmt: skip
    return gx, sums
