"""The selective scan of Mamba (arXiv:2312.00752, section 3.3); its plain-torch form compiles and exports.

B: batch, T: tokens, E: channels, N: states of a channel. The Triton form is in scan/. In plain torch the
tokens are cut into n chunks of L, which go through their tokens side by side: first from nothing, to learn
what each passes on, then from what reaches it. Without gradients the largest temporary has T / L E N
elements. No exponent is positive: nothing overflows.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvseg.errors import ShapeError
from rwkvseg.ops.backends import check_floating, choose_backend, is_exporting
from rwkvseg.ops.scan.operators import triton_selective_scan

LENGTH = 8
EXPORT_LEVELS = 2  # of chunks of chunks; leaves (T / LENGTH^3)^2 E N elements, less than T E N below 262,144
MOST_STATES = 32  # that the Triton form holds in registers
NEVER = -1e32  # logarithm of no share at all


def naive_selective_scan(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Selective scan by its definition, token by token.

    state[t] = exp(step[t] rate) state[t - 1] + step[t] b[t] x[t],  out[t] = sum over N of c[t] state[t]

    Args:
        x: values (B, T, E).
        step: positive step sizes (B, T, E).
        rate: negative rates (E, N).
        b: shares of the values that enter the states (B, T, N).
        c: shares of the states that are read (B, T, N).

    Returns:
        (B, T, E).
    """
    state = torch.zeros_like(x[:, 0]).unsqueeze(2) * rate  # (B, E, N)
    out = []
    for t in range(x.shape[1]):
        entering = (step[:, t] * x[:, t]).unsqueeze(2) * b[:, t].unsqueeze(1)
        state = torch.exp(step[:, t].unsqueeze(2) * rate) * state + entering
        out.append((state * c[:, t].unsqueeze(1)).sum(2))
    return torch.stack(out, 1)


def selective_scan(
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Selective scan, see `naive_selective_scan`, in chunks; it computes in float32, for float64 in float64.

    The same input gives the same bits, gradients included. Floating dtypes may be mixed; every gradient has
    the dtype of its tensor.

    Args:
        x: values (B, T, E).
        step: positive step sizes (B, T, E).
        rate: negative rates (E, N).
        b: shares of the values that enter the states (B, T, N).
        c: shares of the states that are read (B, T, N).
        skip: shares of the values that are added to the result (E,), or None.
        reverse: Whether the scan goes from the last token to the first.
        backend: "auto" takes the fastest for the device; "torch" is plain torch, whose largest temporary has
            T / 8 E N elements without gradients and several times T E N with them; "triton" holds the states
            in registers, saves the inputs alone and has neither second derivative nor vmap.

    Returns:
        (B, T, E), dtype of x.

    Raises:
        ShapeError: the shapes do not fit together, or an axis is empty.
        UsageError: integers, or tensors on several devices.
        BackendError: an unknown backend, or one that cannot run here.

    Example:
        >>> tokens, rate = torch.rand(5, 1, 40, 3).unbind(), -torch.ones(3, 3)
        >>> fast, slow = (f(*tokens[:2], rate, *tokens[2:4]) for f in (selective_scan, naive_selective_scan))
        >>> torch.allclose(fast, slow, atol=1e-4)
        True
    """
    _check(x, step, rate, b, c)
    tensors = [x, step, rate, b, c]
    if skip is not None:
        _check_skip(skip, x)
        tensors.append(skip)
    if scan_backend(backend, tensors, states=rate.shape[1]) == "triton":
        out: Tensor = triton_selective_scan(x, step, rate, b, c, skip, reverse)
        return out
    if reverse:
        out = _by_torch(x.flip(1), step.flip(1), rate, b.flip(1), c.flip(1)).flip(1)
    else:
        out = _by_torch(x, step, rate, b, c)
    return out if skip is None else (out + skip * x).to(x.dtype)


def scan_backend(backend: str, tensors: Sequence[Tensor], *, states: int) -> str:
    """Return "torch" or "triton", whichever `selective_scan` takes for such tensors and so many states.

    Raises:
        BackendError: an unknown backend, or one that cannot run here.
    """
    if backend == "auto" and states > MOST_STATES:
        return "torch"
    return choose_backend(backend, tensors, available=("torch", "triton"), fallback="torch")


def _check(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> None:
    if x.ndim != 3 or 0 in x.shape:
        raise ShapeError(f"x has shape {tuple(x.shape)}; give (B, T, E) with every axis at least 1")
    if rate.ndim != 2 or rate.shape[0] != x.shape[2] or rate.shape[1] < 1:
        raise ShapeError(f"rate has shape {tuple(rate.shape)} but x has {x.shape[2]} channels; give (E, N)")
    shares = (*x.shape[:2], rate.shape[1])
    for name, part, shape in (("step", step, tuple(x.shape)), ("b", b, shares), ("c", c, shares)):
        if part.shape != shape:
            raise ShapeError(
                f"{name} has shape {tuple(part.shape)} beside x of {tuple(x.shape)} and rate of "
                f"{tuple(rate.shape)}; give {tuple(shape)}"
            )
    check_floating(x=x, step=step, rate=rate, b=b, c=c)


def _check_skip(skip: Tensor, x: Tensor) -> None:
    if skip.shape != x.shape[2:]:
        raise ShapeError(f"skip has shape {tuple(skip.shape)} but x has {x.shape[2]} channels; give (E,)")
    check_floating(x=x, skip=skip)


def _by_torch(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    values, step, rate, b, c = (part.to(wide) for part in (x, step, rate, b, c))
    length = LENGTH if is_exporting() else min(LENGTH, x.shape[1])
    steps = _cut(step, length)
    # one entry a place in the chunk, (B, n, E) or (B, n, N)
    places = list(
        zip(*(p.unbind(2) for p in (steps, _cut(step * values, length), _cut(b, length))), strict=True)
    )
    state = torch.zeros_like(places[0][1]).unsqueeze(3) * rate  # (B, n, E, N)
    for place in places:
        state = _next_state(state, rate, *place)
    state = _before(steps.sum(2).unsqueeze(3) * rate, state, level=0)
    out = []
    for place, read in zip(places, _cut(c, length).unbind(2), strict=True):
        state = _next_state(state, rate, *place)
        out.append((state * read.unsqueeze(2)).sum(3))
    return torch.stack(out, 2).flatten(1, 2).narrow(1, 0, x.shape[1]).to(x.dtype)


def _next_state(state: Tensor, rate: Tensor, step: Tensor, entering: Tensor, b: Tensor) -> Tensor:
    """One token of every chunk. state: (B, n, E, N); step, entering: (B, n, E); b: (B, n, N)."""
    return torch.exp(step.unsqueeze(3) * rate) * state + entering.unsqueeze(3) * b.unsqueeze(2)


def _before(exponent: Tensor, passed_on: Tensor, level: int) -> Tensor:
    """Return the state before each chunk, where after[i] = exp(exponent[i]) after[i - 1] + passed_on[i].

    exponent, passed_on: (B, n, E, N) -> same.
    """
    n = passed_on.shape[1]
    exporting = is_exporting()
    if exporting and level == EXPORT_LEVELS:
        return _before_of_few(exponent, passed_on)
    length = LENGTH if exporting else min(LENGTH, n)
    exponents, parts = _cut(exponent, length), _cut(passed_on, length)  # chunks of chunks
    places = list(zip(exponents.unbind(2), parts.unbind(2), strict=True))
    state = torch.zeros_like(places[0][1])
    if exporting or n > length:
        for its_exponent, part in places:
            state = its_exponent.exp() * state + part
        state = _before(exponents.sum(2), state, level + 1)
    before = []
    for its_exponent, part in places:
        before.append(state)
        state = its_exponent.exp() * state + part
    return torch.stack(before, 2).flatten(1, 2).narrow(1, 0, n)


def _before_of_few(exponent: Tensor, passed_on: Tensor) -> Tensor:
    """Return the same, each chunk from each earlier one, without a step for each."""
    after = exponent.cumsum(1)
    before = F.pad(after, (0, 0, 0, 0, 1, -1))
    place = torch.arange(exponent.shape[1], device=exponent.device)
    is_later = (place >= place.unsqueeze(1)).unsqueeze(2).unsqueeze(3)  # (to, from, 1, 1), or itself
    share = (before.unsqueeze(2) - after.unsqueeze(1)).masked_fill(is_later, NEVER).exp()
    return (share * passed_on.unsqueeze(1)).sum(2)


def _cut(x: Tensor, length: int) -> Tensor:
    """Cut (B, T, ...) into chunks (B, n, length, ...), filled up with zeros."""
    # an exporter would take an axis of size 1 for fixed, so there are never fewer than two chunks
    n = x.shape[1] // length + 2 if is_exporting() else -(-x.shape[1] // length)
    behind = (0, 0) * (x.ndim - 2) + (0, n * length - x.shape[1])
    return F.pad(x, behind).reshape(x.shape[0], n, length, *x.shape[2:])
