"""How bi_wkv behaves as an operator of torch: checks, compilation, autocast, refusals."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from wkv_cases import FORMS, Inputs, inputs, run

from rwkvseg.errors import BackendError, ShapeError, UsageError
from rwkvseg.ops import available_backends, bi_wkv
from rwkvseg.ops.wkv import fixed_reference, matmul, running_max, scan

SHAPE = (2, 13, 3)


@pytest.mark.parametrize(
    ("dtype", "both"),
    [(torch.float64, True), (torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)],
)
def test_opcheck(dtype: torch.dtype, both: bool) -> None:
    w, u, k, v, g = inputs(SHAPE).to(dtype, both=both)
    torch.library.opcheck(scan.scan_bi_wkv_backward, (w, u, k, v, g))
    leaves = tuple(x.requires_grad_() for x in (w, u, k, v))
    torch.library.opcheck(scan.scan_bi_wkv, leaves)
    strided = k.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    torch.library.opcheck(scan.scan_bi_wkv, (w, u, strided, v))


def test_compiles_into_one_graph() -> None:
    def network(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bi_wkv(w / k.shape[1], u, k * 2, v).tanh()

    x = inputs(SHAPE)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (13, 29):
        x = inputs((2, length, 3))
        torch.testing.assert_close(run(compiled, x), run(network, x), rtol=0, atol=0)


@pytest.fixture
def fast_matmul() -> Iterator[tuple[str, str]]:
    """Set the least precise products; yields what the two backends of torch then have set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield _matmul_settings()
    torch.set_float32_matmul_precision(before)


def _matmul_settings() -> tuple[str, str]:
    mkldnn: Any = torch.backends.mkldnn
    return torch.backends.cuda.matmul.fp32_precision, mkldnn.matmul.fp32_precision


def test_products_are_full_float32(fast_matmul: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def spy(*args: Any) -> Tensor:
        seen.append(_matmul_settings())
        return bmm(*args)

    bmm = torch.bmm
    assert fast_matmul == ("tf32", "bf16")
    monkeypatch.setattr(torch, "bmm", spy)
    monkeypatch.setattr(scan, "_choose_form", FORMS["products, float32"])
    run(bi_wkv, inputs((2, 63, 5)))
    assert set(seen) == {("ieee", "ieee")}
    assert _matmul_settings() == fast_matmul


def test_settings_come_back_after_an_error(fast_matmul: tuple[str, str]) -> None:
    w, u, k, v, _ = inputs(SHAPE)
    with pytest.raises(RuntimeError):
        matmul.forward(w, u, k, v[:, :-1], torch.empty_like(k))
    assert _matmul_settings() == fast_matmul


@pytest.mark.parametrize(
    ("backend", "form"), [*((name, "guard") for name in available_backends()), ("scan", "products, float32")]
)
def test_autocast_changes_no_bit(backend: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_choose_form", FORMS[form])

    def plain(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bi_wkv(w, u, k, v, backend=backend)

    def autocast(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(w, u, k, v)

    x = inputs((2, 63, 5))
    torch.testing.assert_close(run(autocast, x), run(plain, x), rtol=0, atol=0)


def test_the_guard_picks_the_form() -> None:
    def picked(keys: str, decay: float = 0.0, num_tokens: int = 63) -> tuple[object, torch.dtype]:
        w, u, k, _, _ = inputs((1, num_tokens, 5), keys=keys, decay=decay)
        return scan._choose_form(w, u, k)

    assert picked("10") == (fixed_reference, torch.float32)
    assert picked("10", num_tokens=3) == (fixed_reference, torch.float64)
    assert picked("50") == (fixed_reference, torch.float64)
    assert picked("10", decay=-300) == (fixed_reference, torch.float64)
    assert picked("400") == (running_max, torch.float64)
    assert picked("10", decay=-3000) == (running_max, torch.float64)
    assert picked("nan") == (running_max, torch.float64)


def test_second_derivatives_are_refused() -> None:
    w, u, k, v, _ = inputs(SHAPE)
    k.requires_grad_()
    (gk,) = torch.autograd.grad(bi_wkv(w, u, k, v).sum(), k, create_graph=True)
    with pytest.raises(BackendError, match="second derivative"):
        torch.autograd.grad(gk.sum(), k)


def test_vmap_is_refused() -> None:
    w, u, k, v, _ = inputs(SHAPE)
    with pytest.raises(BackendError, match="vmap"):
        torch.vmap(bi_wkv, in_dims=(None, None, 0, 0))(w, u, k[:, None], v[:, None])


def test_only_the_inputs_are_saved() -> None:
    kept: list[tuple[int, ...]] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    leaves = [x.requires_grad_() for x in inputs(SHAPE)[:4]]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        bi_wkv(*leaves)
    assert kept == [(3,), (3,), SHAPE, SHAPE]


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("k", (2, 13), r"\(2, 13\)"),
        ("k", (2, 0, 3), r"\(2, 0, 3\)"),
        ("v", (2, 12, 3), r"\(2, 12, 3\).*\(2, 13, 3\)"),
        ("w", (4,), r"\(4,\).*3 channels"),
        ("u", (1, 3), r"\(1, 3\).*3 channels"),
    ],
)
def test_shapes_are_checked(name: str, shape: tuple[int, ...], says: str) -> None:
    w, u, k, v, _ = inputs(SHAPE)._replace(**{name: torch.zeros(shape)})
    with pytest.raises(ShapeError, match=says):
        bi_wkv(w, u, k, v)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32, torch.float32, torch.bfloat16),
        (torch.float32, torch.float64, torch.float32, torch.float32),
        (torch.float32, torch.float32, torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32),
        (torch.int64, torch.int64, torch.int64, torch.int64),
    ],
)
def test_dtypes_are_checked(dtypes: tuple[torch.dtype, ...]) -> None:
    arguments = [x.to(dtype) for x, dtype in zip(inputs(SHAPE)[:4], dtypes, strict=True)]
    with pytest.raises(UsageError, match=str(dtypes[2]).removeprefix("torch.")):
        bi_wkv(*arguments)


def test_devices_are_checked() -> None:
    w, u, k, v, _ = inputs(SHAPE)
    with pytest.raises(UsageError, match="cpu, cpu, cpu, meta"):
        bi_wkv(w, u, k, v.to("meta"))


def test_an_impossible_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"'triton' is not available.*'scan'"):
        bi_wkv(*inputs(SHAPE)[:4], backend="triton")
    with pytest.raises(BackendError, match="'naive', 'scan', 'triton'"):
        bi_wkv(*inputs(SHAPE)[:4], backend="fast")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", ["guard", "running maximum, float64"])
@pytest.mark.usefixtures("fast_matmul")
def test_cuda_agrees_with_the_cpu(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs((2, 196, 33))
    expected = run(bi_wkv, x)
    # without it, matrix products refuse the deterministic mode that conftest.py sets
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(scan, "_choose_form", FORMS[form])
    found = run(bi_wkv, Inputs(*(part.cuda() for part in x)))
    torch.testing.assert_close([part.cpu() for part in found], list(expected), rtol=1e-4, atol=1e-4)
