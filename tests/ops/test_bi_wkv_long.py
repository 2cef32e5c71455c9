"""The form of bi_wkv whose programs wait for each other: its source on the CPU, the kernels on a GPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from gluon_emulator import Kernel, emulated
from offline_compiler import few_or_all, lines_of
from shared_cases import HOPPER, LONG_MODULES, ON_GPU, check, on_gpu, triton_bi_wkv
from torch import Tensor
from wkv_cases import Inputs, Results, errors, inputs, run

from rwkvseg.ops import bi_wkv
from rwkvseg.ops.wkv import tiled, tiled_long

pytest.importorskip("triton", reason="the package triton is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning"),
]
TILE = tiled.Tiling(block=2, blocks=1, chunks=16, channels=16, warps=4)
ODD = tiled.Tiling(block=3, blocks=3, chunks=16, channels=16, warps=4)
NARROW = tiled.Tiling(block=2, blocks=2, chunks=32, channels=8, warps=4)
EVEN = tiled.Tiling(block=4, blocks=4, chunks=16, channels=16, warps=4)


class Watched:
    """A kernel that is launched as another one; what it is given, and how many programs there are."""

    def __init__(self, kernel: Any, seen: list[tuple[int, Tensor]]) -> None:
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            flags = next(x for x in arguments if isinstance(x, Tensor) and x.dtype == torch.int32)
            self.kernel[grid](*arguments, **constants)
            self.seen.append((grid[0], flags))

        return launch


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return emulated(*LONG_MODULES)


Setup = Callable[..., list[tuple[int, Tensor]]]


@pytest.fixture
def long(kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Return what sends sequences of several tiles to the emulated kernels, so many programs at a time."""
    if ON_GPU:
        pytest.skip("emulated where Triton's kernels are interpreted")

    def setup(tile: tiled.Tiling = TILE, programs: int = 3, read: int = 64) -> list[tuple[int, Tensor]]:
        seen: list[tuple[int, Tensor]] = []
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        monkeypatch.setattr(tiled, "LONG_IN_ONE", True)
        monkeypatch.setattr(tiled_long, "ITEMSIZE", 4)
        monkeypatch.setattr(tiled_long, "READ", read)
        monkeypatch.setattr(tiled, "runs_shared_memory", lambda *_: True)
        monkeypatch.setattr(tiled, "LONG_CHANNELS", (tile.channels,))
        monkeypatch.setattr(tiled_long, "long_tile", lambda *_, **__: tile)
        monkeypatch.setattr(tiled_long, "programs", lambda *_, **__: programs)
        monkeypatch.setattr(
            tiled_long, "long_kernel", lambda name: Watched(kernels[f"bi_wkv_{name}_long_kernel"], seen)
        )
        return seen

    return setup


def unfit(seen: list[tuple[int, Tensor]], sequences: int) -> list[list[int]]:
    return [flags[:sequences].tolist() for _, flags in seen]


CASES = [((1, 64, 16), "1", 3.0), ((2, 96, 32), "1", -8.0), ((1, 96, 16), "constant", 0.0)]
CASES += [((1, 96, 16), "10", 300.0), ((1, 64, 16), "one-hot", 30.0), ((2, 96, 16), "10", 3.0)]


@pytest.mark.parametrize(("shape", "keys", "decay"), CASES, ids=str)
def test_it_agrees_with_the_definition(
    shape: tuple[int, int, int], keys: str, decay: float, long: Setup
) -> None:
    seen = long()
    check(inputs(shape, keys=keys, decay=decay), 1e-5)
    sequences = shape[0] * shape[2] // 16
    assert unfit(seen, sequences) == [[0] * sequences] * 2, "the safe form would hide an error"


@pytest.mark.parametrize("tile", [ODD, EVEN], ids=["odd", "even"])
def test_several_blocks_to_a_lane(tile: tiled.Tiling, long: Setup) -> None:
    seen = long(tile, programs=2)  # which take two tiles each
    check(inputs((1, 2 * tile.span, 32), keys="3", decay=-8.0), 1e-5)
    x = inputs((1, 2 * tile.span, 32), keys="1")
    x.k[0, 70, 17] = 60.0
    check(x._replace(v=x.v + 10), 1e-5)
    assert unfit(seen, 2) == [[0, 0]] * 2 + [[0, 1]] * 2


@pytest.mark.parametrize(("read", "num_spans"), [(64, 3), (1, 2)])
def test_tiles_of_fewer_channels(read: int, num_spans: int, long: Setup) -> None:
    seen = long(NARROW, programs=num_spans, read=read)
    check(inputs((1, num_spans * NARROW.span, 24), keys="1", decay=-5.0), 1e-5)
    x = inputs((1, num_spans * NARROW.span, 24), keys="1")
    x.k[0, 70, 17] = 90.0
    check(x, 1e-5)
    assert unfit(seen, 3) == [[0, 0, 0]] * 2 + [[0, 0, 1]] * 2


def test_programs_that_begin_before_there_are_zeros(long: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = long()
    monkeypatch.setattr(tiled, "LONG_EARLY", True)
    check(inputs((2, 96, 32), keys="1"), 1e-5)
    assert unfit(seen[1::2], 4) == [[0] * 4] * 2


@pytest.mark.parametrize(("read", "num_spans"), [(64, 19), (1, 3), (1, 16), (1, 18)])
def test_many_spans(read: int, num_spans: int, long: Setup) -> None:
    seen = long(programs=num_spans, read=read)
    check(inputs((1, 32 * num_spans, 16), keys="1", decay=-5.0), 1e-5)
    assert unfit(seen, 1) == [[0], [0]]


@pytest.mark.parametrize("programs", [3, 5, 8])
def test_rounds_of_any_size(programs: int, long: Setup) -> None:
    seen = long(programs=programs)
    check(inputs((2, 96, 32), keys="1"), 1e-5)
    assert [number for number, _ in seen] == [programs] * 2


@pytest.mark.parametrize(
    ("keys", "decay", "limit"), [("50", 3.0, 1e-5), ("10", -300.0, 1e-4), ("300", 3.0, 1e-3)]
)
def test_what_is_unfit_takes_the_safe_form(keys: str, decay: float, limit: float, long: Setup) -> None:
    seen = long()
    check(inputs((1, 64, 16), keys=keys, decay=decay), limit)
    assert unfit(seen, 1) == [[1], [1]]


def test_only_the_unfit_sequences_are_done_again(long: Setup) -> None:
    seen = long()
    x = inputs((2, 64, 32), keys="1")
    x.k[1, 37, 20] = 90.0  # looked at by no sample
    check(x, 1e-5)
    assert unfit(seen, 4) == [[0, 0, 0, 1]] * 2


@pytest.mark.parametrize("bonus", [-20.0, 20.0])
def test_gradients_survive_cancellation(bonus: float, long: Setup) -> None:
    long()
    x = inputs((1, 96, 16), keys="1")
    check(x._replace(u=x.u + bonus, v=x.v + 100), 1e-5)


def test_gradients_survive_a_key_that_outweighs_all(long: Setup) -> None:
    seen = long()
    x = inputs((1, 96, 16), keys="1")
    x.k[0, 70] = 25.0
    check(x, 1e-5)
    assert unfit(seen, 1) == [[0], [0]]


@pytest.mark.parametrize("read", [64, 1])
def test_the_same_bits_twice(read: int, long: Setup) -> None:
    long(programs=5, read=read)
    x = inputs((2, 96, 32), keys="1")
    for a, b in zip(run(triton_bi_wkv, x), run(triton_bi_wkv, x), strict=True):
        assert torch.equal(a, b)


def test_a_nan_stays_in_its_image_and_channel(long: Setup) -> None:
    long()
    w, u, k, v, _ = inputs((2, 64, 16))
    expected = triton_bi_wkv(w, u, k, v)
    k[1, 5, 2] = torch.nan
    out = triton_bi_wkv(w, u, k, v)
    assert out[1, :, 2].isnan().all()
    expected[1, :, 2] = out[1, :, 2] = 0
    torch.testing.assert_close(out, expected)


def test_what_is_not_aligned_is_copied(long: Setup) -> None:
    long()
    w, u, k, v, g = inputs((1, 64, 16), keys="1")
    apart = torch.cat([k.new_zeros(1), k.flatten()])[1:].view_as(k)
    expected = run(triton_bi_wkv, Inputs(w, u, k, v, g))
    for a, b in zip(run(triton_bi_wkv, Inputs(w, u, apart, v, g)), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("shape", "dtype", "taken"),
    [
        ((8, 4096, 576), torch.bfloat16, True),
        ((2, 32768, 256), torch.float16, True),
        ((1, 65536, 64), torch.bfloat16, True),
        ((1, 262144, 64), torch.bfloat16, False),  # all programs would wait for one sequence
        ((1, 1024, 64), torch.bfloat16, False),
        ((8, 2304, 288), torch.bfloat16, True),  # 12 x 16 x 12 voxels: three spans of 768
        ((2, 19200, 96), torch.float16, True),  # 40 x 40 x 12: 25 of 768
        ((1, 640, 64), torch.bfloat16, False),
        ((1, 1280, 64), torch.bfloat16, True),  # two of 640
        ((1, 4095, 64), torch.bfloat16, False),
        ((1, 4096, 60), torch.bfloat16, False),
        ((1, 4096, 64), torch.float32, False),
    ],
    ids=str,
)
def test_which_inputs_take_it(
    shape: tuple[int, int, int], dtype: torch.dtype, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "num_processors", lambda _: 132)
    monkeypatch.setattr(tiled, "runs_shared_memory", lambda _, itemsize: itemsize <= 4)
    k = torch.empty(shape, dtype=dtype, device="meta")
    for backward in (False, True):
        assert (tiled_long.long_tiling(k, backward=backward) is not None) == taken


def test_programs_surely_fit() -> None:
    for backward, number in ((False, 3), (True, 2)):
        for blocks in tiled_long.BLOCKS:
            for channels in (16, 8):
                tile = tiled_long.long_tile(blocks, channels, backward=backward)
                assert tiled_long.at_a_time(tile, backward=backward) == number


def test_a_cpu_takes_another_form() -> None:
    assert not tiled.runs_shared_memory(torch.device("cpu"), 2)


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    """Let launches of a pass fail as the driver's refusals do."""

    class Refused:
        def __getitem__(self, _: tuple[int]) -> Any:
            def launch(*_: Any, **__: Any) -> None:
                raise RuntimeError(message)

            return launch

    kernel = tiled_long.long_kernel
    monkeypatch.setattr(tiled_long, "long_kernel", lambda n: Refused() if n == name else kernel(n))
    monkeypatch.setattr(tiled_long, "refused", set())


TOO_MANY = "Triton Error [CUDA]: too many blocks in cooperative launch"


def test_where_the_driver_refuses_another_form_is_taken(long: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = long()
    refuse(monkeypatch, "fwd", TOO_MANY)
    for _ in range(2):
        check(inputs((1, 64, 16), keys="1"), 1e-5)
    assert tiled_long.refused == {torch.device("cpu")}
    assert seen == []


def test_a_refusal_in_between_says_what_to_do(long: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    long()
    refuse(monkeypatch, "bwd", TOO_MANY)
    x = inputs((1, 64, 16), keys="1")
    with pytest.raises(RuntimeError, match="repeat the step"):
        run(triton_bi_wkv, x)
    check(x, 1e-5)


def test_other_errors_are_not_taken_for_a_refusal(long: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    long()
    for name in ("fwd", "bwd"):
        with monkeypatch.context() as patch:
            refuse(patch, name, "out of memory")
            with pytest.raises(RuntimeError, match="out of memory"):
                run(triton_bi_wkv, inputs((1, 64, 16), keys="1"))
            assert tiled_long.refused == set()


@pytest.mark.slow
def test_the_kernels_compile_for_a_hopper_gpu() -> None:
    rows = [line.split() for line in lines_of("compile_long.py", **few_or_all())]
    assert len(rows) >= 3
    assert not any(int(row[-1]) for row in rows), rows
    for name, blocks, _, _, registers, _, memory, *_ in rows:  # what a launch counts on
        tile = tiled_long.long_tile(int(blocks), backward=name == "bwd")
        assert tile.registers is not None
        assert int(registers) <= tile.registers
        number = tiled_long.at_a_time(tile, backward=name == "bwd")
        assert (int(memory) + 1024) * number <= tiled_long.MEMORY, "a program takes 1 KB more"


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Turn the kernels on; gather the names of those that are launched."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(tiled, "SHARED_MEMORY", True)
    monkeypatch.setattr(tiled, "LONG_IN_ONE", True)
    names: list[str] = []
    kernel = tiled_long.long_kernel
    monkeypatch.setattr(tiled_long, "long_kernel", lambda name: names.append(name) or kernel(name))
    return names


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="no GPU of compute capability 9.0")
class TestOnAGpu:
    """At the sizes that users get; memory is poisoned, conftest.py sees to it."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("shape", [(3, 4096, 48), (1, 32768, 32), (5, 2304, 80), (2, 4480, 32)], ids=str)
    @pytest.mark.parametrize(
        ("keys", "decay"), [("1", 3.0), ("10", -8.0), ("50", 30.0), ("50", -300.0), ("one-hot", 5000.0)]
    )
    def test_it_is_as_good_as_the_general_form(
        self,
        shape: tuple[int, int, int],
        keys: str,
        decay: float,
        dtype: torch.dtype,
        switched_on: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        x = on_gpu(inputs(shape, keys=keys, decay=decay), dtype)
        exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
        ours = run(triton_bi_wkv, x)
        assert switched_on == ["fwd", "bwd"]
        monkeypatch.setattr(tiled, "LONG_IN_ONE", False)
        general = run(triton_bi_wkv, x)
        found, allowed = errors(ours, exact, x), errors(general, exact, x)
        assert all(found[name] <= max(1.1 * allowed[name], 1e-4) for name in found), (found, allowed)

    @pytest.mark.parametrize("shape", [(8, 4096, 576), (1, 65536, 64), (3, 18432, 48)], ids=str)
    def test_the_same_bits_twice(self, shape: tuple[int, int, int], switched_on: list[str]) -> None:
        x = on_gpu(inputs(shape, keys="1"))
        first = run(triton_bi_wkv, x)
        for _ in range(5):
            for a, b in zip(first, run(triton_bi_wkv, x), strict=True):
                assert torch.equal(a, b)
        assert len(switched_on) == 12

    def test_pauses_change_no_bit(self, switched_on: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        for num_tokens, channels in ((4096, 576), (65536, 48)):
            x = on_gpu(inputs((2, num_tokens, channels), keys="1"))
            expected = run(triton_bi_wkv, x)
            with monkeypatch.context() as patch:
                patch.setattr(tiled, "LONG_PAUSES", (9, 9999))
                for a, b in zip(run(triton_bi_wkv, x), expected, strict=True):
                    assert torch.equal(a, b)

    def test_unfit_sequences_are_few(self, switched_on: list[str]) -> None:
        x = on_gpu(inputs((4, 8192, 64), keys="1"))
        x.k[1, 5, 20] = x.k[3, 7000, 63] = 90.0
        exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
        ours = run(triton_bi_wkv, x)
        assert switched_on == ["fwd", "bwd"]
        assert max(errors(ours, exact, x).values()) < 1e-2
        for a, b in zip(ours, run(triton_bi_wkv, x), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("keys", ["1", "300"])
    def test_it_runs_in_a_cuda_graph(self, keys: str, switched_on: list[str]) -> None:
        w, u, k, v, g = on_gpu(inputs((2, 8192, 48), keys=keys))
        leaves = [x.requires_grad_() for x in (w, u, k, v)]
        expected = run(triton_bi_wkv, Inputs(w, u, k, v, g))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.autograd.grad(triton_bi_wkv(*leaves), leaves, g)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                y = triton_bi_wkv(*leaves)
                gradients = torch.autograd.grad(y, leaves, g)
        for _ in range(3):
            for x in (y, *gradients):
                x.detach().zero_()
            torch.cuda.synchronize()
            graph.replay()
            torch.cuda.synchronize()
            for a, b in zip((y, *gradients), expected, strict=True):
                assert torch.equal(a.detach(), b)

    def test_the_driver_refuses_more_than_fit(
        self, switched_on: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = on_gpu(inputs((8, 4096, 576), keys="1"))
        monkeypatch.setattr(tiled_long, "programs", lambda *_, **__: 1100)
        monkeypatch.setattr(tiled_long, "refused", set())
        found = run(triton_bi_wkv, x)
        assert switched_on == ["fwd"]
        assert tiled_long.refused == {x.k.device}
        monkeypatch.setattr(tiled, "LONG_IN_ONE", False)
        for a, b in zip(found, run(triton_bi_wkv, x), strict=True):
            assert torch.equal(a, b)

    def test_two_streams_at_a_time(self, switched_on: list[str]) -> None:
        cases = [on_gpu(inputs((8, 4096, 96), keys="1", seed=seed)) for seed in range(2)]
        expected = [run(triton_bi_wkv, x) for x in cases]
        streams = [torch.cuda.Stream() for _ in cases]
        torch.cuda.synchronize()
        found: list[list[Results]] = [[], []]
        for _ in range(20):
            for i, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    found[i].append(run(triton_bi_wkv, cases[i]))
        torch.cuda.synchronize()
        for results, one in zip(found, expected, strict=True):
            for result in results:
                assert all(torch.equal(a, b) for a, b in zip(result, one, strict=True))

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own code
    def test_it_compiles_with_inductor(self, switched_on: list[str]) -> None:
        def network(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return bi_wkv(w / k.shape[1], u, k * 2, v).tanh()

        x = on_gpu(inputs((2, 4096, 48), keys="1"))
        found: Results = run(torch.compile(network, fullgraph=True), x)
        assert switched_on == ["fwd", "bwd"]
        torch.testing.assert_close(found, run(network, x), rtol=2e-2, atol=2e-2)

    def test_what_is_not_whole_takes_the_general_form(self, switched_on: list[str]) -> None:
        for shape in ((1, 4095, 48), (1, 4096, 40)):
            run(triton_bi_wkv, on_gpu(inputs(shape, keys="1")))
        assert switched_on == []
