"""U-RWKV (3D): its block against the formula, its symmetry, its sizes, counts and options."""

import json
from dataclasses import asdict
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from study_cases import with_random_decays
from torch import Tensor
from volumes import SMALL, small_network, volumes

from rwkvseg.errors import UsageError
from rwkvseg.models import URWKV3dConfig, create_model
from rwkvseg.models.blocks import DropPath
from rwkvseg.models.blocks3d import InstanceNorm3d, LayerNorm3d, LocalPerception3d, add_scaled
from rwkvseg.models.mixing3d import ChannelMix3d, SpatialMix3d
from rwkvseg.models.urwkv3d import TriScanBlock
from rwkvseg.models.urwkv3d_strides import strides_from_spacing
from rwkvseg.ops import naive_bi_wkv, spatial_shift

ANISOTROPIC = ((2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))


def config(**changes: Any) -> URWKV3dConfig:
    return URWKV3dConfig(**{**SMALL, **changes})


def block(channels: int = 12, seed: int = 0, **changes: Any) -> TriScanBlock:
    """In float64, with no parameter at a special value."""
    torch.manual_seed(seed)
    made = TriScanBlock(channels, config(**changes), layer=1, num_layers=3).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return with_random_decays(made)  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "count"), [("tiny", 3_046_548), ("small", 5_966_796), ("base", 9_333_813)])
def test_the_registered_sizes_have_the_stated_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(f"urwkv3d_{name}", in_channels=1, num_classes=14)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_a_block_has_the_stated_parameters() -> None:
    for channels, rate in product((5, 24), (2, 4)):
        made = TriScanBlock(channels, config(rate=rate))
        count = (5 + 2 * rate) * channels**2 + (19 + 2 * rate) * channels + 3
        assert sum(parameter.numel() for parameter in made.parameters()) == count


class TestSpatialMix:
    @pytest.mark.parametrize("fusion", ["softmax", "softmax_channel", "free", "sum"])
    @pytest.mark.parametrize("shared", [True, False])
    def test_it_is_the_formula(self, fusion: str, shared: bool) -> None:
        torch.manual_seed(0)
        mix = SpatialMix3d(7, config(fusion=fusion, shared_decay=shared)).double()
        with torch.no_grad():
            for parameter in mix.parameters():
                parameter.normal_()
        x = volumes(2, 7, 2, 3, 4).double()
        with torch.no_grad():
            torch.testing.assert_close(mix(x), self.formula(mix, x, fusion, shared))

    @staticmethod
    def formula(mix: SpatialMix3d, x: Tensor, fusion: str, shared: bool) -> Tensor:
        shares = mix.shift.mix.view(3, 7, 1, 1, 1)  # type: ignore[union-attr]
        mixed = [share * x + (1 - share) * spatial_shift(x) for share in shares]
        k, v, r = (
            torch.einsum("oc,bcdhw->bodhw", weight, part)
            for weight, part in zip(mix.project_in, mixed, strict=True)
        )
        logits = torch.zeros(3) if mix.fusion.logits is None else mix.fusion.logits
        weights = logits.view(3, -1).softmax(0) if fusion.startswith("softmax") else logits.view(3, 1)
        y = torch.zeros_like(x)
        for number, slowest in enumerate(("d", "h", "w")):
            order = {"d": (2, 3, 4), "h": (3, 4, 2), "w": (4, 2, 3)}[slowest]
            own = 0 if shared else number
            w, u = (part.view(-1, 7)[own] / 24 for part in (mix.decay, mix.bonus))
            sequences = [part.permute(0, *order, 1).reshape(2, 24, 7) for part in (k, v)]
            scanned = naive_bi_wkv(w, u, *sequences).view(2, *(x.shape[axis] for axis in order), 7)
            back = scanned.permute(0, 4, *(1 + order.index(axis) for axis in (2, 3, 4)))
            y += back if fusion == "sum" else weights[number].view(-1, 1, 1, 1) * back
        normed = F.layer_norm(y.permute(0, 2, 3, 4, 1), (7,), mix.norm.weight, mix.norm.bias)
        gated = r.permute(0, 2, 3, 4, 1).sigmoid() * normed
        return (gated @ mix.output.weight.T).permute(0, 4, 1, 2, 3)

    def test_without_a_mixer_the_values_stay(self) -> None:
        mix = SpatialMix3d(6, config(mixer="none", shift=0))
        assert [name for name, _ in mix.named_parameters()] == [
            *("project_in", "norm.weight", "norm.bias", "output.weight")
        ]
        x = volumes(1, 6, 2, 3, 2)
        moved = x.clone()
        moved[..., 0] += 1
        with torch.no_grad():
            assert torch.equal((mix(moved) == mix(x)).all(1)[0, :, :, 1], torch.ones(2, 3).bool())
            assert not torch.equal(mix(moved)[..., 0], mix(x)[..., 0])


def test_channel_mix_is_the_formula() -> None:
    torch.manual_seed(0)
    mix = ChannelMix3d(7, config()).double()
    x = volumes(2, 7, 2, 3, 4).double()
    shares = mix.shift.mix.view(2, 7, 1, 1, 1)  # type: ignore[union-attr]
    for_k, for_r = ((share * x + (1 - share) * spatial_shift(x)).permute(0, 2, 3, 4, 1) for share in shares)
    hidden = (for_k @ mix.key.weight.T).clamp_min(0) ** 2
    value = F.layer_norm(hidden, (28,)) @ mix.value.weight.T
    expected = torch.sigmoid(for_r @ mix.receptance.weight.T) * value
    torch.testing.assert_close(mix(x), expected.permute(0, 4, 1, 2, 3))


class TestSymmetry:
    """Axes turned, (D, H, W) -> (H, W, D), and decays and shift groups likewise: the turned output."""

    CHANNELS = 14  # two for each direction and two that stay

    def turned(self, made: TriScanBlock, by: int) -> tuple[TriScanBlock, Tensor]:
        """The block for turned volumes, whose orders are those `by` further on; its order of the channels."""
        group = self.CHANNELS // 6
        # what was shifted along D, W, H is now shifted along W, H, D
        old = torch.arange(self.CHANNELS)
        order = torch.cat([old[4 * group : 6 * group], old[: 4 * group], old[6 * group :]])
        turned = block(self.CHANNELS, seed=9)
        state = {}
        for name, value in made.state_dict().items():
            if name.endswith(("decay", "bonus")):
                value = value.view(3, -1)[:, order].roll(-by, 0).flatten()
            elif name.endswith("logits"):
                value = value.roll(-by)
            elif name.endswith("shift.mix"):
                value = value.view(-1, self.CHANNELS)[:, order].flatten()
            else:
                for axis, size in enumerate(value.shape):
                    value = value.index_select(axis, order) if size == self.CHANNELS else value
            state[name] = value
        turned.load_state_dict(state)
        return turned, order

    def error(self, by: int) -> float:
        made = block(self.CHANNELS)
        turned, order = self.turned(made, by)
        x = volumes(2, self.CHANNELS, 2, 3, 4).double()
        with torch.no_grad():
            expected = made(x).permute(0, 1, 3, 4, 2)[:, order]
            found = turned(x.permute(0, 1, 3, 4, 2)[:, order])
        return float((found - expected).abs().max() / expected.std())

    def test_the_next_order_takes_the_place(self) -> None:
        assert self.error(by=1) < 1e-12

    @pytest.mark.parametrize("by", [0, 2])
    def test_no_other_rotation_does(self, by: int) -> None:
        assert self.error(by) > 1e-3


class TestFusion:
    @pytest.mark.parametrize("fusion", ["softmax", "softmax_channel", "free", "sum"])
    def test_weights_are_told_block_by_block(self, fusion: str) -> None:
        weights = small_network(fusion=fusion).fusion_weights()
        assert list(weights) == [
            *("encoder.levels.1.blocks.0", "encoder.levels.2.blocks.0", "encoder.levels.2.blocks.1"),
            "encoder.levels.3.blocks.0",
        ]
        for number, weight in enumerate(weights.values()):
            channels = (8, 14, 14, 12)[number]
            assert weight.shape == ((3, channels) if fusion == "softmax_channel" else (3,))
            assert not weight.requires_grad
            torch.testing.assert_close(weight, torch.full_like(weight, 1.0 if fusion == "sum" else 1 / 3))

    def test_they_add_up_to_one(self) -> None:
        network = small_network(fusion="softmax_channel")
        torch.nn.init.normal_(network.get_parameter("encoder.levels.1.blocks.0.spatial_mix.fusion.logits"))
        weight = network.fusion_weights()["encoder.levels.1.blocks.0"]
        assert weight.std() > 0.05
        torch.testing.assert_close(weight.sum(0), torch.ones(8))

    @pytest.mark.parametrize("mixer", ["none", "bi_mamba"])
    def test_without_scans_there_are_none(self, mixer: str) -> None:
        with pytest.raises(UsageError, match=mixer):
            small_network(mixer=mixer).fusion_weights()

    def test_zeros_make_the_orders_equal_and_their_weights_useless(self) -> None:
        torch.manual_seed(0)
        mix = SpatialMix3d(6, config(init="zeros")).double()
        mix(volumes(1, 6, 2, 3, 4).double()).square().sum().backward()
        assert mix.fusion.logits is not None
        assert mix.fusion.logits.grad is not None
        assert mix.decay.grad is not None
        assert mix.fusion.logits.grad.abs().max() < 1e-12 < mix.decay.grad.abs().max()


class TestInit:
    def test_decay_and_bonus_are_those_of_rwkv(self) -> None:
        mix = SpatialMix3d(5, config(), layer=1, num_layers=3)
        decay = [-5 + 8 * (c / 4) ** (0.7 + 1.3 / 2) for c in range(5)]
        bonus = [-1.2039728 + 0.5 * ((c + 1) % 3 - 1) for c in range(5)]
        torch.testing.assert_close(mix.decay.detach(), torch.tensor(3 * decay))
        torch.testing.assert_close(mix.bonus.detach(), torch.tensor(3 * bonus))

    def test_shares(self) -> None:
        mix = SpatialMix3d(4, config(), layer=1, num_layers=3).shift.mix
        share = [(c / 4) ** (2 / 3) for c in range(4)]
        expected = [*share, *(s + 0.15 for s in share), *(s**0.5 for s in share)]
        torch.testing.assert_close(mix.detach(), torch.tensor(expected))  # type: ignore[union-attr]
        for init in ("uniform", "zeros"):
            half = SpatialMix3d(4, config(init=init), layer=1, num_layers=3).shift.mix
            assert torch.equal(half.detach(), torch.full((12,), 0.5))  # type: ignore[union-attr]

    def test_layers_are_numbered_through_the_network(self) -> None:
        network = small_network()
        decays = [
            SpatialMix3d(channels, network.config, layer=layer, num_layers=4).decay
            for layer, channels in enumerate((8, 14, 14, 12))
        ]
        torch.manual_seed(0)
        fresh = create_model("urwkv3d_tiny", in_channels=1, **SMALL)
        found = [p for name, p in fresh.named_parameters() if name.endswith("decay")]
        assert all(torch.equal(a, b) for a, b in zip(found, decays, strict=True))

    def test_layer_scale(self) -> None:
        network = small_network(layer_scale=0.01)
        scales = [p for name, p in network.named_parameters() if name.endswith(("scale1", "scale2"))]
        assert len(scales) == 8
        assert all(torch.equal(p.detach(), torch.full_like(p, 0.01)) for p in scales)


class TestParts:
    def test_layer_norm_is_over_channels(self) -> None:
        x = volumes(2, 5, 2, 3, 4)
        norm = LayerNorm3d(5)
        expected = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(norm(x), expected)

    def test_instance_norm_of_one_voxel_is_its_bias(self) -> None:
        norm = InstanceNorm3d(3)
        torch.nn.init.normal_(norm.bias)
        torch.nn.init.normal_(norm.weight)
        x = volumes(2, 3, 1, 1, 1).requires_grad_()
        torch.testing.assert_close(norm(x), norm.bias.view(1, 3, 1, 1, 1).expand(2, -1, -1, -1, -1))
        norm(x).sum().backward()
        assert torch.equal(x.grad, torch.zeros_like(x))  # type: ignore[arg-type]

    def test_a_local_block_adds_to_its_input(self) -> None:
        made = LocalPerception3d(4, (3, 3, 1))
        assert made.local[0].weight.shape == (8, 1, 3, 3, 1)
        torch.nn.init.zeros_(made.project[1].weight)
        x = volumes(1, 4, 3, 4, 2)
        assert torch.equal(made(x), x)

    def test_drop_path_drops_whole_samples(self) -> None:
        drop_path = DropPath(0.5).train()
        x, branch = volumes(64, 2, 1, 2, 1), volumes(64, 2, 1, 2, 1, seed=2)
        torch.manual_seed(0)
        added = add_scaled(x, branch, torch.tensor([1.0, 3.0]), drop_path)
        factor = (added - x) / branch / torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
        kept = factor.flatten(1).mean(1)
        torch.testing.assert_close(factor, kept.view(-1, 1, 1, 1, 1).expand_as(factor), rtol=1e-3, atol=1e-3)
        assert 16 < int((kept - 2).abs().lt(1e-3).sum()) < 48
        assert int((kept - 2).abs().lt(1e-3).sum() + kept.abs().lt(1e-3).sum()) == 64

    def test_drop_path_rates_rise_over_the_blocks(self) -> None:
        network = small_network(drop_path_rate=0.3)
        rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


class TestStrides:
    @pytest.mark.parametrize(
        ("spacing", "patch", "strides"),
        [
            ((1, 1, 1), (96, 96, 96), ((2, 2, 2),) * 4),
            ((0.76, 0.76, 3.0), (128, 128, 64), ANISOTROPIC),
            ((3.0, 0.76, 0.76), (64, 128, 128), ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))),
            ((1.4, 1.4, 10.0), (224, 224, 10), ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 1))),
            ((1, 1, 1), (48, 64, 20), ((2, 2, 2), (2, 2, 2), (2, 2, 1), (1, 2, 1))),
            ((1, 1, 2.000001), (64, 64, 64), ((2, 2, 2),) * 4),
            ((1, 1, 1), (4, 4, 4), ((1, 1, 1),) * 4),
        ],
    )
    def test_coarse_and_short_axes_wait(self, spacing: Any, patch: Any, strides: Any) -> None:
        assert strides_from_spacing(spacing, patch) == strides
        assert URWKV3dConfig(**SMALL, strides=strides).strides == strides

    @pytest.mark.parametrize("wrong", [((1, 1), (8, 8, 8)), ((1, 1, 0), (8, 8, 8)), ((1, 1, 1), (8, 8, -8))])
    def test_what_is_no_spacing_is_refused(self, wrong: Any) -> None:
        with pytest.raises(UsageError, match="three positive"):
            strides_from_spacing(*wrong)


class TestConfig:
    def test_json_gives_the_same(self) -> None:
        made = config(strides=ANISOTROPIC, scans=2, kernels=((3, 3, 1),) * 5)
        assert URWKV3dConfig(**json.loads(json.dumps(asdict(made)))) == made
        assert made.scans == ("dhw", "hwd")

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"widths": (4, 4, 4, 4)}, "Give 5 integers"),
            ({"widths": (4, 4, 4, 4, 0)}, "at least 1"),
            ({"depths": (1, 1, 1, -1)}, "at least 0"),
            ({"depths": 2}, "Give a list"),
            ({"strides": ((2, 2, 2),) * 3}, "Give 4 triples"),
            ({"strides": ((2, 2, 3),) * 4}, "1 or 2"),
            ({"strides": (2, 2, 2, 2)}, "triples"),
            ({"kernels": ((3, 3, 2),) * 5}, "1 or 3"),
            ({"mixing_levels": (0, 1)}, "1 to 4"),
            ({"mixing_levels": (2, 2)}, "each once"),
            ({"scans": 4}, "list"),
            ({"scans": ("dhw", "hdw")}, "dhw, hwd, wdh"),
            ({"scans": ()}, "1, 2, 3"),
            ({"fusion": "mean"}, "softmax_channel"),
            ({"mixer": "attention"}, "bi_mamba"),
            ({"init": "ones"}, "fancy"),
            ({"stem": "conv"}, "full"),
            ({"shift": 3}, "0, 1 or 2"),
            ({"shift": True}, "0, 1 or 2"),
            ({"gamma": 0.5}, "1/6"),
            ({"shift_pad": "wrap"}, "replicate"),
            ({"drop_path_rate": 1.0}, "below 1"),
            ({"layer_scale": 0}, "other than 0"),
            ({"layer_scale": float("nan")}, "other than 0"),
            ({"shared_decay": 1}, "true or false"),
            ({"rate": 0}, "at least 1"),
            ({"mixer": "none", "scans": 2}, "scans would change nothing"),
            ({"mixer": "bi_mamba", "fusion": "free"}, "fusion would change nothing"),
            ({"scans": 1, "fusion": "sum"}, "change nothing"),
            ({"scans": 1, "shared_decay": True}, "change nothing"),
        ],
        ids=str,
    )
    def test_what_cannot_be_meant_is_refused(self, wrong: dict[str, Any], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            config(**wrong)
