"""batch_norm_act: forms against torch in float64, statistics over steps, layouts, refusals."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batch_norm_cases import EPS, case, definition, fused, kept, laid_out, off_the_corner, shrink_tiles
from fused_cases import assert_as_good, errors, exact, on_every_place, random, run, spread, with_triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rwkvseg.errors import BackendError, ShapeError, UsageError
from rwkvseg.ops import batch_norm_act

# one channel, a line of one pixel, lines of several; strips of several tiles with a tail, and several strips
SHAPES = [
    (1, 1, 1, 2),
    (2, 1, 3, 5),
    (1, 3, 8, 9),
    (1, 65, 7, 5),
    (2, 24, 5, 16),
    (1, 64, 1, 19),
    (2, 180, 2, 4),
]
ACTIVATIONS = ["identity", "relu", "silu"]


@pytest.fixture(autouse=True)
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_tiles" not in request.keywords:
        shrink_tiles(monkeypatch)


@pytest.mark.parametrize("training", [True, False])
def test_the_definition_is_the_formula(training: bool) -> None:
    (x, weight, bias, residual), _ = case((2, 5, 3, 4))
    mean, variance = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) if training else kept(5)
    mean, variance, weight, bias = (part.view(1, -1, 1, 1) for part in (mean, variance, weight, bias))
    z = (x - mean) / (variance + EPS).sqrt() * weight + bias
    by_name = {"identity": z, "relu": z.clamp(min=0), "silu": z / (1 + (-z).exp())}
    for name, activated in by_name.items():
        leaves = case((2, 5, 3, 4))[0]
        found = definition(activation=name, training=training)(*leaves)
        torch.testing.assert_close(found, residual + activated)


# every two of them meet
@pytest.mark.parametrize(
    ("activation", "residual", "training"),
    [(name, r, r == (i % 2 == 0)) for i, name in enumerate(ACTIVATIONS) for r in (True, False)],
)
@on_every_place
def test_values_and_gradients(
    activation: str, residual: bool, training: bool, backend: str, device: str
) -> None:
    options = {"activation": activation, "training": training}
    for shape in SHAPES:
        leaves, gs = case(shape, residual=residual)
        gs = off_the_corner(leaves, gs, training)
        found = run(fused(backend, **options), leaves, gs, device)
        truth = exact(definition(**options), leaves, gs)
        allowed = errors(run(definition(**options), leaves, gs, "cpu"), truth)
        ours = errors(found, truth)
        assert all(a <= max(2 * b, 1e-5) for a, b in zip(ours, allowed, strict=True)), (shape, ours, allowed)


@pytest.mark.real_tiles
@with_triton
def test_with_the_tiles_that_users_get(backend: str, device: str) -> None:
    for shape in ((2, 64, 9, 11), (1, 3, 16, 40)):
        leaves, gs = case(shape)
        truth = exact(definition(activation="silu"), leaves, gs)
        assert max(errors(run(fused(backend, activation="silu"), leaves, gs, device), truth)) < 1e-5


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 6), st.integers(5, 8)),
    activation=st.sampled_from(ACTIVATIONS),
    residual=st.booleans(),
    training=st.booleans(),
)
@with_triton
def test_any_shape(
    shape: tuple[int, ...], activation: str, residual: bool, training: bool, backend: str, device: str
) -> None:
    options = {"activation": activation, "training": training}
    leaves, gs = case(shape, residual=residual)
    gs = off_the_corner(leaves, gs, training)
    truth = exact(definition(**options), leaves, gs)
    allowed = errors(run(definition(**options), leaves, gs, "cpu"), truth)
    ours = errors(run(fused(backend, **options), leaves, gs, device), truth)
    assert all(a <= max(2 * b, 1e-5) for a, b in zip(ours, allowed, strict=True)), (ours, allowed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("both", [True, False], ids=["16-bit weights", "float32 weights"])
@with_triton  # the other form is torch's own operators
def test_low_precision_is_as_good_as_the_definition(
    dtype: torch.dtype, both: bool, backend: str, device: str
) -> None:
    (x, weight, bias, residual), gs = case((2, 24, 5, 6), dtype)
    if both:
        weight, bias = weight.to(dtype), bias.to(dtype)
    for training in (True, False):
        options = {"activation": "silu", "training": training}
        leaves = [x, weight, bias, residual]
        assert_as_good(
            fused(backend, **options), definition(**options), leaves, gs, backend=backend, device=device
        )


@on_every_place
def test_a_large_mean_costs_no_digits(backend: str, device: str) -> None:
    leaves, gs = case((3, 5, 17, 9), mean=100.0)
    options = {"activation": "silu"}
    found = run(fused(backend, **options), leaves, gs, device)
    assert max(errors(found, exact(definition(**options), leaves, gs))) < 1e-4
    x = leaves[0].to(device)
    _, variance = statistics_of(x, backend)
    truth = leaves[0].double().var((0, 2, 3))
    torch.testing.assert_close(variance.cpu().double(), truth, rtol=1e-4, atol=0)


def statistics_of(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Running statistics that forget everything else."""
    channels = x.shape[1]
    ones = torch.ones(channels, device=x.device)
    mean, variance = torch.zeros_like(ones), torch.zeros_like(ones)
    batch_norm_act(x, ones, ones, mean, variance, training=True, momentum=1.0, backend=backend)
    return mean, variance


@with_triton
def test_one_outlier_hides_nothing(backend: str, device: str) -> None:
    x = laid_out(random(2, 3, 20, 30, seed=1))
    x[0, :, 0, 0] = 3e4  # of the first pixel, by which sums might be shifted
    for found, truth in zip(
        statistics_of(x.to(device), backend),
        (x.double().mean((0, 2, 3)), x.double().var((0, 2, 3))),
        strict=True,
    ):
        torch.testing.assert_close(found.cpu().double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
@on_every_place
def test_running_statistics_over_steps_are_those_of_torch(momentum: float, backend: str, device: str) -> None:
    norm = torch.nn.BatchNorm2d(5, eps=EPS, momentum=momentum).double()
    mean, variance = torch.zeros(5, device=device), torch.ones(5, device=device)
    number = torch.zeros((), dtype=torch.long, device=device)
    weight, bias = torch.ones(5, device=device), torch.zeros(5, device=device)
    for step in range(3):
        x = laid_out(random(2, 5, 4, 7, seed=step) * (step + 1) + step)
        wanted = norm(x.double())
        found = batch_norm_act(
            x.to(device), weight, bias, mean, variance,
            training=True, momentum=momentum, eps=EPS, num_batches_tracked=number, backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(found.cpu(), wanted.float(), rtol=1e-5, atol=1e-5)
    assert int(number) == 3
    torch.testing.assert_close(mean.cpu().double(), norm.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance.cpu().double(), norm.running_var, rtol=1e-5, atol=1e-6)


@on_every_place
def test_evaluation_changes_no_statistics(backend: str, device: str) -> None:
    leaves, _ = case((2, 5, 3, 4))
    x, weight, bias, residual = (part.to(device) for part in leaves)
    statistics = [part.to(device) for part in kept(5)]
    number = torch.tensor(7, device=device)
    batch_norm_act(
        x, weight, bias, *statistics,
        training=False, residual=residual, num_batches_tracked=number, backend=backend,
    )  # fmt: skip
    assert int(number) == 7
    assert all(torch.equal(part.cpu(), before) for part, before in zip(statistics, kept(5), strict=True))


@on_every_place
def test_any_layout_and_the_same_bits_twice(backend: str, device: str) -> None:
    leaves, gs = case((2, 6, 5, 4))
    function = fused(backend, activation="silu")
    expected, again = (run(function, leaves, gs, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    plain = [x.contiguous() for x in leaves]
    for others in (plain, [spread(x) for x in leaves], [plain[0], *leaves[1:]]):
        for g in (gs[0], gs[0].contiguous(), spread(gs[0])):
            found = run(function, others, [g], device)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    one = torch.ones(()).expand(2, 6, 5, 4)
    ones = run(function, leaves, [one], device)
    torch.testing.assert_close(ones, run(function, leaves, [one.contiguous()], device), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training: bool) -> None:
    leaves = [x.double().requires_grad_() for x in case((2, 3, 2, 3))[0]]
    assert torch.autograd.gradcheck(fused("auto", activation="silu", training=training), leaves)


@on_every_place
def test_a_single_pixel_is_refused_by_torch(backend: str, device: str) -> None:
    x, ones = torch.zeros(1, 3, 1, 1, device=device), torch.ones(3, device=device)
    vectors = (ones, ones, torch.zeros_like(ones), ones.clone())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm_act(x, *vectors, training=True, backend=backend)
    assert batch_norm_act(x, *vectors, training=False, backend=backend).shape == x.shape


@with_triton
def test_what_triton_does_not_take_is_refused(backend: str, device: str) -> None:
    x, ones = torch.zeros(1, 3, 2, 2, device=device), torch.ones(3, device=device)
    twice = torch.ones(6, device=device)[::2]
    for vectors in ((None, ones, ones, ones), (ones, ones, None, None), (ones, ones, twice, ones)):
        with pytest.raises(UsageError, match="'auto'"):
            batch_norm_act(x, *vectors, training=True, backend=backend)
    double = [part.double() for part in (x, ones, ones, ones, ones)]
    with pytest.raises(BackendError, match="float64"):
        batch_norm_act(*double, training=True, backend=backend)


def test_without_weights_or_statistics_it_is_torchs() -> None:
    x = random(2, 3, 4, 5, seed=1)
    found = batch_norm_act(x, None, None, None, None, training=True, activation="relu")
    torch.testing.assert_close(found, F.relu(F.batch_norm(x, None, None, training=True)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": torch.zeros(3, 2, 2)}, r"\(3, 2, 2\)"),
        ({"x": torch.zeros(1, 3, 0, 2)}, r"\(1, 3, 0, 2\)"),
        ({"weight": torch.zeros(2)}, r"weight.*\(2,\).*3 channels"),
        ({"running_var": torch.zeros(1, 3)}, r"running_var.*\(1, 3\)"),
        ({"residual": torch.zeros(1, 3, 2, 1)}, r"residual.*\(1, 3, 2, 1\) and x \(1, 3, 2, 2\)"),
    ],
)
def test_shapes_are_checked(changes: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        batch_norm_act(**(arguments() | changes), training=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": torch.zeros(1, 3, 2, 2, dtype=torch.long)}, r"x torch\.int64"),
        ({"bias": torch.zeros(3, device="meta")}, "bias torch.float32 on meta"),
        ({"bias": torch.zeros(3, dtype=torch.bfloat16)}, "one floating dtype"),
        ({"residual": torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)}, "one floating dtype"),
        ({"activation": "gelu"}, "'gelu'.*'identity', 'relu', 'silu'"),
    ],
)
def test_kinds_are_checked(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        batch_norm_act(**(arguments() | changes), training=True)
    with pytest.raises(BackendError, match="'torch', 'triton'"):
        batch_norm_act(**arguments(), training=True, backend="fast")


def test_weight_and_bias_have_one_type() -> None:
    x = torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)
    with pytest.raises(UsageError, match=r"weight torch\.float32, bias torch\.bfloat16"):
        batch_norm_act(**(arguments() | {"x": x, "bias": torch.ones(3).bfloat16()}), training=True)


def arguments() -> dict[str, Any]:
    vectors = {name: torch.ones(3) for name in ("weight", "bias", "running_mean", "running_var")}
    return {"x": torch.zeros(1, 3, 2, 2), **vectors}
