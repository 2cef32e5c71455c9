"""How Triton kernels go through maps that are channels-last, channel by channel: what they share.

A map is read as lines of L = G * C numbers: G pixels that lie together, so many that COLS divides L. So
threads load 16 bytes and none idles, whatever C is. A program has COLS columns of a strip of lines; N is the
number of all pixels, and only the last line may be incomplete.
Sums go through parts, one of each strip and pixel of a line, which are put together in a fixed order.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

COLS = 64
WARPS = 8
PROGRAMS_OF_SUMS = 528  # at most, four for each of an H200's multiprocessors: each leaves parts to be read
PROGRAMS = 2112  # of those that only write maps
PARTS = 4096  # numbers that a program puts together at a time


@triton.jit
def strip_of_program(N, G, L, strip, COLS: tl.constexpr):
    """Return the program's columns; its strip's first line, end of complete lines, end of all."""
    tiles = L // COLS
    j = tl.program_id(0) % tiles * COLS + tl.arange(0, COLS)
    line = (tl.program_id(0) // tiles).to(tl.int64) * strip
    end = tl.minimum(line + strip, tl.cdiv(N, G))
    return j, line, tl.minimum(end, N // G), end


@triton.jit
def inside(line, j, N, C, G, ROWS: tl.constexpr):
    """Return which columns of ROWS lines belong to one of the N pixels."""
    lines = line + tl.arange(0, ROWS)
    return lines[:, None] * G + (j // C)[None, :] < N


@triton.jit
def _at(p, line, j, L, ROWS: tl.constexpr):
    lines = line + tl.arange(0, ROWS)
    return p + (lines[:, None] * L + j[None, :])


@triton.jit
def load_tile(p, line, j, N, C, G, L, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """Read columns of ROWS lines as float32, zeros beyond the last pixel; WHOLE: there is none."""
    at = _at(p, line, j, L, ROWS)
    x = tl.load(at) if WHOLE else tl.load(at, mask=inside(line, j, N, C, G, ROWS), other=0.0)
    return x.to(tl.float32)


@triton.jit
def store_tile(p, value, line, j, N, C, G, L, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """Write columns of ROWS lines."""
    at = _at(p, line, j, L, ROWS)
    if WHOLE:
        tl.store(at, value)
    else:
        tl.store(at, value, mask=inside(line, j, N, C, G, ROWS))


@triton.jit
def of_channels(p_mean, p_variance, p_weight, p_bias, c, eps):
    """Return mean, 1 / deviation, weight and bias of channels, for lines."""
    scale = 1 / tl.sqrt_rn(tl.load(p_variance + c).to(tl.float32) + eps)
    weight, bias = tl.load(p_weight + c).to(tl.float32), tl.load(p_bias + c).to(tl.float32)
    return tl.load(p_mean + c).to(tl.float32)[None, :], scale[None, :], weight[None, :], bias[None, :]


class Grid(NamedTuple):
    """How a kernel goes through a map: what it is told of it, and how many programs and parts there are."""

    arguments: dict[str, int]
    programs: int
    parts: int


def channels_last(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) with its channels together in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def rows_of_tile(x: Tensor) -> int:
    """Lines of a tile of which each thread loads 16 bytes once."""
    return WARPS * 32 * 16 // x.element_size() // COLS


def grid_of(x: Tensor, step: int, programs: int) -> Grid:
    """Share a map (B, C, H, W) out to strips of a multiple of `step` lines, to at most about `programs`."""
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    group = COLS // math.gcd(channels, COLS)
    tiles, lines = group * channels // COLS, triton.cdiv(pixels, group)
    strip = triton.cdiv(triton.cdiv(lines, max(1, programs // tiles)), step) * step
    strips = triton.cdiv(lines, strip)
    told = {"N": pixels, "C": channels, "G": group, "L": group * channels, "strip": strip}
    return Grid(told, strips * tiles, strips * group)


def empty_parts(x: Tensor, grid: Grid) -> Tensor:
    """Return room for two sums of each part and channel, float32."""
    return torch.empty((2, grid.parts, x.shape[1]), dtype=torch.float32, device=x.device)


def taken_at_once(channels: int) -> dict[str, int]:
    """Channels and parts that a program puts together at a time; 8 channels are what memory hands out."""
    held: int = min(8, triton.next_power_of_2(channels))
    return {"CHANNELS": held, "PARTS": PARTS // held}
