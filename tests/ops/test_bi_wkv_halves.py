"""Variants of bi_wkv's backward pass from shared memory: tiles cut into halves, fewer instructions."""

from functools import partial
from typing import Any

import pytest
import torch
from gluon_emulator import Kernel, emulated
from shared_cases import HOPPER, MODULES, check, emulate_tiles, on_gpu, triton_bi_wkv
from torch import Tensor
from wkv_cases import errors, inputs, run

from rwkvseg.ops import bi_wkv
from rwkvseg.ops.wkv import tiled

pytest.importorskip("triton", reason="the package triton is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning"),
]
WAYS = ("both", "two")
TILES = {  # a half has 32 chunks: all of 64 and 96 tokens, 24 of 144 and 28 of 784 are there
    64: tiled.Tiling(block=2, blocks=2, chunks=16, channels=16, warps=4),
    96: tiled.Tiling(block=3, blocks=2, chunks=16, channels=16, warps=4),
    144: tiled.Tiling(block=3, blocks=3, chunks=16, channels=16, warps=4),
    784: tiled.Tiling(block=7, blocks=7, chunks=16, channels=16, warps=4),
}


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return emulated(*MODULES)


@pytest.fixture(params=WAYS)
def flags(
    request: pytest.FixtureRequest, kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """Emulate two multiprocessors, which halve one or two tiles of the last round; gather the flags."""
    found = emulate_tiles(monkeypatch, kernels, TILES)
    monkeypatch.setattr(tiled, "num_processors", lambda device: 2)
    monkeypatch.setattr(tiled, "HALVED", 1.0)
    monkeypatch.setattr(tiled, "HALVES", request.param)
    return found


def backward_flags(flags: list[Tensor]) -> list[int]:
    return torch.cat(flags[1:]).tolist()


CASES = [((3, 96, 32), "1", 3.0, 8), ((1, 144, 16), "1", -8.0, 2), ((5, 144, 16), "constant", 0.0, 6)]
CASES += [((3, 144, 32), "10", 300.0, 8), ((1, 96, 16), "one-hot", 30.0, 2), ((4, 96, 16), "1", 3.0, 4)]


@pytest.mark.parametrize(("shape", "keys", "decay", "programs"), CASES, ids=str)
def test_it_agrees_with_the_definition(
    shape: tuple[int, int, int], keys: str, decay: float, programs: int, flags: list[Tensor]
) -> None:
    check(inputs(shape, keys=keys, decay=decay), 1e-5)
    assert backward_flags(flags) == [0] * programs, "the safe form would hide an error"


def test_the_tile_that_users_get(flags: list[Tensor]) -> None:
    x = inputs((1, 784, 16), keys="1")
    found = errors(run(triton_bi_wkv, x), run(partial(bi_wkv, backend="scan"), x.to(torch.float64)), x)
    assert max(found.values()) < 1e-5, found
    assert backward_flags(flags) == [0, 0]


@pytest.mark.parametrize(
    ("keys", "decay", "limit"), [("50", 3.0, 1e-5), ("10", -300.0, 1e-4), ("300", 3.0, 1e-3)]
)
def test_what_is_unfit_takes_the_safe_form(
    keys: str, decay: float, limit: float, flags: list[Tensor]
) -> None:
    check(inputs((1, 144, 16), keys=keys, decay=decay), limit)
    assert backward_flags(flags) == [1, 1]


@pytest.mark.parametrize(("channel", "unfit"), [(3, 4), (12, 5), (17, 6), (31, 7)])
@pytest.mark.parametrize("num_tokens", [96, 144])
def test_a_tile_with_an_unfit_half_is_done_again(
    num_tokens: int, channel: int, unfit: int, flags: list[Tensor]
) -> None:
    x = inputs((3, num_tokens, 32), keys="1")
    x.k[2, 5, channel] = 60.0  # looked at by no sample
    check(x, 1e-5)
    assert torch.tensor(backward_flags(flags)).nonzero().flatten().tolist() == [unfit]


@pytest.mark.parametrize("flags", ["both"], indirect=True)
def test_unfit_tiles_among_whole_ones_and_halves(flags: list[Tensor]) -> None:
    x = inputs((258, 64, 16), keys="1")
    x.k[1, 5, 3] = x.k[256, 50, 2] = x.k[257, 63, 12] = 60.0
    check(x, 1e-5)
    # 256 whole tiles, then the halves of two
    assert torch.tensor(backward_flags(flags)).nonzero().flatten().tolist() == [1, 256, 259]


def test_the_same_bits_twice(flags: list[Tensor]) -> None:
    x = inputs((3, 144, 32), keys="1")
    for a, b in zip(run(triton_bi_wkv, x), run(triton_bi_wkv, x), strict=True):
        assert torch.equal(a, b)


OPTIONS: list[dict[str, Any]] = [{"PACKED": True}, {"LEAN": 1}, {"LEAN": 2}, {"LEAN": 3}, {"KEPT": True}]
OPTIONS += [{"FEW_COPIES": True}, {"ONE_SUM": True}]
OPTIONS += [{"PACKED": True, "LEAN": 3, "KEPT": True, "FEW_COPIES": True, "ONE_SUM": True}]


@pytest.mark.parametrize("flags", ["both"], indirect=True)  # the other way is another launch of the same
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fewer_instructions(
    options: dict[str, Any], flags: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "PACKED_BYTES", 4)  # to the CPU all numbers are alike
    monkeypatch.setattr(tiled, "kept_fits", lambda tile, itemsize: True)
    for name, value in options.items():
        monkeypatch.setattr(tiled, name, value)
    check(inputs((3, 144, 32), keys="1", decay=-8.0), 1e-5)
    assert backward_flags(flags) == [0] * 8
    x = inputs((3, 144, 32), keys="1")
    x.k[0, 5, 3] = x.k[2, 140, 12] = 60.0
    check(x._replace(v=x.v + 10), 1e-5)
    assert torch.tensor(
        backward_flags(flags[2 if tiled.HALVES == "both" else 3 :])
    ).nonzero().flatten().tolist() == [0, 5]


@pytest.mark.parametrize(
    ("num_tiles", "num_tokens", "halved"),
    [(864, 784, 72), (864, 1024, 72), (792, 784, 0), (432, 784, 0), (72, 512, 72), (344, 784, 0)],
)
def test_a_last_round_of_few_tiles_is_halved(
    num_tiles: int, num_tokens: int, halved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "num_processors", lambda device: 132)
    plan = tiled._Plan(torch.empty(1, num_tokens, 16, dtype=torch.bfloat16), backward=True)
    tile = tiled.shared_tile(num_tokens, 2, backward=True)
    for way in WAYS:
        monkeypatch.setattr(tiled, "HALVES", way)
        assert plan.halved(num_tiles, tile) == halved
    monkeypatch.setattr(tiled, "HALVES", "")
    assert plan.halved(num_tiles, tile) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="no GPU of compute capability 9.0")
class TestOnAGpu:
    """At the sizes that are halved on an H200; memory is poisoned, conftest.py sees to it."""

    @pytest.fixture(params=WAYS)
    def launches(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Halve the last tiles; gather which tiles each launch backward takes."""
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        monkeypatch.setattr(tiled, "SHARED_MEMORY", True)
        monkeypatch.setattr(tiled, "HALVES", request.param)
        found: list[str] = []
        kernel = tiled.shared_kernel

        class Named:
            """A kernel that says what it is launched for."""

            def __getitem__(self, grid: tuple[int]) -> Any:
                def launch(*arguments: Any, **constants: Any) -> None:
                    found.append(constants["HALVES"])
                    kernel("bwd")[grid](*arguments, **constants)

                return launch

        monkeypatch.setattr(tiled, "shared_kernel", lambda name: Named() if name == "bwd" else kernel(name))
        return found

    @pytest.mark.parametrize("num_tokens", [784, 1024])
    @pytest.mark.parametrize(("keys", "decay"), [("1", 3.0), ("10", -8.0), ("50", 30.0), ("50", -300.0)])
    def test_it_is_as_good_as_without(
        self,
        num_tokens: int,
        keys: str,
        decay: float,
        launches: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        x = on_gpu(inputs((24, num_tokens, 576), keys=keys, decay=decay))
        exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
        ours = run(triton_bi_wkv, x)
        for a, b in zip(ours, run(triton_bi_wkv, x), strict=True):
            assert torch.equal(a, b)
        assert launches in (["both"] * 2, ["whole", "halves"] * 2)
        monkeypatch.setattr(tiled, "HALVES", "")
        found, allowed = errors(ours, exact, x), errors(run(triton_bi_wkv, x), exact, x)
        assert all(found[name] <= max(1.1 * allowed[name], 1e-4) for name in found), (found, allowed)

    def test_unfit_halves(self, launches: list[str]) -> None:
        x = on_gpu(inputs((24, 784, 576), keys="1"))
        x.k[1, 5, 20] = x.k[22, 300, 3] = x.k[23, 700, 575] = 90.0
        exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
        found = errors(run(triton_bi_wkv, x), exact, x)
        assert max(found.values()) < 1e-2, found

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("num_tokens", [512, 784, 1024])
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_fewer_instructions(
        self, options: dict[str, Any], num_tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        x = on_gpu(inputs((3, num_tokens, 48), keys="10", decay=-8.0), dtype)
        exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
        allowed = errors(run(triton_bi_wkv, x), exact, x)
        monkeypatch.setattr(tiled, "HALVES", "both")  # of nine tiles, all
        for name, value in options.items():
            monkeypatch.setattr(tiled, name, value)
        ours = run(triton_bi_wkv, x)
        for a, b in zip(ours, run(triton_bi_wkv, x), strict=True):
            assert torch.equal(a, b)
        found = errors(ours, exact, x)
        assert all(found[name] <= max(1.1 * allowed[name], 1e-4) for name in found), (found, allowed)
