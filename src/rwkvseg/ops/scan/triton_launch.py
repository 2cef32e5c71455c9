"""How the kernels of the selective scan are cut into programs and launched. Legend: triton_scan.py."""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from rwkvseg.ops.scan.triton_scan import join_kernel, scan_kernel
from rwkvseg.ops.scan.triton_scan_backward import scan_bwd_kernel, scan_returns_kernel

CHANNELS = 32  # of a program, which is one warp: a channel a lane, its states are in the lane's registers
CHANNELS_BACKWARD = 16  # fewer than lanes: then sums over states and over channels both stay short
BLOCK = 8  # tokens that a walk forwards reads at a time
BLOCK_BACKWARD = 4  # and backwards: it holds as many states
SHORTEST = 64  # chunk, in tokens
ENOUGH = 2048  # programs: of fewer, chunks make more
GROUP = 8  # chunks that are read at a time when they are joined


class Walk(NamedTuple):
    """Shapes of a scan (B, T, E, N) and how it is cut: chunks of `length` tokens, the last may be shorter."""

    batch: int
    tokens: int
    channels: int
    states: int
    length: int
    chunks: int

    def grid(self, chunks: int, channels: int = CHANNELS) -> tuple[int]:
        """One program for so many channels of each of so many chunks of an image."""
        return (self.batch * chunks * -(-self.channels // channels),)


def cut(shape: torch.Size, states: int) -> Walk:
    """Cut the tokens of x (B, T, E) into as many chunks as it takes to keep a GPU busy."""
    batch, tokens, channels = shape
    programs = batch * -(-channels // CHANNELS)
    chunks = max(1, min(-(-ENOUGH // programs), tokens // SHORTEST))
    longest = math.lcm(BLOCK, BLOCK_BACKWARD)
    length = -(-tokens // (chunks * longest)) * longest
    return Walk(batch, tokens, channels, triton.next_power_of_2(states), length, -(-tokens // length))


def forward(
    x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, reverse: bool
) -> Tensor:
    """See `rwkvseg.ops.selective_scan.naive_selective_scan` for shapes; out has the dtype of x."""
    walk = cut(x.shape, rate.shape[1])
    skip = skip if skip is None else skip.contiguous()
    x, step, out = x.contiguous(), step.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rates, shares, each = _rates(rate, walk), _shares(b, c, walk), (walk.batch, walk.chunks)
    with torch.cuda.device_of(x):
        starts = None
        if walk.chunks > 1:
            sums, ends = _empty(x, *each, walk.channels), _empty(x, *each, walk.states, walk.channels)
            _walk(walk, BLOCK, reverse, x, step, rates, shares, sums=sums, ends=ends)
            starts = _join(walk, rates, sums, ends, backwards=False)
        _walk(walk, BLOCK, reverse, x, step, rates, shares, skip=skip, starts=starts, out=out)
    return out


def backward(
    x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, g: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return gradients of x, step, rate, b, c in their dtypes, and of skip in float32, (0,) without one."""
    walk = cut(x.shape, rate.shape[1])
    skip = skip if skip is None else skip.contiguous()
    x, step, g = x.contiguous(), step.contiguous(), g.contiguous()
    rates, shares, each = _rates(rate, walk), _shares(b, c, walk), (walk.batch, walk.chunks)
    chunked, blocks = walk.chunks > 1, walk.length // BLOCK_BACKWARD
    kept = _empty(x, *each, blocks, walk.states, walk.channels)
    kept_sums = _empty(x, *each, blocks, walk.channels)
    grates = _empty(x, *each, walk.states, walk.channels)
    gskip = _empty(x, *each, walk.channels if skip is not None else 0)
    gx, gstep = torch.empty_like(x), torch.empty_like(step)
    tiles = -(-walk.channels // CHANNELS_BACKWARD)
    gshares = _empty(x, 2, tiles, walk.batch, walk.tokens, walk.states)
    sums = ends = starts = arrivals = None
    with torch.cuda.device_of(x):
        if chunked:
            sums, ends = _empty(x, *each, walk.channels), _empty(x, *each, walk.states, walk.channels)
        _walk(
            walk, BLOCK_BACKWARD, reverse, x, step, rates, shares,
            sums=sums, ends=ends, kept=kept, kept_sums=kept_sums,
        )  # fmt: skip
        if sums is not None and ends is not None:
            returns = torch.empty_like(ends)
            scan_returns_kernel[walk.grid(walk.chunks)](
                step, rates, shares, g, returns, walk.tokens, walk.length, walk.chunks,
                E=walk.channels, N=walk.states, REVERSE=reverse, BLOCK=BLOCK, CHANNELS=CHANNELS, num_warps=1,
            )  # fmt: skip
            starts = _join(walk, rates, sums, ends, backwards=False)
            arrivals = _join(walk, rates, sums, returns, backwards=True)
        scan_bwd_kernel[walk.grid(walk.chunks, CHANNELS_BACKWARD)](
            x, step, rates, shares, skip, g, starts, kept, kept_sums, arrivals,
            gx, gstep, gshares, grates, gskip,
            walk.tokens, walk.length, walk.chunks, blocks, walk.batch,
            E=walk.channels, N=walk.states, REVERSE=reverse, BLOCK=BLOCK_BACKWARD, CHANNELS=CHANNELS_BACKWARD,
            SKIP=skip is not None, CHUNKED=chunked, num_warps=1,
        )  # fmt: skip
    states = rate.shape[1]
    grate = grates.sum((0, 1))[:states].t().to(rate.dtype)
    gb, gc = (part[..., :states].sum(0) for part in gshares)
    return gx, gstep, grate.contiguous(), gb.to(b.dtype), gc.to(c.dtype), gskip.sum((0, 1))


def _walk(
    walk: Walk, block: int, reverse: bool, x: Tensor, step: Tensor, rates: Tensor, shares: Tensor,
    *, skip: Tensor | None = None, starts: Tensor | None = None, out: Tensor | None = None,
    sums: Tensor | None = None, ends: Tensor | None = None,
    kept: Tensor | None = None, kept_sums: Tensor | None = None,
) -> None:  # fmt: skip
    """Walk every chunk, writing what is given."""
    options: dict[str, Any] = {"SKIP": skip is not None, "STARTS": starts is not None, "OUT": out is not None}
    options |= {"ENDS": ends is not None, "KEEP": kept is not None}
    scan_kernel[walk.grid(walk.chunks)](
        x, step, rates, shares, skip, starts, out, sums, ends, kept, kept_sums,
        walk.tokens, walk.length, walk.chunks, walk.length // block,
        E=walk.channels, N=walk.states, REVERSE=reverse, BLOCK=block, CHANNELS=CHANNELS,
        num_warps=1, **options,
    )  # fmt: skip


def _join(walk: Walk, rates: Tensor, sums: Tensor, ends: Tensor, *, backwards: bool) -> Tensor:
    starts = torch.empty_like(ends)
    join_kernel[walk.grid(1)](
        rates, sums, ends, starts, walk.chunks,
        E=walk.channels, N=walk.states, BACKWARDS=backwards, GROUP=GROUP, CHANNELS=CHANNELS, num_warps=1,
    )  # fmt: skip
    return starts


def _empty(x: Tensor, *sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=torch.float32, device=x.device)


def _rates(rate: Tensor, walk: Walk) -> Tensor:
    """Rates (E, N) -> (N, E) of powers of two, with zeros up to a power of two."""
    rates = torch.zeros((walk.states, walk.channels), dtype=torch.float32, device=rate.device)
    rates[: rate.shape[1]].copy_(rate.t())
    return rates.mul_(math.log2(math.e))


def _shares(b: Tensor, c: Tensor, walk: Walk) -> Tensor:
    """Lay b and c (B, T, N) side by side: few numbers beside those of x, and a program reads them whole."""
    shape = (walk.batch, walk.tokens, 2, walk.states)
    new = torch.empty if walk.states == b.shape[2] else torch.zeros
    shares = new(shape, dtype=torch.float32, device=b.device)
    shares[:, :, 0, : b.shape[2]].copy_(b)
    shares[:, :, 1, : b.shape[2]].copy_(c)
    return shares
