"""How the tiles of Bi-WKV are copied to shared memory, while a program goes on. Legend: triton_shared.py.

Copies are made in groups, which arrive in their order: first those of keys and values, then that of g.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from rwkvseg.ops.wkv.triton_shared_layouts import copy_layout


@gluon.jit
def copy_tokens(
    to_s, p, C: gl.constexpr, first, WIDTH: gl.constexpr, LENGTH: gl.constexpr, WARPS: gl.constexpr
):  # fmt: skip
    """Begin to copy WIDTH tokens of every chunk from the first on; p: of the program's first number."""
    CHUNKS: gl.constexpr = to_s.shape[1]
    CHANNELS: gl.constexpr = to_s.shape[2]
    COPY: gl.constexpr = copy_layout(CHUNKS, CHANNELS, WARPS)
    token = gl.arange(0, WIDTH, gl.SliceLayout(1, gl.SliceLayout(2, COPY)))[:, None, None]
    chunk = gl.arange(0, CHUNKS, gl.SliceLayout(0, gl.SliceLayout(2, COPY)))[None, :, None]
    c = gl.arange(0, CHANNELS, gl.SliceLayout(0, gl.SliceLayout(1, COPY)))[None, None, :]
    order: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    rows_s = to_s.index(first)._reinterpret(to_s.dtype, [WIDTH, CHUNKS, CHANNELS], order)
    async_copy.async_copy_global_to_shared(rows_s, p + ((first + token) * C + chunk * (LENGTH * C) + c))


@gluon.jit
def copy_eight(
    to_s, p, C: gl.constexpr, s: gl.constexpr, LENGTH: gl.constexpr, WARPS: gl.constexpr
):  # fmt: skip
    """Begin to copy tokens 8 s.. of every chunk: eight, or what is left."""
    if LENGTH - 8 * s >= 8:
        copy_tokens(to_s, p, C, 8 * s, 8, LENGTH, WARPS)
    elif LENGTH - 8 * s == 4:
        copy_tokens(to_s, p, C, 8 * s, 4, LENGTH, WARPS)
    else:
        for j in gl.static_range(8 * s, LENGTH):
            copy_tokens(to_s, p, C, j, 1, LENGTH, WARPS)


@gluon.jit
def start_keys(
    k_s, v_s, p_k, p_v, C: gl.constexpr, BLOCKS: gl.constexpr, LENGTH: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Begin to copy keys and values, in as many groups as there are blocks, each enough for its block."""
    for s in gl.static_range(BLOCKS):
        copy_eight(k_s, p_k, C, s, LENGTH, WARPS)
        copy_eight(v_s, p_v, C, s, LENGTH, WARPS)
        async_copy.commit_group()


@gluon.jit
def start_gradients(
    g_s, p_g, C: gl.constexpr, BLOCKS: gl.constexpr, LENGTH: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Begin to copy g, in one group."""
    for eight in gl.static_range(BLOCKS):
        copy_eight(g_s, p_g, C, eight, LENGTH, WARPS)
    async_copy.commit_group()


@gluon.jit
def copy_ahead(
    tiles_s, later, s, C: gl.constexpr, BLOCK: gl.constexpr, LENGTH: gl.constexpr, WARPS: gl.constexpr,
    NUMBER: gl.constexpr,
):  # fmt: skip
    """Begin to copy NUMBER blocks of a later tile, from s on, over those of this one, in one group.

    tiles_s: the memory of two or three tensors; later: whether there is such a tile, and where it begins in
    each of them.
    """
    WIDTH: gl.constexpr = BLOCK * NUMBER
    WHOLE: gl.constexpr = WIDTH & (WIDTH - 1) == 0
    gl.thread_barrier()  # nobody reads these blocks any more
    if later[0]:
        for i in gl.static_range(len(tiles_s)):
            for j in gl.static_range(1 if WHOLE else WIDTH):
                copy_tokens(tiles_s[i], later[1 + i], C, s * BLOCK + j, WIDTH if WHOLE else 1, LENGTH, WARPS)
    async_copy.commit_group()
