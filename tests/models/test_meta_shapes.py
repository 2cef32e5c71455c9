"""Rules for operators without content, against what torch's kernels return on real tensors."""

import pytest
import torch
from torch import Tensor

from rwkvseg.models.meta_shapes import _RULES, quick_outputs

aten = torch.ops.aten
SHAPE = (2, 6, 5, 7)


def whole(*shape: int) -> Tensor:
    return torch.randn(shape)


def channels_last() -> Tensor:
    return torch.randn(2, 5, 7, 6).permute(0, 3, 1, 2)


def gaps() -> Tensor:
    return torch.randn(2, 12, 5, 7)[:, 3:9]


def stretched() -> Tensor:
    return torch.randn(2, 1, 5, 7).expand(SHAPE)


def cases():
    """Operator, arguments, and whether its rule shall know them."""
    x, w, eps = whole(*SHAPE), whole(6), 1e-5
    for func in (aten.relu.default, aten.gelu.default, aten.sigmoid.default, aten.neg.default):
        for tensor, known in ((x, True), (channels_last(), True), (gaps(), False), (stretched(), False)):
            yield func, (tensor,), known
    for func in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        for other in (whole(*SHAPE), whole(1, 6, 1, 1), whole(7), channels_last(), gaps(), whole(), 2.5):
            yield func, (x, other), True
        yield func, (channels_last(), channels_last()), True
        yield func, (channels_last(), x), False
        yield func, (whole(7), x), False
        yield func, (gaps(), gaps()), False
        yield func, (whole(2, 6, 5, 1), whole(2, 1, 5, 7)), False
        yield func, (x, x.to(torch.float64)), False
    yield aten.mul.Scalar, (x, 3), True
    yield aten.mul.Scalar, (x, 3j), False
    yield aten.relu.default, (torch.ones(3, dtype=torch.int64),), False
    yield aten.relu.default, (whole(),), True
    yield aten.threshold_backward.default, (x, whole(*SHAPE), 0), True
    yield aten.gelu_backward.default, (x, whole(*SHAPE)), True
    yield aten.sigmoid_backward.default, (x, channels_last()), True
    for grad in (x, channels_last(), gaps(), stretched()):
        training = (None, None, None, None, True, 0.1, eps)
        yield aten.native_batch_norm.default, (grad, w, w, *training[2:]), grad is x
        saved = (w, None, None, w, w.abs(), True, eps)
        yield aten.native_batch_norm_backward.default, (grad, x, *saved, [True, True, True]), True
        yield aten.native_batch_norm_backward.default, (x, grad, *saved, [True, True, False]), grad is x
        rows = (*SHAPE[:-1], 1)
        norm = [7], whole(*rows), whole(*rows), whole(7), whole(7)
        yield aten.native_layer_norm.default, (grad, [7], whole(7), whole(7), eps), True
        yield aten.native_layer_norm_backward.default, (grad, x, *norm, [True, True, True]), True
        yield aten.native_layer_norm_backward.default, (x, grad, *norm, [True, False, True]), True
    yield aten.native_layer_norm.default, (x, [5, 7], None, None, eps), True
    yield aten.native_batch_norm.default, (x, w, w, w, w.abs(), False, 0.1, eps), True
    for tensor, known in ((x, True), (gaps(), True), (channels_last(), False)):
        yield aten.upsample_bilinear2d.default, (tensor, [10, 3], False), known


CASES = list(cases())


@pytest.mark.parametrize(("func", "args", "known"), CASES, ids=[str(func) for func, *_ in CASES])
def test_a_rule_tells_what_a_kernel_returns(func, args, known):
    found = quick_outputs(func, tuple(without_content(x) for x in args), {})
    assert (found is not None) == known
    assert quick_outputs(func, args, {}) is None, "real tensors are computed"
    if known:
        expected = func(*args)
        assert described(found) == described(expected)


def without_content(x):
    if not isinstance(x, Tensor):
        return x
    # .to("meta") would lose what views share and skip
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def described(outputs):
    """Shapes, strides (where an axis has several places) and dtypes."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [
        x is not None
        and (x.shape, [n for n, size in zip(x.stride(), x.shape, strict=True) if size > 1], x.dtype)
        for x in outputs
    ]


def test_every_rule_is_tested_and_speaks():
    assert {func for func, _, known in CASES if known} == set(_RULES)


def test_named_arguments_are_left_to_torch():
    x = torch.empty(3, device="meta")
    assert quick_outputs(aten.add.Tensor, (x, x), {"alpha": 2}) is None
    assert quick_outputs(aten.gelu.default, (x,), {"approximate": "tanh"}) is None
    assert quick_outputs(aten.cumsum.default, (x, 0), {}) is None
