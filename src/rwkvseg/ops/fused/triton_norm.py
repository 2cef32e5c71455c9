"""Layer norm, alone or with its neighbours, in one pass: Triton kernels and how they are launched.

A program holds ROWS whole rows on chip, each in CHUNKS pieces of CHUNK channels: so little is padding, and
a row stays within one warp up to 1024 channels. Statistics are computed anew in the backward pass.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_CHUNKS = 6
SMALLEST_CHUNK = 16
ELEMENTS_OF_WARP = 128  # of a chunk: four neighbours for each thread
TILES_OF_GRADIENT = 8  # a program of the backward pass works on so many tiles, one after the other


@triton.jit
def _load_rows(p, offset, inside, c, C: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """Return the pieces of the rows, zero outside."""
    pieces = ()
    for j in tl.static_range(CHUNKS):
        mask = inside & (c + j * CHUNK < C)
        pieces += (tl.load(p + offset + j * CHUNK, mask=mask, other=0.0).to(tl.float32),)
    return pieces


@triton.jit
def _rectified(xs):
    """Return max(x, 0) of all pieces; NaN stays."""
    pieces = ()
    for j in tl.static_range(len(xs)):
        pieces += (tl.where(xs[j] < 0, 0.0, xs[j]),)
    return pieces


@triton.jit
def _squared(xs):
    """Return the squares of all pieces."""
    pieces = ()
    for j in tl.static_range(len(xs)):
        pieces += (xs[j] * xs[j],)
    return pieces


@triton.jit
def _normalise(ys, inside, c, eps, C: tl.constexpr, CHUNK: tl.constexpr):
    """Return the pieces with mean 0 and variance 1, zero outside the C channels, and 1 / deviation."""
    total = ys[0]
    for j in tl.static_range(1, len(ys)):
        total += ys[j]
    mean = (tl.sum(total, 1) / C)[:, None]
    centred = ()
    squares = tl.zeros_like(total)
    for j in tl.static_range(len(ys)):
        d = ys[j] - mean
        if (j + 1) * CHUNK > C:
            d = tl.where(c + j * CHUNK < C, d, 0.0)
        centred += (d,)
        squares += d * d
    # rows beyond the last one are 0 and must stay so, even where eps is 0
    variance = tl.where(inside, (tl.sum(squares, 1) / C)[:, None] + eps, 1.0)
    scale = 1 / tl.sqrt_rn(variance)
    normed = ()
    for j in tl.static_range(len(ys)):
        normed += (centred[j] * scale,)
    return normed, scale


@triton.jit(do_not_specialize=["num_rows", "rows_per_image"])
def layer_norm_fwd_kernel(
    p_y,
    p_beside,
    p_weight,
    p_bias,
    p_scale,
    p_out,
    num_rows,
    rows_per_image,
    eps,
    C: tl.constexpr,
    GATED: tl.constexpr,
    SQUARED_RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """y, beside, out: (num_rows, C). beside: receptance if GATED, residual, or None. scale: (B,) or None."""
    first = tl.program_id(0).to(num_rows.dtype) * ROWS
    tile = first.to(tl.int64) * C  # the only offset that needs 64 bits
    row = tl.arange(0, ROWS)[:, None]
    inside = row < num_rows - first
    # of every element of the tile: loads of one shape share one layout, and none goes through shared memory
    c = tl.broadcast_to(tl.arange(0, CHUNK)[None, :], (ROWS, CHUNK))
    offset = row * C + c
    ys = _load_rows(p_y + tile, offset, inside, c, C, CHUNK, CHUNKS)
    # loaded before the sums over the rows need all of y, so that both loads are under way at once
    if p_beside is not None:
        besides = _load_rows(p_beside + tile, offset, inside, c, C, CHUNK, CHUNKS)
    if SQUARED_RELU:
        ys = _squared(_rectified(ys))
    normed, _ = _normalise(ys, inside, c, eps, C, CHUNK)
    if p_scale is not None:
        scale = tl.load(p_scale + (first + row) // rows_per_image, mask=inside, other=0.0).to(tl.float32)
    for j in tl.static_range(CHUNKS):
        held = c + j * CHUNK < C
        weight = tl.load(p_weight + c + j * CHUNK, mask=held, other=0.0).to(tl.float32)
        bias = tl.load(p_bias + c + j * CHUNK, mask=held, other=0.0).to(tl.float32)
        out = normed[j] * weight + bias
        if GATED:
            out *= tl.sigmoid(besides[j])
        elif p_scale is not None:
            out = out * scale + besides[j]
        elif p_beside is not None:
            out += besides[j]
        tl.store(p_out + tile + offset + j * CHUNK, out, mask=inside & held)


@triton.jit
def _through_gate(g, ungated, p_r, p_gr, mask):
    """Return the gradient of the ungated result, and store that of the receptance."""
    gate = tl.sigmoid(tl.load(p_r, mask=mask, other=0.0).to(tl.float32))
    g *= gate
    tl.store(p_gr, g * (1 - gate) * ungated, mask=mask)
    return g


@triton.jit
def _store_gradient(p, offset, inside, c, gs, normed, scale, roots, C: tl.constexpr, CHUNK: tl.constexpr):
    """Store the gradient of the rows from that of the normed rows; of their roots, where there are any."""
    total, along = gs[0], gs[0] * normed[0]
    for j in tl.static_range(1, len(gs)):
        total += gs[j]
        along += gs[j] * normed[j]
    # it loses its mean and what points along the normed row: neither could change the result
    mean, share = (tl.sum(total, 1) / C)[:, None], (tl.sum(along, 1) / C)[:, None]
    for j in tl.static_range(len(gs)):
        gradient = scale * (gs[j] - mean - normed[j] * share)
        if len(roots) > 0:
            gradient *= 2 * roots[j]
        tl.store(p + offset + j * CHUNK, gradient, mask=inside & (c + j * CHUNK < C))


@triton.jit(do_not_specialize=["num_rows", "rows_per_image"])
def layer_norm_bwd_kernel(
    p_y,
    p_r,
    p_weight,
    p_bias,
    p_scale,
    p_g,
    p_gy,
    p_gr,
    p_sums,
    num_rows,
    rows_per_image,
    eps,
    C: tl.constexpr,
    SQUARED_RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILES: tl.constexpr,
):
    """r, bias and gr are None without a gate. sums: (programs, 2, C) in float32, of weight and of bias."""
    first = tl.program_id(0).to(num_rows.dtype) * (TILES * ROWS)
    c = tl.broadcast_to(tl.arange(0, CHUNK)[None, :], (ROWS, CHUNK))
    offset = tl.arange(0, ROWS)[:, None] * C + c
    sums_w, sums_b = (), ()
    for _ in tl.static_range(CHUNKS):
        sums_w += (tl.zeros((ROWS, CHUNK), tl.float32),)
        sums_b += (tl.zeros((ROWS, CHUNK), tl.float32),)
    for i_tile in range(TILES):
        row = i_tile * ROWS + tl.arange(0, ROWS)[:, None]
        inside = row < num_rows - first
        tile = (first.to(tl.int64) + i_tile * ROWS) * C
        ys = _load_rows(p_y + tile, offset, inside, c, C, CHUNK, CHUNKS)
        gs = _load_rows(p_g + tile, offset, inside, c, C, CHUNK, CHUNKS)
        roots = ()
        if SQUARED_RELU:
            roots = _rectified(ys)
            ys = _squared(roots)
        normed, deviation = _normalise(ys, inside, c, eps, C, CHUNK)
        if p_scale is not None:
            scale = tl.load(p_scale + (first + row) // rows_per_image, mask=inside, other=0.0).to(tl.float32)
        of_normed, new_w, new_b = (), (), ()
        for j in tl.static_range(CHUNKS):
            held = c + j * CHUNK < C
            weight = tl.load(p_weight + c + j * CHUNK, mask=held, other=0.0).to(tl.float32)
            g = gs[j]
            if p_r is not None:
                bias = tl.load(p_bias + c + j * CHUNK, mask=held, other=0.0).to(tl.float32)
                at = tile + (offset + j * CHUNK)
                g = _through_gate(g, normed[j] * weight + bias, p_r + at, p_gr + at, inside & held)
            if p_scale is not None:
                g *= scale
            new_w += (sums_w[j] + g * normed[j],)
            new_b += (sums_b[j] + g,)
            of_normed += (g * weight,)
        sums_w, sums_b = new_w, new_b
        _store_gradient(p_gy + tile, offset, inside, c, of_normed, normed, deviation, roots, C, CHUNK)
    for j in tl.static_range(CHUNKS):
        p_row = p_sums + tl.program_id(0).to(tl.int64) * 2 * C + j * CHUNK + tl.arange(0, CHUNK)
        held = tl.arange(0, CHUNK) + j * CHUNK < C
        tl.store(p_row, tl.sum(sums_w[j], 0), mask=held)
        tl.store(p_row + C, tl.sum(sums_b[j], 0), mask=held)


class _Tile(NamedTuple):
    ROWS: int
    CHUNK: int
    CHUNKS: int
    num_warps: int


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, squared_relu: bool) -> Tensor:
    """x: (B, ..., C) -> layer_norm(x), or layer_norm(relu(x)**2), in the dtype of x."""
    return _forward(x, None, weight, bias, None, eps, out=_empty_like(x), squared_relu=squared_relu)


def forward_gated(y: Tensor, r: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """y, r: (B, ..., C) -> layer_norm(y) * sigmoid(r), in the dtype of y."""
    return _forward(y, r, weight, bias, None, eps, out=_empty_like(y), gated=True)


def forward_residual(
    y: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, eps: float
) -> Tensor:
    """y, residual: (B, ..., C) -> residual + scale * layer_norm(y), in the dtype of the residual."""
    return _forward(y, residual, weight, bias, scale, eps, out=_empty_like(residual))


def backward(x: Tensor, weight: Tensor, g: Tensor, eps: float, squared_relu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of weight and bias as one (2, C) in float32."""
    return _backward(x, weight, g, eps, squared_relu=squared_relu)


def backward_gated(
    y: Tensor, r: Tensor, weight: Tensor, bias: Tensor, g: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, of r, and of weight and bias as one (2, C) in float32."""
    gr = _empty_like(r)
    gy, sums = _backward(y, weight, g, eps, r=r.contiguous(), bias=bias.contiguous(), gr=gr)
    return gy, gr, sums


def backward_residual(
    y: Tensor, weight: Tensor, scale: Tensor | None, g: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of y, and of weight and bias as one (2, C) in float32."""
    return _backward(y, weight, g, eps, scale=scale)


def _forward(
    y: Tensor,
    beside: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    eps: float,
    *,
    out: Tensor,
    gated: bool = False,
    squared_relu: bool = False,
) -> Tensor:
    channels = y.shape[-1]
    num_rows, tile = y.numel() // channels, _tile(channels)
    with torch.cuda.device_of(y):
        layer_norm_fwd_kernel[(triton.cdiv(num_rows, tile.ROWS),)](
            y.contiguous(),
            None if beside is None else beside.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            None if scale is None else scale.contiguous(),
            out,
            num_rows,
            num_rows // y.shape[0],
            eps,
            C=channels,
            GATED=gated,
            SQUARED_RELU=squared_relu,
            **tile._asdict(),
        )
    return out


def _backward(
    y: Tensor,
    weight: Tensor,
    g: Tensor,
    eps: float,
    *,
    r: Tensor | None = None,
    bias: Tensor | None = None,
    gr: Tensor | None = None,
    scale: Tensor | None = None,
    squared_relu: bool = False,
) -> tuple[Tensor, Tensor]:
    channels = y.shape[-1]
    num_rows, tile = y.numel() // channels, _tile(channels)
    programs = triton.cdiv(num_rows, tile.ROWS * TILES_OF_GRADIENT)
    gy, sums = _empty_like(y), y.new_empty((programs, 2, channels), dtype=torch.float32)
    with torch.cuda.device_of(y):
        layer_norm_bwd_kernel[(programs,)](
            y.contiguous(),
            r,
            weight.contiguous(),
            bias,
            None if scale is None else scale.contiguous(),
            g.contiguous(),
            gy,
            gr,
            sums,
            num_rows,
            num_rows // y.shape[0],
            eps,
            C=channels,
            SQUARED_RELU=squared_relu,
            TILES=TILES_OF_GRADIENT,
            **tile._asdict(),
        )
    return gy, sums.sum(0)


def _tile(channels: int) -> _Tile:
    chunk = max(SMALLEST_CHUNK, triton.next_power_of_2(triton.cdiv(channels, MOST_CHUNKS)))
    num_warps = max(4, chunk // ELEMENTS_OF_WARP)
    rows = num_warps * ELEMENTS_OF_WARP // chunk
    return _Tile(ROWS=rows, CHUNK=chunk, CHUNKS=triton.cdiv(channels, chunk), num_warps=num_warps)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
