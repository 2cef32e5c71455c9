"""Bi-WKV: one function, several implementations.

naive.py is the definition; scan.py computes the same in linear time with plain torch, tiled.py with Triton's
kernels, export.py in a form for torch.export and ONNX.
B: images, T: tokens, C: channels.
"""

import torch
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops.backends import choose_backend, is_exporting, refuse_forward_mode, triton_is_installed
from rwkvseg.ops.wkv.export import export_bi_wkv
from rwkvseg.ops.wkv.naive import naive_bi_wkv
from rwkvseg.ops.wkv.scan import scan_bi_wkv
from rwkvseg.ops.wkv.tiled import triton_bi_wkv

__all__ = ["available_backends", "bi_wkv", "naive_bi_wkv"]

_BACKENDS = ("naive", "scan", "triton")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def available_backends() -> tuple[str, ...]:
    """Return the names that `bi_wkv(backend=...)` accepts on this machine, besides "auto".

    "triton" is among them where it is installed; it needs tensors on a GPU.

    Example:
        >>> available_backends()[:2]
        ('naive', 'scan')
    """
    return _BACKENDS if triton_is_installed() else _BACKENDS[:2]


def bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """Bidirectional WKV (Vision-RWKV, arXiv:2403.02308): a softmax over all tokens, in linear time.

    out[t] = sum_i weight[t, i] v[i], where weight[t] is the softmax over i of k[i] - (|t - i| - 1) w for the
    other tokens and k[t] + u for the token itself. Differentiable once, in all four arguments. Inside, it
    computes in float32 (float64 for float64) whatever autocast says. The same input gives the same bits.

    Args:
        w: Decay per token (C,), any sign; the networks pass decay / T. float32 is allowed beside 16-bit k.
        u: Bonus of the token itself (C,), log-weight, any sign; same dtype as w.
        k: Keys (B, T, C), T >= 1, contiguous or not; float64, float32, bfloat16 or float16.
        v: Values (B, T, C), same dtype as k.
        backend: "auto" takes the fastest for the device, and while a graph is exported a form of standard
            operators; "naive" is the definition in O(T^2); "scan" is linear time in plain torch, "triton" on
            a GPU. "auto" takes "triton" on CUDA where it can run, but "scan" for float64 and everywhere else.

    Returns:
        (B, T, C) in the dtype of k.

    Raises:
        ShapeError: the four shapes do not fit together, or an axis is empty.
        UsageError: dtypes or devices differ.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> import torch
        >>> w, u = torch.zeros(1), torch.zeros(1)  # no decay, no bonus, equal keys: the mean of the values
        >>> bi_wkv(w, u, torch.zeros(1, 3, 1), torch.tensor([[[1.0], [2.0], [6.0]]])).flatten()
        tensor([3., 3., 3.])
    """
    _check_shapes(w, u, k, v)
    _check_kinds(w, u, k, v)
    if backend == "auto" and is_exporting():
        return export_bi_wkv(w, u, k, v)
    if backend == "auto" and k.dtype == torch.float64:
        backend = "scan"  # who asks for float64 asks for the exact form; the kernels are tuned for less
    chosen = choose_backend(
        backend, (w, u, k, v), available=_BACKENDS, fallback="scan", triton_dtypes=_DTYPES
    )
    if chosen == "naive":
        return _naive_in_full_precision(w, u, k, v)
    refuse_forward_mode(w, u, k, v, name="bi_wkv", backend=chosen, instead="naive")
    out: Tensor = scan_bi_wkv(w, u, k, v) if chosen == "scan" else triton_bi_wkv(w, u, k, v)[0]
    return out


def _check_shapes(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    kinds = [type(x).__name__ for x in (w, u, k, v) if not isinstance(x, Tensor)]
    if kinds:
        raise UsageError(f"w, u, k, v are tensors, got {', '.join(kinds)}; convert with torch.as_tensor")
    if k.ndim != 3 or 0 in k.shape:
        raise ShapeError(f"k has shape {tuple(k.shape)}; give (B, T, C) with every axis at least 1")
    if v.shape != k.shape:
        raise ShapeError(f"v has shape {tuple(v.shape)} and k {tuple(k.shape)}; give both as (B, T, C)")
    for name, x in (("w", w), ("u", u)):
        if x.shape != k.shape[2:]:
            raise ShapeError(f"{name} has shape {tuple(x.shape)} but k has {k.shape[2]} channels; give (C,)")


def _check_kinds(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    dtypes = [x.dtype for x in (w, u, k, v)]
    if k.dtype not in _DTYPES or v.dtype != k.dtype or u.dtype != w.dtype or w.dtype not in _with(k.dtype):
        raise UsageError(
            f"w, u, k, v have dtypes {', '.join(str(d).removeprefix('torch.') for d in dtypes)}; "
            "give one floating dtype, or float32 w and u with 16-bit k and v"
        )
    devices = [x.device for x in (w, u, k, v)]
    if len(set(devices)) > 1:
        raise UsageError(f"w, u, k, v are on {', '.join(map(str, devices))}; move them to one device")


def _with(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Dtypes of w and u that go with this dtype of k and v."""
    return (dtype, torch.float32) if dtype.itemsize == 2 else (dtype,)


def _naive_in_full_precision(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    # autocast would run the weighted sum in 16 bit
    with torch.autocast(k.device.type, enabled=False):
        return naive_bi_wkv(w.to(wide), u.to(wide), k.to(wide), v.to(wide)).to(k.dtype)
