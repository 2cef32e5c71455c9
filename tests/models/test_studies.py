"""The studies of the papers: block forms against their words, skips, other encoders, refusals."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from model_folders import assert_a_folder_restores
from study_cases import SMALL, build_study, images
from torch import Tensor, nn

from rwkvseg.errors import MissingExtraError, ShapeError, UsageError
from rwkvseg.models import RWKVUNet, RWKVUNetConfig, create_model, registry
from rwkvseg.models.blocks import LayerNorm2d
from rwkvseg.models.encoders import encoder_widths
from rwkvseg.models.mixing import SpatialMix
from rwkvseg.models.options import StudyOptions
from rwkvseg.models.rwkv_unet import TINY, PerceptionBlock
from rwkvseg.models.studies import (
    PaperCrossChannelMix,
    PlainDecoderBlock,
    ReducedDecoderBlock,
    StudyBlock,
)


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator))
    return module.double().eval()


def block(options: StudyOptions, mixer: bool = True) -> StudyBlock:
    made = StudyBlock(
        5,
        5,
        8,
        options=options,
        norm=nn.BatchNorm2d(5),
        mixer=SpatialMix(8) if mixer else None,
        residual=True,
        drop_path_rate=0.3,
    )
    randomise(made)
    return made


def layer_norm(x: Tensor, norm: LayerNorm2d) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    y = (y - y.mean(3, keepdim=True)) / (y.var(3, keepdim=True, unbiased=False) + norm.eps).sqrt()
    return (y * norm.weight + norm.bias).permute(0, 3, 1, 2)


def local(made: StudyBlock, x: Tensor) -> Tensor:
    assert made.local is not None
    y = F.conv2d(x, made.local.conv.weight, padding=2, groups=x.shape[1])
    n = made.local.norm
    y = (y - n.running_mean[:, None, None]) / (n.running_var[:, None, None] + 1e-6).sqrt()
    y = y * n.weight[:, None, None] + n.bias[:, None, None]
    return y * torch.sigmoid(y)


X = torch.randn(2, 5, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_the_papers_block_is_its_equations() -> None:
    made = block(StudyOptions(arch="paper"))
    assert isinstance(made.expand, nn.Sequential)
    i1 = layer_norm(made.expand[0](X), made.expand[1])
    i3 = made.mixer(layer_norm(i1, made.mixer_norm)) + i1
    i5 = local(made, i3) + i3
    torch.testing.assert_close(made(X), made.project(i5) + X, rtol=1e-8, atol=1e-9)


def test_channel_mix_follows_the_mixer() -> None:
    for arch in ("official", "paper"):
        made = block(StudyOptions(arch=arch, channel_mix=True))
        inner = made.expand(made.norm(X))
        for branch, norm in ((made.mixer, made.mixer_norm), (made.channel_mix, made.channel_mix_norm)):
            if arch == "paper":
                inner = inner + branch(layer_norm(inner, norm))
            else:
                inner = inner + layer_norm(branch(inner), norm)
        expected = made.project(local(made, inner) + inner) + X
        torch.testing.assert_close(made(X), expected, rtol=1e-8, atol=1e-9)


def test_the_local_convolution_is_only_missing_beside_a_mixer() -> None:
    without = StudyOptions(local_conv=False)
    made = block(without)
    inner = made.expand(made.norm(X))
    inner = inner + layer_norm(made.mixer(inner), made.mixer_norm)
    torch.testing.assert_close(made(X), made.project(inner) + X, rtol=1e-8, atol=1e-9)
    assert made.local is None
    assert block(without, mixer=False).local is not None


def test_with_published_options_a_study_block_is_the_published_block() -> None:
    study = block(StudyOptions())
    published = PerceptionBlock(5, 5, 8, norm=nn.BatchNorm2d(5), mixer=SpatialMix(8), residual=True)
    published.double().eval().load_state_dict(study.state_dict(), strict=True)
    torch.testing.assert_close(study(X), published(X), rtol=0, atol=0)


def test_the_papers_ccm_norms_before_it_mixes() -> None:
    ccm = PaperCrossChannelMix((4, 5), drop_path_rate=0.4)
    randomise(ccm)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(ccm.mix(x), x + ccm.channel_mix(layer_norm(x, ccm.norm)))


def conv_norm(x: Tensor, part: Any, groups: int, activation: Any) -> Tensor:
    kernel = part.conv.weight.shape[-1]
    y = F.conv2d(x, part.conv.weight, padding=kernel // 2, groups=groups)
    n = part.norm
    return activation(F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, eps=1e-6))


@pytest.mark.parametrize("kernel", [3, 5, 9])
def test_the_other_decoder_blocks(kernel: int) -> None:
    reduced, plain = ReducedDecoderBlock(5, 3, kernel), PlainDecoderBlock(5, 3, kernel)
    randomise(reduced)
    randomise(plain)
    y = conv_norm(conv_norm(X, reduced.expand, 1, F.relu), reduced.project, 1, F.relu)
    torch.testing.assert_close(reduced(X), conv_norm(y, reduced.local, 3, F.silu))
    torch.testing.assert_close(plain(X), conv_norm(X, plain.conv, 1, F.relu))
    assert plain.conv.conv.weight.shape == (3, 5, kernel, kernel)


@pytest.mark.parametrize(
    ("study", "reaching"), [("no_skips", 0), ("skips_1_no_ccm", 1), ("skips_2_no_ccm", 2)]
)
def test_the_finest_skips_are_kept(study: str, reaching: int) -> None:
    model = build_study(study).double().eval()
    assert isinstance(model, RWKVUNet)
    maps = [f.detach().requires_grad_() for f in model.encoder(images(1, 3, 32, 48).double())]
    decoded = model.decoder(maps[3], maps[:reaching])
    assert decoded.shape == (1, 5, 16, 24)
    assert reach_the_logits(model, maps) == [level < reaching for level in range(3)] + [True]


def reach_the_logits(model: RWKVUNet, maps: list[Tensor]) -> list[bool]:
    model.encoder = _Fixed(maps)
    gradients = torch.autograd.grad(model(images(1, 3, 32, 48)).sum(), maps, allow_unused=True)
    return [gradient is not None for gradient in gradients]


class _Fixed(nn.Module):
    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.maps


@pytest.mark.parametrize(
    ("study", "reaching"), [("skips_1", 3), ("skips_1_retained", 1), ("skips_2_retained", 2)]
)
def test_what_the_ccm_sees(study: str, reaching: int) -> None:
    model = build_study(study).double().eval()
    assert isinstance(model, RWKVUNet)
    maps = [f.detach().requires_grad_() for f in model.encoder(images(1, 3, 32, 48).double())]
    assert reach_the_logits(model, maps) == [level < reaching for level in range(3)] + [True]
    assert model.ccm is not None
    assert len(model.ccm.project_out) == model.config.skips


def test_where_the_mixers_are() -> None:
    for name, stages in {"shallow_mixer": [1, 2, 3, 4], "attention": [3, 4], "no_mixer": []}.items():
        model = build_study(name)
        assert isinstance(model, RWKVUNet)
        found = [
            number
            for number, stage in enumerate(model.encoder.stages, start=1)
            if any(b.mixer is not None for b in stage)
        ]
        assert found == [n for n in stages if n > 1]  # the small network's first stage has one block
        assert isinstance(model.encoder.stages[1][0].norm, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"arch": "papers"}, "arch.*official, paper"),
        ({"mixer": "rwkv"}, "mixer.*bi_mamba"),
        ({"mixer": None}, "mixer is None"),
        ({"decoder": "conv"}, "decoder.*expanded, reduced, plain"),
        ({"decoder_kernel": 4}, "decoder_kernel is 4"),
        ({"decoder_kernel": 9.0}, "decoder_kernel"),
        ({"skips": 4}, "skips is 4"),
        ({"skips": True}, "skips is True"),
        ({"ccm": 1}, "ccm is 1"),
        ({"ccm_rate": 0}, "ccm_rate is 0"),
        ({"ccm_inputs": "some"}, "ccm_inputs.*all, retained"),
        ({"shallow_mixer": "yes"}, "shallow_mixer.*true or false"),
        ({"mixer": "none", "channel_mix": True}, "channel_mix would change nothing"),
        ({"mixer": "none", "local_conv": False}, "local_conv would change nothing"),
        ({"ccm": False, "ccm_rate": 3}, "change nothing with ccm False and 3 skips"),
        ({"skips": 0, "ccm_inputs": "retained"}, "0 skips"),
        ({"encoder": "resnet50"}, "timm/<name>"),
        ({"encoder": "timm/"}, "timm/<name>"),
        ({"encoder": None}, "timm/<name>"),
        ({"encoder": "timm/resnet50", "mixer": "attention"}, "mixer would change nothing: encoder is"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        create_model("rwkv_unet_tiny", **wrong)


class FourMaps(nn.Module):
    """An encoder of somebody else; batch norm and dropout show whether the trial image leaves traces."""

    def __init__(self, strides: tuple[int, ...] = (2, 4, 8, 16), in_channels: int = 3) -> None:
        super().__init__()
        self.strides = strides
        self.layers = nn.ModuleList(nn.Conv2d(in_channels, 4 + s, 1) for s in strides)
        self.norm = nn.BatchNorm2d(in_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norm(x)
        return [conv(F.avg_pool2d(x, s)) for s, conv in zip(self.strides, self.layers, strict=True)]


def test_any_encoder_with_four_maps_may_stand_in_front() -> None:
    config = RWKVUNetConfig(
        depths=TINY.depths, widths=(1, 1, 1, 1), expansions=TINY.expansions, num_classes=3
    )
    encoder = FourMaps()
    encoder.norm.eval()
    model = RWKVUNet(config, encoder=encoder)
    assert encoder.training
    assert not encoder.norm.training
    assert int(encoder.norm.num_batches_tracked) == 0
    assert model.config.widths == (6, 8, 12, 20)
    x = images(2, 3, 37, 53)
    assert model(x).shape == (2, 3, 37, 53)
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model(x[:, :1]).shape == (2, 3, 37, 53)


def test_a_registered_encoder_is_saved_and_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    @registry.register_model
    def four_maps(**overrides: Any) -> RWKVUNet:
        return RWKVUNet(registry.override_config(TINY, overrides), encoder=FourMaps())

    model = create_model("four_maps", num_classes=2, skips=1).eval()
    assert_a_folder_restores(
        model, images(1, 3, 37, 53), tmp_path / "model", name="four_maps", overrides={"skips": 1}
    )


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (2, 4, 8), (16, 8, 4, 2)])
def test_an_encoder_with_other_maps_is_refused_with_its_shapes(strides: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=rf"\(1, {4 + strides[0]}, .*strides 2, 4, 8, 16"):
        encoder_widths(FourMaps(strides), 3)


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"rwkvseg\[timm\]") as caught:
        create_model("rwkv_unet_tiny", encoder="timm/resnet50")
    assert isinstance(caught.value, ImportError)


class StandIn(nn.Module):
    """What timm's features_only networks promise: feature_info, out_indices, maps at its strides."""

    STRIDES: ClassVar[dict[str, tuple[int, ...]]] = {
        "resnet50": (2, 4, 8, 16, 32),
        "convnext_small": (4, 8, 16, 32),
        "swin_last": (4, 8, 16, 32),
        "vit": (16, 16, 16),
    }

    def __init__(self, name: str, in_chans: int, out_indices: tuple[int, ...] | None) -> None:
        super().__init__()
        self.output_fmt = "NHWC" if name.endswith("_last") else "NCHW"
        every = self.STRIDES[name]
        self.strides = every if out_indices is None else tuple(every[i] for i in out_indices)
        self.feature_info = SimpleNamespace(
            reduction=lambda: list(self.strides), channels=lambda: [3 + s for s in self.strides]
        )
        self.layers = nn.ModuleList(nn.Conv2d(in_chans, 3 + s, 1) for s in self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [conv(F.avg_pool2d(x, s)) for s, conv in zip(self.strides, self.layers, strict=True)]
        return [m.permute(0, 2, 3, 1) for m in maps] if self.output_fmt == "NHWC" else maps


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(
        name: str, *, features_only: bool, pretrained: bool, in_chans: int, out_indices: Any = None
    ) -> nn.Module:
        assert features_only
        assert not pretrained
        if name not in StandIn.STRIDES:
            raise RuntimeError(f"Unknown model ({name})")
        return StandIn(name, in_chans, out_indices)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create))


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("name", "widths"),
    [("resnet50", (5, 7, 11, 19)), ("convnext_small", (7, 11, 19, 35)), ("swin_last", (7, 11, 19, 35))],
)
def test_a_timm_encoder_by_name(name: str, widths: tuple[int, ...]) -> None:
    model = create_model("rwkv_unet_tiny", encoder=f"timm/{name}", in_channels=2, skips=2, **SMALL)
    assert isinstance(model, RWKVUNet)
    assert model.config.widths == widths
    with torch.no_grad():
        maps = model.eval().encoder(torch.zeros(1, 2, 32, 48))
        assert model(images(2, 2, 37, 53)).shape == (2, 1, 37, 53)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (w, 32 // s, 48 // s) for w, s in zip(widths, (2, 4, 8, 16), strict=True)
    ]


@pytest.mark.usefixtures("timm")
def test_timm_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Unknown model \(resnet\).*list_models"):
        create_model("rwkv_unet_tiny", encoder="timm/resnet")
    with pytest.raises(UsageError, match=r"strides \(16, 16, 16\)"):
        create_model("rwkv_unet_tiny", encoder="timm/vit")
