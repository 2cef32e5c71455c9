"""The export form of bi_wkv: its values, and what becomes of it in torch.export and ONNX."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode
from wkv_cases import Inputs, Results, errors, inputs, run

from onnx_files import check_onnx, open_onnx, write_onnx
from rwkvseg.ops import bi_wkv, naive_bi_wkv
from rwkvseg.ops.wkv import export
from rwkvseg.ops.wkv.export import export_bi_wkv

LENGTHS = (1, 2, 3, 7, 8, 9, 31, 63, 64, 65, 196, 513)
DECAYS = (-300.0, -30.0, -8.0, 0.0, 3.0, 30.0, 300.0, 5000.0)
KEYS = ("constant", "one-hot", "1", "10", "50")
REALISTIC = [(decay, keys) for decay in DECAYS[2:6] for keys in ("constant", "1", "10")]


def error(y: Tensor, x: Inputs) -> float:
    """Largest error of the output, in the units of `errors`."""
    exact = naive_bi_wkv(*x.to(torch.float64)[:4])
    return errors(Results(y, *x[:4]), Results(exact, *x.to(torch.float64)[:4]), x)["y"]


@pytest.mark.parametrize("num_tokens", [*LENGTHS, 1100])
def test_it_is_the_definition_with_all_gradients(num_tokens: int) -> None:
    x = inputs((2, num_tokens, 3), decay=-8.0).to(torch.float64)
    found = errors(run(export_bi_wkv, x), run(naive_bi_wkv, x), x)
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("num_tokens", [1, 3, 8, 9, 65, 513])
def test_float32_is_accurate(num_tokens: int) -> None:
    for decay in DECAYS:
        for keys in KEYS:
            x = inputs((2, num_tokens, 5), keys=keys, decay=decay)
            assert error(export_bi_wkv(*x[:4]), x) < 1e-5, (decay, keys)


def test_long_sequences() -> None:
    for decay in (-8.0, 3.0, 5000.0):
        x = inputs((1, 20_000, 2), decay=decay)
        exact = bi_wkv(*x.to(torch.float64)[:4])
        torch.testing.assert_close(export_bi_wkv(*x[:4]).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [300.0, 1e4, 1e30])
def test_keys_of_any_size(size: float) -> None:
    for decay in (-1e5, 0.0, 1e5):
        for num_tokens in (1, 33, 600):
            x = inputs((2, num_tokens, 5), keys=str(size), decay=decay)
            y = export_bi_wkv(*x[:4])
            assert y.isfinite().all(), (decay, num_tokens)
            assert error(y, x) < 1e-4, (decay, num_tokens)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 4)),
    decay=st.floats(-1000, 1000),
    bonus=st.floats(-1000, 1000),
    reach=st.floats(0, 1000),
    seed=st.integers(0, 2**31),
)
def test_the_output_lies_between_the_values(
    shape: tuple[int, int, int], decay: float, bonus: float, reach: float, seed: int
) -> None:
    x = inputs(shape, keys=str(reach), decay=decay, seed=seed)
    y = export_bi_wkv(x.w, x.u + bonus, x.k, x.v)
    assert (y <= x.v.amax(1, keepdim=True) + 1e-5).all()
    assert (y >= x.v.amin(1, keepdim=True) - 1e-5).all()


def test_tokens_can_be_masked() -> None:
    w, u, k, v, _ = inputs((2, 40, 3), decay=-8.0)
    k[0, 5:30] = -torch.inf
    torch.testing.assert_close(export_bi_wkv(w, u, k, v), naive_bi_wkv(w, u, k, v), rtol=1e-5, atol=1e-5)


def test_a_nan_stays_in_its_image_and_channel() -> None:
    w, u, k, v, _ = inputs((2, 33, 3))
    expected = export_bi_wkv(w, u, k, v)
    k[1, 5, 2] = torch.nan
    y = export_bi_wkv(w, u, k, v)
    assert y[1, :, 2].isnan().all()
    expected[1, :, 2] = y[1, :, 2] = 0
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("both", [True, False])
def test_low_precision_computes_in_float32(dtype: torch.dtype, both: bool) -> None:
    x = inputs((2, 63, 5)).to(dtype, both=both)
    y = export_bi_wkv(*x[:4])
    assert y.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(export_bi_wkv(*x[:4]), y)
    assert torch.equal(y, export_bi_wkv(*x.to(torch.float32)[:4]).to(dtype))


class Largest(TorchDispatchMode):
    """Sees every operator; notes the most elements that a tensor had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("num_tokens", [1000, 16_384, 100_000])
def test_memory_is_linear_in_the_tokens(num_tokens: int) -> None:
    with Largest() as largest:
        export_bi_wkv(*inputs((1, num_tokens, 1))[:4])
    assert largest.elements <= (export.LENGTH + 2) * (num_tokens + 2 * export.LENGTH)


class Module(nn.Module):
    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def forward(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bi_wkv(w, u, k, v, backend=self.backend)


SYMBOLIC = ({}, {}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})


def test_one_exported_program_is_for_all_sizes() -> None:
    # exported with less than one chunk; the ONNX file below with several
    program = torch.export.export(Module(), inputs((2, 5, 5))[:4], dynamic_shapes=SYMBOLIC)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "rwkvseg" in name]
    again = program.module()
    for batch, length in ((1, 1), (2, 2), (3, 8), (1, 9), (5, 17), (1, 100), (2, 700)):
        x = inputs((batch, length, 5))
        assert error(again(*x[:4]), x) < 1e-5, (batch, length)


def test_a_chosen_backend_is_exported_as_chosen() -> None:
    x = inputs((2, 9, 5))[:4]
    program = torch.export.export(Module("scan"), x)
    assert "rwkvseg.bi_wkv_scan" in str(program.graph)
    torch.testing.assert_close(torch.export.export(Module("naive"), x).module()(*x), naive_bi_wkv(*x))


@pytest.mark.slow
def test_one_onnx_file_is_for_all_sizes(tmp_path: Path) -> None:
    path = tmp_path / "bi_wkv.onnx"
    write_onnx(Module(), inputs((2, 20, 5))[:4], SYMBOLIC, path)
    check_onnx(path)
    bi_wkv_onnx = open_onnx(path)
    for batch, num_tokens in ((1, 1), (3, 2), (1, 7), (2, 8), (1, 9), (3, 65), (2, 196), (1, 590)):
        for decay, keys in REALISTIC:
            x = inputs((batch, num_tokens, 5), keys=keys, decay=decay)
            assert error(bi_wkv_onnx(*x[:4]), x) < 1e-5, (batch, num_tokens, decay, keys)
    for num_tokens in (1, 3, 33, 196):
        for decay in DECAYS:
            for keys in KEYS:
                x = inputs((2, num_tokens, 5), keys=keys, decay=decay)
                assert error(bi_wkv_onnx(*x[:4]), x) < 1e-4, (num_tokens, decay, keys)
        for decay, keys in ((-1e5, "1e30"), (1e5, "1e4"), (0.0, "1e30")):
            x = inputs((2, num_tokens, 5), keys=keys, decay=decay)
            assert bi_wkv_onnx(*x[:4]).isfinite().all(), (num_tokens, decay, keys)
