"""How the tiles of Bi-WKV from shared memory lie in threads and there. Legend: triton_shared.py."""

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


@gluon.jit
def widened(x):
    """Return a number in float32."""
    if x.dtype == gl.bfloat16:  # one instruction; a conversion takes two
        x = (x.to(gl.int16, bitcast=True).to(gl.int32) << 16).to(gl.float32, bitcast=True)
    return x.to(gl.float32)
