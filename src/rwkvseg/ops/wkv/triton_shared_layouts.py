"""How the tiles of Bi-WKV from shared memory lie in threads and there, and how a thread reads its tokens.

Legend: triton_shared.py. PACKED: a thread reads the tokens of a block of its lane at once, two to a register,
by the instruction that loads matrices of 8 x 8 numbers of 16 bit, transposed; a row of those is eight
channels of a token. A thread that has two channels side by side has them in a register, not transposed.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def lanes_layout(chunks, channels, warps):
    """Return L."""
    each = max(1, chunks * channels // (32 * warps))
    across = channels // each
    return gl.BlockedLayout([1, each], [32 // across, across], [warps, 1], [1, 0])


@gluon.constexpr_function
def warp_layout(chunks, channels, warps):
    """Return W."""
    each = max(1, chunks * channels // (32 * warps))
    return gl.BlockedLayout([1, each], [chunks, 32 // chunks], [1, warps], [1, 0])


@gluon.constexpr_function
def copy_layout(chunks, channels, warps):
    """Return how tokens (token, chunk, channel) are copied: 8 channels, 16 bytes, a thread."""
    across = channels // 8
    beside = min(32 // across, chunks)
    below = min(chunks // beside, warps)
    return gl.BlockedLayout(
        [1, 1, 8], [32 // across // beside, beside, across], [warps // below, below, 1], [2, 1, 0]
    )


@gluon.constexpr_function
def plain_layout():
    """Return how numbers lie in shared memory: one after the other."""
    return gl.SwizzledSharedLayout(1, 1, 1, [1, 0])


@gluon.constexpr_function
def states_layout(channels):
    """Return how a number per lane lies in shared memory: threads of L and of W meet no bank twice."""
    return gl.SwizzledSharedLayout(2, max(1, 32 // channels), 8, [1, 0])


@gluon.constexpr_function
def packed_bases(chunks, channels):
    """Return which (chunk, channel) the bits of a thread's number in its warp stand for, then the warp's.

    Eight channels of four rows make a matrix; where there are more channels, they are rows too, so that
    a warp still writes whole sectors of memory.
    """
    rows = [[0, 2**i] for i in range(3, channels.bit_length() - 1)]
    rows += [[2**i, 0] for i in range(chunks.bit_length() - 1)]
    return [*rows[:2], [0, 1], [0, 2], [0, 4]], rows[2:]


@gluon.constexpr_function
def own_layout(chunks, channels, warps, packed):
    """Return L of a pass whose threads read PACKED or not."""
    if not packed:
        return lanes_layout(chunks, channels, warps)
    lanes, of_warps = packed_bases(chunks, channels)
    return gl.DistributedLinearLayout([], lanes, of_warps, [], [chunks, channels])


@gluon.constexpr_function
def has_pairs(layout):
    """Return whether a thread of L has two channels side by side."""
    return getattr(layout, "size_per_thread", [1, 1])[1] == 2


@gluon.constexpr_function
def block_layout(width, chunks, channels, layout):
    """Return how tokens (token, chunk, channel) of a block lie in threads where lanes lie as L.

    All tokens of a lane are in one thread.
    """
    tokens = [[2**i, 0, 0] for i in range(width.bit_length() - 1)]
    if has_pairs(layout):
        bases = [[0, 2**i] for i in range(1, channels.bit_length() - 1)]
        bases += [[2**i, 0] for i in range(chunks.bit_length() - 1)]
        lanes, of_warps = bases[:5], bases[5:]
        tokens = [[0, 0, 1], *tokens]
    else:
        lanes, of_warps = packed_bases(chunks, channels)
    return gl.DistributedLinearLayout(
        tokens,
        [[0, *base] for base in lanes],
        [[0, *base] for base in of_warps],
        [],
        [width, chunks, channels],
    )


@gluon.constexpr_function
def width_of(block):
    """Return how many tokens are read where a block has so many."""
    return 1 << (block - 1).bit_length()


@gluon.constexpr_function
def rows_held(block, blocks, packed):
    """Return for how many tokens of a lane there is shared memory: all that are read lie in it."""
    return block * blocks + (width_of(block) - block if packed else 0)


@gluon.jit
def widened(x):
    """Return a number in float32."""
    if x.dtype == gl.bfloat16:  # one instruction; a conversion takes two
        x = (x.to(gl.int16, bitcast=True).to(gl.int32) << 16).to(gl.float32, bitcast=True)
    return x.to(gl.float32)


@gluon.jit
def split_tokens(x, L: gl.constexpr):
    """Return the tokens of (token, chunk, channel), a tuple."""
    WIDTH: gl.constexpr = x.shape[0]
    CHUNKS: gl.constexpr = x.shape[1]
    CHANNELS: gl.constexpr = x.shape[2]
    if WIDTH == 2:
        rows = (gl.permute(x, [1, 2, 0]),)
    elif WIDTH == 4:
        rows = (gl.permute(x.reshape([2, 2, CHUNKS, CHANNELS]), [2, 3, 1, 0]),)
    else:
        rows = (gl.permute(x.reshape([2, 2, 2, CHUNKS, CHANNELS]), [3, 4, 2, 1, 0]),)
    for level in gl.static_range(1 if WIDTH == 2 else 2 if WIDTH == 4 else 3):
        new = ()
        for i in gl.static_range(2**level):
            first, second = gl.split(rows[i])
            new += (first, second)
        rows = new
    tokens = ()
    for i in gl.static_range(WIDTH):
        tokens += (gl.convert_layout(rows[i], L, assert_trivial=True),)
    return tokens


@gluon.jit
def read_block(x_s, s, BLOCK: gl.constexpr, L: gl.constexpr, PACKED: gl.constexpr):
    """Return the tokens of block s as they are stored, a tuple; if PACKED some that follow it as well."""
    if PACKED:
        CHUNKS: gl.constexpr = x_s.shape[1]
        CHANNELS: gl.constexpr = x_s.shape[2]
        WIDTH: gl.constexpr = width_of(BLOCK)
        order: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
        rows_s = x_s.index(s * BLOCK)._reinterpret(x_s.dtype, [WIDTH, CHUNKS, CHANNELS], order)
        tokens = split_tokens(rows_s.load(block_layout(WIDTH, CHUNKS, CHANNELS, L)), L)
    else:
        tokens = ()
        for j in gl.static_range(BLOCK):
            tokens += (x_s.index(s * BLOCK + j).load(L),)
    return tokens
