"""What every option of U-RWKV (3D) promises: any size, gradients, precision, export."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.export import Dim
from volumes import OPTIONS, SMALL, small_network, volumes

from onnx_files import check_onnx, open_onnx, write_onnx
from rwkvseg.errors import ModelFileError, ShapeError, UsageError
from rwkvseg.models import create_model, list_models
from rwkvseg.models.blocks3d import InstanceNorm3d
from rwkvseg.models.counting import measure
from rwkvseg.ops.wkv import export

NAMES = [name for name in list_models() if name.startswith("urwkv3d")]
# an instance norm removes a constant that reaches it through 1x1x1 convolutions, or those of the next level
DEAD = re.compile(
    r"encoder\.levels\.0\.(down|(local|blocks\.\d)\.project)\.1\.bias|decoder\.blocks\.\d\.up\.bias"
)


def test_the_names() -> None:
    assert NAMES == ["urwkv3d_base", "urwkv3d_small", "urwkv3d_tiny"]


@pytest.mark.parametrize("name", NAMES)
def test_every_size_by_name(name: str) -> None:
    model = create_model(name, in_channels=2, num_classes=5, **SMALL).eval()
    with torch.no_grad():
        assert model(volumes(1, 2, 3, 20, 5)).shape == (1, 5, 3, 20, 5)
    assert model.spatial_dims == 3


@pytest.mark.parametrize("option", OPTIONS)
class TestOptions:
    def test_a_gradient_reaches_every_parameter(self, option: str) -> None:
        network = small_network(**OPTIONS[option]).double()
        outputs = network(volumes(1, 1, 33, 32, 16).double())
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum((x * volumes(*x.shape, seed=2)).sum() for x in outputs).backward()  # type: ignore[union-attr]
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            is_dead = DEAD.fullmatch(key) and not (option == "level_1_mixes" and key.startswith("encoder"))
            if not is_dead:
                assert parameter.grad.abs().max() > 1e-11, key

    def test_any_size_and_a_state_dict_restores_it(self, option: str) -> None:
        first, second = (small_network(seed, **OPTIONS[option]).eval() for seed in (0, 5))
        second.load_state_dict(first.state_dict(), strict=True)
        for size in [(1, 1, 1), (1, 21, 16), (7, 18, 3)]:
            x = volumes(2, 1, *size)
            with torch.no_grad():
                logits = first(x)
                assert torch.equal(second(x), logits)
            assert logits.shape == (2, 3, *size)
            assert logits.isfinite().all()


def test_options_are_different_networks() -> None:
    x, found = volumes(1, 1, 16, 32, 16), []
    for option in OPTIONS.values():
        with torch.no_grad():
            found.append(small_network(**option).eval()(x))
    same = [(a, b) for a in range(len(found)) for b in range(a) if torch.equal(found[a], found[b])]
    names = list(OPTIONS)
    # starts that are the same function, or differ in the random decays alone
    assert {(names[b], names[a]) for a, b in same} <= {
        *(("default", other) for other in ("free", "no_supervision", "softmax_channel")),
        *(("softmax_channel", "free"), ("softmax_channel", "no_supervision"), ("free", "no_supervision")),
        ("uniform", "zeros"),
    }


@pytest.mark.parametrize("strides", [((2, 2, 2),) * 4, ((2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 1, 2))], ids=str)
def test_deep_supervision_gives_three_levels(strides: tuple[tuple[int, ...], ...]) -> None:
    network = small_network(strides=strides)
    outputs = network(volumes(2, 1, 30, 17, 16))
    padded = [-(-size // total) * total for size, total in zip((30, 17, 16), network.stride, strict=True)]
    expected, size = [(2, 3, 30, 17, 16)], padded
    for stride in strides[:2]:
        size = [side // step for side, step in zip(size, stride, strict=True)]
        expected.append((2, 3, *size))
    assert [tuple(x.shape) for x in outputs] == expected
    with torch.no_grad():
        assert isinstance(network.eval()(volumes(1, 1, 16, 16, 16)), Tensor)
    lone = small_network(strides=strides, deep_supervision=False)
    assert isinstance(lone(volumes(1, 1, 32, 16, 16)), Tensor)
    assert len(lone.heads) == 1


def test_the_first_logits_are_those_of_evaluation() -> None:
    network, x = small_network(), volumes(1, 1, 19, 16, 33)
    with torch.no_grad():
        torch.testing.assert_close(network.train()(x)[0], network.eval()(x))


def test_the_border_is_padded_by_repeating_it() -> None:
    network, x = small_network().eval(), volumes(1, 1, 15, 33, 16)
    padded = torch.cat([x, x[:, :, -1:]], 2)
    padded = torch.cat([padded, padded[:, :, :, -1:].expand(-1, -1, -1, 15, -1)], 3)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[:, :, :15, :33])


def test_volumes_of_a_batch_do_not_see_each_other() -> None:
    network, x = small_network().eval(), volumes(3, 1, 16, 20, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-4, atol=1e-5)


def test_every_voxel_sees_every_other() -> None:
    """Through the scans: without them a corner does not reach the opposite one."""
    size = (64, 48, 48)
    seen = {}
    for mixer in ("wkv", "none"):
        network = small_network(mixer=mixer, depths=(0, 0, 1, 0), kernels=((1, 1, 1),) * 5, shift=0).double()
        for module in network.modules():
            if isinstance(module, InstanceNorm3d):  # its means see everything, too
                module.forward = partial(_scale_only, module)  # type: ignore[method-assign]
        x = volumes(1, 1, *size).double().requires_grad_()
        network.eval()(x)[0, :, 0, 0, 0].sum().backward()
        assert x.grad is not None
        seen[mixer] = float(x.grad[0, 0, -1, -1, -1].abs())
    assert seen["none"] == 0 < seen["wkv"]


def _scale_only(norm: InstanceNorm3d, x: Tensor) -> Tensor:
    return x * norm.weight.view(-1, 1, 1, 1) + norm.bias.view(-1, 1, 1, 1)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("option", ["default", "bi_mamba", "softmax_channel"])
def test_bfloat16_autocast_stays_near_float32(option: str, train: bool) -> None:
    network = small_network(**OPTIONS[option]).train(train)
    x = volumes(2, 1, 32, 16, 32)
    full = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x)
    for a, b in zip(low, full, strict=True) if train else [(low, full)]:
        assert a.isfinite().all()
        assert (a.float() - b).abs().mean() < 0.05 * b.std()
        a.float().square().mean().backward(retain_graph=True)
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_runs_in_16_bits(option: str, dtype: torch.dtype) -> None:
    """Bright volumes, too: squared ReLUs of what is not normalised would leave float16's range."""
    network, x = small_network(**OPTIONS[option]).eval(), 1000 * volumes(1, 1, 32, 16, 32)
    with torch.no_grad():
        full = network(x)
        with torch.autocast("cpu", dtype=dtype):
            low = network(x)
    assert low.isfinite().all()
    assert (low.float() - full).abs().mean() < 6 * torch.finfo(dtype).eps * full.std()


def test_checkpointing_changes_no_gradient_and_needs_less_memory() -> None:
    x, found = volumes(1, 1, 16, 32, 16), []
    for checkpointing in (False, True):
        network = small_network(gradient_checkpointing=checkpointing, drop_path_rate=0.5)
        torch.manual_seed(3)
        sum(output.square().mean() for output in network(x)).backward()  # type: ignore[union-attr]
        found.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(found[1], found[0])
    plain, less = (
        measure("urwkv3d_tiny", 32, gradient_checkpointing=checkpointing, **SMALL)
        for checkpointing in (False, True)
    )
    assert (less.macs, less.parameters) == (plain.macs, plain.parameters)
    assert less.activation_bytes < 0.6 * plain.activation_bytes


def test_costs_are_counted_for_one_channel_and_grow_with_the_voxels() -> None:
    tiny = measure("urwkv3d_tiny", num_classes=14)
    assert (tiny.size, tiny.parameters) == ((96, 96, 96), 3_046_548)
    assert tiny.macs_run == pytest.approx(15.9e9, rel=0.01)  # as the design was first counted
    small, large = (measure("urwkv3d_tiny", size, **SMALL) for size in ((32, 64, 48), 96))
    assert small.size == (32, 64, 48)
    assert large.macs_run == pytest.approx(9 * small.macs_run, rel=1e-3)
    with pytest.raises(UsageError, match="3 axes"):
        measure("urwkv3d_tiny", (64, 64))


@pytest.mark.parametrize(
    "shape", [(1, 32, 32, 32), (1, 1, 32, 32), (1, 2, 32, 32, 32), (1, 1, 0, 32, 32)], ids=str
)
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="D, H, W"):
        small_network()(torch.zeros(shape))


def test_the_encoder_of_another_network_is_a_start(tmp_path: Path) -> None:
    trained, file = small_network(seed=4), tmp_path / "model.safetensors"
    save_file(trained.state_dict(), file)
    network = create_model("urwkv3d_tiny", in_channels=1, num_classes=5, encoder_weights=file, **SMALL)
    for key, value in network.state_dict().items():
        if key.startswith("encoder."):
            assert torch.equal(value, trained.state_dict()[key]), key


def test_what_only_networks_for_pictures_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="URWKV3d has no encoder that gives maps"):
        create_model("urwkv3d_tiny", features_only=True)
    picture_network = create_model("rwkv_unet_nano")
    save_file(picture_network.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"stages\.0"):
        create_model("urwkv3d_tiny", encoder_weights=tmp_path)
    with pytest.raises(UsageError, match=r"'depht'.*widths, depths"):
        create_model("urwkv3d_tiny", depht=3)


@pytest.mark.slow
def test_it_compiles() -> None:
    network, x = small_network(depths=(0, 1, 0, 0)), volumes(1, 1, 16, 20, 32)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for ours, theirs in zip(compiled(x), network(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # torch reasons about every symbolic size: one axis here, since all three take minutes
def test_an_onnx_file_for_all_depths_gives_the_logits_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as many levels of chunks as it really has, the operator has in a file of tests/ops
    monkeypatch.setattr(export, "LEVELS", 1)
    network, path = small_network(depths=(0, 0, 1, 0)).eval(), tmp_path / "tiny.onnx"
    write_onnx(network, (volumes(1, 1, 48, 32, 16),), ({2: Dim.DYNAMIC},), path)
    check_onnx(path)
    in_onnxruntime = open_onnx(path)
    for depth in (48, 1, 35):
        x = volumes(1, 1, depth, 32, 16)
        with torch.no_grad():
            expected = network(x)
        torch.testing.assert_close(
            in_onnxruntime(x), expected, rtol=0, atol=1e-4 * min(1.0, float(expected.std()))
        )
