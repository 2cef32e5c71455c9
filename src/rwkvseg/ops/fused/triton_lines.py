"""How Triton kernels go through maps that are channels-last, channel by channel: what they share.

A map is read as lines of L = G * C numbers: G pixels that lie together, so many that COLS divides L where the
number of pixels allows it. So threads load 16 bytes and none idles, be C 3 or 180. A program has COLS columns
of a strip of lines.
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
REGISTERS = 80  # of a thread: three programs share a multiprocessor, and no loop of a training step spills
PROGRAMS_OF_SUMS = (
    396  # at most: three for each of an H200's multiprocessors, since each leaves parts to be read
)
PROGRAMS = 2112  # of those that only write maps
PARTS = 4096  # numbers that a program puts together at a time


@triton.jit
def strip_of_program(lines, L, strip, COLS: tl.constexpr):
    """Return the program's columns; its strip's first line, and the first one beyond it."""
    tiles = tl.cdiv(L, COLS)
    j = tl.program_id(0) % tiles * COLS + tl.arange(0, COLS)
    line = (tl.program_id(0) // tiles).to(tl.int64) * strip
    return j, line, tl.minimum(line + strip, lines)


@triton.jit
def tile_at(line, end, j, L, ROWS: tl.constexpr):
    """Return where ROWS lines from `line` on lie, and what is there: (ROWS, COLS) both."""
    rows = line + tl.arange(0, ROWS)
    return rows[:, None] * L + j[None, :], (rows < end)[:, None] & (j < L)[None, :]


@triton.jit
def load_tile(p, at, there):
    """Read as float32, zeros where nothing is."""
    return tl.load(p + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def of_channels(p_mean, p_variance, p_weight, p_bias, c, eps):
    """Return mean, weight / deviation and bias of channels, for lines; and 1 / deviation."""
    mean, bias = tl.load(p_mean + c).to(tl.float32), tl.load(p_bias + c).to(tl.float32)
    inverse = 1 / tl.sqrt_rn(tl.load(p_variance + c).to(tl.float32) + eps)
    scale = tl.load(p_weight + c).to(tl.float32) * inverse
    return mean[None, :], scale[None, :], bias[None, :], inverse


@triton.jit
def sigmoid(z):
    """Return 1 / (1 + exp(-z)) in 5 instructions; tl.sigmoid has 12, most for cases that cannot be."""
    root = tl.rsqrt(1.0 + tl.exp2(z * -1.4426950408889634))
    return root * root


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
    group = math.gcd(COLS // math.gcd(channels, COLS), pixels)
    tiles, lines = triton.cdiv(group * channels, COLS), pixels // group
    strip = triton.cdiv(triton.cdiv(lines, max(1, programs // tiles)), step) * step
    strips = triton.cdiv(lines, strip)
    told = {"lines": lines, "C": channels, "L": group * channels, "strip": strip}
    return Grid(told, strips * tiles, strips * group)


def empty_parts(x: Tensor, grid: Grid) -> Tensor:
    """Return room for two sums of each part and channel, float32."""
    return torch.empty((2, grid.parts, x.shape[1]), dtype=torch.float32, device=x.device)


def taken_at_once(channels: int) -> dict[str, int]:
    """Channels and parts that a program puts together at a time; 8 channels are what memory hands out."""
    held: int = min(8, triton.next_power_of_2(channels))
    return {"CHANNELS": held, "PARTS": PARTS // held}
