"""Bi-WKV in linear time, in plain torch: two custom operators, which torch.compile and autocast leave whole.

A guard bounds how far apart, in powers of e, two terms of any sum can lie. It picks the form:
    below LIMIT                a fixed reference key, computed in float32 (float64 for float64)
    below LIMIT of float64     a fixed reference key, computed in float64 (also where T <= SHORT)
    beyond, infinite or NaN    running_max.py, computed in float64
The fixed reference is a recurrence on the CPU (fixed_reference.py), matrix products elsewhere (matmul.py).
Saved for the backward pass: the four inputs and nothing per token.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rwkvseg.ops.backends import refuse_transforms
from rwkvseg.ops.wkv import fixed_reference, matmul, running_max

# exp of it, times T, |g| and |v|, must stay in range: 1e38 / e^50 leaves 1e16 for float32, 1e47 for float64
LIMIT = {torch.float32: 50.0, torch.float64: 600.0}
# with so few tokens a gradient can be one rounding error of its terms, and float64 costs nothing
SHORT = 8
# elements of k that are worked on at a time on the CPU, so that they stay in its cache
CACHED_ELEMENTS = 2**20


@torch.library.custom_op("rwkvseg::bi_wkv_scan", mutates_args=())
def scan_bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bi-WKV, see `rwkvseg.ops.bi_wkv`, which checks the arguments. w, u: (C,)  k, v: (B, T, C) -> same."""
    out = torch.empty_like(k, memory_format=torch.contiguous_format)
    for part in _parts(k):
        form, wide = _choose_form(w, u, k[part])
        form.forward(w.to(wide), u.to(wide), k[part], v[part], out[part])
    return out


@torch.library.custom_op("rwkvseg::bi_wkv_scan_backward", mutates_args=())
def scan_bi_wkv_backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v from g (B, T, C), that of the output."""
    gk, gv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    gw = torch.zeros(w.shape, dtype=_accumulator(k), device=w.device)
    gu = torch.zeros_like(gw)
    for part in _parts(k):
        form, wide = _choose_form(w, u, k[part])
        inputs = w.to(wide), u.to(wide), k[part], v[part], g[part]
        by_w, by_u = form.backward(*inputs, gk=gk[part], gv=gv[part])
        gw += by_w
        gu += by_u
    return gw.to(w.dtype), gu.to(u.dtype), gk, gv


def _parts(k: Tensor) -> Iterator[slice]:
    """Cut the batch into groups of images that fit in the cache; a GPU takes all at once."""
    batch, num_tokens, channels = k.shape
    group = batch if k.device.type != "cpu" else max(1, CACHED_ELEMENTS // (num_tokens * channels))
    return (slice(start, start + group) for start in range(0, batch, group))


def _choose_form(w: Tensor, u: Tensor, k: Tensor) -> tuple[ModuleType, torch.dtype]:
    """Return the module whose forward and backward are safe for these values, and the dtype to compute in."""
    accumulator = _accumulator(k)
    fixed = fixed_reference if k.device.type == "cpu" else matmul
    span = _span(w.to(accumulator), u.to(accumulator), k)
    if span < LIMIT[accumulator] and k.shape[1] > SHORT:
        return fixed, accumulator
    # twice the time of float32, still much faster than a running maximum, and more exact than either
    wide = torch.float32 if k.device.type == "mps" else torch.float64
    return (fixed if span < LIMIT[wide] else running_max), wide


def _span(w: Tensor, u: Tensor, k: Tensor) -> float:
    """Bound the logarithm of the ratio of any two terms; NaN and infinity pass through."""
    largest, smallest = k.amax(1).to(w.dtype), k.amin(1)
    growth = w.neg().clamp_min(0) * k.shape[1]  # a negative decay prefers far tokens
    return float((largest - smallest + u.abs() + growth).max())


def _accumulator(k: Tensor) -> torch.dtype:
    return torch.float64 if k.dtype == torch.float64 else torch.float32


@scan_bi_wkv.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(k, memory_format=torch.contiguous_format)


@scan_bi_wkv_backward.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gw, gu, gk, gv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (w, u, k, v))
    return gw, gu, gk, gv


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = scan_bi_wkv_backward(*ctx.saved_tensors, g)
    return gradients


scan_bi_wkv.register_autograd(_gradients, setup_context=_save_inputs)
refuse_transforms(scan_bi_wkv, scan_bi_wkv_backward, name="bi_wkv", backend="scan", instead="naive")
