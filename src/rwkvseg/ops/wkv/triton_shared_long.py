"""Bi-WKV of several spans in one launch from shared memory, forward: programs that wait for each other.

All programs are on the GPU at once (a cooperative launch, which the driver refuses otherwise). Each takes one
tile after another: span i_s of the sequence i_q, which is an image's block of channels; the spans of a
sequence follow each other. A program writes what its span sends, waits for what the others of its sequence
send, and goes on from shared memory. It waits for tiles of its own sequence only, and as there are at least
as many programs as spans, none of them comes behind another one in its program: whoever is waited for has
only earlier sequences to finish first, so that no chain of waits closes.

All spans of a sequence have the same reference, so that sums add up without exponents. If it suits one of
them badly, a later launch (triton_mend_long.py) does the sequence again. Legend: triton_shared.py, and

    sent    (sequences, spans, 4, CHANNELS), what each span sends: n, d to later and n, d to earlier ones;
            then the same of groups of GROUP spans
    flags   zeros before the launch: of each sequence whether it is unfit, then how many have sent in a first
            exchange, in a second; of each group how many of it have in the first, in the second
    GROUPS  groups whose spans every program reads itself; 0: those of its own, and of the others their sums
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from rwkvseg.ops.wkv.triton_shared import (
    LOG2E,
    add_entering,
    chunk_decay,
    lanes_layout,
    let_next_begin,
    plain_layout,
    push_first,
    put_outputs,
    sampled_reference,
    scan_chunks,
    start_copies,
    states_layout,
    totals,
    unfit,
    wait_turn,
    warp_layout,
)

GROUP = gl.constexpr(16)


@gluon.jit
def wait_for(p_count, number):
    """Wait until a count that others add to is as large as that; see what they wrote before they did."""
    gl.inline_asm_elementwise(
        "{ .reg .pred there; again: ld.acquire.gpu.global.u32 $0, [$1]; "
        "setp.ge.u32 there, $0, $2; @!there bra again; }",
        "=&r,l,r", [p_count.to(gl.int64), number], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def put_sent(p, ln, ld, en, ed, CHANNELS: gl.constexpr):
    """Write what a span or a group sends; p: of each channel."""
    gl.store(p, ln[None, :])
    gl.store(p + CHANNELS, ld[None, :])
    gl.store(p + 2 * CHANNELS, en[None, :])
    gl.store(p + 3 * CHANNELS, ed[None, :])


@gluon.jit
def get_sent(p, there, CHANNELS: gl.constexpr):
    """Return what some spans or groups sent, 0 where there is none; p: of each row and channel."""
    ln = gl.load(p, mask=there, other=0.0, cache_modifier=".cg")
    ld = gl.load(p + CHANNELS, mask=there, other=0.0, cache_modifier=".cg")
    en = gl.load(p + 2 * CHANNELS, mask=there, other=0.0, cache_modifier=".cg")
    ed = gl.load(p + 3 * CHANNELS, mask=there, other=0.0, cache_modifier=".cg")
    return ln, ld, en, ed


@gluon.jit
def join(sums, p, row, here, end, decay, behind, ahead, CHANNELS: gl.constexpr):
    """Add to sums what rows of spans or groups send to row `here`, and what those before `end` send at all.

    p: of the first row, each channel; decay: of a row, to base 2; behind, ahead: what is between row `here`
    and the place that is asked for, seen from earlier rows and from later ones.
    """
    there = row < end
    ln, ld, en, ed = get_sent(p + row * (4 * CHANNELS), there, CHANNELS)
    x = gl.where(row < here, gl.exp2(behind + decay * (here - 1 - row).to(gl.float32)), 0.0)
    y = gl.where(there & (row > here), gl.exp2(ahead + decay * (row - here - 1).to(gl.float32)), 0.0)
    pn, pd, fn, fd, alln, alld = sums
    return pn + x * ln, pd + x * ld, fn + y * en, fd + y * ed, alln + ln, alld + ld


@gluon.jit
def put_group(p_spans, p_group, row, end, decay, CHANNELS: gl.constexpr):
    """Write what a group sends, from what its spans sent; p_spans: of its first, end: how many it has."""
    ln, ld, en, ed = get_sent(p_spans + row * (4 * CHANNELS), row < end, CHANNELS)
    x = gl.exp2(decay * (GROUP - 1 - row).to(gl.float32))
    y = gl.where(row < end, gl.exp2(decay * row.to(gl.float32)), 0.0)
    put_sent(p_group, gl.sum(x * ln, 0), gl.sum(x * ld, 0), gl.sum(y * en, 0), gl.sum(y * ed, 0), CHANNELS)


@gluon.jit
def send_and_wait(
    sent, p_sent, p_flags, i_q, i_s, num_spans, num_tiles, decay, c, row,
    EXCHANGE: gl.constexpr, GROUPS: gl.constexpr, CHANNELS: gl.constexpr,
):  # fmt: skip
    """Write what the span sends; return where the spans and the groups are in p_sent, and what to wait for.

    The last of a group to send writes what the group does: who that is, is left to chance, the sums are not.
    """
    num_sequences = num_tiles // num_spans
    num_groups = (num_spans + GROUP - 1) // GROUP
    p_spans = p_sent + i_q * num_spans * (4 * CHANNELS) + c
    p_groups = p_sent + (num_tiles + i_q * num_groups) * (4 * CHANNELS) + c
    p_count = p_flags + (1 + EXCHANGE) * num_sequences + i_q
    put_sent(p_spans + i_s * (4 * CHANNELS), sent[0], sent[1], sent[2], sent[3], CHANNELS)
    gl.thread_barrier()  # all threads have stored before one says so
    if GROUPS == 0:
        group = i_s // GROUP
        p_done = p_flags + (3 + EXCHANGE * num_groups) * num_sequences + i_q * num_groups + group
        members = gl.minimum(num_spans - group * GROUP, GROUP)
        done = gl.atomic_add(p_done, 1, sem="acq_rel")
        if done == members - 1:
            put_group(
                p_spans + group * (GROUP * 4 * CHANNELS), p_groups + group * (4 * CHANNELS),
                row, members, decay, CHANNELS,
            )  # fmt: skip
            gl.thread_barrier()
            gl.atomic_add(p_count, 1, sem="release")
    else:
        gl.atomic_add(p_count, 1, sem="release")
    return p_spans, p_groups, p_count


@gluon.jit
def reach_spans(
    ln, ld, en, ed, p_sent, p_flags, i_q, i_s, num_spans, num_tiles, decay,
    EXCHANGE: gl.constexpr, GROUPS: gl.constexpr, L: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Do as `reach` for a span of several, with what reaches it from the others; and return a weighted mean.

    That is of the values in what all spans of the sequence send, the same for all of them, (CHANNELS,) as W.
    """
    CHUNKS: gl.constexpr = ln.shape[0]
    CHANNELS: gl.constexpr = ln.shape[1]
    order: gl.constexpr = states_layout(CHANNELS)
    ln_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, ln)
    ld_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, ld)
    en_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, en)
    ed_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, ed)
    ln, ld, en, ed = ln_s.load(W), ld_s.load(W), en_s.load(W), ed_s.load(W)
    c = gl.arange(0, CHANNELS, gl.SliceLayout(0, W))
    chunk = gl.arange(0, CHUNKS, gl.SliceLayout(1, W))[:, None]
    row = gl.arange(0, GROUP, gl.SliceLayout(1, W))[:, None]
    to_end = gl.exp2(decay * (CHUNKS - 1 - chunk).to(gl.float32))
    to_start = gl.exp2(decay * chunk.to(gl.float32))
    sent = gl.sum(to_end * ln, 0), gl.sum(to_end * ld, 0), gl.sum(to_start * en, 0), gl.sum(to_start * ed, 0)
    by_span = decay * CHUNKS
    p_spans, p_groups, p_count = send_and_wait(
        sent, p_sent, p_flags, i_q, i_s, num_spans, num_tiles, by_span, c[None, :], row,
        EXCHANGE, GROUPS, CHANNELS,
    )  # fmt: skip
    ln, ld = scan_chunks(ln, decay, W, False), scan_chunks(ld, decay, W, False)  # while others arrive
    en, ed = scan_chunks(en, decay, W, True), scan_chunks(ed, decay, W, True)
    zero = gl.full([GROUP, CHANNELS], 0.0, gl.float32, W)
    nothing = zero, zero, zero, zero, zero, zero
    if GROUPS == 0:
        num_groups = (num_spans + GROUP - 1) // GROUP
        group = i_s // GROUP
        first = group * GROUP
        wait_for(p_count, num_groups)
        pn, pd, fn, fd, _, _ = join(
            nothing, p_spans, first + row, i_s, num_spans, by_span, 0.0, 0.0, CHANNELS
        )
        behind = by_span * (i_s - first).to(gl.float32)
        ahead = by_span * (first + GROUP - 1 - i_s).to(gl.float32)
        sums = join(
            (pn, pd, fn, fd, zero, zero), p_groups, row, group, num_groups, by_span * GROUP, behind, ahead,
            CHANNELS,
        )  # fmt: skip
    else:
        wait_for(p_count, num_spans)
        sums = nothing
        for i in gl.static_range(GROUPS):
            sums = join(sums, p_spans, i * GROUP + row, i_s, num_spans, by_span, 0.0, 0.0, CHANNELS)
    ln_s.store(ln + to_start * gl.sum(sums[0], 0)[None, :])
    ld_s.store(ld + to_start * gl.sum(sums[1], 0)[None, :])
    en_s.store(en + to_end * gl.sum(sums[2], 0)[None, :])
    ed_s.store(ed + to_end * gl.sum(sums[3], 0)[None, :])
    mean = gl.sum(sums[4], 0) / gl.sum(sums[5], 0)
    return ln_s.load(L), ld_s.load(L), en_s.load(L), ed_s.load(L), mean


@gluon.jit(do_not_specialize=["T", "num_spans", "num_tiles", "pause", "processors"])
def bi_wkv_fwd_long_kernel(
    p_w, p_u, p_k, p_v, p_y, p_states, p_flags, p_sent, T, num_spans, num_tiles, pause, processors,
    C: gl.constexpr, BLOCK: gl.constexpr, BLOCKS: gl.constexpr, CHUNKS: gl.constexpr, CHANNELS: gl.constexpr,
    LIMIT: gl.constexpr, WARPS: gl.constexpr, GROUPS: gl.constexpr,
):  # fmt: skip
    """Write bi_wkv of k, v (B, T, C) to y, and to states (B, spans, 7, C) a weighted mean of v, row 6."""
    L: gl.constexpr = lanes_layout(CHUNKS, CHANNELS, WARPS)
    W: gl.constexpr = warp_layout(CHUNKS, CHANNELS, WARPS)
    LENGTH: gl.constexpr = BLOCK * BLOCKS
    k_s = gl.allocate_shared_memory(p_k.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    v_s = gl.allocate_shared_memory(p_v.dtype.element_ty, [LENGTH, CHUNKS, CHANNELS], plain_layout())
    c = gl.arange(0, CHANNELS, gl.SliceLayout(0, L))
    chunk = gl.arange(0, CHUNKS, gl.SliceLayout(1, L))[:, None]
    wait_turn(pause, processors)
    tile = gl.program_id(0)
    while tile < num_tiles:
        i_s = tile % num_spans
        i_q = tile // num_spans
        i_c = i_q % (C // CHANNELS)
        i_b = i_q // (C // CHANNELS)
        first = i_b.to(gl.int64) * T * C + i_c * CHANNELS
        base = first + i_s.to(gl.int64) * (LENGTH * CHUNKS * C)
        start_copies(k_s, v_s, p_k + base, p_v + base, C, BLOCKS, WARPS)
        w = gl.load(p_w + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        decay = chunk_decay(p_w + i_c * CHANNELS, LENGTH, CHANNELS, W)
        top = sampled_reference(p_k + first + c[None, :], T, C)
        lam, far = gl.exp2(-w), gl.exp2(-BLOCK * w)
        ln, ld, en, ed, pns, pds = totals(k_s, v_s, top, 0.0, lam, far, 0, BLOCK, BLOCKS, L)
        pn, pd, fn, fd, mean = reach_spans(
            ln, ld, en, ed, p_sent, p_flags, i_q, i_s, num_spans, num_tiles, decay, 0, GROUPS, L, W
        )
        c_w = gl.arange(0, CHANNELS, gl.SliceLayout(0, W))
        gl.store(p_states + ((i_b * num_spans + i_s).to(gl.int64) * 7 + 6) * C + i_c * CHANNELS + c_w, mean)
        w = gl.load(p_w + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E  # again: nobody kept them
        u = gl.load(p_u + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        top = sampled_reference(p_k + first + c[None, :], T, C)
        lam, far, bonus = gl.exp2(-w), gl.exp2(-BLOCK * w), gl.exp2(u)
        pns, pds = add_entering(pns, pds, pn, pd, far, BLOCKS, False)
        zero = gl.full([CHUNKS, CHANNELS], 0.0, gl.float32, L)
        if tile + gl.num_programs(0) >= num_tiles:
            let_next_begin()
        least, total = zero + float("inf"), zero
        y = p_y + base + (chunk * (LENGTH * C) + c[None, :])
        for i in range(BLOCKS):  # from the last block back
            pn, pd = pns[BLOCKS - 1], pds[BLOCKS - 1]
            pns, pds = push_first(pns, pn, BLOCKS), push_first(pds, pd, BLOCKS)
            fn, fd, least, total, _ = put_outputs(
                k_s, v_s, y, BLOCKS - 1 - i, top, lam, bonus, pn, pd, fn, fd, least, total, C, BLOCK, L
            )
        bad = unfit(least, total, w, u, T, LIMIT, BLOCK)
        gl.store(p_flags + i_q, 1, mask=bad > 0)
        gl.thread_barrier()  # nobody copies the next tile where one still reads this
        tile += gl.num_programs(0)
