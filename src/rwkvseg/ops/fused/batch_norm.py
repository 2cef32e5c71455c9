"""Batch norm of maps with what follows it in a convolutional block: an activation, and a residual's addition.

B: images, C: channels, H, W: rows and columns.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops.backends import check_floating, choose_backend
from rwkvseg.ops.fused.batch_norm_operators import triton_batch_norm_act, triton_batch_statistics

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
}


def naive_batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    residual: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Norm, activation and addition by torch, one after the other; see below."""
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    y: Tensor = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y = _ACTIVATIONS[activation](y)
    return y if residual is None else residual + y


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    residual: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Normalise each channel of maps, activate, add a residual: residual + activation(batch_norm(x)).

    Mean, variance and running statistics are those of torch's batch norm (arXiv:1502.03167). The result has
    the dtype of x whatever autocast says. The Triton form computes in float32 and keeps x and two numbers a
    channel for the backward pass; the same input gives the same bits, gradients included.

    Args:
        x: Maps (B, C, H, W), any size >= 1 along every axis.
        weight: (C,), dtype of x, or float32 beside a 16-bit x; None: 1.
        bias: As `weight`; None: 0.
        running_mean: (C,), changed in place where `training`; else what x is centred by. None: not kept.
        running_var: As `running_mean`, of the variance (without bias).
        training: Whether mean and variance are those of x, or the running ones.
        momentum: Share of x in the running statistics.
        eps: Added to the variance.
        activation: "identity", "relu" or "silu".
        residual: Shape and dtype of x.
        num_batches_tracked: One integer, which counts what was trained on.
        backend: "auto" takes the fastest for the device, torch's own operators unless all tensors are given
            and maps are channels-last; "torch" is those; "triton" is without second derivative and vmap, and
            needs weights, bias and running statistics.

    Returns:
        Shape and dtype of x; channels-last with "triton".

    Raises:
        ShapeError: the shapes do not fit together, or an axis is empty.
        UsageError: dtypes that do not go together, several devices, an unknown activation, tensors missing.
        BackendError: an unknown backend, or one that cannot run here.
        ValueError: torch's own, of a single pixel in training.

    Example:
        >>> x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        >>> ones, zeros = torch.ones(1), torch.zeros(1)
        >>> out = batch_norm_act(x, ones, zeros, None, None, training=True, activation="relu")
        >>> out.flatten().round(decimals=3)
        tensor([0., 1.])
    """
    tensors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    _check(x, tensors, residual, activation)
    given = [part for part in tensors.values() if part is not None]
    maps = [x] if residual is None else [x, residual]
    kept = [part for part in (running_mean, running_var) if part is not None and part.is_contiguous()]
    backend = _choose(backend, maps, given, complete=len(given) == 4 and len(kept) == 2)
    single = training and x.numel() == x.shape[1]  # which torch refuses
    if backend == "torch" or single:
        return naive_batch_norm_act(
            x, weight, bias, running_mean, running_var,
            training=training, momentum=momentum, eps=eps, activation=activation, residual=residual,
            num_batches_tracked=num_batches_tracked,
        )  # fmt: skip
    weight, bias, mean, variance = given
    if training:
        mean, variance = triton_batch_statistics(x.detach(), mean, variance, num_batches_tracked, momentum)
    out: Tensor = triton_batch_norm_act(x, weight, bias, mean, variance, residual, eps, activation, training)
    return out


def _choose(backend: str, maps: list[Tensor], given: list[Tensor], *, complete: bool) -> str:
    if backend == "auto" and not complete:
        return "torch"
    chosen = choose_backend(backend, [*maps, *given], available=("torch", "triton"), fallback="torch")
    # asked last, since an exported graph is for all sizes
    if backend == "auto" and chosen == "triton" and not all(_is_channels_last(x) for x in maps):
        return "torch"
    if chosen == "triton" and not complete:
        raise UsageError(
            "weight, bias, running_mean or running_var is None, or a running one is not contiguous, which "
            "backend 'triton' does not take. Give all of them, or use 'auto'"
        )
    return chosen


def _is_channels_last(x: Tensor) -> bool:
    return x.permute(0, 2, 3, 1).is_contiguous()  # of a view: vmap answers no other question


def _check(x: Tensor, tensors: dict[str, Tensor | None], residual: Tensor | None, activation: str) -> None:
    if x.ndim != 4 or 0 in x.shape:
        raise ShapeError(f"x has shape {tuple(x.shape)}; give maps (B, C, H, W), every axis at least 1")
    if activation not in _ACTIVATIONS:
        names = ", ".join(map(repr, _ACTIVATIONS))
        raise UsageError(f"activation {activation!r} is not known; give one of {names}")
    if residual is not None and residual.shape != x.shape:
        raise ShapeError(f"residual has shape {tuple(residual.shape)} and x {tuple(x.shape)}; give one shape")
    given = {name: part for name, part in tensors.items() if part is not None}
    for name, part in given.items():
        if part.shape != x.shape[1:2]:
            raise ShapeError(
                f"{name} has shape {tuple(part.shape)} but x has {x.shape[1]} channels; give (C,)"
            )
    beside = {} if residual is None else {"residual": residual}
    check_floating(x=x, **beside, **given)
    allowed = (x.dtype, torch.float32) if x.dtype.itemsize == 2 else (x.dtype,)
    wrong = any(part.dtype not in allowed for part in given.values())
    apart = len({given[name].dtype for name in ("weight", "bias") if name in given}) == 2
    if wrong or apart or any(part.dtype != x.dtype for part in beside.values()):
        found = ", ".join(f"{name} {part.dtype}" for name, part in {"x": x, **beside, **given}.items())
        raise UsageError(f"got {found}; give one floating dtype, or float32 beside a 16-bit x and residual")
