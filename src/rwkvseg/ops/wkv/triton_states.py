"""What the Triton kernels of Bi-WKV share: where a program's tokens lie, and sums that pass between chunks.

A lane is one chunk of consecutive tokens of one channel; a program holds a tile of lanes, CHUNKS consecutive
chunks (a span of tokens) times CHANNELS channels, and goes through the tokens of all its lanes at once, by
BLOCKS blocks of BLOCK tokens. Exponents are to base 2. In a kernel `_` is a variable like any other.

    p_      pointer to a tensor; k, v, ...: pointers to each lane's first token; `left`: tokens from there on
    state   (o, n, d): a sum of values n and of weights d, both times 2^o
    sent    what a block, chunk or span sends on, to later tokens and to earlier ones
    states  of the spans in memory, (B, spans, 7, C): one for each of the two directions, then the value that
            has been taken off those in their n; where there is one span (B, 1, 1, C): only a mean value
"""

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}  # WIDE of the kernels: what they sum in
LOG2E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(-3.0e38)  # exponent of a sum without terms; -inf less itself would be NaN


@triton.jit
def place(
    T, C, num_spans, LENGTH: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
    BACKWARDS: tl.constexpr = False, i_p=None,
):  # fmt: skip
    """Return batch, span, channels (1, CHANNELS), offset of the span in k, of each lane's first token in it.

    Then how many tokens are left from there. Where all programs are whole, kernels put None for that.
    BACKWARDS: the last program takes the first tile. What a launch before read last is still in the cache.
    i_p: the program; this one unless given.
    """
    num_tiles = tl.cdiv(C, CHANNELS)
    i_p = tl.program_id(0) if i_p is None else i_p
    tile = tl.num_programs(0) - 1 - i_p if BACKWARDS else i_p
    i_c = tile % num_tiles
    i_s = (tile // num_tiles) % num_spans
    i_b = tile // (num_tiles * num_spans)
    c = i_c * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    chunk = tl.arange(0, CHUNKS)[:, None]
    start = i_s * (CHUNKS * LENGTH)
    base = (i_b.to(tl.int64) * T + start) * C
    left = tl.where(c < C, T - start - chunk * LENGTH, 0)
    return i_b, i_s, c, base, chunk * (LENGTH * C) + c, left


@triton.jit
def vector_of(p, c, C, WIDE: tl.constexpr):
    """Return a number per channel (1, CHANNELS)."""
    return tl.load(p + c, mask=c < C, other=0.0).to(WIDE)


@triton.jit
def rows_after(p, C, tokens):
    """Return pointers to the tokens that follow so many."""
    return p + tokens * C


@triton.jit
def where_there(left, j, x, other):
    """Return x of the lanes that have a token j, and another number of the rest."""
    return x if left is None else tl.where(j < left, x, other)


@triton.jit
def stored_row(p, left, C, j, fill):
    """Return token j of every lane as it is stored, and a number where there is none."""
    return tl.load(p + j * C) if left is None else tl.load(p + j * C, mask=j < left, other=fill)


@triton.jit
def row_of(p, left, C, j, WIDE: tl.constexpr):
    """Return token j of every lane, 0 where there is none."""
    return stored_row(p, left, C, j, 0.0).to(WIDE)


@triton.jit
def key_of(p_k, left, C, j, WIDE: tl.constexpr):
    """Return the key of token j of every lane; -inf where there is none."""
    return stored_row(p_k, left, C, j, float("-inf")).to(WIDE)


@triton.jit
def put_row(p, left, C, j, x):
    """Write token j of every lane that has it."""
    if left is None:
        tl.store(p + j * C, x)
    else:
        tl.store(p + j * C, x, mask=j < left)


@triton.jit
def exponents(p_k, left, C, j, WIDE: tl.constexpr):
    """Return the key of token j to base 2."""
    return key_of(p_k, left, C, j, WIDE) * LOG2E


@triton.jit
def same_rows(x, BLOCKS: tl.constexpr):
    """Return a tuple with x for every block."""
    rows = ()
    for _ in tl.static_range(BLOCKS):
        rows += (x,)
    return rows


@triton.jit
def get_block(rows, s, BLOCKS: tl.constexpr):
    """Return item s of a tuple, where s is not known before."""
    x = rows[0]
    for i in tl.static_range(1, BLOCKS):
        x = tl.where(s == i, rows[i], x)
    return x


@triton.jit
def put_block(rows, s, x, BLOCKS: tl.constexpr):
    """Return a tuple whose item s is x."""
    new = ()
    for i in tl.static_range(BLOCKS):
        new += (tl.where(s == i, x, rows[i]),)
    return new


@triton.jit
def push_last(rows, x, BLOCKS: tl.constexpr):
    """Return a tuple less its first item, with x after its last."""
    new = ()
    for i in tl.static_range(1, BLOCKS):
        new += (rows[i],)
    return new + (x,)


@triton.jit
def push_first(rows, x, BLOCKS: tl.constexpr):
    """Return a tuple less its last item, with x before its first."""
    new = (x,)
    for i in tl.static_range(BLOCKS - 1):
        new += (rows[i],)
    return new


@triton.jit
def _join(a1, n1, d1, b1, pn1, pd1, a2, n2, d2, b2, pn2, pd2):
    """Join two runs of chunks: decay, (n, d) sent, decay up to the last chunk, (pn, pd) that reaches it."""
    return a1 * a2, a2 * n1 + n2, a2 * d1 + d2, a1 * b2, b2 * n1 + pn2, b2 * d1 + pd2


@triton.jit
def reach(n, d, decay, start_n, start_d, REVERSE: tl.constexpr):
    """Return what reaches each chunk when each sends (n, d), and the first gets the start."""
    zero = tl.zeros_like(n)
    one = zero + 1.0
    _, _, _, b, pn, pd = tl.associative_scan((zero + decay, n, d, one, zero, zero), 0, _join, reverse=REVERSE)
    return pn + b * start_n, pd + b * start_d


@triton.jit
def plus(o1, n1, d1, o2, n2, d2):
    """Add two states that carry their exponents."""
    o = tl.maximum(o1, o2)
    x, y = tl.exp2(o1 - o), tl.exp2(o2 - o)
    return o, x * n1 + y * n2, x * d1 + y * d2


@triton.jit
def _from(o, n, d, rows):
    """Return rows of a tile of states; nothing where there is no such row."""
    there = (rows >= 0) & (rows < o.shape[0])
    rows = tl.where(there, rows, 0)
    return tl.where(there, tl.gather(o, rows, 0), NOTHING), tl.gather(n, rows, 0), tl.gather(d, rows, 0)


@triton.jit
def safe_reach(state, decay, start, REVERSE: tl.constexpr):
    """`reach` of states that carry their exponents, decay to base 2: compact rather than quick."""
    o, n, d = state
    i = tl.arange(0, o.shape[0])[:, None] + tl.zeros_like(o).to(tl.int32)
    sign: tl.constexpr = 1 if REVERSE else -1
    o, n, d = _from(o, n, d, i + sign)
    step = 1
    while step < o.shape[0]:
        po, pn, pd = _from(o, n, d, i + sign * step)
        o, n, d = plus(po + decay * step, pn, pd, o, n, d)
        step *= 2
    so, sn, sd = start
    passed = -i + (o.shape[0] - 1) if REVERSE else i
    return plus(o, n, d, so + decay * passed.to(o.dtype), sn, sd)


@triton.jit
def read_state(p, rows, c, C, mask, WIDE: tl.constexpr):
    """Return the state of some spans; p + 3 C gives that of the other direction."""
    p += rows.to(tl.int64) * 7 * C + c
    o = tl.load(p, mask=mask, other=NOTHING).to(WIDE)
    n = tl.load(p + C, mask=mask, other=0.0).to(WIDE)
    d = tl.load(p + 2 * C, mask=mask, other=0.0).to(WIDE)
    return o, n, d


@triton.jit
def read_centred(p, rows, c, C, mask, mean, FUTURE: tl.constexpr, WIDE: tl.constexpr):
    """Return the state of some spans in one direction with the mean taken off their values."""
    o, n, d = read_state(p + 3 * C if FUTURE else p, rows, c, C, mask, WIDE)
    taken_off = tl.load(p + (rows.to(tl.int64) * 7 + 6) * C + c, mask=mask, other=0.0).to(WIDE)
    return o, n + (taken_off - mean) * d, d


@triton.jit
def write_state(p, rows, c, C, mask, state):
    """Write what `read_state` reads."""
    p += rows.to(tl.int64) * 7 * C + c
    o, n, d = state
    tl.store(p, o, mask=mask)
    tl.store(p + C, n, mask=mask)
    tl.store(p + 2 * C, d, mask=mask)


@triton.jit
def add_rows(o, n, d):
    """Add the rows of a tile of states."""
    top = tl.max(o, 0)[None, :]
    x = tl.exp2(o - top)
    return top, tl.sum(x * n, 0)[None, :], tl.sum(x * d, 0)[None, :]


@triton.jit
def write_totals(p, i_b, i_s, num_spans, c, C, later, earlier, taken_off, decay, CHUNKS: tl.constexpr):
    """Write what a span sends on, from the states that its chunks send; decay: of one chunk.

    taken_off (1, CHANNELS): of the values in these states.
    """
    row = i_b * num_spans + i_s + tl.zeros_like(c)
    chunk = tl.arange(0, CHUNKS)[:, None]
    o, n, d = later
    write_state(p, row, c, C, c < C, add_rows(o + (CHUNKS - 1 - chunk).to(o.dtype) * decay, n, d))
    o, n, d = earlier
    write_state(p + 3 * C, row, c, C, c < C, add_rows(o + chunk.to(o.dtype) * decay, n, d))
    tl.store(p + (row.to(tl.int64) * 7 + 6) * C + c, taken_off, mask=c < C)


@triton.jit
def enter(p, i_b, i_s, num_spans, c, C, decay, mean, SPANS: tl.constexpr, WIDE: tl.constexpr):
    """Return the states that enter a span from the past and from the future; decay: of one span.

    mean is taken off the values in them.

    SPANS: 1 where the span is the sequence, 0 where `bi_wkv_join_kernel` has joined them; otherwise at least
    their number, and they are joined here.
    """
    zero = tl.zeros_like(decay)
    past = (zero + NOTHING, zero, zero)
    future = (zero + NOTHING, zero, zero)
    if SPANS == 0:
        row = i_b * num_spans + i_s + tl.zeros_like(c)
        past = read_centred(p, row, c, C, c < C, mean, False, WIDE)
        future = read_centred(p, row, c, C, c < C, mean, True, WIDE)
    if SPANS > 1:
        m = tl.arange(0, SPANS)[:, None]
        row = i_b * num_spans + m
        o, n, d = read_centred(p, row, c, C, (m < i_s) & (c < C), mean, False, WIDE)
        past = add_rows(o + (i_s - 1 - m).to(WIDE) * decay, n, d)
        o, n, d = read_centred(p, row, c, C, (m > i_s) & (m < num_spans) & (c < C), mean, True, WIDE)
        future = add_rows(o + (m - i_s - 1).to(WIDE) * decay, n, d)
    return past, future


@triton.jit
def write_mean(p, i_b, c, C, some, left):
    """Write the mean of some outputs, one of each lane: what `mean_value` reads where there is one span."""
    if left is None:
        mean = tl.sum(some, 0)[None, :] / some.shape[0]
    else:
        lanes = tl.sum((left > 0).to(some.dtype), 0)[None, :]
        mean = tl.sum(tl.where(left > 0, some, 0.0), 0)[None, :] / tl.maximum(lanes, 1.0)
    tl.store(p + i_b * C + c, mean, mask=c < C)


@triton.jit
def mean_value(p, i_b, i_s, num_spans, c, C, SPANS: tl.constexpr, WIDE: tl.constexpr):
    """Return a weighted mean of the values, the same for every span of an image and channel.

    Gradients do not feel this number taken off all values, their rounding does: where one key outweighs the
    others, or v is far from zero, gk is a small difference of large numbers.
    """
    if SPANS == 1:
        mean = tl.load(p + i_b * C + c, mask=c < C, other=0.0).to(WIDE)
    elif SPANS == 0:
        row = (i_b * num_spans + i_s).to(tl.int64) * 7 + 6
        mean = tl.load(p + row * C + c, mask=c < C, other=0.0).to(WIDE)
    else:
        m = tl.arange(0, SPANS)[:, None]
        o, n, d = read_centred(p, i_b * num_spans + m, c, C, (m < num_spans) & (c < C), 0.0, False, WIDE)
        _, n, d = add_rows(o, n, d)
        mean = tl.where(c < C, n / d, 0.0)
    return mean


@triton.jit
def store_sums(p_parts, i_b, i_s, num_spans, c, C, gw, gu):
    """Write a program's part of gw and gu: parts is (B, spans, 2, C)."""
    p_parts += (i_b * num_spans + i_s).to(tl.int64) * 2 * C + c
    tl.store(p_parts, tl.sum(gw, 0)[None, :], mask=c < C)
    tl.store(p_parts + C, tl.sum(gu, 0)[None, :], mask=c < C)
