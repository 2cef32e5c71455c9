"""The one rule by which every operator picks the implementation that runs, and the refusals they share.

"auto" takes "triton" for CUDA tensors that Triton can handle, and the operator's plain-torch form everywhere
else and while a graph is exported. An explicit choice is obeyed or refused, never silently replaced.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

import torch
from torch import Tensor

from rwkvseg.errors import BackendError, UsageError

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What a kernel takes if its operator says nothing else."""

# torch before 2.13 calls it exporting, too, when torch.compile traces; its strict export then looks the same
_CONFUSES_COMPILING = torch.__version__ < "2.13"
_OLDEST_GPU = 7  # major compute capability that Triton compiles for
_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None  # found, not imported
try:
    _TRITON_VERSION = version("triton")
except PackageNotFoundError:  # or under another name, as on Windows
    _TRITON_VERSION = ""
GLUON_VERSIONS = ("3.6.",)
"""Triton releases whose Gluon, an experiment there, our kernels in it were tried with."""
# Triton builds what launches its kernels in C, by the first of these; on Windows it brings a compiler along
_C_COMPILER = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc") or os.name == "nt"


def triton_is_installed() -> bool:
    """Return whether Triton can be imported here."""
    return _TRITON_IS_INSTALLED


def gluon_was_tried() -> bool:
    """Return whether our kernels in Gluon may run with this release of Triton; elsewhere others do."""
    return _TRITON_VERSION.startswith(GLUON_VERSIONS)


def choose_backend(
    backend: str,
    tensors: Sequence[Tensor],
    *,
    available: tuple[str, ...],
    fallback: str,
    triton_dtypes: tuple[torch.dtype, ...] = TRITON_DTYPES,
) -> str:
    """Return which of the `available` implementations runs on these tensors.

    Args:
        backend: "auto", or one of `available`.
        tensors: What the operator was called with.
        available: Names of the operator's implementations; "triton" counts only if it is among them.
        fallback: The plain-torch one, which "auto" takes wherever it does not take "triton".
        triton_dtypes: What the operator's Triton kernels take.

    Raises:
        BackendError: `backend` is unknown or cannot run here; the message says why.

    Example:
        >>> choose_backend("auto", [torch.zeros(3)], available=("torch", "triton"), fallback="torch")
        'torch'
    """
    if backend == "auto":
        on_gpu = tensors[0].device.type == "cuda" and not is_exporting()
        wanted = on_gpu and "triton" in available and not _carry_tangents(tensors)
        return "triton" if wanted and why_not_triton(tensors, triton_dtypes) is None else fallback
    if backend not in available:
        names = ", ".join(map(repr, available))
        raise BackendError(f"unknown backend {backend!r}; use 'auto', {names}")
    if backend == "triton" and (reason := why_not_triton(tensors, triton_dtypes)) is not None:
        raise BackendError(f"backend 'triton' is not available: {reason}. Use {fallback!r} or 'auto'")
    if backend == "triton":
        refuse_forward_mode(*tensors, name="this operator", backend=backend, instead=fallback)
    return backend


def is_exporting() -> bool:
    """Whether torch.export is at work, strict or not; inside torch.compile it is not.

    Example:
        >>> is_exporting()
        False
    """
    if _CONFUSES_COMPILING and torch.compiler.is_dynamo_compiling():
        return False
    return torch.compiler.is_exporting()


_recordings = 0  # of this process; a backward pass runs in a thread of its own


@contextmanager
def launches_recorded() -> Iterator[None]:
    """Say that what is launched in here is recorded, as a CUDA graph, and replayed, or leads up to it.

    An operator that saves memory traffic but takes long to launch gains there, and only there.

    Example:
        >>> with launches_recorded():
        ...     launches_are_recorded()
        True
        >>> launches_are_recorded()
        False
    """
    global _recordings
    _recordings += 1
    try:
        yield
    finally:
        _recordings -= 1


def launches_are_recorded() -> bool:
    """Whether the caller is inside `launches_recorded`."""
    return _recordings > 0


def why_not_triton(
    tensors: Sequence[Tensor], triton_dtypes: tuple[torch.dtype, ...] = TRITON_DTYPES
) -> str | None:
    """Say what keeps Triton kernels from running on these tensors; None if nothing does.

    Tensors on the CPU count as runnable with TRITON_INTERPRET=1 in the environment: slow, for tests.
    """
    if not triton_is_installed():
        return "the package triton is not installed"
    if is_exporting():
        return "an exported graph holds standard operators only"
    device = tensors[0].device
    if device.type == "cuda":
        # torch.compile's tracer cannot ask the GPU, and its own compiler needs one as new
        compiling = torch.compiler.is_compiling()
        if not compiling and (major := torch.cuda.get_device_properties(device).major) < _OLDEST_GPU:
            return f"{device} has compute capability {major}.x, and Triton needs {_OLDEST_GPU}.0"
        if not _C_COMPILER:
            return "it builds small launchers in C and finds no compiler (CC, clang or gcc)"
    elif device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {device}, and Triton runs on cuda (or anywhere, slowly, interpreted)"
    for x in tensors:
        if x.dtype not in triton_dtypes:
            return f"its kernels do not take {x.dtype}"
    return None


def check_floating(**tensors: Tensor) -> None:
    """Refuse tensors that are not floating point or lie on several devices.

    Raises:
        UsageError: naming every tensor, its dtype and its device.
    """
    devices = {x.device for x in tensors.values()}
    if len(devices) > 1 or not all(x.is_floating_point() for x in tensors.values()):
        found = ", ".join(f"{name} {x.dtype} on {x.device}" for name, x in tensors.items())
        raise UsageError(f"got {found}; give floating-point tensors on one device")


def _carry_tangents(tensors: Sequence[Tensor]) -> bool:
    """Whether one of the tensors is differentiated in forward mode."""
    forward_ad: Any = torch.autograd.forward_ad
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def refuse_forward_mode(*tensors: Tensor, name: str, backend: str, instead: str) -> None:
    """Refuse what carries a tangent: torch would take the derivative of a custom operator for zero.

    Raises:
        BackendError: one of the tensors is differentiated in forward mode.
    """
    if _carry_tangents(tensors):
        raise BackendError(
            f"backend {backend!r} of {name} has no derivative in forward mode (jvp); "
            f"use backend={instead!r} for it, or reverse mode"
        )


def refuse_transforms(forward: Any, backward: Any, *, name: str, backend: str, instead: str) -> None:
    """Make two custom operators of torch, an operator and its gradient, refuse vmap and second derivatives.

    Args:
        forward: From torch.library.custom_op.
        backward: The same; `forward` calls it for its gradients.
        name: What users call the operator.
        backend: Which of its backends this is.
        instead: The backend that can do both.
    """

    def refuse_second_derivative(ctx: Any, *gradients: Any) -> NoReturn:
        raise BackendError(
            f"backend {backend!r} of {name} has no second derivative; use backend={instead!r} for it"
        )

    for operator in (forward, backward):
        refuse_vmap(operator, name=name, backend=backend, instead=instead)
    backward.register_autograd(refuse_second_derivative)


def refuse_vmap(operator: Any, *, name: str, backend: str, instead: str) -> None:
    """Make a custom operator of torch refuse vmap; see `refuse_transforms` for the arguments."""

    def refuse(*args: Any) -> NoReturn:
        raise BackendError(
            f"backend {backend!r} of {name} does not run under vmap; use backend={instead!r} there"
        )

    operator.register_vmap(refuse)
