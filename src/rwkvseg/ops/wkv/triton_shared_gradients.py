"""Bi-WKV on a GPU from shared memory, the last pass backward: gradients of a block. Legend: triton_shared.py.

A block has its tokens' numbers in registers: it is gone through once with what comes from earlier tokens,
then, from its last token back, with what comes from later ones.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from rwkvseg.ops.wkv.triton_shared import LOG2E, futures, reciprocal
from rwkvseg.ops.wkv.triton_shared_layouts import widened


@gluon.jit
def read_tokens(x_s, s, BLOCK: gl.constexpr, L: gl.constexpr):
    """Return the tokens of block s as they are stored, a tuple."""
    tokens = ()
    for j in gl.static_range(BLOCK):
        tokens += (x_s.index(s * BLOCK + j).load(L),)
    return tokens


@gluon.jit
def weigh_values(k, v, top, mean, BLOCK: gl.constexpr):
    """Return (n, d) of the tokens of a block and v - mean, three tuples, see `weigh`."""
    n, d, values = (), (), ()
    for j in gl.static_range(BLOCK):
        x = gl.exp2(widened(k[j]) * LOG2E - top)
        value = widened(v[j]) - mean
        n, d, values = n + (x * value,), d + (x,), values + (value,)
    return n, d, values


@gluon.jit
def put_gradients(
    k_s, v_s, g_s, p_gk, p_gv, s, top, mean, lam, bonus, past, on, future, back, gw, gu,
    C: gl.constexpr, BLOCK: gl.constexpr, L: gl.constexpr, WAIT: gl.constexpr,
):  # fmt: skip
    """Write gk and gv of block s from the pairs that enter it on both sides; on, back: the adjoint ones.

    Return both that leave it to later tokens, the sum for gw but for -lam, and that for gu but for exp(u).
    A token's own part of gk: `block_gradients` of triton_fast.py; gk = d (v r - q + this part / d) takes the
    weight off all of them. WAIT: whether each token's past and what comes from earlier tokens is kept until
    what comes from later ones is there: fewer instructions, more registers.
    """
    k, v = read_tokens(k_s, s, BLOCK, L), read_tokens(v_s, s, BLOCK, L)
    n, d, values = weigh_values(k, v, top, mean, BLOCK)
    from_n, from_d, _, _ = futures(n, d, future[0], future[1], lam, BLOCK)
    g = read_tokens(g_s, s, BLOCK, L)
    pn, pd = past
    r, rq = on
    hs, qs, firsts, seconds, thirds, pns, pds = (), (), (), (), (), (), ()
    sn, sd = pn, pd  # of earlier tokens' past, each with its decay: what the adjoint sums meet later
    for j in gl.static_range(BLOCK):
        num, den = pn + from_n[j], pd + from_d[j]
        inverse = reciprocal(den + bonus * d[j])
        h = widened(g[j]) * inverse
        twice = h * inverse
        q = (num + bonus * n[j]) * twice
        own = twice * (den * values[j] - num)
        gu = gu + d[j] * own
        gw = gw + r * from_n[j]
        gw = gw - rq * from_d[j]
        if WAIT:
            pns, pds = pns + (pn,), pds + (pd,)
            firsts, seconds, thirds = firsts + (own,), seconds + (r,), thirds + (rq,)
        else:
            if j > 0:
                gw = gw + h * sn
                gw = gw - q * sd
                sn, sd = sn * lam + pn, sd * lam + pd
            firsts += (bonus * own + (values[j] * r - rq),)
            seconds += (bonus * h + r,)
        hs, qs = hs + (h,), qs + (q,)
        pn, pd = pn * lam + n[j], pd * lam + d[j]
        r, rq = r * lam + h, rq * lam + q
    past, on = (pn, pd), (r, rq)
    r, rq = back
    if not WAIT:
        gw = gw + r * sn
        gw = gw - rq * sd
    for j in gl.static_range(BLOCK - 1, -1, -1):
        if WAIT:
            gw = gw + r * pns[j]
            gw = gw - rq * pds[j]
            both = seconds[j] + r
            gk = d[j] * (bonus * firsts[j] + (values[j] * both - (thirds[j] + rq)))
            gv = d[j] * (bonus * hs[j] + both)
        else:
            gk = d[j] * (firsts[j] + (values[j] * r - rq))
            gv = d[j] * (seconds[j] + r)
        gl.store(p_gk + (s * BLOCK + j) * C, gk.to(p_gk.dtype.element_ty))
        gl.store(p_gv + (s * BLOCK + j) * C, gv.to(p_gv.dtype.element_ty))
        r, rq = r * lam + hs[j], rq * lam + qs[j]
    return past, on, gw, gu
