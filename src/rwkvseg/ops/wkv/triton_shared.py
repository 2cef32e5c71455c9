"""Bi-WKV on a GPU from shared memory, forward: a program copies its tile once, then goes through it twice.

For sequences that fit in a program and fill it, NVIDIA's compute capability 9.0. In
Gluon, the language below Triton that lets a program say where its numbers lie. The sums are those of
triton_fast.py; a program that these do not suit says so in `unfit`, and a later launch takes the safe form.
The backward pass is in triton_shared_backward.py; tiled.py launches both. Legend: triton_states.py, and

    L, W    how a tile of lanes lies in threads: rows of channels side by side; all chunks of a channel in one
            warp
    _s      numbers in shared memory (LENGTH, CHUNKS, CHANNELS): token by token of all chunks, LENGTH of each
    rows    a tuple with a number per lane for every block
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from rwkvseg.ops.wkv.triton_shared_copies import copy_ahead, start_keys
from rwkvseg.ops.wkv.triton_shared_layouts import (
    lanes_layout,
    plain_layout,
    states_layout,
    warp_layout,
    widened,
)

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def wait_turn(pause, processors):
    """Let programs that begin together on a multiprocessor ask for their tiles one after the other.

    Each `pause` nanoseconds after the last: while one computes, another's numbers are on their way.
    """
    turn = gl.program_id(0) // processors
    if turn < 4:
        gl.inline_asm_elementwise(
            "nanosleep.u32 $1; mov.u32 $0, $1;", "=r,r", [turn * pause],
            dtype=gl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@gluon.jit
def let_next_begin():
    """Let the next launch begin once every program has come this far, if it asked for that."""
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; mov.u32 $0, $1;", "=r,r", [gl.program_id(0)],
        dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def wait_for_last():
    """Wait until the launch before has come to its end, where this one began before that."""
    gl.inline_asm_elementwise(
        "griddepcontrol.wait; mov.u32 $0, $1;", "=r,r", [gl.program_id(0)],
        dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def sampled_reference(p_k, T, C: gl.constexpr):
    """Return the largest of a few exponents for each channel; p_k: keys of the sequence's first token."""
    top = widened(gl.load(p_k + (T // 8) * C)) * LOG2E
    for part in gl.static_range(1, 4):
        top = gl.maximum(top, widened(gl.load(p_k + (part * (T // 4) + T // 8) * C)) * LOG2E)
    return top


@gluon.jit
def chunk_decay(p_w, LENGTH: gl.constexpr, CHANNELS: gl.constexpr, W: gl.constexpr):
    """Return the decay over a chunk, to base 2."""
    c = gl.arange(0, CHANNELS, gl.SliceLayout(0, W))[None, :]
    return gl.load(p_w + c).to(gl.float32) * (-LENGTH * LOG2E)


@gluon.jit
def scan_chunks(x, chunk, decay, W: gl.constexpr, REVERSE: gl.constexpr):
    """Return what reaches each chunk when each sends x; chunk: its number, decay: of a chunk, to base 2.

    In doubling steps: the decay is the same for all chunks, so that its powers need no scan of their own.
    """
    CHUNKS: gl.constexpr = x.shape[0]
    at = chunk + gl.full(x.shape, 0, gl.int32, W)
    passed = CHUNKS - 1 - at if REVERSE else at
    sign: gl.constexpr = -1 if REVERSE else 1
    x = gl.where(passed >= 1, gl.gather(x, gl.where(passed >= 1, at - sign, 0), 0), 0.0)
    for i in gl.static_range(5 if CHUNKS == 32 else 4):
        there = passed >= 2**i
        factor = gl.where(there, gl.exp2(decay * 2**i), 0.0)
        x = x + factor * gl.gather(x, gl.where(there, at - sign * 2**i, at), 0)
    return x


@gluon.jit
def reach(ln, ld, en, ed, decay, L: gl.constexpr, W: gl.constexpr):
    """Return what reaches each chunk from earlier ones and from later ones; decay: of a chunk, to base 2.

    The chunks send (ln, ld) to later ones, (en, ed) to earlier ones.
    """
    order: gl.constexpr = states_layout(ln.shape[1])
    ln_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, ln)
    ld_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, ld)
    en_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, en)
    ed_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, ed)
    at = gl.arange(0, ln_s.shape[0], gl.SliceLayout(1, W))[:, None]
    ln, ld = scan_chunks(ln_s.load(W), at, decay, W, False), scan_chunks(ld_s.load(W), at, decay, W, False)
    en, ed = scan_chunks(en_s.load(W), at, decay, W, True), scan_chunks(ed_s.load(W), at, decay, W, True)
    ln_s.store(ln)
    ld_s.store(ld)
    en_s.store(en)
    ed_s.store(ed)
    return ln_s.load(L), ld_s.load(L), en_s.load(L), ed_s.load(L)


@gluon.jit
def reciprocal(x):
    """Return 1 / x of a normal number, to one unit in the last place."""
    return gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def weigh(k_s, v_s, s, top, mean, BLOCK: gl.constexpr, L: gl.constexpr):
    """Return (n, d) of the tokens of a block, two tuples: d = exp(k - reference), n = d (v - mean)."""
    n, d = (), ()
    for j in gl.static_range(BLOCK):
        x = gl.exp2(widened(k_s.index(s * BLOCK + j).load(L)) * LOG2E - top)
        n += (x * (widened(v_s.index(s * BLOCK + j).load(L)) - mean),)
        d += (x,)
    return n, d


@gluon.jit
def send(n, d, lam, BLOCK: gl.constexpr):
    """Return what a block of tokens (n, d) sends to later ones and to earlier ones."""
    ln, ld, en, ed = n[0], d[0], n[BLOCK - 1], d[BLOCK - 1]
    for j in gl.static_range(1, BLOCK):
        ln, ld = ln * lam + n[j], ld * lam + d[j]
        en, ed = en * lam + n[BLOCK - 1 - j], ed * lam + d[BLOCK - 1 - j]
    return ln, ld, en, ed


@gluon.jit
def futures(n, d, fn, fd, lam, BLOCK: gl.constexpr):
    """Return what reaches every token of a block from later ones, two tuples, and what leaves it.

    (fn, fd): what enters the block from there.
    """
    rows_n, rows_d = (), ()
    for j in gl.static_range(BLOCK - 1, -1, -1):
        rows_n, rows_d = (fn,) + rows_n, (fd,) + rows_d
        fn, fd = fn * lam + n[j], fd * lam + d[j]
    return rows_n, rows_d, fn, fd


@gluon.jit
def push_first(rows, x, BLOCKS: gl.constexpr):
    """Return rows less their last item, with x before their first."""
    new = (x,)
    for i in gl.static_range(BLOCKS - 1):
        new += (rows[i],)
    return new


@gluon.jit
def add_entering(rows_n, rows_d, n, d, far, BLOCKS: gl.constexpr, REVERSE: gl.constexpr):
    """Return what reaches each block when (n, d) enters the first, or the last if REVERSE; two tuples."""
    new_n, new_d = (), ()
    for i in gl.static_range(BLOCKS):
        if REVERSE:
            new_n = (rows_n[BLOCKS - 1 - i] + n,) + new_n
            new_d = (rows_d[BLOCKS - 1 - i] + d,) + new_d
        else:
            new_n, new_d = new_n + (rows_n[i] + n,), new_d + (rows_d[i] + d,)
        n, d = n * far, d * far
    return new_n, new_d


@gluon.jit
def totals(
    k_s, v_s, top, mean, lam, far,
    PENDING: gl.constexpr, BLOCK: gl.constexpr, BLOCKS: gl.constexpr, L: gl.constexpr,
):  # fmt: skip
    """Go through the blocks as they arrive: return what each lane sends to later ones and to earlier ones.

    Then what reaches its blocks from earlier tokens of it, rows. PENDING: groups of copies that follow those
    of keys and values.
    """
    zero = gl.full([k_s.shape[1], k_s.shape[2]], 0.0, gl.float32, L)
    ln, ld, en, ed, power = zero, zero, zero, zero, zero + 1.0
    pns, pds = (), ()
    for s in gl.static_range(BLOCKS):  # written out: a loop would move its rows about
        async_copy.wait_group(BLOCKS - 1 - s + PENDING)
        pns, pds = pns + (ln,), pds + (ld,)
        n, d = weigh(k_s, v_s, s, top, mean, BLOCK, L)
        later_n, later_d, earlier_n, earlier_d = send(n, d, lam, BLOCK)
        ln, ld = ln * far + later_n, ld * far + later_d
        en, ed = en + power * earlier_n, ed + power * earlier_d
        power = power * far
    return ln, ld, en, ed, pns, pds


@gluon.jit
def misfits(least, total, w, u, T, LIMIT: gl.constexpr, SPARE: gl.constexpr, BLOCK: gl.constexpr):
    """Return 1 where the sums of a lane left the range of float32 with respect to their denominators, else 0.

    least, total: of one denominator in the middle of every block. Up to BLOCK // 2 tokens away denominators
    differ by a factor of exp(|u| + |w| BLOCK // 2) at most, since each is a sum over the same keys.
    `unfit` of triton_fast.py says why. w, u: to base 2. SPARE: by how many powers of two the least must
    be larger than that asks for.
    """
    apart = gl.abs(u) + gl.abs(w) * (BLOCK // 2)
    grown = gl.maximum(-w, 0.0) * T + gl.abs(u) + apart
    enough = gl.where(grown < LIMIT - SPARE, gl.exp2(grown - (LIMIT - SPARE)), float("inf"))
    fits = (least > enough) & (total < gl.exp2(0.5 * LIMIT + 14 - apart))  # a NaN in total does not
    return gl.where(fits, 0, 1)


@gluon.jit
def put_outputs(
    k_s, v_s, p_y, s, top, lam, bonus, pn, pd, fn, fd, least, total,
    C: gl.constexpr, BLOCK: gl.constexpr, L: gl.constexpr,
):  # fmt: skip
    """Write the outputs of block s from what enters it on both sides.

    Return what leaves it to earlier tokens, what `misfits` wants to know so far, and the first output.
    """
    n, d = weigh(k_s, v_s, s, top, 0.0, BLOCK, L)
    from_n, from_d, fn, fd = futures(n, d, fn, fd, lam, BLOCK)
    some = pn
    for j in gl.static_range(BLOCK):
        den = pd + from_d[j] + bonus * d[j]
        if j == BLOCK // 2:
            least, total = gl.minimum(least, den), total + den
        out = (pn + from_n[j] + bonus * n[j]) * reciprocal(den)
        gl.store(p_y + (s * BLOCK + j) * C, out.to(p_y.dtype.element_ty))
        if j == 0:
            some = out
        pn, pd = pn * lam + n[j], pd * lam + d[j]
    return fn, fd, least, total, some


@gluon.jit
def put_tile(
    k_s, v_s, p_y, top, lam, bonus, pns, pds, fn, fd,
    C: gl.constexpr, BLOCK: gl.constexpr, BLOCKS: gl.constexpr, L: gl.constexpr, UNROLLED: gl.constexpr,
    later=None, WARPS: gl.constexpr = 0,
):  # fmt: skip
    """Write the outputs of all blocks from what enters each from earlier tokens, the last from later ones.

    Return what `misfits` wants to know, and the first output of every lane. UNROLLED: how many blocks are
    written out: from one step of the loop to the next rows are moved. later: None or, for `copy_ahead` into
    the memory of the blocks that are done, the tile that follows.
    """
    zero = gl.full([k_s.shape[1], k_s.shape[2]], 0.0, gl.float32, L)
    least, total, some = zero + float("inf"), zero, zero
    FIRST: gl.constexpr = BLOCKS % UNROLLED
    for j in gl.static_range(FIRST):
        fn, fd, least, total, some = put_outputs(
            k_s, v_s, p_y, BLOCKS - 1 - j, top, lam, bonus, pns[BLOCKS - 1 - j], pds[BLOCKS - 1 - j], fn, fd,
            least, total, C, BLOCK, L,
        )  # fmt: skip
    if later is not None and FIRST > 0:
        copy_ahead((k_s, v_s), later, BLOCKS - FIRST, C, BLOCK, BLOCK * BLOCKS, WARPS, FIRST)
    for i in range(BLOCKS // UNROLLED):  # from the last block back
        for j in gl.static_range(UNROLLED):
            pn, pd = pns[BLOCKS - 1 - FIRST], pds[BLOCKS - 1 - FIRST]
            pns, pds = push_first(pns, pn, BLOCKS), push_first(pds, pd, BLOCKS)
            fn, fd, least, total, some = put_outputs(
                k_s, v_s, p_y, BLOCKS - 1 - FIRST - j - UNROLLED * i, top, lam, bonus, pn, pd, fn, fd,
                least, total, C, BLOCK, L,
            )  # fmt: skip
        if later is not None:
            done = BLOCKS - FIRST - UNROLLED * (i + 1)
            copy_ahead((k_s, v_s), later, done, C, BLOCK, BLOCK * BLOCKS, WARPS, UNROLLED)
    return least, total, some


@gluon.jit
def sum_and_any(some, bad, more_some, more_bad):
    """Return the sum of one and the larger of another."""
    return some + more_some, gl.maximum(bad, more_bad)


@gluon.jit(do_not_specialize=["T", "pause", "processors"])
def bi_wkv_fwd_shared_kernel(
    p_w, p_u, p_k, p_v, p_y, p_mean, p_unfit, T, pause, processors,
    C: gl.constexpr, BLOCK: gl.constexpr, BLOCKS: gl.constexpr, CHUNKS: gl.constexpr, CHANNELS: gl.constexpr,
    LIMIT: gl.constexpr, WARPS: gl.constexpr, UNROLLED: gl.constexpr,
):  # fmt: skip
    """Write bi_wkv of k, v (B, T, C) to y, and a mean of it; and of each program whether it is unfit.

    pause, processors: see `wait_turn`; UNROLLED: see `put_tile`.
    """
    L: gl.constexpr = lanes_layout(CHUNKS, CHANNELS, WARPS)
    W: gl.constexpr = warp_layout(CHUNKS, CHANNELS, WARPS)
    LENGTH: gl.constexpr = BLOCK * BLOCKS
    k_s = gl.allocate_shared_memory(p_k.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    v_s = gl.allocate_shared_memory(p_v.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    i_c = gl.program_id(0) % (C // CHANNELS)
    i_b = gl.program_id(0) // (C // CHANNELS)
    base = i_b.to(gl.int64) * T * C + i_c * CHANNELS
    wait_turn(pause, processors)
    start_keys(k_s, v_s, p_k + base, p_v + base, C, BLOCKS, LENGTH, WARPS)
    c = gl.arange(0, CHANNELS, gl.SliceLayout(0, L))
    chunk = gl.arange(0, CHUNKS, gl.SliceLayout(1, L))[:, None]
    w = gl.load(p_w + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
    u = gl.load(p_u + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
    decay = chunk_decay(p_w + i_c * CHANNELS, LENGTH, CHANNELS, W)
    top = sampled_reference(p_k + base + c[None, :], T, C)
    lam, far, bonus = gl.exp2(-w), gl.exp2(-BLOCK * w), gl.exp2(u)
    ln, ld, en, ed, pns, pds = totals(k_s, v_s, top, 0.0, lam, far, 0, BLOCK, BLOCKS, L)
    pn, pd, fn, fd = reach(ln, ld, en, ed, decay, L, W)
    pns, pds = add_entering(pns, pds, pn, pd, far, BLOCKS, False)
    let_next_begin()
    y = p_y + base + (chunk * (LENGTH * C) + c[None, :])
    least, total, some = put_tile(
        k_s, v_s, y, top, lam, bonus, pns, pds, fn, fd, C, BLOCK, BLOCKS, L, UNROLLED
    )
    some, bad = gl.reduce((some, misfits(least, total, w, u, T, LIMIT, 0, BLOCK)), 0, sum_and_any)
    gl.store(p_unfit + gl.program_id(0), gl.max(bad, 0))
    gl.store(p_mean + i_b * C + i_c * CHANNELS + c, some / CHUNKS)
