"""Values and gradients of bi_wkv against its definition in float64."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from wkv_cases import FORMS, Inputs, Operator, Results, errors, inputs, run

from rwkvseg.errors import BackendError, UsageError
from rwkvseg.ops import available_backends, bi_wkv, naive_bi_wkv
from rwkvseg.ops.wkv import scan

SHAPES = [(1, 1, 1), (3, 1, 5), (1, 2, 3), (2, 3, 5), (2, 63, 5), (1, 196, 17), (2, 31, 16)]
DECAYS = (-300.0, -30.0, -8.0, 0.0, 3.0, 30.0, 300.0, 5000.0)
KEYS = ("constant", "one-hot", "1", "10", "50")
scan_bi_wkv: Operator = partial(bi_wkv, backend="scan")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    monkeypatch.setattr(scan, "_choose_form", FORMS[name])
    return name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", available_backends())
def test_every_backend_agrees_with_the_definition(shape: tuple[int, int, int], backend: str) -> None:
    x = inputs(shape).to(torch.float64)
    found = errors(run(partial(bi_wkv, backend=backend), x), run(naive_bi_wkv, x), x)
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 33, 196])
def test_float32_is_accurate_in_every_form(num_tokens: int, form: str) -> None:
    for decay in DECAYS:
        for keys in KEYS:
            if "float32" in form and (num_tokens <= scan.SHORT or keys == "50" or decay < -30):
                continue  # the guard never sends these there
            if form.endswith("float64") and "maximum" not in form and keys == "50" and decay == -300:
                continue
            x = inputs((2, num_tokens, 5), keys=keys, decay=decay)
            exact = run(naive_bi_wkv, x.to(torch.float64))
            found = errors(run(scan_bi_wkv, x), exact, x)
            assert max(found.values()) < 1e-5, (decay, keys, found)


@pytest.mark.parametrize("bonus", [-20.0, 20.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_gradients_survive_cancellation(bonus: float, offset: float) -> None:
    for keys in KEYS:
        x = inputs((2, 63, 5), keys=keys)
        x = x._replace(u=x.u + bonus, v=x.v + offset)
        found = errors(run(scan_bi_wkv, x), run(naive_bi_wkv, x.to(torch.float64)), x)
        assert max(found.values()) < 1e-5, (keys, found)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 14])
def test_gradcheck(num_tokens: int, form: str) -> None:
    if "float32" in form:
        pytest.skip("gradcheck needs float64")
    leaves = [part.requires_grad_() for part in inputs((2, num_tokens, 3), keys="2").to(torch.float64)[:4]]
    assert torch.autograd.gradcheck(scan_bi_wkv, leaves, atol=1e-7)


@pytest.mark.parametrize("size", [300.0, 1e4, 1e30])
def test_keys_of_any_size(size: float) -> None:
    for decay in (-1e5, 0.0, 1e5):
        x = inputs((2, 33, 5), keys=str(size), decay=decay)
        found = errors(run(scan_bi_wkv, x), run(naive_bi_wkv, x.to(torch.float64)), x)
        assert max(found.values()) < 1e-5, (decay, found)


def test_a_nan_stays_in_its_image_and_channel() -> None:
    w, u, k, v, _ = inputs((2, 33, 3))
    expected = bi_wkv(w, u, k, v)
    k[1, 5, 2] = torch.nan
    out = bi_wkv(w, u, k, v)
    assert out[1, :, 2].isnan().all()
    expected[1, :, 2] = out[1, :, 2] = 0
    torch.testing.assert_close(out, expected)


def test_float64_scan_holds_for_a_thousand_tokens() -> None:
    x = inputs((1, 1000, 2), decay=-8.0).to(torch.float64)
    found = errors(run(scan_bi_wkv, x), run(naive_bi_wkv, x), x)
    assert max(found.values()) < 1e-11, found


@pytest.mark.parametrize("decay", [-8.0, 3.0, 5000.0])
def test_long_sequences(decay: float) -> None:
    x = inputs((1, 40_000, 3), decay=decay)
    found = errors(run(scan_bi_wkv, x), run(scan_bi_wkv, x.to(torch.float64)), x)
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("num_tokens", [1023, 1024, 2049, 5000, 70_000])
def test_products_hold_for_long_sequences(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for decay in (-8.0, 3.0, 5000.0):
        x = inputs((1, num_tokens, 2), decay=decay)
        monkeypatch.setattr(scan, "_choose_form", FORMS["recurrence, float64"])
        exact = run(scan_bi_wkv, x.to(torch.float64))
        monkeypatch.setattr(scan, "_choose_form", FORMS["products, float32"])
        found = errors(run(scan_bi_wkv, x), exact, x)
        assert max(found.values()) < 1e-5, (decay, found)


@pytest.mark.parametrize(
    ("num_tokens", "bonus"),
    [(15, -20.0), (16, 0.0), (17, 20.0), (31, 0.0), *((t, b) for t in (33, 1025) for b in (-20.0, 20.0))],
)
def test_products_hold_at_the_limit_of_the_guard(
    num_tokens: int, bonus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_choose_form", FORMS["products, float32"])
    for decay, keys in ((-26.0, "0"), (0.0, "13"), (500.0, "13")):
        x = inputs((2, num_tokens, 3), keys=keys, decay=decay)
        x = x._replace(u=torch.full_like(x.u, bonus))
        assert scan._span(x.w, x.u, x.k) < scan.LIMIT[torch.float32]
        found = errors(run(scan_bi_wkv, x), run(naive_bi_wkv, x.to(torch.float64)), x)
        assert max(found.values()) < 1e-5, (decay, keys, found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("both", [True, False], ids=["16-bit decay", "float32 decay"])
@pytest.mark.parametrize("form", ["guard", "products, float32"])
def test_low_precision_is_as_good_as_the_definition(
    dtype: torch.dtype, both: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_choose_form", FORMS[form])
    for keys, decay in (("1", 0.0), ("10", 3.0), ("10", -8.0), ("50" if form == "guard" else "20", 30.0)):
        x = inputs((2, 63, 5), keys=keys, decay=decay).to(dtype, both=both)
        exact = run(naive_bi_wkv, x.to(torch.float64))
        ours = run(scan_bi_wkv, x)
        for name, a, leaf in zip(Results._fields, ours, (x.k, *x[:4]), strict=True):
            assert a.dtype == leaf.dtype, name
        found = errors(ours, exact, x)
        allowed = errors(run(partial(bi_wkv, backend="naive"), x), exact, x)
        # a gradient in float32 may owe its small error to luck: float32's own accuracy is always allowed
        assert all(found[name] <= max(2 * allowed[name], 1e-6) for name in found), (found, allowed)


def test_the_same_bits_twice(form: str) -> None:
    x = inputs((5, 63, 7))
    for first, second in zip(run(scan_bi_wkv, x), run(scan_bi_wkv, x), strict=True):
        assert torch.equal(first, second)


def test_groups_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs((5, 63, 7))
    whole = run(scan_bi_wkv, x)
    monkeypatch.setattr(scan, "CACHED_ELEMENTS", 2 * 63 * 7)
    parts = run(scan_bi_wkv, x)
    assert torch.equal(parts.y, whole.y)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def spread(x: Tensor) -> Tensor:
    """Return an equal tensor whose elements lie apart and in another order."""
    return x.repeat_interleave(2, dim=-1).transpose(0, -1).contiguous().transpose(0, -1)[..., ::2]


def test_strided_inputs_and_gradients(form: str) -> None:
    x = inputs((2, 31, 5))
    expected = run(scan_bi_wkv, x)
    apart = Inputs(*map(spread, x))
    assert not apart.k.is_contiguous()
    leaves = [part.detach().requires_grad_() for part in apart[:4]]
    y = scan_bi_wkv(*leaves)
    assert y.is_contiguous()
    found = Results(y.detach(), *torch.autograd.grad(y, leaves, apart.g))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    y = scan_bi_wkv(*leaves)
    ones = torch.autograd.grad(y.sum(), leaves)  # its gradient is one expanded number
    again = torch.autograd.grad(scan_bi_wkv(*leaves), leaves, torch.ones_like(y))
    torch.testing.assert_close(ones, again, rtol=1e-6, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6)),
    decay=st.floats(-50, 500),
    reach=st.floats(0, 60),
    seed=st.integers(0, 2**31),
)
def test_properties_of_a_weighted_mean(
    shape: tuple[int, int, int], decay: float, reach: float, seed: int
) -> None:
    x = inputs(shape, keys=str(reach), decay=decay, seed=seed).to(torch.float64)
    w, u, k, v, _ = x
    out = scan_bi_wkv(w, u, k, v)
    assert (out <= v.amax(1, keepdim=True) + 1e-12).all()
    assert (out >= v.amin(1, keepdim=True) - 1e-12).all()
    torch.testing.assert_close(scan_bi_wkv(w, u, k + 3, v), out)
    torch.testing.assert_close(scan_bi_wkv(w, u, k, 2 - 5 * v), 2 - 5 * out)
    torch.testing.assert_close(scan_bi_wkv(w, u, k.flip(1), v.flip(1)), out.flip(1))
    found = errors(run(scan_bi_wkv, x), run(naive_bi_wkv, x), x)
    assert max(found.values()) < 1e-10, found


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own code
@pytest.mark.parametrize("backend", ["scan", "auto"])
def test_forward_mode_is_refused_rather_than_zero(backend: str) -> None:
    w, u, k, v, g = inputs((2, 9, 4)).to(torch.float64)
    with pytest.raises(BackendError, match="no derivative in forward mode"):
        torch.func.jvp(lambda x: bi_wkv(w, u, x, v, backend=backend), (k,), (g,))
    _, found = torch.func.jvp(lambda x: bi_wkv(w, u, x, v, backend="naive"), (k,), (g,))
    step = 1e-6 * g
    expected = (bi_wkv(w, u, k + step, v) - bi_wkv(w, u, k - step, v)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_what_is_no_tensor_is_named() -> None:
    w, u, k, v, _ = inputs((2, 9, 4))
    with pytest.raises(UsageError, match="are tensors, got ndarray, list; convert"):
        bi_wkv(w.numpy(), u.tolist(), k, v)  # type: ignore[arg-type]
