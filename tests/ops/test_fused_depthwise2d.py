"""depthwise_conv2d: torch's convolution in float64 as the truth, kernels at odd sizes, every gradient."""

import importlib
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fused_cases import (
    assert_as_good,
    depthwise_case,
    interpreted,
    on_every_place,
    random,
    run,
    with_triton,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from offline_compiler import lines_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.ops import depthwise_conv2d
from rwkvseg.ops.backends import triton_is_installed, why_not_triton
from rwkvseg.ops.fused import operators
from rwkvseg.ops.fused.depthwise import naive_depthwise_conv

CASES = [
    ((1, 1, 1, 1), (1, 1), torch.float32),
    ((2, 3, 6, 5), (3, 3), torch.float32),
    ((1, 17, 5, 19), (1, 5), torch.float32),  # tiles end inside rows, columns and channels
    ((1, 33, 7, 2), (5, 1), torch.bfloat16),
    ((1, 2, 3, 4), (5, 9), torch.float16),  # a kernel larger than the map
]
both_strides = pytest.mark.parametrize("stride", [1, 2])


KERNELS = "rwkvseg.ops.fused.triton_depthwise2d"
SMALL = {"ROWS": 2, "FEW": 0, "WARPS": 1, "WARPS_OF_GRADIENT": 1, "PROGRAMS": 8}


@pytest.fixture(autouse=True)
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that maps have several tiles, and a program of the weights' gradient several pieces."""
    if why_not_triton([torch.empty(1)]) is None and "real_tiles" not in request.keywords:
        for name, number in SMALL.items():
            monkeypatch.setattr(f"{KERNELS}.{name}", number)


def assert_right(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    dtype: torch.dtype,
    *,
    stride: int,
    backend: str,
    device: str,
) -> None:
    fused = partial(depthwise_conv2d, stride=stride, backend=backend)
    definition = partial(naive_depthwise_conv, stride=stride)
    leaves, gs = depthwise_case(shape, kernel, dtype, stride)
    assert_as_good(fused, definition, leaves, gs, backend=backend, device=device)


@pytest.mark.parametrize(("shape", "kernel", "dtype"), CASES, ids=str)
@both_strides
@on_every_place
def test_values_and_gradients(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    dtype: torch.dtype,
    stride: int,
    backend: str,
    device: str,
) -> None:
    assert_right(shape, kernel, dtype, stride=stride, backend=backend, device=device)


@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 11), st.integers(1, 11)),
    kernel=st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 2),
    stride=st.sampled_from([1, 2]),
)
@with_triton
def test_any_shape(
    shape: tuple[int, ...], kernel: tuple[int, ...], stride: int, backend: str, device: str
) -> None:
    assert_right(shape, kernel, torch.float32, stride=stride, backend=backend, device=device)


def test_stride_2_is_every_other_pixel_of_stride_1() -> None:
    x, weight = random(2, 3, 5, 8, seed=1).double(), random(3, 1, 5, 3, seed=2).double()
    halved = depthwise_conv2d(x, weight, stride=2)
    assert halved.shape == (2, 3, 3, 4)
    torch.testing.assert_close(halved, depthwise_conv2d(x, weight)[..., ::2, ::2])


PATCHES_OF_A_GPU = {"ROWS": 4, "COLS": 8, "ROWS_OF_GRADIENT": 4, "COLS_OF_GRADIENT": 8, "VECTOR": 2}
PATCHES_OF_A_GPU |= {"COLS_STRIDED": 8, "ROWS_OF_GRADIENT_STRIDED": 4, "ROWS_OF_INPUT": 4, "COLS_OF_INPUT": 8}


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((2, 6, 9, 17), (5, 5)),  # a patch and one row or column, an even number of channels
        ((1, 18, 4, 7), (3, 9)),  # patches as high as the map; fewer taps than rows of a patch
        ((1, 2, 5, 9), (7, 3)),
        ((1, 3, 3, 2), (9, 11)),  # the kernel is larger than the map and the patch
    ],
    ids=str,
)
@both_strides
@with_triton
def test_borders_of_the_patches_of_a_gpu(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int,
    backend: str,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, number in PATCHES_OF_A_GPU.items():
        monkeypatch.setattr(f"{KERNELS}.{name}", number)
    assert_right(shape, kernel, torch.bfloat16, stride=stride, backend=backend, device=device)


@interpreted
def test_few_programs_take_smaller_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = importlib.import_module(KERNELS)
    for name, number in {**PATCHES_OF_A_GPU, "WARPS": 4, "ROWS_OF_FEW": 2}.items():
        monkeypatch.setattr(kernels, name, number)
    few, many = (torch.empty(32, 160, side, side, device="meta") for side in (16, 32))
    monkeypatch.setattr(kernels, "FEW", 160)
    assert kernels.rows_and_programs(few, 4, 8) == (2, 2 * 160)
    assert kernels.rows_and_programs(many, 4, 8) == (4, 4 * 160)
    monkeypatch.setattr(kernels, "FEW", 159)
    assert kernels.rows_and_programs(few, 4, 8) == (4, 160)


@pytest.mark.slow
def test_the_kernels_compile_for_a_hopper_gpu() -> None:
    for line in lines_of("compile_depthwise2d.py", "3", "--channels", "48"):
        registers, moved, instructions = map(float, line.split()[4:])
        assert registers <= 168, line
        assert moved <= 10, line
        assert instructions <= 40, line


@pytest.mark.gpu
@pytest.mark.real_tiles
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("channels", "side", "kernel", "stride"),
    [
        (64, 128, 9, 1),
        (160, 16, 9, 1),
        (288, 32, 5, 1),
        (120, 61, 5, 1),
        (96, 256, 5, 2),
        (160, 61, 5, 2),
        (672, 32, 5, 2),
    ],
)
def test_the_networks_own_shapes(channels: int, side: int, kernel: int, stride: int) -> None:
    leaves, gs = depthwise_case((3, channels, side, side), (kernel, kernel), torch.bfloat16, stride)
    x, weight, g = (part.cuda() for part in (*leaves, *gs))
    results = []
    for backend, part in (("triton", x), ("torch", x.float())):
        leaves = part.requires_grad_(), weight.clone().requires_grad_()
        y = depthwise_conv2d(*leaves, stride=stride, backend=backend)
        results.append((y, *torch.autograd.grad(y, leaves, g.to(y.dtype))))
    for ours, theirs in zip(*results, strict=True):
        assert (ours.float() - theirs).abs().max() <= 1e-2 * theirs.abs().max()


@both_strides
@with_triton
def test_any_layout_and_the_same_bits_twice(stride: int, backend: str, device: str) -> None:
    (x, weight), gs = depthwise_case((2, 2, 3, 4), (3, 3), torch.float32, stride)
    apart = x.to(memory_format=torch.channels_last)
    wide = torch.cat([x, x], dim=3)[..., :4]
    results = [
        run(partial(depthwise_conv2d, stride=stride, backend=backend), [part, weight], gs, device)
        for part in (x, apart, wide, x)
    ]
    for again in results[1:]:
        for first, second in zip(results[0], again, strict=True):
            assert torch.equal(first, second)


@both_strides
@with_triton
def test_it_is_an_operator_of_torch(stride: int, backend: str, device: str) -> None:
    leaves, gs = depthwise_case((2, 2, 2, 3), (1, 3), torch.bfloat16, stride)
    x, weight, g = (part.to(device) for part in (*leaves, *gs))
    torch.library.opcheck(operators.triton_depthwise_conv_backward, (x, weight, g, stride))
    both = x.requires_grad_(), weight.requires_grad_()
    torch.library.opcheck(operators.triton_depthwise_conv, (*both, stride))
    y = operators.triton_depthwise_conv(x, weight, stride)
    assert y.is_contiguous(memory_format=torch.channels_last)


@both_strides
@on_every_place
def test_autocast_decides_the_type_as_of_torchs_convolution(stride: int, backend: str, device: str) -> None:
    x, weight = random(1, 2, 4, 5, seed=1).to(device), random(2, 1, 3, 3, seed=2).to(device)

    def plain(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=stride, padding=1, groups=2)

    ours = partial(depthwise_conv2d, stride=stride, backend=backend)
    assert ours(x, weight).dtype == torch.float32
    with torch.autocast(device, torch.bfloat16):
        mixed, wanted = ours(x, weight), plain(x)
    assert mixed.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), plain(x), rtol=0, atol=0.1)


def test_refusals() -> None:
    x, weight = torch.zeros(1, 2, 3, 3), torch.zeros(2, 1, 3, 3)
    with pytest.raises(ShapeError, match=r"give maps \(B, C, H, W\)"):
        depthwise_conv2d(x[0], weight)
    with pytest.raises(ShapeError, match=r"give \(2, 1, odd, odd\)"):
        depthwise_conv2d(x, torch.zeros(2, 1, 2, 3))
    with pytest.raises(UsageError):
        depthwise_conv2d(x.long(), weight)
    with pytest.raises(UsageError, match="stride is 3; give 1 or 2"):
        depthwise_conv2d(x, weight, stride=3)


@pytest.mark.skipif(not triton_is_installed(), reason="the package triton is not installed")
@pytest.mark.parametrize(
    ("kernel", "stride", "ours"),
    [((9, 9), 1, True), ((1, 5), 1, True), ((3, 3), 1, False), ((9, 9), 2, True), ((3, 3), 2, False)],
    ids=str,
)
def test_only_large_kernels_leave_cudnn_on_a_gpu(
    kernel: tuple[int, int], stride: int, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rwkvseg.ops.backends.why_not_triton", lambda *_: None)
    seen: list[str] = []

    def keep(graph: Any, example_inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with FakeTensorMode():
        x, weight = torch.empty(2, 3, 8, 8, device="cuda"), torch.empty(3, 1, *kernel, device="cuda")
        torch.compile(depthwise_conv2d, fullgraph=True, backend=keep)(x, weight, stride=stride)
    assert any("rwkvseg" in target for target in seen) == ours, seen
