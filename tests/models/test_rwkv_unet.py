"""RWKV-UNet: counts, parts against their definition, golden logits, config."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rwkvseg.errors import UsageError
from rwkvseg.models import RWKVUNet, RWKVUNetConfig, create_model
from rwkvseg.models.blocks import DropPath, SqueezeExcite
from rwkvseg.models.published import load_published
from rwkvseg.models.rwkv_unet import TINY, CrossChannelMix, PerceptionBlock

COUNTS = {
    "nano": (539_857, 476_872),
    "tiny": (3_145_761, 2_938_472),
    "small": (9_701_945, 9_416_048),
    "base": (17_125_513, 16_694_040),
}
KEYS = {"nano": 298, "tiny": 326, "small": 446, "base": 446}
NANO_MACS = 594_726_930


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_counts(variant: str) -> None:
    model = create_model(f"rwkv_unet_{variant}")
    assert isinstance(model, RWKVUNet)
    assert (count(model), count(model.encoder)) == COUNTS[variant]
    assert len(model.state_dict()) == KEYS[variant]
    assert count(create_model(f"rwkv_unet_{variant}", in_channels=1, num_classes=9)) == COUNTS[variant][
        0
    ] + 8 * (model.config.stem_width + 1)


def test_nano_stays_ultra_light() -> None:
    model = create_model("rwkv_unet_nano").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() == 2 * NANO_MACS  # convolutions and matrix products
    assert NANO_MACS < 0.8e9
    assert count(model) <= 600_000


def test_the_width_of_the_ccm_and_the_kernel_of_the_decoder_are_options() -> None:
    torch.manual_seed(0)
    model = RWKVUNet(replace(TINY, ccm_width=10, decoder_kernel=5)).eval()
    assert [tuple(project.weight.shape) for project in model.ccm.project_in] == [
        (10, width, 1, 1) for width in TINY.widths[:3]
    ]
    assert [tuple(project.weight.shape) for project in model.ccm.project_out] == [
        (width, 10, 1, 1) for width in TINY.widths[:3]
    ]
    assert model.ccm.channel_mix.mix_k.shape == (30,)
    assert {block.local.conv.kernel_size for block in model.decoder.blocks} == {(5, 5)}
    assert model.decoder.blocks[0].local.conv.padding == (2, 2)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 33, 50)).shape == (1, 1, 33, 50)


def test_the_default_width_of_the_ccm_is_that_of_stage_1() -> None:
    default, stated = RWKVUNet(TINY), RWKVUNet(replace(TINY, ccm_width=TINY.widths[0], decoder_kernel=9))
    stated.load_state_dict(default.state_dict(), strict=True)


@pytest.mark.shared_data
@pytest.mark.parametrize("generation", ["current", "early_2025"])
@pytest.mark.parametrize("case", ["tiny_224_9", "tiny_256_1"])
def test_golden_logits(golden, case: str, generation: str) -> None:
    facts = golden.logits()[case]
    model = create_model("rwkv_unet_tiny", num_classes=facts["num_classes"]).eval()
    load_published(model, golden.state_dict("tiny", generation, facts["num_classes"]))
    with torch.no_grad():
        logits = model(torch.from_numpy(golden.image(tuple(facts["input_shape"]))))
    tolerance = 1e-4 * facts["std"]
    expected = torch.tensor(facts["logits"])
    assert (logits.flatten()[facts["indices"]] - expected).abs().max() < tolerance
    assert abs(float(logits.mean()) - facts["mean"]) < tolerance
    assert abs(float(logits.std()) - facts["std"]) < tolerance


def test_ccm_matches_the_published_order_of_steps() -> None:
    torch.manual_seed(0)
    widths, sizes = (5, 7, 9), [(24, 40), (12, 20), (6, 10)]
    ccm = CrossChannelMix(widths).double().eval()
    features = [torch.randn(2, w, *s, dtype=torch.float64) for w, s in zip(widths, sizes, strict=True)]
    inward = [
        ccm.project_in[i](F.interpolate(features[i], size=(24, 40), mode="bilinear", align_corners=False))
        for i in (2, 1, 0)  # up-sample first, then project; stage 3, 2, 1
    ]
    x = torch.cat(inward, 1)
    mixed = ccm.channel_mix(x).permute(0, 2, 3, 1)
    x = x + F.layer_norm(mixed, (15,), ccm.norm.weight, ccm.norm.bias, 1e-5).permute(0, 3, 1, 2)
    for i, part in zip((2, 1, 0), x.split(5, dim=1), strict=True):
        expected = F.interpolate(
            ccm.project_out[i](part), size=sizes[i], mode="bilinear", align_corners=False
        )
        torch.testing.assert_close(ccm(features)[i], expected, rtol=1e-10, atol=1e-10)


def test_the_head_commutes_with_the_last_doubling() -> None:
    torch.manual_seed(0)
    model = create_model("rwkv_unet_tiny", num_classes=3).double().eval()
    assert isinstance(model, RWKVUNet)
    x = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        *skips, deepest = model.encoder(x)
        decoded = model.decoder(deepest, model.ccm(skips))
        expected = model.head(F.interpolate(decoded, scale_factor=2, mode="bilinear", align_corners=False))
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_encoder_maps_lie_at_strides_2_to_16() -> None:
    model = RWKVUNet(TINY).eval()
    with torch.no_grad():
        features = model.encoder(torch.randn(1, 3, 32, 64))
    assert [tuple(f.shape[1:]) for f in features] == [(32, 16, 32), (48, 8, 16), (96, 4, 8), (160, 2, 4)]


def test_where_mixers_residuals_and_squeeze_excite_are() -> None:
    model = RWKVUNet(TINY)
    for stage, blocks in enumerate(model.encoder.stages, start=1):
        for index, block in enumerate(blocks):
            assert isinstance(block, PerceptionBlock)
            assert (block.mixer is not None) == (stage >= 3 and index >= 1)
            assert block.residual == (index >= 1)
            assert isinstance(block.squeeze_excite, nn.Identity)
    assert isinstance(model.encoder.stem.squeeze_excite, SqueezeExcite)


def test_norm_epsilons_of_the_published_network() -> None:
    for name, module in RWKVUNet(TINY).named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-6, name
        elif isinstance(module, nn.LayerNorm):
            over_maps = "stages" in name and name.endswith(".norm") and "mixer" not in name
            assert module.eps == (1e-6 if over_maps else 1e-5), name


def test_drop_path_rates_rise_over_the_blocks() -> None:
    model = RWKVUNet(TINY)
    rates = [block.drop_path.rate for stage in model.encoder.stages for block in stage if block.residual]
    linear = torch.linspace(0, 0.05, 10).tolist()
    assert rates == [rate for i, rate in enumerate(linear) if i not in (0, 2, 4, 8)]
    assert model.ccm.drop_path.rate == 0.05


def test_drop_path_keeps_the_expectation_and_whole_samples() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, 1)
    dropped = DropPath(0.25)(x)
    kept = dropped[:, :1, :1]
    assert torch.equal(dropped, kept.expand_as(x))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs(float(dropped.mean()) - 1) < 0.05
    assert torch.equal(DropPath(0.25).eval()(x), x)
    assert torch.equal(DropPath(0.0)(x), x)


def test_grey_images_are_repeated_to_three_channels() -> None:
    torch.manual_seed(0)
    grey, colour = (create_model("rwkv_unet_tiny", in_channels=n).eval() for n in (1, 3))
    colour.load_state_dict(grey.state_dict(), strict=True)
    x = torch.randn(1, 1, 16, 32)
    with torch.no_grad():
        assert torch.equal(grey(x), colour(x.repeat(1, 3, 1, 1)))
        assert torch.equal(grey(x), colour(x))


def test_other_channel_counts_get_a_stem_of_their_own() -> None:
    model = create_model("rwkv_unet_tiny", in_channels=5)
    assert isinstance(model, RWKVUNet)
    assert model.encoder.stem.expand.conv.weight.shape == (5, 5, 1, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"depths": (2, 2, 2)},
        {"depths": (2, 2, 2, 0)},
        {"depths": (2, 2, 2, 1.5)},
        {"depths": 4},
        {"widths": (8, 8, 8, "8")},
        {"widths": (8, 8, 8, True)},
        {"expansions": (1, 1, 1, -2)},
        {"expansions": (1, 1, 1, float("inf"))},
        {"expansions": (1, 1, 1, 0.001)},
        {"stem_width": 0},
        {"stem_width": 2.0},
        {"ccm_width": 0},
        {"ccm_width": 2.5},
        {"decoder_kernel": 4},
        {"decoder_kernel": 0},
        {"decoder_kernel": -3},
        {"decoder_kernel": 7.0},
        {"decoder_kernel": True},
        {"drop_path_rate": 1.0},
        {"drop_path_rate": -0.1},
        {"drop_path_rate": float("nan")},
        {"drop_path_rate": "0.1"},
        {"drop_path_rate": True},
    ],
    ids=str,
)
def test_impossible_configs_name_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        create_model("rwkv_unet_tiny", **wrong)


def test_config_is_frozen_and_takes_lists() -> None:
    config = RWKVUNetConfig(depths=[1, 1, 1, 1], widths=[4, 4, 4, 4], expansions=[1, 2, 1, 1])  # type: ignore[arg-type]
    assert config.widths == (4, 4, 4, 4)
    assert hash(config)
    with pytest.raises(FrozenInstanceError):
        config.num_classes = 3  # type: ignore[misc]
    assert {field.name for field in fields(config)} >= {"in_channels", "num_classes", "drop_path_rate"}
