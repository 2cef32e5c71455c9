"""The Triton form of bi_wkv against its definition: interpreted on the CPU, compiled on a GPU."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor
from wkv_cases import Inputs, Operator, Results, errors, inputs, run

from rwkvseg.errors import BackendError
from rwkvseg.ops import bi_wkv, naive_bi_wkv
from rwkvseg.ops.wkv import scan, tiled

pytest.importorskip("triton", reason="the package triton is not installed")

# numpy, of which the interpreter is made, warns of what the kernels then discard
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning"),
]
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SMALL = tiled.Tiling(block=3, blocks=2, chunks=4, channels=4, warps=1)
triton_bi_wkv: Operator = partial(bi_wkv, backend="triton")
DECAYS = (-300.0, -8.0, 3.0, 5000.0)
CASES = [("1", 3.0), ("10", -8.0), ("50", 30.0), ("50", -300.0), ("one-hot", 5000.0), ("constant", 0.0)]


@pytest.fixture(autouse=True)
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of 24 tokens: short sequences then have one, several or many."""
    # without it, matrix products refuse the deterministic mode that conftest.py sets
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if "real_tiles" not in request.keywords:
        monkeypatch.setattr(tiled, "tiling", lambda num_tokens, itemsize, *, backward: SMALL)


@pytest.fixture
def tiny_tiles(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of 6 tokens, for what does not depend on how many blocks a chunk has."""
    tile = SMALL._replace(blocks=1, chunks=2)
    monkeypatch.setattr(tiled, "tiling", lambda num_tokens, itemsize, *, backward: tile)


def there(x: Inputs) -> Inputs:
    return Inputs(*(part.to(DEVICE) for part in x))


def check(x: Inputs, limit: float) -> None:
    x = there(x)
    found = errors(run(triton_bi_wkv, x), run(naive_bi_wkv, x.to(torch.float64)), x)
    assert max(found.values()) < limit, found


FAST, SAFE, ALONE = CASES[1], CASES[3], CASES[4]  # one key of the last outweighs the others
ONE_SPAN = [
    *(((1, 23, 4), case) for case in CASES),  # several images below
    *(((1, 1, 1), case) for case in (FAST, SAFE, ALONE)),
    *(((2, 2, 3), case) for case in (FAST, SAFE)),
    *(((3, 5, 4), case) for case in (FAST, SAFE)),
    *(((1, 24, 9), case) for case in (FAST, SAFE, ALONE)),  # the span is full, channels are left over
    *(((1, 24, 4), case) for case in (FAST, SAFE)),  # nothing is left over: kernels mask nothing
]


@pytest.mark.parametrize(("shape", "case"), ONE_SPAN, ids=str)
def test_a_sequence_of_one_span(shape: tuple[int, int, int], case: tuple[str, float]) -> None:
    keys, decay = case
    check(inputs(shape, keys=keys, decay=decay), 1e-4 if decay == -300 else 1e-5)


@pytest.mark.parametrize(
    ("joined", "keys", "decay"),
    [
        *(pytest.param(64, *case, id=f"joined by each, {case}") for case in CASES),
        *(pytest.param(1, *case, id=f"joined before, {case}") for case in (FAST, SAFE, ALONE)),
    ],
)
def test_a_sequence_of_several_spans(
    keys: str, decay: float, joined: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "JOINED", joined)
    check(inputs((1, 53, 4), keys=keys, decay=decay), 1e-4 if decay == -300 else 1e-5)


def test_growth_that_only_the_whole_sequence_shows() -> None:
    # a span of 24 tokens stays within the fast form's range, all of them leave it
    check(inputs((1, 75, 4), keys="constant", decay=-100.0), 1e-4)


def test_a_key_that_only_its_own_span_shows() -> None:
    # looked at by no sample, it overflows the sums of its span, which vanish beside the span before
    x = inputs((1, 48, 4), keys="1")
    k = x.k.clone()
    k[:, :24] += 80
    k[:, 24:] -= 40
    k[:, 29] = 60
    check(x._replace(k=k), 1e-5)


def test_one_key_that_outweighs_all_spans() -> None:
    x = there(inputs((1, 130, 4), keys="one-hot", decay=-8.0))
    found = errors(run(triton_bi_wkv, x), run(naive_bi_wkv, x.to(torch.float64)), x)
    assert max(found.values()) < 1e-5, found
    assert found["gk"] < 1e-9, "the key's value was not taken off before it was summed"


@pytest.mark.parametrize("num_tokens", [5, 29])
@pytest.mark.parametrize(("keys", "decay"), [("1", 3.0), ("10", -8.0), ("constant", 0.0)])
def test_the_safe_form_where_the_fast_would_do(
    num_tokens: int, keys: str, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "LIMIT", {torch.float32: -1e4})
    check(inputs((1, num_tokens, 4), keys=keys, decay=decay), 1e-5)


# each two of the three values meet
@pytest.mark.parametrize(
    ("bonus", "offset", "keys"),
    [(-20.0, 0.0, "1"), (-20.0, 100.0, "one-hot"), (20.0, 0.0, "one-hot"), (20.0, 100.0, "1")],
)
def test_gradients_survive_cancellation(bonus: float, offset: float, keys: str) -> None:
    x = inputs((1, 29, 4), keys=keys)
    check(x._replace(u=x.u + bonus, v=x.v + offset), 1e-5)


# exponents are float32: of keys near 1e4 they know three decimals
@pytest.mark.parametrize(
    ("size", "decay", "limit"),
    [(300.0, -300.0, 1e-4), (1e4, 1e5, 1e-2), (1e30, -300.0, 1e-4), (1e30, 1e5, 1e-4)],
)
def test_keys_of_any_size(size: float, decay: float, limit: float) -> None:
    check(inputs((1, 29, 4), keys=str(size), decay=decay), limit)


def test_float64() -> None:
    for num_tokens in (7, 29):
        check(inputs((1, num_tokens, 4)).to(torch.float64), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("both", [True, False], ids=["16-bit decay", "float32 decay"])
def test_low_precision_is_as_good_as_the_definition(dtype: torch.dtype, both: bool) -> None:
    # the interpreter cuts bfloat16 off where a GPU rounds
    allowance = 2 if ON_GPU or dtype == torch.float16 else 8
    x = there(inputs((2, 29, 5)).to(dtype, both=both))
    exact = run(naive_bi_wkv, x.to(torch.float64))
    ours = run(triton_bi_wkv, x)
    for name, a, leaf in zip(Results._fields, ours, (x.k, *x[:4]), strict=True):
        assert a.dtype == leaf.dtype, name
    found, allowed = errors(ours, exact, x), errors(run(partial(bi_wkv, backend="naive"), x), exact, x)
    assert all(found[name] <= max(allowance * allowed[name], 1e-5) for name in found), (found, allowed)


@pytest.mark.usefixtures("tiny_tiles")
def test_the_same_bits_twice() -> None:
    x = there(inputs((1, 8, 5)))
    for first, second in zip(run(triton_bi_wkv, x), run(triton_bi_wkv, x), strict=True):
        assert torch.equal(first, second)


@pytest.mark.usefixtures("tiny_tiles")
def test_strided_inputs() -> None:
    x = there(inputs((2, 8, 4)))
    expected = run(triton_bi_wkv, x)
    apart = Inputs(*(p.repeat_interleave(2, dim=-1)[..., ::2] for p in x))
    assert not apart.k.is_contiguous()
    leaves = [part.detach().requires_grad_() for part in apart[:4]]
    y = triton_bi_wkv(*leaves)
    found = Results(y.detach(), *torch.autograd.grad(y, leaves, apart.g))
    for name, a, b in zip(Results._fields, found, expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.usefixtures("tiny_tiles")
def test_a_nan_stays_in_its_image_and_channel() -> None:
    w, u, k, v, _ = there(inputs((2, 8, 5)))
    expected = triton_bi_wkv(w, u, k, v)
    k[1, 5, 2] = torch.nan
    out = triton_bi_wkv(w, u, k, v)
    assert out[1, :, 2].isnan().all()
    expected[1, :, 2] = out[1, :, 2] = 0
    torch.testing.assert_close(out, expected)


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("num_tokens", [5, 8], ids=["one span", "two spans"])
def test_opcheck(num_tokens: int) -> None:
    w, u, k, v, g = there(inputs((1, num_tokens, 4)))
    states = tiled.triton_bi_wkv(w, u, k, v)[1]
    torch.library.opcheck(tiled.triton_bi_wkv_backward, (w, u, k, v, g, states))
    torch.library.opcheck(tiled.triton_bi_wkv, tuple(x.requires_grad_() for x in (w, u, k, v)))


def test_compiles_into_one_graph() -> None:
    def network(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bi_wkv(w / k.shape[1], u, k * 2, v, backend="triton").tanh()

    x = there(inputs((1, 11, 4)))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, x), run(network, x), rtol=0, atol=0)


def test_what_it_cannot_do_is_refused() -> None:
    w, u, k, v, _ = there(inputs((1, 11, 4)))
    with pytest.raises(BackendError, match=r"vmap.*naive"):
        torch.vmap(triton_bi_wkv, in_dims=(None, None, 0, 0))(w, u, k[:, None], v[:, None])
    k.requires_grad_()
    (gk,) = torch.autograd.grad(triton_bi_wkv(w, u, k, v).sum(), k, create_graph=True)
    with pytest.raises(BackendError, match=r"second derivative.*naive"):
        torch.autograd.grad(gk.sum(), k)


def test_what_is_saved() -> None:
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    for num_tokens in (11, 29):
        leaves = [x.requires_grad_() for x in there(inputs((1, num_tokens, 4)))[:4]]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            triton_bi_wkv(*leaves)
    assert kept == [4, 4, 44, 44, 4, 4, 4, 116, 116, 2 * 7 * 4]


@pytest.mark.real_tiles
@pytest.mark.parametrize(
    "num_tokens", [1, 31, 32, 33, 64, 128, 129, 196, 224, 256, 512, 784, 1024, 1025, 4097, 65537]
)
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_a_tiling_covers_every_token(num_tokens: int, itemsize: int) -> None:
    forward, backward = (tiled.tiling(num_tokens, itemsize, backward=b) for b in (False, True))
    for tile in (forward, backward):
        span = tile.block * tile.blocks * tile.chunks
        assert tile.span == span >= min(num_tokens, 1024)
        assert tile.chunks & (tile.chunks - 1) == 0, "Triton's tiles are powers of two"
    assert forward.span == backward.span or max(num_tokens, forward.span, backward.span) <= 1024


@pytest.mark.gpu
@pytest.mark.real_tiles
@pytest.mark.skipif(not ON_GPU, reason="no CUDA device")
class TestOnAGpu:
    """At the sizes that matter."""

    def test_it_is_the_default(self) -> None:
        x = there(inputs((2, 196, 33)))
        assert torch.equal(bi_wkv(*x[:4]), triton_bi_wkv(*x[:4]))

    @pytest.mark.parametrize("num_tokens", [1, 31, 63, 100, 196, 256, 300, 784, 1000, 4097])
    def test_it_agrees_with_float64(self, num_tokens: int) -> None:
        for keys, decay in CASES:
            x = there(inputs((2, num_tokens, 33), keys=keys, decay=decay))
            exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
            found = errors(run(triton_bi_wkv, x), exact, x)
            assert max(found.values()) < (1e-3 if decay == -300 else 1e-4), (keys, decay, found)
            assert found["y"] < (1e-4 if decay == -300 else 1e-5), (keys, decay, found)

    def test_long_sequences(self) -> None:
        for num_tokens, keys, decay in itertools.product((16_384, 70_001), ("1", "one-hot"), DECAYS):
            x = there(inputs((1, num_tokens, 16), keys=keys, decay=decay))
            exact = run(partial(bi_wkv, backend="scan"), x.to(torch.float64))
            found = errors(run(triton_bi_wkv, x), exact, x)
            limit = 1e-3 if decay == -300 else 1e-4
            assert max(found.values()) < limit, (num_tokens, keys, decay, found)

    def test_it_runs_in_a_cuda_graph(self) -> None:
        w, u, k, v, g = there(inputs((2, 784, 48)))
        leaves = [x.requires_grad_() for x in (w, u, k, v)]
        expected = run(triton_bi_wkv, Inputs(w, u, k, v, g))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            y = triton_bi_wkv(*leaves)
            torch.autograd.grad(y, leaves, g)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                y = triton_bi_wkv(*leaves)
                gradients = torch.autograd.grad(y, leaves, g)
            graph.replay()
        torch.cuda.synchronize()
        for a, b in zip((y, *gradients), expected, strict=True):
            assert torch.equal(a.detach(), b)

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own code
    def test_it_compiles_with_inductor(self) -> None:
        def network(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return bi_wkv(w / k.shape[1], u, k * 2, v).tanh()

        x = there(inputs((2, 196, 16)))
        compiled = torch.compile(network, fullgraph=True)
        torch.testing.assert_close(run(compiled, x), run(network, x), rtol=1e-5, atol=1e-5)

    def test_a_second_gpu(self) -> None:
        if torch.cuda.device_count() < 2:
            pytest.skip("one GPU only")
        x = Inputs(*(part.to("cuda:1") for part in inputs((2, 196, 16))))
        exact = run(naive_bi_wkv, x.to(torch.float64))
        found = errors(run(triton_bi_wkv, x), exact, x)
        assert max(found.values()) < 1e-5, found


def test_scan_still_serves_where_it_is_asked_for() -> None:
    x = there(inputs((1, 29, 4)))
    assert torch.equal(bi_wkv(*x[:4], backend="scan"), scan.scan_bi_wkv(*x[:4]))
