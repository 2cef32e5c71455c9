"""The form of bi_wkv that works from shared memory: its kernels' source on the CPU, the kernels on a GPU."""

from functools import partial
from typing import Any

import pytest
import torch
from gluon_emulator import Kernel, emulated
from offline_compiler import few_or_all, lines_of
from shared_cases import HOPPER, MODULES, check, emulate_tiles, on_gpu, triton_bi_wkv
from torch import Tensor
from wkv_cases import Inputs, Results, errors, inputs, run

from rwkvseg.ops import bi_wkv
from rwkvseg.ops.wkv import tiled

pytest.importorskip("triton", reason="the package triton is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning"),
]
TILES = {
    32: tiled.Tiling(block=2, blocks=1, chunks=16, channels=16, warps=4),
    96: tiled.Tiling(block=3, blocks=2, chunks=16, channels=16, warps=4),
    144: tiled.Tiling(block=3, blocks=3, chunks=16, channels=16, warps=4),
    256: tiled.Tiling(block=4, blocks=4, chunks=16, channels=16, warps=4),
    784: tiled.Tiling(block=7, blocks=7, chunks=16, channels=16, warps=4),
    1024: tiled.Tiling(block=8, blocks=8, chunks=16, channels=16, warps=4),
}


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return emulated(*MODULES)


@pytest.fixture
def flags(kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Send whole tiles of any dtype to the emulated kernels; gather which programs they find unfit."""
    return emulate_tiles(monkeypatch, kernels, TILES)


SMALL = [((2, 32, 16), "1", 3.0), ((1, 96, 32), "1", -8.0), ((1, 96, 16), "constant", 0.0)]
SMALL += [((1, 96, 16), "10", 300.0), ((1, 32, 16), "one-hot", 30.0)]


@pytest.mark.parametrize(("shape", "keys", "decay"), SMALL, ids=str)
def test_it_agrees_with_the_definition(
    shape: tuple[int, int, int], keys: str, decay: float, flags: list[Tensor]
) -> None:
    check(inputs(shape, keys=keys, decay=decay), 1e-5)
    assert len(flags) == 2
    programs = shape[0] * shape[2] // 16
    assert [f.tolist() for f in flags] == [[0] * programs] * 2, "the safe form would hide an error"


@pytest.mark.parametrize("num_tokens", [784, 1024])
def test_the_tiles_that_users_get(num_tokens: int, flags: list[Tensor]) -> None:
    x = inputs((1, num_tokens, 16), keys="1")
    found = errors(run(triton_bi_wkv, x), run(partial(bi_wkv, backend="scan"), x.to(torch.float64)), x)
    assert max(found.values()) < 1e-5, found
    assert [f.tolist() for f in flags] == [[0], [0]]


@pytest.mark.parametrize("kept", [False, True], ids=["in registers", "in shared memory"])
@pytest.mark.parametrize("num_tokens", [144, 256], ids=["odd number of blocks", "even"])
def test_what_the_blocks_meet(
    num_tokens: int, kept: bool, flags: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "kept_fits", lambda *_: kept)
    check(inputs((1, num_tokens, 32), keys="1", decay=-8.0), 1e-5)
    x = inputs((2, num_tokens, 16), keys="1")
    x.k[0, 5, 3] = 60.0  # looked at by no sample
    check(x._replace(v=x.v + 10), 1e-5)
    assert [f.tolist() for f in flags] == [[0, 0]] * 2 + [[1, 0]] * 2


@pytest.mark.parametrize(
    ("num_tokens", "itemsize", "kept"), [(784, 2, True), (1024, 2, False), (512, 4, False)]
)
def test_what_is_kept_in_shared_memory(num_tokens: int, itemsize: int, kept: bool) -> None:
    tile = tiled.shared_tile(num_tokens, itemsize, backward=True)
    assert tiled.options("bwd", tile, itemsize)["KEPT"] == kept


@pytest.mark.parametrize(
    ("keys", "decay", "limit"), [("50", 3.0, 1e-5), ("10", -300.0, 1e-4), ("300", 3.0, 1e-3)]
)
def test_what_is_unfit_takes_the_safe_form(
    keys: str, decay: float, limit: float, flags: list[Tensor]
) -> None:
    check(inputs((1, 32, 16), keys=keys, decay=decay), limit)
    assert [f.tolist() for f in flags] == [[1], [1]]


def test_only_the_unfit_programs_are_done_again(flags: list[Tensor]) -> None:
    x = inputs((2, 32, 32), keys="1")
    x.k[1, 5, 20] = 90.0  # looked at by no sample
    check(x, 1e-5)
    assert [f.tolist() for f in flags] == [[0, 0, 0, 1]] * 2


@pytest.mark.parametrize("key", [34.0, 40.0, 46.0, 48.0])
def test_small_denominators(key: float, flags: list[Tensor]) -> None:
    w, u, k, v, g = inputs((1, 96, 16), keys="constant")
    k = k * 0
    k[0, 12] = key  # looked at by a sample; nothing of it arrives at most tokens
    check(Inputs(w * 0 + 2.0, u * 0, k, v, g * 1000), 1e-5)
    assert [f.tolist() for f in flags] == [[0], [int(key > 34)]]


@pytest.mark.parametrize("batch", [259, 3], ids=["four images a program", "one"])
def test_sums_over_images(batch: int, flags: list[Tensor]) -> None:
    x = inputs((batch, 32, 16), keys="1")
    x.k[1, 5, 3] = x.k[batch - 1, 31, 12] = 90.0
    check(x, 1e-5)
    assert [f.nonzero().flatten().tolist() for f in flags] == [[1, batch - 1]] * 2


@pytest.mark.parametrize("bonus", [-20.0, 20.0])
def test_gradients_survive_cancellation(bonus: float, flags: list[Tensor]) -> None:
    x = inputs((1, 96, 16), keys="1")
    check(x._replace(u=x.u + bonus, v=x.v + 100), 1e-5)


def test_a_nan_stays_in_its_image_and_channel(flags: list[Tensor]) -> None:
    w, u, k, v, _ = inputs((2, 32, 16))
    expected = triton_bi_wkv(w, u, k, v)
    k[1, 5, 2] = torch.nan
    out = triton_bi_wkv(w, u, k, v)
    assert out[1, :, 2].isnan().all()
    expected[1, :, 2] = out[1, :, 2] = 0
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("backward", [False, True])
def test_what_does_not_fill_its_tiles_takes_the_general_form(
    backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "takes_shared_memory", lambda *tensors: True)
    k = torch.empty(1, 784, 32, dtype=torch.bfloat16)
    assert tiled.shared_tiling(k, backward=backward) is not None
    for num_tokens, channels in ((783, 32), (784, 33), (196, 32), (2048, 32)):
        k = torch.empty(1, num_tokens, channels, dtype=torch.bfloat16)
        assert tiled.shared_tiling(k, backward=backward) is None


@pytest.mark.parametrize(
    ("dtype", "num_tokens", "backward", "taken"),
    [
        (torch.float32, 784, False, True),
        (torch.float32, 784, True, False),
        (torch.float32, 1024, False, False),
        (torch.float32, 512, True, True),
        (torch.float16, 1024, True, True),
    ],
    ids=str,
)
def test_two_programs_fit_on_a_multiprocessor(
    dtype: torch.dtype, num_tokens: int, backward: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "takes_shared_memory", lambda *tensors: True)
    k = torch.empty(1, num_tokens, 32, dtype=dtype)
    assert (tiled.shared_tiling(k, backward=backward) is not None) == taken


@pytest.mark.parametrize(
    ("capability", "version", "taken"),
    [((9, 0), "3.6.0", True), ((12, 0), "3.6.0", False), ((8, 9), "3.6.0", False), ((9, 0), "3.7.0", False)],
)
def test_only_what_was_tried_takes_it(
    capability: tuple[int, int], version: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnAGpu:
        """As much of a tensor as is asked for."""

        device, itemsize = torch.device("cuda"), 2

        def data_ptr(self) -> int:
            return 512

    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("rwkvseg.ops.backends._TRITON_VERSION", version)
    x: Any = OnAGpu()
    assert tiled.takes_shared_memory(x, x) == taken


def test_a_cpu_takes_the_general_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "SHARED_MEMORY", True)
    assert not tiled.takes_shared_memory(torch.empty(1, 784, 32, dtype=torch.bfloat16))


@pytest.mark.slow
def test_the_kernels_compile_for_a_hopper_gpu() -> None:
    lines = lines_of("compile_shared.py", **few_or_all())
    spills = [int(line.split()[-1]) for line in lines]
    assert len(spills) >= 3
    assert not any(spills), lines


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Turn the kernels on; gather the names of those that are launched."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(tiled, "SHARED_MEMORY", True)
    names: list[str] = []
    kernel = tiled.shared_kernel
    monkeypatch.setattr(tiled, "shared_kernel", lambda name: names.append(name) or kernel(name))
    return names


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="no GPU of compute capability 9.0")
class TestOnAGpu:
    """At the sizes that users get; memory is poisoned, conftest.py sees to it."""

    @pytest.mark.parametrize(
        ("dtype", "num_tokens"),
        [(dtype, t) for dtype in (torch.bfloat16, torch.float16, torch.float32) for t in (512, 784, 1024)],
        ids=str,
    )
    @pytest.mark.parametrize(
        ("keys", "decay"), [("1", 3.0), ("10", -8.0), ("50", 30.0), ("50", -300.0), ("one-hot", 5000.0)]
    )
    def test_it_is_as_good_as_the_general_form(
        self,
        num_tokens: int,
        keys: str,
        decay: float,
        dtype: torch.dtype,
        shared: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        x = on_gpu(inputs((3, num_tokens, 48), keys=keys, decay=decay), dtype)
        exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
        ours = run(triton_bi_wkv, x)
        taken = [p for p in ("fwd", "bwd") if tiled.shared_tiling(x.k, backward=p == "bwd") is not None]
        assert shared == taken
        assert taken or (dtype, num_tokens) == (torch.float32, 1024)
        monkeypatch.setattr(tiled, "SHARED_MEMORY", False)
        general = run(triton_bi_wkv, x)
        found, allowed = errors(ours, exact, x), errors(general, exact, x)
        assert all(found[name] <= max(1.1 * allowed[name], 1e-4) for name in found), (found, allowed)

    @pytest.mark.parametrize("channels", [96, 576], ids=["programs begin together", "some wait their turn"])
    def test_the_same_bits_twice(self, channels: int, shared: list[str]) -> None:
        x = on_gpu(inputs((24, 784, channels), keys="1"))
        first = run(triton_bi_wkv, x)
        for _ in range(5):
            for a, b in zip(first, run(triton_bi_wkv, x), strict=True):
                assert torch.equal(a, b)
        assert len(shared) == 12

    @pytest.mark.parametrize("batch", [2, 70], ids=["an image a program", "four"])
    def test_unfit_programs_are_few(self, batch: int, shared: list[str]) -> None:
        x = on_gpu(inputs((batch, 784, 64), keys="1"))
        x.k[1, 5, 20] = x.k[batch - 1, 700, 63] = 90.0
        exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
        found = errors(run(triton_bi_wkv, x), exact, x)
        assert shared == ["fwd", "bwd"]
        assert max(found.values()) < 1e-2, found

    def test_it_runs_in_a_cuda_graph(self, shared: list[str]) -> None:
        w, u, k, v, g = on_gpu(inputs((2, 784, 48), keys="1"))
        leaves = [x.requires_grad_() for x in (w, u, k, v)]
        expected = run(triton_bi_wkv, Inputs(w, u, k, v, g))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.autograd.grad(triton_bi_wkv(*leaves), leaves, g)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                y = triton_bi_wkv(*leaves)
                gradients = torch.autograd.grad(y, leaves, g)
            graph.replay()
        torch.cuda.synchronize()
        for a, b in zip((y, *gradients), expected, strict=True):
            assert torch.equal(a.detach(), b)

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own code
    def test_it_compiles_with_inductor(self, shared: list[str]) -> None:
        def network(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return bi_wkv(w / k.shape[1], u, k * 2, v).tanh()

        x = on_gpu(inputs((2, 784, 48), keys="1"))
        found: Results = run(torch.compile(network, fullgraph=True), x)
        assert shared == ["fwd", "bwd"]
        torch.testing.assert_close(found, run(network, x), rtol=2e-2, atol=2e-2)

    def test_what_is_not_aligned_takes_the_general_form(self, shared: list[str]) -> None:
        w, u, k, v, _ = on_gpu(inputs((1, 784, 16), keys="1"))
        apart = torch.cat([k.new_zeros(1), k.flatten()])[1:].view_as(k)
        torch.testing.assert_close(triton_bi_wkv(w, u, apart, v), triton_bi_wkv(w, u, k, v))
        assert shared == ["fwd"], "once of two"

    def test_a_second_gpu(self, shared: list[str]) -> None:
        if torch.cuda.device_count() < 2:
            pytest.skip("one GPU only")
        x = inputs((2, 784, 48), keys="1")
        for a, b in zip(
            run(triton_bi_wkv, on_gpu(x)), run(triton_bi_wkv, on_gpu(x, device="cuda:1")), strict=True
        ):
            assert torch.equal(a, b.to("cuda:0"))
        assert len(shared) == 4
