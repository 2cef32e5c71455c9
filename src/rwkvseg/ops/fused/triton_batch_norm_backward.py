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
    WARPS,
    channels_last,
    empty_parts,
    grid_of,
    load_tile,
    of_channels,
    rows_of_tile,
    store_tile,
    strip_of_program,
    taken_at_once,
)


@triton.jit
def _through_activation(x, g, mean, scale, weight, bias, ACTIVATION: tl.constexpr):
    """Return the normed value, and the gradient of what weight and bias make of it."""
    normed = (x - mean) * scale
    z = normed * weight + bias
    if ACTIVATION == "relu":
        g = tl.where(z <= 0, 0.0, g)
    elif ACTIVATION == "silu":
        share = tl.sigmoid(z)
        g *= share * (1 + z * (1 - share))
    return normed, g


@triton.jit(do_not_specialize=["N", "C", "G", "strip", "num_parts", "eps"])
def batch_norm_act_sums_kernel(
    p_x, p_g, p_mean, p_variance, p_weight, p_bias, p_gx, p_parts, N, C, G, L, strip, num_parts, eps,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """parts: gradients of weight and bias (2, num_parts, C). gx: None if mean and variance are those of x."""
    j, line, whole, end = strip_of_program(N, G, L, strip, COLS)
    p_part = p_parts + line // strip * L + j
    mean, scale, weight, bias = of_channels(p_mean, p_variance, p_weight, p_bias, j % C, eps)
    along, total = tl.zeros((ROWS, COLS), tl.float32), tl.zeros((ROWS, COLS), tl.float32)
    while line + UNROLL * ROWS <= whole:
        xs, gs = (), ()
        for i in tl.static_range(UNROLL):
            xs += (load_tile(p_x, line + i * ROWS, j, N, C, G, L, ROWS, True),)
            gs += (load_tile(p_g, line + i * ROWS, j, N, C, G, L, ROWS, True),)
        for i in tl.static_range(UNROLL):
            normed, g = _through_activation(xs[i], gs[i], mean, scale, weight, bias, ACTIVATION)
            along += g * normed
            total += g
            if p_gx is not None:
                store_tile(p_gx, g * weight * scale, line + i * ROWS, j, N, C, G, L, ROWS, True)
        line += UNROLL * ROWS
    while line < end:
        x = load_tile(p_x, line, j, N, C, G, L, ROWS, False)
        g = load_tile(p_g, line, j, N, C, G, L, ROWS, False)
        normed, g = _through_activation(x, g, mean, scale, weight, bias, ACTIVATION)
        along += g * normed
        total += g
        if p_gx is not None:
            store_tile(p_gx, g * weight * scale, line, j, N, C, G, L, ROWS, False)
        line += ROWS
    tl.store(p_part, tl.sum(along, 0))
    tl.store(p_part + num_parts.to(tl.int64) * C, tl.sum(total, 0))


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


@triton.jit
def _gradient(
    p_x, p_g, p_gx, mean, scale, weight, bias, along, total, line, j, N, C, G, L,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    x = load_tile(p_x, line, j, N, C, G, L, ROWS, WHOLE)
    g = load_tile(p_g, line, j, N, C, G, L, ROWS, WHOLE)
    normed, g = _through_activation(x, g, mean, scale, weight, bias, ACTIVATION)
    # it loses its mean and what points along the normed channel: neither could change the result
    store_tile(p_gx, scale * weight * (g - total - normed * along), line, j, N, C, G, L, ROWS, WHOLE)


@triton.jit(do_not_specialize=["N", "C", "G", "strip", "eps"])
def batch_norm_act_gradient_kernel(
    p_x, p_g, p_mean, p_variance, p_weight, p_bias, p_sums, p_gx, N, C, G, L, strip, eps,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """gx, where mean and variance are those of x. sums: gradients of weight and bias (2, C)."""
    j, line, whole, end = strip_of_program(N, G, L, strip, COLS)
    mean, scale, weight, bias = of_channels(p_mean, p_variance, p_weight, p_bias, j % C, eps)
    along = (tl.load(p_sums + j % C) / N)[None, :]
    total = (tl.load(p_sums + C + j % C) / N)[None, :]
    while line + ROWS <= whole:
        _gradient(
            p_x, p_g, p_gx, mean, scale, weight, bias, along, total, line, j, N, C, G, L,
            ACTIVATION, ROWS, True,
        )  # fmt: skip
        line += ROWS
    while line < end:
        _gradient(
            p_x, p_g, p_gx, mean, scale, weight, bias, along, total, line, j, N, C, G, L,
            ACTIVATION, ROWS, False,
        )  # fmt: skip
        line += ROWS


def backward(
    x: Tensor, parameters: Sequence[Tensor], g: Tensor, eps: float, activation: str, of_x: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of weight and bias as one (2, C) in float32.

    x, g: (B, C, H, W); parameters: mean, variance, weight, bias (C,); of_x: mean and variance are those of x.
    """
    x, g = channels_last(x), channels_last(g)
    parameters = [part.contiguous() for part in parameters]
    gx = torch.empty_like(x)
    unroll, rows = 2, rows_of_tile(x)
    grid = grid_of(x, rows * unroll, PROGRAMS_OF_SUMS)
    parts, sums = empty_parts(x, grid), torch.empty((2, x.shape[1]), dtype=torch.float32, device=x.device)
    taken = taken_at_once(x.shape[1])
    with torch.cuda.device_of(x):
        batch_norm_act_sums_kernel[(grid.programs,)](
            x, g, *parameters, None if of_x else gx, parts, **grid.arguments, num_parts=grid.parts, eps=eps,
            ACTIVATION=activation, ROWS=rows, COLS=COLS, UNROLL=unroll, num_warps=WARPS,
        )  # fmt: skip
        sum_parts_kernel[(triton.cdiv(x.shape[1], taken["CHANNELS"]), 2)](
            parts, sums, x.shape[1], grid.parts, **taken, num_warps=WARPS
        )
        if of_x:
            grid = grid_of(x, 2 * rows, PROGRAMS)
            batch_norm_act_gradient_kernel[(grid.programs,)](
                x, g, *parameters, sums, gx, **grid.arguments, eps=eps,
                ACTIVATION=activation, ROWS=2 * rows, COLS=COLS, num_warps=WARPS,
            )  # fmt: skip
    return gx, sums
