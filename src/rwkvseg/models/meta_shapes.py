"""What operators return on torch's device "meta", told at once.

There torch takes many of them apart in Python, which lasts up to a hundred times as long as a rule that knows
their shapes. A rule answers None where it does not know them; then torch is to be asked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
META = torch.device("meta")


def quick_outputs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """Outputs without content of the operator `func`, or None where torch itself must say.

    They have the sizes, strides and dtype that torch's kernels give them: tests/models/test_meta_shapes.py.
    """
    rule = _RULES.get(func)
    return None if rule is None or kwargs or not all(map(_is_plain, args)) else rule(*args)


class QuickShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it operators on "meta" return what the rules tell, and the others what torch tells."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = quick_outputs(func, args, kwargs)
        return func(*args, **(kwargs or {})) if outputs is None else outputs


def _is_plain(x: Any) -> bool:
    """Whether it is a float32 tensor on "meta", or none."""
    return not isinstance(x, Tensor) or (x.device == META and x.dtype == torch.float32)


def _like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), device=META)


def _new(sizes: Sequence[int]) -> Tensor:
    return torch.empty(sizes, device=META)


def _one_by_one(x: Tensor, *others: Any) -> Tensor | None:
    """Of operators that take each number for itself, with one of the same place of others: x goes before."""
    tensors = [other for other in others if isinstance(other, Tensor)]
    if any(isinstance(other, complex) for other in others):
        return None
    if x.is_contiguous():
        return _like(x) if all(_reaches(other, x) for other in tensors) else None
    alike = all((other.shape, other.stride()) == (x.shape, x.stride()) for other in tensors)
    return _like(x) if alike and _is_dense(x) else None


def _reaches(other: Tensor, x: Tensor) -> bool:
    """Whether it can be broadcast to the shape of x."""
    sides = zip(reversed(other.shape), reversed(x.shape), strict=False)
    return other.dim() <= x.dim() and all(side in (1, wanted) for side, wanted in sides)


def _is_dense(x: Tensor) -> bool:
    """Whether its numbers lie side by side, in whatever order of the axes."""
    step = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if stride != step or size < 2:
            return False
        step *= size
    return True


def _layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    moments = (*x.shape[: x.dim() - len(shape)], *(1 for _ in shape))
    return _new(x.shape), _new(moments), _new(moments)


def _batch_norm(x: Tensor, *others: Any) -> tuple[Tensor, ...] | None:
    *_, training, _momentum, _eps = others
    moments = x.shape[1:2] if training else (0,)
    return (_like(x), _new(moments), _new(moments)) if x.is_contiguous() else None


def _layer_norm_backward(_: Tensor, x: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
    weight, bias, wanted = others[-3:]
    return _gradients((x, weight, bias), wanted)


def _batch_norm_backward(_: Tensor, x: Tensor, weight: Tensor | None, *others: Any) -> Any:
    training, _eps, wanted = others[-3:]
    if not training or weight is None or not x.is_contiguous():
        return None
    return _gradients((x, weight, weight), wanted)


def _gradients(of: Sequence[Tensor | None], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(
        _new(x.shape) if want and x is not None else None for x, want in zip(of, wanted, strict=True)
    )


def _resized(x: Tensor, size: Sequence[int], *_: Any) -> Tensor | None:
    return None if x.stride(1) == 1 and x.shape[1] > 1 else _new((*x.shape[:2], *size))


_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        [
            *(aten.relu.default, aten.gelu.default, aten.sigmoid.default, aten.mul.Scalar, aten.neg.default),
            *(aten.threshold_backward.default, aten.gelu_backward.default, aten.sigmoid_backward.default),
            *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor),
        ],
        _one_by_one,
    ),
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.upsample_bilinear2d.default: _resized,
}
