"""The dispatch rule, on stand-ins for tensors of machines that are not here."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rwkvseg.errors import BackendError, UsageError
from rwkvseg.ops import backends, bi_wkv
from rwkvseg.ops.backends import check_floating, choose_backend


def tensor(device: str, dtype: torch.dtype = torch.float32) -> Any:
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


def choose(backend: str, *tensors: Any, available: tuple[str, ...] = ("scan", "triton")) -> str:
    return choose_backend(backend, tensors, available=available, fallback="scan")


@pytest.fixture(autouse=True)
def gpu_with_triton(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of compute capability 9, triton installed, no interpreter."""
    properties = SimpleNamespace(major=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(backends, "_TRITON_IS_INSTALLED", True)
    monkeypatch.setattr(backends, "_C_COMPILER", "cc")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return properties


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_takes_triton(dtype: torch.dtype) -> None:
    assert choose("auto", tensor("cuda:1", dtype)) == "triton"
    assert choose("triton", tensor("cuda:1", dtype)) == "triton"
    assert choose("scan", tensor("cuda:1", dtype)) == "scan"
    assert choose("auto", tensor("cuda", dtype), available=("scan",)) == "scan"


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_other_devices_take_the_plain_form(device: str) -> None:
    assert choose("auto", tensor(device)) == "scan"
    with pytest.raises(BackendError, match=rf"not available.*on {device}.*'scan'"):
        choose("triton", tensor(device))


def test_the_interpreter_counts_for_an_explicit_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton", tensor("cpu")) == "triton"
    assert choose("auto", tensor("cpu")) == "scan"
    with pytest.raises(BackendError, match="mps"):
        choose("triton", tensor("mps"))


def test_every_dtype_counts() -> None:
    tensors = (tensor("cuda"), tensor("cuda", torch.float64))
    assert choose("auto", *tensors) == "scan"
    with pytest.raises(BackendError, match="float64"):
        choose("triton", *tensors)
    dtypes = (torch.float32, torch.float64)
    arguments: Any = {"available": ("scan", "triton"), "fallback": "scan", "triton_dtypes": dtypes}
    assert choose_backend("auto", tensors, **arguments) == "triton"


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_TRITON_IS_INSTALLED", False)
    assert choose("auto", tensor("cuda")) == "scan"
    with pytest.raises(BackendError, match="not installed"):
        choose("triton", tensor("cuda"))


def test_without_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_C_COMPILER", None)
    assert choose("auto", tensor("cuda")) == "scan"
    with pytest.raises(BackendError, match=r"no compiler \(CC, clang or gcc\)"):
        choose("triton", tensor("cuda"))


def test_an_old_gpu(gpu_with_triton: SimpleNamespace) -> None:
    gpu_with_triton.major = 6
    assert choose("auto", tensor("cuda")) == "scan"
    with pytest.raises(BackendError, match=r"6\.x"):
        choose("triton", tensor("cuda"))


def test_exporting_takes_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert choose("auto", tensor("cuda")) == "scan"
    with pytest.raises(BackendError, match="exported"):
        choose("triton", tensor("cuda"))


def test_an_unknown_name() -> None:
    with pytest.raises(BackendError, match=r"'fast'; use 'auto', 'scan', 'triton'"):
        choose("fast", tensor("cuda"))


def test_kinds() -> None:
    check_floating(a=torch.zeros(1), b=torch.zeros(1, dtype=torch.float16))
    with pytest.raises(UsageError, match=r"a torch\.float32 on cpu, b torch\.int32 on cpu"):
        check_floating(a=torch.zeros(1), b=torch.zeros(1, dtype=torch.int32))
    with pytest.raises(UsageError, match="on one device"):
        check_floating(a=torch.zeros(1), b=torch.zeros(1, device="meta"))


def test_torch_compile_traces_the_choice_without_asking_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(device: torch.device) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(torch.cuda, "get_device_properties", ask)
    seen: list[str] = []

    def keep(graph: Any, example_inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with FakeTensorMode():
        w, k = torch.empty(5, device="cuda"), torch.empty(2, 7, 5, device="cuda")
        network = torch.compile(lambda w, k: bi_wkv(w, w, k, k) * 2, fullgraph=True, backend=keep)
        assert network(w, k).device.type == "cuda"
    assert any("bi_wkv_triton" in target for target in seen), seen
