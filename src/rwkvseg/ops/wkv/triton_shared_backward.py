"""Bi-WKV on a GPU from shared memory, backward: three passes over one copy. Legend: triton_shared.py."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from rwkvseg.ops.wkv.triton_shared import (
    LOG2E,
    add_entering,
    chunk_decay,
    futures,
    let_next_begin,
    misfits,
    push_first,
    reach,
    reciprocal,
    sampled_reference,
    send,
    totals,
    weigh,
)
from rwkvseg.ops.wkv.triton_shared_copies import copy_ahead, start_gradients, start_keys
from rwkvseg.ops.wkv.triton_shared_gradients import put_gradients
from rwkvseg.ops.wkv.triton_shared_layouts import (
    lanes_layout,
    plain_layout,
    warp_layout,
    widened,
)

SPARE = gl.constexpr(20)  # g / denominator^2 must stay in range as well, for |g| up to 2^20


@gluon.jit
def push_last(rows, x, BLOCKS: gl.constexpr):
    """Return rows less their first item, with x after their last."""
    new = ()
    for i in gl.static_range(1, BLOCKS):
        new += (rows[i],)
    return new + (x,)


@gluon.jit
def same_rows(x, BLOCKS: gl.constexpr):
    """Return rows that are all x."""
    rows = ()
    for _ in gl.static_range(BLOCKS):
        rows += (x,)
    return rows


@gluon.jit
def allocate_rows(BLOCKS: gl.constexpr, CHUNKS: gl.constexpr, CHANNELS: gl.constexpr):
    """Return shared memory for a number per lane for every block."""
    return gl.allocate_shared_memory(gl.float32, [BLOCKS, CHUNKS, CHANNELS], plain_layout())


@gluon.jit
def adjoint_pairs(
    g_s, s, n, d, pn, pd, from_n, from_d, least, total, bonus, lam,
    BLOCK: gl.constexpr, L: gl.constexpr,
):  # fmt: skip
    """Return (h, q) of the tokens of a block, two tuples: h = g / denominator, q = h out.

    Then what `misfits` wants to know so far.
    """
    hs, qs = (), ()
    for j in gl.static_range(BLOCK):
        den = pd + from_d[j] + bonus * d[j]
        if j == BLOCK // 2:
            least, total = gl.minimum(least, den), total + den
        inverse = reciprocal(den)
        h = widened(g_s.index(s * BLOCK + j).load(L)) * inverse
        hs += (h,)
        qs += ((pn + from_n[j] + bonus * n[j]) * (h * inverse),)
        pn, pd = pn * lam + n[j], pd * lam + d[j]
    return hs, qs, least, total


@gluon.jit
def adjoint_step(
    k_s, v_s, g_s, s, top, mean, lam, far, bonus, power, pn, pd, fn, fd, lr, lq, er, eq, least, total,
    BLOCK: gl.constexpr, L: gl.constexpr,
):  # fmt: skip
    """Add block s to the adjoint sums of its lanes, (lr, lq) to later and (er, eq) to earlier tokens.

    Return far^(blocks so far), what leaves the block to earlier tokens, these sums, and what `misfits` wants.
    """
    n, d = weigh(k_s, v_s, s, top, mean, BLOCK, L)
    from_n, from_d, fn, fd = futures(n, d, fn, fd, lam, BLOCK)
    hs, qs, least, total = adjoint_pairs(
        g_s, s, n, d, pn, pd, from_n, from_d, least, total, bonus, lam, BLOCK, L
    )
    later_r, later_q, earlier_r, earlier_q = send(hs, qs, lam, BLOCK)
    er, eq = er * far + earlier_r, eq * far + earlier_q
    lr, lq = lr + power * later_r, lq + power * later_q
    return power * far, fn, fd, lr, lq, er, eq, least, total


@gluon.jit
def adjoint_pass(
    k_s, v_s, g_s, top, mean, lam, far, bonus, pns, pds, fn, fd,
    BLOCK: gl.constexpr, BLOCKS: gl.constexpr, L: gl.constexpr, KEPT: gl.constexpr, UNROLLED: gl.constexpr,
):  # fmt: skip
    """Go through the blocks from the last one back, UNROLLED of them a step, with what enters on both sides.

    Return four rows of what entered each from later tokens, n, d and the adjoint sums so far, if KEPT in
    shared memory; then the adjoint sums that leave the lanes on both sides, and what `misfits` wants to know.
    """
    CHUNKS: gl.constexpr = k_s.shape[1]
    CHANNELS: gl.constexpr = k_s.shape[2]
    zero = gl.full([CHUNKS, CHANNELS], 0.0, gl.float32, L)
    least, total = zero + float("inf"), zero
    lr, lq, er, eq, power = zero, zero, zero, zero, zero + 1.0
    if KEPT:
        fn_s, fd_s = allocate_rows(BLOCKS, CHUNKS, CHANNELS), allocate_rows(BLOCKS, CHUNKS, CHANNELS)
        er_s, eq_s = allocate_rows(BLOCKS, CHUNKS, CHANNELS), allocate_rows(BLOCKS, CHUNKS, CHANNELS)
    else:
        ers, eqs = same_rows(zero, BLOCKS), same_rows(zero, BLOCKS)
    for i in range(BLOCKS // UNROLLED):
        for j in gl.static_range(UNROLLED):
            s = BLOCKS - 1 - j - UNROLLED * i
            pn, pd = pns[BLOCKS - 1], pds[BLOCKS - 1]
            if KEPT:
                pns, pds = push_first(pns, zero, BLOCKS), push_first(pds, zero, BLOCKS)
                fn_s.index(s).store(fn)
                fd_s.index(s).store(fd)
                er_s.index(s).store(er)
                eq_s.index(s).store(eq)
            else:
                pns, pds = push_first(pns, fn, BLOCKS), push_first(pds, fd, BLOCKS)  # past goes, future comes
                ers, eqs = push_first(ers, er, BLOCKS), push_first(eqs, eq, BLOCKS)
            power, fn, fd, lr, lq, er, eq, least, total = adjoint_step(
                k_s, v_s, g_s, s, top, mean, lam, far, bonus, power, pn, pd, fn, fd,
                lr, lq, er, eq, least, total, BLOCK, L,
            )  # fmt: skip
    rows = (fn_s, fd_s, er_s, eq_s) if KEPT else (pns, pds, ers, eqs)
    return rows, lr, lq, er, eq, least, total


@gluon.jit
def gradient_pass(
    k_s, v_s, g_s, p_gk, p_gv, top, mean, w, lam, far, bonus, past, on, rows, back,
    C: gl.constexpr, BLOCK: gl.constexpr, BLOCKS: gl.constexpr, L: gl.constexpr,
    WAIT: gl.constexpr, KEPT: gl.constexpr, UNROLLED: gl.constexpr,
    later=None, WARPS: gl.constexpr = 0,
):  # fmt: skip
    """Go through the blocks with what enters the lanes: past and on from earlier tokens, back from later.

    rows: of `adjoint_pass`. Write gk and gv, return the sums for gw and gu as `put_gradients` does.
    """
    fns, fds, ers, eqs = rows
    back_r, back_q = back
    if not KEPT:
        ers, eqs = add_entering(ers, eqs, back_r, back_q, far, BLOCKS, True)
    zero = gl.full([k_s.shape[1], k_s.shape[2]], 0.0, gl.float32, L)
    gw, gu = zero, zero
    for i in range(BLOCKS // UNROLLED):
        for j in gl.static_range(UNROLLED):
            s = UNROLLED * i + j
            if KEPT:
                entered = gl.exp2(w * ((s - (BLOCKS - 1)) * BLOCK))
                future = (fns.index(s).load(L), fds.index(s).load(L))
                behind = (ers.index(s).load(L) + entered * back_r, eqs.index(s).load(L) + entered * back_q)
            else:
                future, behind = (fns[0], fds[0]), (ers[0], eqs[0])
                fns, fds = push_last(fns, fns[0], BLOCKS), push_last(fds, fds[0], BLOCKS)
                ers, eqs = push_last(ers, ers[0], BLOCKS), push_last(eqs, eqs[0], BLOCKS)
            past, on, gw, gu = put_gradients(
                k_s, v_s, g_s, p_gk, p_gv, s, top, mean, lam, bonus,
                past, on, future, behind, gw, gu, C, BLOCK, L, WAIT,
            )  # fmt: skip
        if later is not None:
            copy_ahead((k_s, v_s, g_s), later, UNROLLED * i, C, BLOCK, BLOCK * BLOCKS, WARPS, UNROLLED)
    return gw, gu


@gluon.jit
def sum_and_any(gw, gu, bad, more_gw, more_gu, more_bad):
    """Return the sums of two and the larger of one."""
    return gw + more_gw, gu + more_gu, gl.maximum(bad, more_bad)


@gluon.jit(do_not_specialize=["T", "num_flags"])
def bi_wkv_bwd_shared_kernel(
    p_w, p_u, p_k, p_v, p_g, p_gk, p_gv, p_parts, p_mean, p_unfit, T, num_flags,
    C: gl.constexpr, BLOCK: gl.constexpr, BLOCKS: gl.constexpr, CHUNKS: gl.constexpr, CHANNELS: gl.constexpr,
    LIMIT: gl.constexpr, WARPS: gl.constexpr, KEPT: gl.constexpr, UNROLLED: gl.constexpr,
):  # fmt: skip
    """Write gk, gv and the parts of gw and gu from g (B, T, C), the gradient of y, and whether unfit.

    KEPT, UNROLLED: see `adjoint_pass`.
    """
    let_next_begin()
    L: gl.constexpr = lanes_layout(CHUNKS, CHANNELS, WARPS)
    W: gl.constexpr = warp_layout(CHUNKS, CHANNELS, WARPS)
    LENGTH: gl.constexpr = BLOCK * BLOCKS
    i_c = gl.program_id(0) % (C // CHANNELS)
    i_b = gl.program_id(0) // (C // CHANNELS)
    gl.store(p_unfit + num_flags + i_c, 0)  # a later launch counts there
    k_s = gl.allocate_shared_memory(p_k.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    v_s = gl.allocate_shared_memory(p_v.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    g_s = gl.allocate_shared_memory(p_g.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    base = i_b.to(gl.int64) * T * C + i_c * CHANNELS
    start_keys(k_s, v_s, p_k + base, p_v + base, C, BLOCKS, LENGTH, WARPS)
    start_gradients(g_s, p_g + base, C, BLOCKS, LENGTH, WARPS)
    c = gl.arange(0, CHANNELS, gl.SliceLayout(0, L))
    chunk = gl.arange(0, CHUNKS, gl.SliceLayout(1, L))[:, None]
    w = gl.load(p_w + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
    u = gl.load(p_u + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
    mean = gl.load(p_mean + i_b * C + i_c * CHANNELS + c[None, :])
    top = sampled_reference(p_k + base + c[None, :], T, C)
    decay = chunk_decay(p_w + i_c * CHANNELS, LENGTH, CHANNELS, W)
    lam, far, bonus = gl.exp2(-w), gl.exp2(-BLOCK * w), gl.exp2(u)
    ln, ld, en, ed, pns, pds = totals(k_s, v_s, top, mean, lam, far, 1, BLOCK, BLOCKS, L)
    past_n, past_d, fn, fd = reach(ln, ld, en, ed, decay, L, W)
    pns, pds = add_entering(pns, pds, past_n, past_d, far, BLOCKS, False)
    async_copy.wait_group(0)
    rows, lr, lq, er, eq, least, total = adjoint_pass(
        k_s, v_s, g_s, top, mean, lam, far, bonus, pns, pds, fn, fd, BLOCK, BLOCKS, L, KEPT, UNROLLED
    )
    bad = misfits(least, total, w, u, T, LIMIT, SPARE, BLOCK)
    r, rq, back_r, back_q = reach(lr, lq, er, eq, decay, L, W)
    places = base + (chunk * (LENGTH * C) + c[None, :])
    gw, gu = gradient_pass(
        k_s, v_s, g_s, p_gk + places, p_gv + places, top, mean, w, lam, far, bonus,
        (past_n, past_d), (r, rq), rows, (back_r, back_q), C, BLOCK, BLOCKS, L, True, KEPT, UNROLLED,
    )  # fmt: skip
    # one sum over the warps for all three: they meet once
    gw, gu, bad = gl.reduce((-lam * gw, bonus * gu, bad), 0, sum_and_any)
    gl.store(p_unfit + gl.program_id(0), gl.max(bad, 0))
    parts = p_parts + i_b.to(gl.int64) * 2 * C + i_c * CHANNELS + c
    gl.store(parts, gw)
    gl.store(parts + C, gu)
