"""The gradients of the selective scan: Triton kernels of the walk backwards. Legend: triton_scan.py.

The gradient of state[t] is c[t] g[t] + r[t + 1], with r[t] = exp(step[t] rate) times it, which is what goes
on to the token before. The states are walked again, block by block, from what scan_kernel kept of them.

    g         gradient of out; gx, gstep: as x, step (B, T, E)
    returns   (B, chunks, N, E): r that leaves a chunk walked from nothing; arrivals: r that reaches it
    gshares   (2, tiles, B, T, N): sums over the channels of a tile, of the gradients of b and of c
    grates    (B, chunks, N, E): sums over the tokens of a chunk, of the gradient of the rate; gskip: no N
"""

import triton
import triton.language as tl

from rwkvseg.ops.scan.triton_scan import place, rows, shares_of, token

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["T", "length", "num_chunks"])
def scan_returns_kernel(
    p_step, p_rates, p_shares, p_g, p_returns, T, length, num_chunks,
    E: tl.constexpr, N: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Walk a chunk from its last token to its first, from nothing; write what leaves it."""
    i_b, chunk, row, first, tokens, e, n, states = place(length, T, num_chunks, E, N, CHANNELS)
    ok = e < E
    rates = tl.load(p_rates + states, mask=ok, other=0.0)
    r = tl.zeros_like(rates)
    i = tl.cdiv(tokens, BLOCK) - 1
    while i >= 0:
        start, left = token(i_b, first + i * BLOCK, T, REVERSE), tokens - i * BLOCK
        steps = rows(p_step + e, start, left, ok, E, REVERSE, BLOCK)
        gs = rows(p_g + e, start, left, ok, E, REVERSE, BLOCK)
        cs = shares_of(p_shares + N + n, start, left, N, REVERSE, BLOCK)
        for j in tl.static_range(BLOCK - 1, -1, -1):
            r = tl.exp2(steps[j].to(tl.float32) * rates) * (cs[j] * gs[j].to(tl.float32) + r)
        i -= 1
    tl.store(p_returns + row * (N * E) + states, r, mask=ok)


@triton.jit(do_not_specialize=["T", "length", "num_chunks", "num_blocks", "num_images"])
def scan_bwd_kernel(
    p_x, p_step, p_rates, p_shares, p_skip, p_g, p_starts, p_kept, p_kept_sums, p_arrivals,
    p_gx, p_gstep, p_gshares, p_grates, p_gskip, T, length, num_chunks, num_blocks, num_images,
    E: tl.constexpr, N: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    SKIP: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """Write every gradient of a chunk. CHUNKED: it is not the only one, so starts and arrivals are read."""
    i_b, chunk, row, first, tokens, e, n, states = place(length, T, num_chunks, E, N, CHANNELS)
    num_tiles: tl.constexpr = (E + CHANNELS - 1) // CHANNELS
    tile = (tl.program_id(0) % num_tiles).to(tl.int64)
    p_gb = p_gshares + tile * num_images * T * N + tl.arange(0, N)
    p_gc = p_gb + num_images.to(tl.int64) * T * (num_tiles * N)
    ok = e < E
    rates = tl.load(p_rates + states, mask=ok, other=0.0)
    r, grates = tl.zeros_like(rates), tl.zeros_like(rates)
    skip, gskip = tl.zeros((1, CHANNELS), tl.float32), tl.zeros((1, CHANNELS), tl.float32)
    if SKIP:
        skip += tl.load(p_skip + e, mask=ok, other=0.0).to(tl.float32)
    if CHUNKED:
        r += tl.load(p_arrivals + row * (N * E) + states, mask=ok, other=0.0)
    i = tl.cdiv(tokens, BLOCK) - 1
    while i >= 0:
        start, left = token(i_b, first + i * BLOCK, T, REVERSE), tokens - i * BLOCK
        block = row * num_blocks + i
        state = tl.load(p_kept + block * (N * E) + states, mask=ok, other=0.0)
        if CHUNKED:
            total = tl.load(p_kept_sums + block * E + e, mask=ok, other=0.0)
            entering = tl.load(p_starts + row * (N * E) + states, mask=ok, other=0.0)
            state += tl.exp2(total * rates) * entering
        xs = rows(p_x + e, start, left, ok, E, REVERSE, BLOCK)
        steps = rows(p_step + e, start, left, ok, E, REVERSE, BLOCK)
        gs = rows(p_g + e, start, left, ok, E, REVERSE, BLOCK)
        bs = shares_of(p_shares + n, start, left, N, REVERSE, BLOCK)
        cs = shares_of(p_shares + N + n, start, left, N, REVERSE, BLOCK)
        walked = (state,)
        for j in tl.static_range(BLOCK):
            step = steps[j].to(tl.float32)
            state = tl.exp2(step * rates) * state + (step * xs[j].to(tl.float32)) * bs[j]
            walked += (state,)
        for j in tl.static_range(BLOCK - 1, -1, -1):
            x, step, g = xs[j].to(tl.float32), steps[j].to(tl.float32), gs[j].to(tl.float32)
            own = cs[j] * g + r
            here = -j if REVERSE else j
            there = tl.arange(0, N) < tl.where(j < left, N, 0)
            gb, gc = tl.sum(step * x * own, 1), tl.sum(g * walked[j + 1], 1)
            tl.store(p_gb + start * N + here * N, gb, mask=there)
            tl.store(p_gc + start * N + here * N, gc, mask=there)
            r = tl.exp2(step * rates) * own
            of_exponent = r * walked[j]
            grates += step * of_exponent
            gskip += g * x
            read = tl.sum(bs[j] * own, 0)[None, :]
            of_rate = tl.sum(rates * of_exponent, 0)[None, :] * LN2
            tl.store(p_gx + start * E + e + here * E, step * read + skip * g, mask=ok & (j < left))
            tl.store(p_gstep + start * E + e + here * E, x * read + of_rate, mask=ok & (j < left))
        i -= 1
    tl.store(p_grates + row * (N * E) + states, grates, mask=ok)
    if SKIP:
        tl.store(p_gskip + row * E + e, gskip, mask=ok)
