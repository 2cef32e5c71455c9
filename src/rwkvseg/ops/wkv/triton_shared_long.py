"""Bi-WKV of several spans in one launch from shared memory, forward: programs that wait for each other.

All programs are on the GPU at once (a cooperative launch, which the driver refuses otherwise). Each takes one
tile after another: span i_s of the sequence i_q, which is an image's block of channels; the spans of a
sequence follow each other. A program writes what its span sends, waits for what the others of its sequence
send, and goes on from shared memory. It waits for tiles of its own sequence only, and as there are at least
as many programs as spans, none of them comes behind another one in its program: whoever is waited for has
only earlier sequences to finish first, so that no chain of waits closes.

All spans of a sequence have the same reference, so that sums add up without exponents. If it suits one of
them badly, a later launch (triton_mend_long.py) does the sequence again. Legend: triton_shared.py, and

    sent    (sequences, spans, CHANNELS, 4), what each span sends: n, d to later and n, d to earlier ones;
            then the same of groups of GROUP spans. Zeros before the launch; a number is there once it is
            not 0 any more, and -0 is sent for 0. As every number says for itself that it is there, nothing
            need be in order: no fence, no barrier, no flag
    flags   of each sequence whether it is unfit, zeros before the launch
    EARLY   whether sent and flags may still be on their way to being zeros when a program begins
    GROUPS  groups whose spans every program reads itself; 0: those of its own, and of the others their sums
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from rwkvseg.ops.wkv.triton_shared import (
    LOG2E,
    add_entering,
    chunk_decay,
    let_next_begin,
    misfits,
    put_tile,
    sampled_reference,
    scan_chunks,
    totals,
    wait_for_last,
    wait_turn,
)
from rwkvseg.ops.wkv.triton_shared_copies import start_keys
from rwkvseg.ops.wkv.triton_shared_layouts import (
    lanes_layout,
    plain_layout,
    states_layout,
    warp_layout,
)

GROUP = gl.constexpr(16)


@gluon.constexpr_function
def each_thread(layout):
    """Return how many numbers of a tile (GROUP, 16) a thread has."""
    return layout.size_per_thread[1]


@gluon.jit
def anew(x):
    """Return x, which the compiler must not keep in registers from one tile to the next."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1
    )  # fmt: skip


@gluon.jit
def start_of(tile, num_spans, T, C: gl.constexpr, SPAN: gl.constexpr, CHANNELS: gl.constexpr):
    """Return where the sequence of a tile begins, and where the tile does."""
    i_q = tile // num_spans
    first = (i_q // (C // CHANNELS)).to(gl.int64) * T * C + i_q % (C // CHANNELS) * CHANNELS
    return first, first + (tile % num_spans).to(gl.int64) * (SPAN * C)


@gluon.jit
def put_sent(p, ln, ld, en, ed):
    """Write what a span or a group sends, 16 bytes a channel; -0 for 0."""
    gl.inline_asm_elementwise(
        "{ .reg .pred z; .reg .b32 a, b, c, d; "
        "setp.eq.b32 z, $2, 0; selp.b32 a, 0x80000000, $2, z; "
        "setp.eq.b32 z, $3, 0; selp.b32 b, 0x80000000, $3, z; "
        "setp.eq.b32 z, $4, 0; selp.b32 c, 0x80000000, $4, z; "
        "setp.eq.b32 z, $5, 0; selp.b32 d, 0x80000000, $5, z; "
        "st.relaxed.gpu.global.v4.b32 [$1], {a, b, c, d}; mov.b32 $0, 0; }",
        "=r,l,f,f,f,f", [p.to(gl.int64), ln, ld, en, ed], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def get_sent(p, EACH: gl.constexpr):
    """Wait until what a span or a group sends is there, and return it. EACH: a thread has so many, 1 or 2."""
    FOUR: gl.constexpr = (gl.float32, gl.float32, gl.float32, gl.float32)
    if EACH == 2:  # asks for both, then waits: $0, $2, .. are of the first
        return gl.inline_asm_elementwise(
            "{ .reg .pred a, b, c, d; again: "
            "ld.relaxed.gpu.global.v4.b32 {$0, $2, $4, $6}, [$8]; "
            "ld.relaxed.gpu.global.v4.b32 {$1, $3, $5, $7}, [$9]; "
            "setp.ne.b32 a, $0, 0; setp.ne.and.b32 b, $2, 0, a; "
            "setp.ne.and.b32 c, $4, 0, b; setp.ne.and.b32 d, $6, 0, c; "
            "setp.ne.and.b32 a, $1, 0, d; setp.ne.and.b32 b, $3, 0, a; "
            "setp.ne.and.b32 c, $5, 0, b; setp.ne.and.b32 d, $7, 0, c; @!d bra again; }",
            "=&f,=&f,=&f,=&f,=&f,=&f,=&f,=&f,l,l", [p.to(gl.int64)], dtype=FOUR, is_pure=False, pack=2,
        )  # fmt: skip
    else:
        return gl.inline_asm_elementwise(
            "{ .reg .pred a, b, c, d; again: ld.relaxed.gpu.global.v4.b32 {$0, $1, $2, $3}, [$4]; "
            "setp.ne.b32 a, $0, 0; setp.ne.and.b32 b, $1, 0, a; "
            "setp.ne.and.b32 c, $2, 0, b; setp.ne.and.b32 d, $3, 0, c; @!d bra again; }",
            "=&f,=&f,=&f,=&f,l", [p.to(gl.int64)], dtype=FOUR, is_pure=False, pack=1,
        )  # fmt: skip


@gluon.jit
def join(sums, rows, row, here, end, decay, behind, ahead):
    """Add to sums what rows of spans or groups send to row `here`, and what those before `end` send at all.

    decay: of a row, to base 2; behind, ahead: what is between row `here` and the place that is asked for,
    seen from earlier rows and from later ones.
    """
    ln, ld, en, ed = rows
    x = gl.where(row < here, gl.exp2(behind + decay * (here - 1 - row).to(gl.float32)), 0.0)
    y = gl.where((row > here) & (row < end), gl.exp2(ahead + decay * (row - here - 1).to(gl.float32)), 0.0)
    all_n, all_d = gl.where(row < end, ln, 0.0), gl.where(row < end, ld, 0.0)
    pn, pd, fn, fd, sum_n, sum_d = sums
    return pn + x * ln, pd + x * ld, fn + y * en, fd + y * ed, sum_n + all_n, sum_d + all_d


@gluon.jit
def put_group(p, rows, row, end, decay):
    """Write what a group sends, from what its spans sent, those before `end`; decay: of a span."""
    ln, ld, en, ed = rows
    x = gl.where(row < end, gl.exp2(decay * (GROUP - 1 - row).to(gl.float32)), 0.0)
    y = gl.where(row < end, gl.exp2(decay * row.to(gl.float32)), 0.0)
    put_sent(p, gl.sum(x * ln, 0), gl.sum(x * ld, 0), gl.sum(y * en, 0), gl.sum(y * ed, 0))


@gluon.jit
def collect(p_sent, i_q, i_s, num_spans, num_tiles, decay, zero, GROUPS: gl.constexpr, W: gl.constexpr):
    """Return sums that reach a span once it has written its own, tiles (GROUP, CHANNELS): see `join`."""
    CHANNELS: gl.constexpr = zero.shape[1]
    EACH: gl.constexpr = each_thread(W)
    c = gl.arange(0, CHANNELS, gl.SliceLayout(0, W))
    row = gl.arange(0, GROUP, gl.SliceLayout(1, W))[:, None]
    p_spans = p_sent + i_q * num_spans * (4 * CHANNELS) + c[None, :] * 4
    sums = zero, zero, zero, zero, zero, zero
    if GROUPS == 0:
        num_groups = (num_spans + GROUP - 1) // GROUP
        group = i_s // GROUP
        here = i_s - group * GROUP
        end = gl.minimum(num_spans - group * GROUP, GROUP)
        # rows that are not there: the program's own, which soon is
        rows = get_sent(p_spans + (group * GROUP + gl.where(row < end, row, here)) * (4 * CHANNELS), EACH)
        p_groups = p_sent + (num_tiles + i_q * num_groups) * (4 * CHANNELS)
        if here == 0:
            put_group(p_groups + group * (4 * CHANNELS) + c * 4, rows, row, end, decay)
        pn, pd, fn, fd, _, _ = join(sums, rows, row, here, end, decay, 0.0, 0.0)
        rows = get_sent(
            p_groups + gl.where(row < num_groups, row, group) * (4 * CHANNELS) + c[None, :] * 4, EACH
        )
        behind = decay * here.to(gl.float32)
        ahead = decay * (GROUP - 1 - here).to(gl.float32)
        sums = pn, pd, fn, fd, zero, zero
        sums = join(sums, rows, row, group, num_groups, decay * GROUP, behind, ahead)
    else:
        for i in gl.static_range(GROUPS):
            at = i * GROUP + row
            rows = get_sent(p_spans + gl.where(at < num_spans, at, i_s) * (4 * CHANNELS), EACH)
            sums = join(sums, rows, at, i_s, num_spans, decay, 0.0, 0.0)
    return sums


@gluon.jit
def reach_spans(
    ln, ld, en, ed, p_sent, i_q, i_s, num_spans, num_tiles, decay,
    GROUPS: gl.constexpr, L: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Do as `reach` for a span of several, with what reaches it from the others; and return a weighted mean.

    That is of the values in what all spans of the sequence send, the same for all of them, (CHANNELS,) as W.
    Nothing that follows from a thread's number stays in registers between the tiles: they are scarce.
    """
    CHUNKS: gl.constexpr = ln.shape[0]
    CHANNELS: gl.constexpr = ln.shape[1]
    order: gl.constexpr = states_layout(CHANNELS)
    ln_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, ln)
    ld_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, ld)
    en_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, en)
    ed_s = gl.allocate_shared_memory(gl.float32, ln.shape, order, ed)
    ln, ld, en, ed = ln_s.load(W), ld_s.load(W), en_s.load(W), ed_s.load(W)
    c = anew(gl.arange(0, CHANNELS, gl.SliceLayout(0, W)))
    chunk = anew(gl.arange(0, CHUNKS, gl.SliceLayout(1, W)))[:, None]
    to_end = gl.exp2(decay * (CHUNKS - 1 - chunk).to(gl.float32))
    to_start = gl.exp2(decay * chunk.to(gl.float32))
    put_sent(
        p_sent + (i_q * num_spans + i_s) * (4 * CHANNELS) + c * 4,
        gl.sum(to_end * ln, 0), gl.sum(to_end * ld, 0), gl.sum(to_start * en, 0), gl.sum(to_start * ed, 0),
    )  # fmt: skip
    # while the others' arrive
    ln, ld = scan_chunks(ln, chunk, decay, W, False), scan_chunks(ld, chunk, decay, W, False)
    en, ed = scan_chunks(en, chunk, decay, W, True), scan_chunks(ed, chunk, decay, W, True)
    zero = gl.full([GROUP, CHANNELS], 0.0, gl.float32, W)
    sums = collect(p_sent, i_q, i_s, num_spans, num_tiles, decay * CHUNKS, zero, GROUPS, W)
    ln_s.store(ln + to_start * gl.sum(sums[0], 0)[None, :])
    ld_s.store(ld + to_start * gl.sum(sums[1], 0)[None, :])
    en_s.store(en + to_end * gl.sum(sums[2], 0)[None, :])
    ed_s.store(ed + to_end * gl.sum(sums[3], 0)[None, :])
    mean = gl.sum(sums[4], 0) / gl.sum(sums[5], 0)
    return ln_s.load(L), ld_s.load(L), en_s.load(L), ed_s.load(L), mean


@gluon.jit(do_not_specialize=["number"])
def bi_wkv_zeros_long_kernel(p, number, WARPS: gl.constexpr):
    """Write so many zeros; the next launch may begin meanwhile."""
    let_next_begin()
    L: gl.constexpr = gl.BlockedLayout([4], [32], [WARPS], [0])
    i = gl.program_id(0) * 1024 + gl.arange(0, 1024, L)
    gl.store(p + i, gl.full([1024], 0, gl.int32, L), mask=i < number)


@gluon.jit(do_not_specialize=["T", "num_spans", "num_tiles", "pause", "processors"])
def bi_wkv_fwd_long_kernel(
    p_w, p_u, p_k, p_v, p_y, p_states, p_flags, p_sent, T, num_spans, num_tiles, pause, processors,
    C: gl.constexpr, BLOCK: gl.constexpr, BLOCKS: gl.constexpr, CHUNKS: gl.constexpr, CHANNELS: gl.constexpr,
    LIMIT: gl.constexpr, WARPS: gl.constexpr, GROUPS: gl.constexpr, UNROLLED: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """Write bi_wkv of k, v (B, T, C) to y, and to states (B, spans, 7, C) a weighted mean of v, row 6.

    A program copies its next tile while it still goes through this one.
    """
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
        first, base = start_of(tile, num_spans, T, C, LENGTH * CHUNKS, CHANNELS)
        if tile >= gl.num_programs(0):
            async_copy.wait_group(0)
        else:
            start_keys(k_s, v_s, p_k + base, p_v + base, C, BLOCKS, LENGTH, WARPS)
        w = gl.load(p_w + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        decay = chunk_decay(p_w + i_c * CHANNELS, LENGTH, CHANNELS, W)
        top = sampled_reference(p_k + first + c[None, :], T, C)
        lam, far = gl.exp2(-w), gl.exp2(-BLOCK * w)
        ln, ld, en, ed, pns, pds = totals(k_s, v_s, top, 0.0, lam, far, 0, BLOCK, BLOCKS, L)
        if EARLY:
            wait_for_last()
        pn, pd, fn, fd, mean = reach_spans(
            ln, ld, en, ed, p_sent, i_q, i_s, num_spans, num_tiles, decay, GROUPS, L, W
        )
        c_w = gl.arange(0, CHANNELS, gl.SliceLayout(0, W))
        gl.store(p_states + ((i_b * num_spans + i_s).to(gl.int64) * 7 + 6) * C + i_c * CHANNELS + c_w, mean)
        w = gl.load(p_w + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E  # again: nobody kept them
        u = gl.load(p_u + i_c * CHANNELS + c[None, :]).to(gl.float32) * LOG2E
        top = sampled_reference(p_k + first + c[None, :], T, C)
        lam, far, bonus = gl.exp2(-w), gl.exp2(-BLOCK * w), gl.exp2(u)
        pns, pds = add_entering(pns, pds, pn, pd, far, BLOCKS, False)
        if tile + gl.num_programs(0) >= num_tiles:
            let_next_begin()
        y = p_y + base + (chunk * (LENGTH * C) + c[None, :])
        after = tile + gl.num_programs(0)
        _, place = start_of(after, num_spans, T, C, LENGTH * CHUNKS, CHANNELS)
        later = after < num_tiles, p_k + place, p_v + place
        least, total, _ = put_tile(
            k_s, v_s, y, top, lam, bonus, pns, pds, fn, fd, C, BLOCK, BLOCKS, L, UNROLLED, later, WARPS
        )
        bad = misfits(least, total, w, u, T, LIMIT, 0, BLOCK)
        gl.store(p_flags + i_q, 1, mask=gl.max(gl.max(bad, 1), 0) > 0)
        gl.thread_barrier()  # nobody copies the next tile where one still reads this
        tile += gl.num_programs(0)
