"""Options of bi_wkv from shared memory that save instructions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from gluon_emulator import Kernel, emulated
from shared_cases import HOPPER, LONG_MODULES, ON_GPU, Watched, check, on_gpu, triton_bi_wkv
from torch import Tensor
from wkv_cases import errors, inputs, run

from rwkvseg.ops import bi_wkv
from rwkvseg.ops.wkv import tiled, tiled_long

pytest.importorskip("triton", reason="the package triton is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning"),
]
FORWARD: list[dict[str, Any]] = [{"UNROLLED": 1}, {"UNROLLED": 8}]
LONG: list[dict[str, Any]] = [{"KEPT": True}, {"LONG_UNROLLED": 2}, {"LEAN": 1}, {"LEAN": 3}]
LONG += [{"KEPT": True, "LEAN": 3, "LONG_UNROLLED": 8}]
BACKWARD: list[dict[str, Any]] = [{"LEAN": 2}, {"BACK_UNROLLED": 2}, {"BACK_UNROLLED": 2, "LEAN": 3}]
BACKWARD += [{"BACK_UNROLLED": 2, "LEAN": 3, "KEPT": True}]
ODD = tiled.Tiling(block=3, blocks=3, chunks=16, channels=16, warps=4)
EVEN = tiled.Tiling(block=4, blocks=4, chunks=16, channels=16, warps=4)
Setup = Callable[..., list[Tensor]]


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return emulated(*LONG_MODULES)


@pytest.fixture
def emulate(kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Return what sends whole tiles, or sequences of several, to the emulated kernels, with these options."""
    if ON_GPU:
        pytest.skip("emulated where Triton's kernels are interpreted")

    def setup(tile: tiled.Tiling, options: dict[str, Any], *, read: int = 64) -> list[Tensor]:
        flags: list[Tensor] = []
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        for name, value in options.items():
            monkeypatch.setattr(tiled, name, value)
        monkeypatch.setattr(tiled, "kept_fits", lambda *_: True)
        monkeypatch.setattr(tiled, "SHARED_BYTES", 2**20)
        monkeypatch.setattr(tiled, "takes_shared_memory", lambda *_: True)
        monkeypatch.setattr(tiled, "tiling", lambda *_, **__: tile)
        monkeypatch.setattr(
            tiled, "shared_kernel", lambda name: Watched(kernels[f"bi_wkv_{name}_shared_kernel"], flags)
        )
        monkeypatch.setattr(tiled, "LONG_IN_ONE", True)
        monkeypatch.setattr(tiled_long, "ITEMSIZE", 4)
        monkeypatch.setattr(tiled_long, "READ", read)
        monkeypatch.setattr(tiled, "runs_shared_memory", lambda *_: True)
        monkeypatch.setattr(tiled_long, "long_tile", lambda *_, **__: tile)
        monkeypatch.setattr(tiled_long, "programs", lambda *_, **__: 3)
        monkeypatch.setattr(tiled_long, "long_kernel", lambda name: kernels[f"bi_wkv_{name}_long_kernel"])
        # what the safe form is asked to do again
        mend = tiled_long.mend_kernel
        monkeypatch.setattr(tiled_long, "mend_kernel", lambda name: Mended(mend(name), flags))
        return flags

    return setup


class Mended:
    """The kernel that does unfit sequences again, and the flags it was given."""

    def __init__(self, kernel: Any, flags: list[Tensor]) -> None:
        self.kernel, self.flags = kernel, flags

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            flags = next(x for x in arguments if isinstance(x, Tensor) and x.dtype == torch.int32)
            self.flags.append(flags[:-1].clone())  # the last one is a number that is counted up
            self.kernel[grid](*arguments, **constants)

        return launch


@pytest.mark.parametrize("options", FORWARD, ids=str)
def test_forward(options: dict[str, Any], emulate: Setup) -> None:
    flags = emulate(ODD, options)
    check(inputs((2, 144, 32), keys="1", decay=-8.0), 1e-5)
    x = inputs((2, 144, 32), keys="1")
    x.k[0, 5, 3] = x.k[1, 140, 28] = 60.0  # looked at by no sample
    check(x._replace(v=x.v + 10), 1e-5)
    assert [f.tolist() for f in flags] == [[0] * 4] * 2 + [[1, 0, 0, 1]] * 2


@pytest.mark.parametrize("options", FORWARD, ids=str)
def test_forward_of_an_even_number_of_blocks(options: dict[str, Any], emulate: Setup) -> None:
    flags = emulate(EVEN, options)
    check(inputs((1, 256, 16), keys="1"), 1e-5)
    assert [f.tolist() for f in flags] == [[0], [0]]


@pytest.mark.parametrize("options", BACKWARD, ids=str)
@pytest.mark.parametrize("num_tokens", [256, 512], ids=["resident", "waiting"])
def test_backward_of_an_even_number_of_blocks(
    num_tokens: int, options: dict[str, Any], emulate: Setup
) -> None:
    flags = emulate(EVEN, options)
    check(inputs((1, num_tokens, 16), keys="1", decay=-8.0), 1e-5)
    x = inputs((1, num_tokens, 16), keys="1")
    check(x._replace(v=x.v + 10), 1e-5)
    assert [f.tolist() for f in flags] == [[0]] * 4


# on a GPU each of them alone as well
@pytest.mark.parametrize("options", [{"KEPT": True}, {"LEAN": 1}, LONG[-1]], ids=str)
def test_programs_that_wait_for_each_other(options: dict[str, Any], emulate: Setup) -> None:
    flags = emulate(ODD, options)
    check(inputs((1, 288, 32), keys="1", decay=-8.0), 1e-5)
    x = inputs((1, 288, 32), keys="1")
    x.k[0, 70, 17] = 60.0
    check(x._replace(v=x.v + 10), 1e-5)
    assert [f.tolist() for f in flags] == [[0, 0]] * 2 + [[0, 1]] * 2


def test_programs_that_read_sums_of_groups(emulate: Setup) -> None:
    flags = emulate(ODD, LONG[-1], read=1)
    check(inputs((1, 432, 16), keys="1", decay=-5.0), 1e-5)
    assert [f.tolist() for f in flags] == [[0], [0]]


def test_passes_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tile = tiled.shared_tile(784, 2, backward=True)
    monkeypatch.setattr(tiled, "KEPT", "bwd")
    assert [tiled.options(name, tile, 2)["KEPT"] for name in ("bwd", "longbwd")] == [True, False]


def test_no_more_blocks_than_there_are_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNROLLED", "LONG_UNROLLED", "BACK_UNROLLED"):
        monkeypatch.setattr(tiled, name, 8)
    found = []
    for blocks in (1, 4, 8):
        tile = EVEN._replace(blocks=blocks)
        found += [tiled.options(name, tile, 2)["UNROLLED"] for name in ("fwd", "longfwd", "bwd", "longbwd")]
    assert found == [1, 1, 1, 1, 4, 2, 1, 2, 8, 8, 4, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="no GPU of compute capability 9.0")
class TestOnAGpu:
    """At the sizes that users get; memory is poisoned, conftest.py sees to it."""

    def hold(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        options: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Hold results with these options to those without, and to themselves."""
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        monkeypatch.setattr(tiled, "SHARED_MEMORY", True)
        for keys, decay in (("10", -8.0), ("1", 3.0), ("50", -300.0)):
            x = on_gpu(inputs(shape, keys=keys, decay=decay), dtype)
            exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
            allowed = errors(run(triton_bi_wkv, x), exact, x)
            with monkeypatch.context() as patch:
                for name, value in options.items():
                    patch.setattr(tiled, name, value)
                ours = run(triton_bi_wkv, x)
                for a, b in zip(ours, run(triton_bi_wkv, x), strict=True):
                    assert torch.equal(a, b)
            found = errors(ours, exact, x)
            assert all(found[name] <= max(1.1 * allowed[name], 1e-4) for name in found), (found, allowed)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("num_tokens", [512, 784, 1024])
    @pytest.mark.parametrize("options", FORWARD + BACKWARD + [BACKWARD[0] | {"BACK_UNROLLED": 4}], ids=str)
    def test_tiles(
        self, options: dict[str, Any], num_tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.hold((3, num_tokens, 48), dtype, options, monkeypatch)

    @pytest.mark.parametrize("shape", [(3, 4096, 48), (1, 65536, 32)], ids=str)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("options", LONG + BACKWARD, ids=str)
    def test_programs_that_wait_for_each_other(
        self,
        options: dict[str, Any],
        dtype: torch.dtype,
        shape: tuple[int, int, int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(tiled, "LONG_IN_ONE", True)
        self.hold(shape, dtype, options, monkeypatch)
