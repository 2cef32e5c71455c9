"""Statistics of batch norm, and norm, activation and residual in one pass: Triton kernels, their launches.

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

LOADS_OF_SUMS = 4  # of 16 bytes, which a thread has under way at a time
LOADS = 2  # of each map


@triton.jit
def _merged(counts, mean, squares):
    """Return mean and sum of squared deviations of all groups along the first axis (Chan's formula)."""
    centre = tl.sum(counts * mean, 0) / tl.maximum(tl.sum(counts, 0), 1.0)
    apart = mean - centre[None, :]
    return centre, tl.sum(squares + counts * apart * apart, 0)


@triton.jit(do_not_specialize=["lines", "C", "strip", "num_parts"])
def batch_sums_kernel(
    p_x, p_parts, lines, C, L, strip, num_parts,
    ROWS: tl.constexpr, COLS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """x: (lines, L). parts: means, sums of squared deviations (2, num_parts, C)."""
    j, line, end = strip_of_program(lines, L, strip, COLS)
    p_part = p_parts + line // strip * L + j
    mean, squares, seen = tl.zeros((ROWS, COLS), tl.float32), tl.zeros((ROWS, COLS), tl.float32), 0.0
    while line + UNROLL * ROWS <= end:
        at, there = tile_at(line, end, j, L, ROWS)
        xs = (load_tile(p_x, at, there),)
        for i in tl.static_range(1, UNROLL):
            at, there = tile_at(line + i * ROWS, end, j, L, ROWS)
            xs += (load_tile(p_x, at, there),)
        centre = xs[0]
        for i in tl.static_range(1, UNROLL):
            centre += xs[i]
        centre *= 1.0 / UNROLL
        apart = centre - mean
        share = UNROLL / (seen + UNROLL)
        mean += apart * share
        squares += apart * apart * (seen * share)
        for i in tl.static_range(UNROLL):
            d = xs[i] - centre
            squares += d * d
        seen += UNROLL
        line += UNROLL * ROWS
    counts = tl.zeros((ROWS, 1), tl.float32) + seen
    while line < end:  # Welford's formula
        at, there = tile_at(line, end, j, L, ROWS)
        x = load_tile(p_x, at, there)
        new = (line + tl.arange(0, ROWS) < end)[:, None]
        counts += new.to(tl.float32)
        apart = tl.where(new, x - mean, 0.0)
        mean += apart / tl.maximum(counts, 1.0)
        squares += apart * (x - mean)
        line += ROWS
    mean_of_all, squares_of_all = _merged(counts, mean, squares)
    tl.store(p_part, mean_of_all, mask=j < L)
    tl.store(p_part + num_parts.to(tl.int64) * C, squares_of_all, mask=j < L)


@triton.jit(do_not_specialize=["lines", "C", "L", "strip", "num_parts", "momentum"])
def batch_statistics_kernel(
    p_parts, p_mean, p_variance, p_running_mean, p_running_variance, p_batches,
    lines, C, L, strip, num_parts, momentum, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """From the parts of `batch_sums_kernel`: mean, variance (C,), running statistics, number of batches."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    G = L // C
    N = lines.to(tl.float32) * G
    counts = tl.zeros((PARTS, 1), tl.float32)
    mean, squares = tl.zeros((PARTS, CHANNELS), tl.float32), tl.zeros((PARTS, CHANNELS), tl.float32)
    first = 0
    while first < num_parts:
        part = (first + tl.arange(0, PARTS))[:, None]
        there = (part < num_parts) & (c < C)[None, :]
        at = p_parts + part.to(tl.int64) * C + c[None, :]
        new_mean = tl.load(at, mask=there, other=0.0)
        new_squares = tl.load(at + num_parts.to(tl.int64) * C, mask=there, other=0.0)
        # a part is one of the G pixels in all lines of a strip
        new = tl.minimum(tl.maximum(lines - part // G * strip, 0), strip).to(tl.float32)
        total = counts + new
        share = new / tl.maximum(total, 1.0)
        apart = new_mean - mean
        mean += apart * share
        squares += new_squares + apart * apart * (counts * share)
        counts = total
        first += PARTS
    mean_of_all, squares_of_all = _merged(counts, mean, squares)
    held = c < C
    tl.store(p_mean + c, mean_of_all, mask=held)
    tl.store(p_variance + c, squares_of_all / N, mask=held)
    old = tl.load(p_running_mean + c, mask=held, other=0.0).to(tl.float32)
    tl.store(p_running_mean + c, (1 - momentum) * old + momentum * mean_of_all, mask=held)
    old = tl.load(p_running_variance + c, mask=held, other=0.0).to(tl.float32)
    unbiased = squares_of_all / (N - 1)
    tl.store(p_running_variance + c, (1 - momentum) * old + momentum * unbiased, mask=held)
    if p_batches is not None:
        tl.store(p_batches, tl.load(p_batches) + 1, mask=tl.program_id(0) == 0)


@triton.jit(do_not_specialize=["lines", "C", "strip", "eps"])
def batch_norm_act_kernel(
    p_x, p_mean, p_variance, p_weight, p_bias, p_residual, p_y, lines, C, L, strip, eps,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """x, residual (or None), y: (lines, L); the others (C,)."""
    j, line, end = strip_of_program(lines, L, strip, COLS)
    mean, scale, bias, _ = of_channels(p_mean, p_variance, p_weight, p_bias, j % C, eps)
    while line < end:
        at, there = tile_at(line, end, j, L, ROWS)
        x = load_tile(p_x, at, there)
        if p_residual is not None:  # loaded before anything is computed, so that both loads are under way
            residual = load_tile(p_residual, at, there)
        z = (x - mean) * scale + bias
        if ACTIVATION == "relu":
            z = tl.where(z < 0, 0.0, z)  # NaN stays
        elif ACTIVATION == "silu":
            z *= sigmoid(z)
        if p_residual is not None:
            z += residual
        tl.store(p_y + at, z, mask=there)
        line += ROWS


def statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, batches: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of x (B, C, H, W) in float32; the running ones and `batches` change in place."""
    x = channels_last(x)
    rows = rows_of_tile(x)
    grid = grid_of(x, rows * LOADS_OF_SUMS, PROGRAMS_OF_SUMS)
    channels = x.shape[1]
    parts = empty_parts(x, grid)
    mean, variance = (torch.empty(channels, dtype=torch.float32, device=x.device) for _ in range(2))
    with torch.cuda.device_of(x):
        batch_sums_kernel[(grid.programs,)](
            x, parts, **grid.arguments, num_parts=grid.parts,
            ROWS=rows, COLS=COLS, UNROLL=LOADS_OF_SUMS, num_warps=WARPS, maxnreg=REGISTERS,
        )  # fmt: skip
        taken = taken_at_once(channels)
        batch_statistics_kernel[(triton.cdiv(channels, taken["CHANNELS"]),)](
            parts, mean, variance, running_mean, running_var, batches, **grid.arguments, num_parts=grid.parts,
            momentum=momentum, **taken, num_warps=WARPS,
        )  # fmt: skip
    return mean, variance


def forward(
    x: Tensor, parameters: Sequence[Tensor], residual: Tensor | None, eps: float, activation: str
) -> Tensor:
    """x, residual: (B, C, H, W); parameters: mean, variance, weight, bias (C,) -> as x, channels-last."""
    x = channels_last(x)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    rows = LOADS * rows_of_tile(x)
    grid = grid_of(x, rows, PROGRAMS)
    with torch.cuda.device_of(x):
        batch_norm_act_kernel[(grid.programs,)](
            x, *[part.contiguous() for part in parameters],
            None if residual is None else channels_last(residual), y, **grid.arguments, eps=eps,
            ACTIVATION=activation, ROWS=rows, COLS=COLS, num_warps=WARPS, maxnreg=REGISTERS,
        )  # fmt: skip
    return y
