"""Mamba's short convolution and its SiLU in one pass over tokens: Triton kernels and how they are launched.

A tile is TOKENS by CHANNELS; the tokens beside it come from the caches. A program of the backward pass goes
through TILES of them, one after the other; for the gradient of x each token computes its own SiLU again and
those of the K - 1 tokens that saw it. z: what goes into the SiLU.

    x        (B, T, E), channels side by side; a token is `pitch` numbers behind the one before
    weight   (E, K), the last of them for the token itself; bias (E,)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, CHANNELS, WARPS = 16, 64, 4
TILES = 8


@triton.jit
def _shifted(p, t, by, T, pitch, ok):
    """Return tokens t + by in float32, zeros where there are none. p: of the channels; t: (TOKENS, 1)."""
    there = (t + by >= 0) & (t + by < T)
    return tl.load(p + (t + by).to(tl.int64) * pitch, mask=there & ok, other=0.0).to(tl.float32)


@triton.jit
def _taps(p_weight, e, ok, K: tl.constexpr):
    taps = ()
    for k in tl.static_range(K):
        taps += (tl.load(p_weight + e * K + k, mask=ok, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def _tile(T, E, SPAN: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return image, span, first tokens (TOKENS, 1) and channels (1, CHANNELS) of a program."""
    num_tiles, num_spans = tl.cdiv(E, CHANNELS), tl.cdiv(T, SPAN)
    tile, row = tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles
    t = (row % num_spans) * SPAN + tl.arange(0, TOKENS)[:, None]
    return (row // num_spans).to(tl.int64), row, t, tile * CHANNELS + tl.arange(0, CHANNELS)[None, :]


@triton.jit(do_not_specialize=["T"])
def conv_silu_fwd_kernel(
    p_x, p_weight, p_bias, p_out, T, image, pitch,
    E: tl.constexpr, K: tl.constexpr, REVERSE: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """x, out: (B, T, E). image: numbers from an image of x to the next."""
    i_b, _, t, e = _tile(T, E, TOKENS, TOKENS, CHANNELS)
    ok = e < E
    taps = _taps(p_weight, e, ok, K)
    z = tl.zeros((TOKENS, CHANNELS), tl.float32) + tl.load(p_bias + e, mask=ok, other=0.0).to(tl.float32)
    for k in tl.static_range(K):
        by = K - 1 - k if REVERSE else k + 1 - K
        z += taps[k] * _shifted(p_x + i_b * image + e, t, by, T, pitch, ok)
    tl.store(p_out + (i_b * T + t) * E + e, z / (1.0 + tl.exp(-z)), mask=(t < T) & ok)


@triton.jit(do_not_specialize=["T"])
def conv_silu_bwd_kernel(
    p_x, p_weight, p_bias, p_g, p_gx, p_sums, T, image, pitch,
    E: tl.constexpr, K: tl.constexpr, REVERSE: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """g, gx: (B, T, E). sums: of the gradients of weight and bias, span by span (B * spans, K + 1, E)."""
    i_b, row, t, e = _tile(T, E, TOKENS * TILES, TOKENS, CHANNELS)
    ok = e < E
    taps, bias = _taps(p_weight, e, ok, K), tl.load(p_bias + e, mask=ok, other=0.0).to(tl.float32)
    forth: tl.constexpr = -1 if REVERSE else 1
    sums = ()
    for _ in tl.static_range(K + 1):
        sums += (tl.zeros((TOKENS, CHANNELS), tl.float32),)
    tile = 0
    while tile < TILES:
        xs = ()  # from K - 1 tokens before to K - 1 behind, in the direction of the convolution
        for i in tl.static_range(2 * K - 1):
            xs += (_shifted(p_x + i_b * image + e, t, forth * (i - K + 1), T, pitch, ok),)
        gx, new = tl.zeros((TOKENS, CHANNELS), tl.float32), ()
        for j in tl.static_range(K):  # the token j behind, which saw this one through tap K - 1 - j
            z = tl.zeros((TOKENS, CHANNELS), tl.float32) + bias
            for k in tl.static_range(K):
                z += taps[k] * xs[j + k]
            share = 1.0 / (1.0 + tl.exp(-z))
            g = _shifted(p_g + i_b * T * E + e, t, forth * j, T, E, ok)
            gz = g * share * (1.0 + z * (1.0 - share))
            gx += taps[K - 1 - j] * gz
            if j == 0:
                for k in tl.static_range(K):
                    new += (sums[k] + gz * xs[k],)
                new += (sums[K] + gz,)
        tl.store(p_gx + (i_b * T + t) * E + e, gx, mask=(t < T) & ok)
        sums = new
        t += TOKENS
        tile += 1
    for k in tl.static_range(K + 1):
        tl.store(p_sums + (row.to(tl.int64) * (K + 1) + k) * E + e, tl.sum(sums[k], 0)[None, :], mask=ok)


def forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """x: (B, T, E), weight: (E, 1, K), bias: (E,) -> as x."""
    x, (batch, tokens, channels) = _channels_together(x), x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        conv_silu_fwd_kernel[(batch * _tiles(tokens, TOKENS) * _tiles(channels, CHANNELS),)](
            x, weight.contiguous(), bias.contiguous(), out, tokens, x.stride(0), x.stride(1),
            E=channels, K=weight.shape[2], REVERSE=reverse, TOKENS=TOKENS, CHANNELS=CHANNELS, num_warps=WARPS,
        )  # fmt: skip
    return out


def backward(
    x: Tensor, weight: Tensor, bias: Tensor, g: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, and of weight and bias in float32."""
    x, (batch, tokens, channels), size = _channels_together(x), x.shape, weight.shape[2]
    gx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    spans = batch * _tiles(tokens, TOKENS * TILES)
    sums = torch.empty((spans, size + 1, channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        conv_silu_bwd_kernel[(spans * _tiles(channels, CHANNELS),)](
            x, weight.contiguous(), bias.contiguous(), g.contiguous(), gx, sums,
            tokens, x.stride(0), x.stride(1), E=channels, K=size, REVERSE=reverse,
            TOKENS=TOKENS, CHANNELS=CHANNELS, TILES=TILES, num_warps=WARPS,
        )  # fmt: skip
    return gx, sums[:, :size].sum(0).t().contiguous().view(weight.shape), sums[:, size].sum(0)


def _channels_together(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 and min(x.stride()) >= 0 else x.contiguous()


def _tiles(size: int, of: int) -> int:
    return -(-size // of)
