"""The Triton form of the selective scan against its definition: values, gradients, cuts, refusals, graphs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from fused_cases import errors, exact, on_every_place, on_gpu, random, run, spread, with_triton
from torch import Tensor

from rwkvseg.errors import BackendError, ShapeError, UsageError
from rwkvseg.models.mixers import BiMamba
from rwkvseg.ops import selective_scan as module
from rwkvseg.ops.backends import why_not_triton
from rwkvseg.ops.scan import operators
from rwkvseg.ops.selective_scan import naive_selective_scan, scan_backend, selective_scan

# (B, T, E, N): lengths around blocks and chunks, channels around tiles, states to be filled up or not
SHAPES = [(1, 1, 1, 1), (2, 1, 5, 16), (2, 3, 5, 3), (1, 17, 33, 16), (2, 65, 5, 3)]


def leaves_of(shape: tuple[int, int, int, int], dtypes: Sequence[torch.dtype] = ()) -> list[Tensor]:
    """x, step, rate, b and c."""
    batch, tokens, channels, states = shape
    step = torch.nn.functional.softplus(random(batch, tokens, channels, seed=2))
    rate = -random(channels, states, seed=3).exp()
    b, c = (random(batch, tokens, states, seed=s) for s in (4, 5))
    leaves = [random(batch, tokens, channels, seed=1), step, rate, b, c]
    return [x.to(dtype) for x, dtype in zip(leaves, dtypes, strict=True)] if dtypes else leaves


def upstream(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [random(*shape[:3], seed=6, dtype=dtype)]


def definition(*leaves: Tensor, reverse: bool = False) -> Tensor:
    x, step, rate, b, c, *skip = leaves
    added = skip[0] * x if skip else torch.zeros_like(x)
    if reverse:
        x, step, b, c = (part.flip(1) for part in (x, step, b, c))
    out = naive_selective_scan(x, step, rate, b, c)
    return (out.flip(1) if reverse else out) + added


def by(backend: str, reverse: bool = False) -> Any:
    return partial(selective_scan, reverse=reverse, backend=backend)


@pytest.fixture(autouse=True)
def repeatable_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cuBLAS wants where every test insists on determinism."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the GPU had nothing to do: chunks of eight tokens."""
    pytest.importorskip("triton")
    from rwkvseg.ops.scan import triton_launch

    monkeypatch.setattr(triton_launch, "SHORTEST", 8)
    monkeypatch.setattr(triton_launch, "GROUP", 2)


@pytest.fixture
def one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from rwkvseg.ops.scan import triton_launch

    monkeypatch.setattr(triton_launch, "SHORTEST", 1 << 20)


def assert_as_defined(shape: tuple[int, int, int, int], backend: str, device: str, *, reverse: bool) -> None:
    leaves, gs = leaves_of(shape), upstream(shape)
    found = run(by(backend, reverse), leaves, gs, device)
    assert max(errors(found, exact(partial(definition, reverse=reverse), leaves, gs))) < 2e-6


@pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_every_place
def test_values_and_gradients_match_the_definition(
    shape: tuple[int, int, int, int], reverse: bool, backend: str, device: str
) -> None:
    assert_as_defined(shape, backend, device, reverse=reverse)


@pytest.mark.parametrize(("shape", "reverse"), [((2, 65, 5, 3), True), ((1, 33, 33, 16), False)], ids=str)
@pytest.mark.usefixtures("many_chunks")
@with_triton
def test_in_many_chunks(shape: tuple[int, int, int, int], reverse: bool, backend: str, device: str) -> None:
    assert_as_defined(shape, backend, device, reverse=reverse)


@on_every_place
def test_with_a_skip(backend: str, device: str) -> None:
    for shape, reverse in (((2, 9, 5, 3), False), ((1, 6, 33, 1), True)):
        leaves, gs = [*leaves_of(shape), random(shape[2], seed=7)], upstream(shape)
        found = run(by(backend, reverse), leaves, gs, device)
        assert max(errors(found, exact(partial(definition, reverse=reverse), leaves, gs))) < 2e-6


@pytest.mark.slow
@with_triton
def test_a_longer_one(backend: str, device: str) -> None:
    assert_as_defined((1, 130, 33, 16), backend, device, reverse=False)


@pytest.mark.usefixtures("one_chunk")
@with_triton
def test_in_one_chunk(backend: str, device: str) -> None:
    assert_as_defined((1, 67, 5, 4), backend, device, reverse=True)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@with_triton
def test_dtypes_may_be_mixed(low: torch.dtype, backend: str, device: str) -> None:
    shape = (2, 9, 5, 3)
    full = torch.float32
    leaves, gs = leaves_of(shape, (low, full, full, low, full)), upstream(shape, low)
    truth = exact(definition, leaves, gs)
    found = run(by(backend), leaves, gs, device)
    assert found[0].dtype == low
    precision = 8e-3 if low == torch.bfloat16 else 1e-3
    for is_low, error in zip((True, True, False, False, True, False), errors(found, truth), strict=True):
        assert error < (precision if is_low else 2e-6)


@with_triton
def test_layouts_and_the_same_bits_twice(backend: str, device: str) -> None:
    shape = (2, 18, 5, 3)
    leaves, gs = leaves_of(shape), upstream(shape)
    expected, again = (run(by(backend), leaves, gs, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    found = run(by(backend), [spread(x) for x in leaves], [spread(g) for g in gs], device)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    sides = torch.cat(leaves[3:], 2).split([3, 3], dim=2)  # as a layer gives them
    found = run(by(backend), [*leaves[:3], *sides], [gs[0][:, :1].expand(2, 18, 5)], device)
    expected = run(by(backend), leaves, [gs[0][:, :1].repeat(1, 18, 1)], device)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e6])
@with_triton
def test_steps_of_any_size_stay_finite(scale: float, backend: str, device: str) -> None:
    x, step, rate, b, c = leaves_of((1, 18, 3, 4))
    leaves, gs = [x, step * scale, rate, b, c], upstream((1, 18, 3, 4))
    found, truth = run(by(backend), leaves, gs, device), exact(definition, leaves, gs)
    assert max(errors([a / e.abs().max() for a, e in zip(found, truth, strict=True)],
                      [e / e.abs().max() for e in truth])) < 1e-4  # fmt: skip


@with_triton
def test_opcheck(backend: str, device: str) -> None:
    low, full = torch.bfloat16, torch.float32
    leaves = [x.to(device) for x in leaves_of((2, 5, 3, 3), (low, full, full, low, low))]
    g = upstream((2, 5, 3, 3), low)[0].to(device)
    torch.library.opcheck(operators.triton_selective_scan_backward, (*leaves, None, g, True))
    leaves = [x.requires_grad_() for x in (*leaves, random(3, seed=7).to(device))]
    torch.library.opcheck(operators.triton_selective_scan, (*leaves, False))


@with_triton
def test_inputs_alone_are_saved_and_the_rest_is_refused(backend: str, device: str) -> None:
    kept: list[tuple[int, ...]] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    leaves = [x.to(device).requires_grad_() for x in leaves_of((2, 5, 3, 4))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = selective_scan(*leaves, backend=backend)
    assert kept == [(2, 5, 3), (2, 5, 3), (3, 4), (2, 5, 4), (2, 5, 4)]
    (gradient,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(BackendError, match=r"second derivative.*'torch'"):
        torch.autograd.grad(gradient.sum(), leaves[0])
    stacked = [x.detach() if i == 2 else x.detach()[:, None] for i, x in enumerate(leaves)]
    with pytest.raises(BackendError, match=r"vmap.*'torch'"):
        torch.vmap(by(backend), (0, 0, None, 0, 0))(*stacked)
    found = torch.vmap(by("torch"), (0, 0, None, 0, 0))(*stacked)
    torch.testing.assert_close(found[:, 0], out.cpu().to(device), rtol=1e-5, atol=1e-5)


def test_which_form_is_taken() -> None:
    x = torch.zeros(1, 2, 3)
    assert scan_backend("auto", [x], states=16) == "torch"
    assert scan_backend("auto", [x], states=module.MOST_STATES + 1) == "torch"
    with pytest.raises(BackendError, match="'torch', 'triton'"):
        scan_backend("fast", [x], states=16)
    if why_not_triton([x]) is None:
        assert scan_backend("triton", [x], states=16) == "triton"
    with pytest.raises(BackendError, match="triton"):
        scan_backend("triton", [x.double()], states=16)


@pytest.mark.parametrize(
    ("number", "shape", "says"),
    [
        (0, (2, 3), r"x has shape \(2, 3\)"),
        (0, (2, 0, 3), r"at least 1"),
        (1, (2, 5, 4), r"step has shape \(2, 5, 4\)"),
        (2, (4, 3), r"rate has shape \(4, 3\).*3 channels"),
        (3, (2, 5, 5), r"b has shape \(2, 5, 5\).*\(2, 5, 4\)"),
        (4, (1, 5, 4), r"c has shape"),
    ],
)
def test_shapes_are_checked(number: int, shape: tuple[int, ...], says: str) -> None:
    leaves = leaves_of((2, 5, 3, 4))
    leaves[number] = torch.zeros(shape)
    with pytest.raises(ShapeError, match=says):
        selective_scan(*leaves)


def test_kinds_are_checked() -> None:
    x, *rest = leaves_of((2, 5, 3, 4))
    with pytest.raises(ShapeError, match=r"skip has shape \(4,\)"):
        selective_scan(x, *rest, torch.zeros(4))
    with pytest.raises(UsageError, match=r"x torch\.int64 on cpu"):
        selective_scan(x.long(), *rest)


@pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
@with_triton
def test_the_mixer_takes_it(
    reverse: bool, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both directions of BiMamba, without flips: what plain torch gives with them."""
    from rwkvseg.models import mixers

    torch.manual_seed(0)
    mixer = BiMamba(6).to(device)
    scan = mixer.back if reverse else mixer.forth
    values = random(2, 11, 12, seed=1).to(device)
    found = []
    for chosen in ("torch", backend):
        monkeypatch.setattr(mixers, "scan_backend", lambda *_, chosen=chosen, **__: chosen)
        x = values.clone().requires_grad_()
        with torch.backends.cudnn.flags(allow_tf32=False):
            out = scan(x)
            gradients = torch.autograd.grad(out.square().sum(), [x, *scan.parameters()])
        found.append([out.detach(), *gradients])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@with_triton
def test_compiles_into_one_graph(backend: str, device: str) -> None:
    def network(x: Tensor, *others: Tensor) -> Tensor:
        return selective_scan(x * 2, *others, backend=backend).tanh()

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (3, 10):
        shape = (2, tokens, 5, 3)
        leaves, gs = leaves_of(shape), upstream(shape)
        found, expected = (run(operator, leaves, gs, device) for operator in (compiled, network))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnTheGPU:
    """At sizes that users have."""

    def test_it_is_the_default(self) -> None:
        leaves = [x.cuda() for x in leaves_of((1, 4, 3, 2))]
        assert scan_backend("auto", leaves, states=2) == "triton"
        assert scan_backend("auto", [x.double() for x in leaves], states=2) == "torch"

    @pytest.mark.parametrize("shape", [(2, 1000, 96, 16), (1, 9001, 40, 16), (64, 100, 400, 16)], ids=str)
    @pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
    def test_against_float64(self, shape: tuple[int, int, int, int], reverse: bool) -> None:
        leaves, gs = leaves_of(shape), upstream(shape)
        scans = [by("triton", reverse), by("torch", reverse)]
        found = run(scans[0], leaves, gs, "cuda")
        truth = run(scans[1], [x.double() for x in leaves], [g.double() for g in gs], "cuda")
        limits = [1e-5, 1e-5, 1e-4, 1e-4, 1e-5, 1e-5]  # out, x, step, rate, b, c
        ours = errors(found, truth)
        assert all(a < b for a, b in zip(ours, limits, strict=True)), ours

    def test_it_runs_in_a_cuda_graph(self) -> None:
        shape = (2, 784, 48, 16)
        leaves = [x.cuda().requires_grad_() for x in leaves_of(shape)]
        (g,) = (x.cuda() for x in upstream(shape))
        expected = run(by("triton"), leaves, [g], "cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            out = selective_scan(*leaves)
            torch.autograd.grad(out, leaves, g)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                out = selective_scan(*leaves)
                gradients = torch.autograd.grad(out, leaves, g)
            graph.replay()
        torch.cuda.synchronize()
        for a, b in zip((out, *gradients), expected, strict=True):
            assert torch.equal(a.detach().cpu(), b)

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own code
    @pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # they are not wanted
    def test_it_compiles_with_inductor(self) -> None:
        torch.manual_seed(0)
        mixer = BiMamba(24).cuda()
        compiled = torch.compile(mixer, fullgraph=True)
        x = random(2, 24, 16, 20, seed=1).cuda()
        for one in (mixer, compiled):
            one(x).square().sum().backward()
        torch.testing.assert_close(compiled(x), mixer(x), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
    def test_autocast_takes_16_bits(self, device: str) -> None:
        torch.manual_seed(0)
        mixer, x = BiMamba(24).to(device), random(2, 24, 16, 20, seed=1).to(device)
        with torch.no_grad():
            expected = mixer(x)
            with torch.autocast(device, dtype=torch.bfloat16):
                low = mixer(x)
        assert (low.float() - expected).abs().mean() < 0.03 * expected.std()
