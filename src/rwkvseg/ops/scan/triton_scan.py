"""The selective scan in one pass over memory: Triton kernels of the walk forwards.

A program walks one chunk of the tokens of CHANNELS channels of an image and holds their states, (N, CHANNELS)
in float32, in registers. Of several chunks, each is first walked from nothing; what it passes on is joined to
what reaches each, and the last walk begins there. Launched by triton_launch.py.

    x, step, out  (B, T, E)
    rates         (N, E), times log2(e); N: states of a channel, with zeros up to a power of two
    shares        (B, T, 2, N): b and c
    skip          (E,)
    sums          (B, chunks, E): of the steps of a chunk
    ends, starts  (B, chunks, N, E): what a chunk passes on, what reaches it
    kept          (B, chunks, blocks, N, E): states before each block of BLOCK tokens of a chunk, walked from
                  nothing
    kept_sums     (B, chunks, blocks, E): of the steps before a block
"""

import triton
import triton.language as tl


@triton.jit
def place(length, T, num_chunks, E: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr):
    """Return image, chunk, its number among all, its first token, its tokens, channels e, n, n * E + e."""
    num_tiles: tl.constexpr = (E + CHANNELS - 1) // CHANNELS
    tile, row = tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles
    i_b, chunk = row // num_chunks, row % num_chunks
    first = chunk * length
    e = tile * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    n = tl.arange(0, N)[:, None]
    return i_b.to(tl.int64), chunk, row.to(tl.int64), first, tl.minimum(length, T - first), e, n, n * E + e


@triton.jit
def token(i_b, t, T, REVERSE: tl.constexpr):
    """Return where the t-th token of the walk lies, counted over all images."""
    if REVERSE:
        return i_b * T + (T - 1 - t)
    return i_b * T + t


@triton.jit
def rows(p, start, left, ok, E: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Return the channels (1, CHANNELS) of BLOCK tokens as they are stored, a tuple. p: of the channels."""
    p += start * E
    result = ()
    for j in tl.static_range(BLOCK):
        result += (tl.load(p + (-j * E if REVERSE else j * E), mask=ok & (j < left), other=0.0),)
    return result


@triton.jit
def shares_of(p, start, left, N: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Return the shares of BLOCK tokens, a tuple. p: of the states of b or of c.

    Behind the last token they are those of the last: the step there is zero, so they do not matter.
    """
    p += start * (2 * N)
    result = ()
    for j in tl.static_range(BLOCK):
        behind = tl.minimum(j, left - 1) * (2 * N)
        result += (tl.load(p - behind if REVERSE else p + behind),)
    return result


@triton.jit(do_not_specialize=["T", "length", "num_chunks", "num_blocks"])
def scan_kernel(
    p_x, p_step, p_rates, p_shares, p_skip, p_starts, p_out, p_sums, p_ends, p_kept, p_kept_sums,
    T, length, num_chunks, num_blocks,
    E: tl.constexpr, N: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    SKIP: tl.constexpr, STARTS: tl.constexpr, OUT: tl.constexpr, ENDS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Walk a chunk, from its start if STARTS; write out, what it passes on, and what is kept, if asked to."""
    i_b, chunk, row, first, tokens, e, n, states = place(length, T, num_chunks, E, N, CHANNELS)
    ok = e < E
    rates = tl.load(p_rates + states, mask=ok, other=0.0)
    state, total = tl.zeros_like(rates), tl.zeros((1, CHANNELS), tl.float32)
    if STARTS:
        state += tl.load(p_starts + row * (N * E) + states, mask=ok, other=0.0)
    if SKIP:
        skip = tl.load(p_skip + e, mask=ok, other=0.0).to(tl.float32)
    i = 0
    while i * BLOCK < tokens:
        start, left = token(i_b, first + i * BLOCK, T, REVERSE), tokens - i * BLOCK
        xs = rows(p_x + e, start, left, ok, E, REVERSE, BLOCK)
        steps = rows(p_step + e, start, left, ok, E, REVERSE, BLOCK)
        bs = shares_of(p_shares + n, start, left, N, REVERSE, BLOCK)
        if OUT:
            cs = shares_of(p_shares + N + n, start, left, N, REVERSE, BLOCK)
        if KEEP:
            block = row * num_blocks + i
            tl.store(p_kept + block * (N * E) + states, state, mask=ok)
            tl.store(p_kept_sums + block * E + e, total, mask=ok)
        for j in tl.static_range(BLOCK):
            step = steps[j].to(tl.float32)
            state = tl.exp2(step * rates) * state + (step * xs[j].to(tl.float32)) * bs[j]
            if ENDS or KEEP:
                total += step
            if OUT:
                out = tl.sum(cs[j] * state, 0)[None, :]
                if SKIP:
                    out += skip * xs[j].to(tl.float32)
                tl.store(p_out + start * E + e + (-j * E if REVERSE else j * E), out, mask=ok & (j < left))
        i += 1
    if ENDS:
        tl.store(p_ends + row * (N * E) + states, state, mask=ok)
        tl.store(p_sums + row * E + e, total, mask=ok)


@triton.jit(do_not_specialize=["num_chunks"])
def join_kernel(
    p_rates, p_sums, p_ends, p_starts, num_chunks,
    E: tl.constexpr, N: tl.constexpr, BACKWARDS: tl.constexpr, GROUP: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Join what chunks pass on to what reaches each, from the first on, or from the last if BACKWARDS."""
    i_b, _, _, _, _, e, n, states = place(1, 1, 1, E, N, CHANNELS)
    ok = e < E
    rates = tl.load(p_rates + states, mask=ok, other=0.0)
    state = tl.zeros_like(rates)
    group = 0
    while group * GROUP < num_chunks:
        sums, ends = (), ()
        for j in tl.static_range(GROUP):  # all of a group are read before they are wanted
            i = group * GROUP + j
            row = i_b * num_chunks + (num_chunks - 1 - i if BACKWARDS else i)
            sums += (tl.load(p_sums + row * E + e, mask=ok & (i < num_chunks), other=0.0),)
            ends += (tl.load(p_ends + row * (N * E) + states, mask=ok & (i < num_chunks), other=0.0),)
        for j in tl.static_range(GROUP):
            i = group * GROUP + j
            row = i_b * num_chunks + (num_chunks - 1 - i if BACKWARDS else i)
            tl.store(p_starts + row * (N * E) + states, state, mask=ok & (i < num_chunks))
            state = tl.exp2(sums[j] * rates) * state + ends[j]
        group += 1
