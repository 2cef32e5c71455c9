"""RWKV-UNet for 2D segmentation (Jiang et al., arXiv:2501.08458), as its published weights need it.

B: batch, C: channels, H, W: rows and columns. Read on: config, block, encoder, skips (CCM), decoder, network.
Where the papers' words and the authors' code differ, it follows the code: see docs/reference/rwkv_unet.md.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.errors import UsageError
from rwkvseg.models.blocks import (
    EPS,
    ConvNormAct,
    DropPath,
    LayerNorm2d,
    SqueezeExcite,
    add_normed,
    check_image,
    pad_to_multiple,
    resize,
)
from rwkvseg.models.mixing import ChannelMix, SpatialMix
from rwkvseg.models.registry import override_config, register_model

STRIDE = 16  # of the deepest stage: inputs are padded to a multiple of it
FIRST_MIXING_STAGE = 3  # earlier stages are convolutional and use batch norm


@dataclass(frozen=True, kw_only=True, slots=True)
class RWKVUNetConfig:
    """What one RWKV-UNet is made of. Lists are taken for tuples; every field is checked."""

    depths: tuple[int, ...]
    """Blocks of stages 1 to 4, which work at strides 2, 4, 8 and 16."""

    widths: tuple[int, ...]
    """Channels that stages 1 to 4 put out."""

    expansions: tuple[float, ...]
    """Inner width over input width of the blocks of stages 1 to 4; a stage's first block has twice that."""

    stem_width: int = 24
    """Channels of the stem, and of the decoder's last block."""

    in_channels: int = 3
    """Channels of the images: 3 as they are, 1 is repeated to 3, any other number gets a stem of its own."""

    num_classes: int = 1
    """Channels of the logits."""

    drop_path_rate: float = 0.05
    """Probability of dropping a residual in training: rising from 0 over the blocks, whole in the CCM."""

    decoder_kernel: int = 9
    """Side of the decoder's depthwise convolutions, an odd number."""

    ccm_width: int | None = None
    """Channels that each stage brings into the CCM; None: as many as stage 1 puts out."""

    def __post_init__(self) -> None:
        for name in ("depths", "widths", "expansions"):
            values = getattr(self, name)
            if (
                not isinstance(values, list | tuple)
                or len(values) != 4
                or not all(_positive(v) for v in values)
            ):
                raise UsageError(f"{name} is {values!r}. Give four positive numbers, one for each stage.")
            object.__setattr__(self, name, tuple(values))
        inner = () if self.ccm_width is None else ("ccm_width",)
        for name in ("stem_width", "in_channels", "num_classes", *inner):
            if not _positive(getattr(self, name), int):
                raise UsageError(f"{name} is {getattr(self, name)!r}. Give an integer of at least 1.")
        for name in ("depths", "widths"):
            if not all(isinstance(value, int) for value in getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)!r}. Give integers.")
        if min(int(width * ratio) for width, ratio in zip(self.widths, self.expansions, strict=True)) < 1:
            raise UsageError(
                f"expansions {self.expansions} leave no channel of widths {self.widths}. Raise them."
            )
        if not _positive(self.decoder_kernel, int) or self.decoder_kernel % 2 == 0:
            raise UsageError(f"decoder_kernel is {self.decoder_kernel!r}. Give an odd integer, such as 9.")
        rate = self.drop_path_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise UsageError(f"drop_path_rate is {rate!r}. Give a number from 0 to below 1.")


def _positive(value: object, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < math.inf


class PerceptionBlock(nn.Module):
    """Inverted bottleneck with a depthwise convolution and, if given, a token mixer before it.

    The papers' LP (without mixer, v1: IR) and GLSP (with it, v1: IR-RWKV).
    x: (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        inner: int,
        *,
        norm: nn.Module,
        mixer: nn.Module | None = None,
        stride: int = 1,
        residual: bool = False,
        squeeze: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.norm = norm
        self.expand = ConvNormAct(in_channels, inner, activation=nn.ReLU)
        self.mixer = mixer
        self.mixer_norm = LayerNorm2d(inner) if mixer is not None else None
        self.local = ConvNormAct(inner, inner, 5, stride=stride, groups=inner, activation=nn.SiLU)
        self.squeeze_excite = SqueezeExcite(inner) if squeeze else nn.Identity()
        self.project = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, mix globally, mix locally, project."""
        inner: Tensor = self.expand(self.norm(x))
        if self.mixer is not None and self.mixer_norm is not None:
            inner = add_normed(inner, self.mixer(inner), self.mixer_norm, self.drop_path)
        local = self.squeeze_excite(self.local(inner))
        projected: Tensor = self.project(inner + local if self.residual else local)
        return x + self.drop_path(projected) if self.residual else projected


class Encoder(nn.Module):
    """Stem and four stages. x: (B, C, H, W) -> four maps at strides 2, 4, 8, 16."""

    def __init__(self, config: RWKVUNetConfig) -> None:
        super().__init__()
        channels = _stem_channels(config)
        self.stem = PerceptionBlock(channels, config.stem_width, channels, norm=nn.Identity(), squeeze=True)
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths)).tolist()
        in_widths = (config.stem_width, *config.widths)
        self.stages = nn.ModuleList()
        for index, depth in enumerate(config.depths):
            self.stages.append(
                _build_stage(
                    in_widths[index],
                    config.widths[index],
                    config.expansions[index],
                    mixing=index + 1 >= FIRST_MIXING_STAGE,
                    drop_path_rates=[rates.pop(0) for _ in range(depth)],
                )
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of stages 1 to 4; the stem's own map feeds stage 1 only."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _build_stage(
    in_width: int, width: int, expansion: float, *, mixing: bool, drop_path_rates: list[float]
) -> nn.Sequential:
    def norm(channels: int) -> nn.Module:
        return LayerNorm2d(channels, eps=EPS) if mixing else nn.BatchNorm2d(channels, eps=EPS)

    first = PerceptionBlock(in_width, width, int(in_width * expansion * 2), norm=norm(in_width), stride=2)
    inner = int(width * expansion)
    others = [
        PerceptionBlock(
            width,
            width,
            inner,
            norm=norm(width),
            mixer=SpatialMix(inner) if mixing else None,
            residual=True,
            drop_path_rate=rate,
        )
        for rate in drop_path_rates[1:]
    ]
    return nn.Sequential(first, *others)


def _stem_channels(config: RWKVUNetConfig) -> int:
    return 3 if config.in_channels == 1 else config.in_channels


class CrossChannelMix(nn.Module):
    """CCM: let the skip connections of three stages exchange channels at the finest of their sizes.

    Maps (B, C_i, H_i, W_i), finest first -> maps of the same shapes. Projections run at each map's own size:
    1x1 convolutions commute with bilinear resizing, and so does the bias, since the weights sum to one.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        *,
        inner: int | None = None,
        rate: int = 2,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        inner = inner or widths[0]
        self.project_in = nn.ModuleList(nn.Conv2d(width, inner, 1) for width in widths)
        self.channel_mix = ChannelMix(len(widths) * inner, rate)
        self.norm = LayerNorm2d(len(widths) * inner)
        self.drop_path = DropPath(drop_path_rate)
        self.project_out = nn.ModuleList(nn.Conv2d(inner, width, 1) for width in widths)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Mix the maps' channels and hand each map back at its own width and size."""
        size = _size(features[0])
        inward = [resize(project(x), size) for project, x in zip(self.project_in, features, strict=True)]
        mixed = torch.cat(inward[::-1], dim=1)  # the published order: coarsest first
        mixed = add_normed(mixed, self.channel_mix(mixed), self.norm, self.drop_path)
        parts = mixed.chunk(len(features), dim=1)[::-1]
        return [
            project(resize(part, _size(x)))
            for project, part, x in zip(self.project_out, parts, features, strict=True)
        ]


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


class DecoderBlock(nn.Module):
    """1x1, depthwise 9x9, 1x1 convolutions. x: (B, in_channels, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 9) -> None:
        super().__init__()
        self.expand = ConvNormAct(in_channels, in_channels, activation=nn.ReLU)
        self.local = ConvNormAct(in_channels, in_channels, kernel, groups=in_channels, activation=nn.SiLU)
        self.project = ConvNormAct(in_channels, out_channels, activation=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        """Mix channels, mix locally, reduce."""
        x = self.project(self.local(self.expand(x)))
        return x


class Decoder(nn.Module):
    """Four blocks from the deepest map up to stride 2: maps -> (B, stem_width, H / 2, W / 2)."""

    def __init__(self, config: RWKVUNetConfig) -> None:
        super().__init__()
        first, second, third, fourth = config.widths
        kernel = config.decoder_kernel
        self.blocks = nn.ModuleList(
            [
                DecoderBlock(fourth, third, kernel),
                DecoderBlock(2 * third, second, kernel),
                DecoderBlock(2 * second, first, kernel),
                DecoderBlock(2 * first, config.stem_width, kernel),
            ]
        )

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """x: the deepest map; skips: maps at strides 2, 4, 8, finest first."""
        x = self.blocks[0](x)
        for block, skip in zip(self.blocks[1:], reversed(skips), strict=True):
            x = block(torch.cat([resize(x, _size(skip)), skip], dim=1))
        return x


class RWKVUNet(nn.Module):
    """RWKV-UNet: images (B, in_channels, H, W) -> logits (B, num_classes, H, W), any H, W >= 1.

    Sizes that are no multiple of 16 are padded at the bottom and right by repeating the border, and the
    logits are cropped; the token count T, by which SpatialMix scales its decay, is that of the padded map.
    Training on one image of at most 16 x 16 is impossible: batch norm needs more than one deepest pixel.
    """

    def __init__(self, config: RWKVUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.ccm = CrossChannelMix(
            config.widths[:3], inner=config.ccm_width, drop_path_rate=config.drop_path_rate
        )
        self.decoder = Decoder(config)
        self.head = nn.Conv2d(config.stem_width, config.num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for a batch of images; a single grey channel is repeated where three are expected.

        Raises:
            ShapeError: not (B, in_channels, H, W), or not floating point.
        """
        channels = _stem_channels(self.config)
        if channels == 3 and x.ndim == 4 and x.shape[1] == 1:
            check_image(x, 1)
            x = x.expand(-1, 3, -1, -1)
        else:
            check_image(x, self.config.in_channels)
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, STRIDE)
        *skips, deepest = self.encoder(x)
        # the head commutes with the last doubling as the CCM's projections do, on a quarter of the pixels
        logits = resize(self.head(self.decoder(deepest, self.ccm(skips))), _size(x))
        return logits[..., :height, :width]


NANO = RWKVUNetConfig(  # ours, not published: docs/reference/rwkv_unet.md says how it was chosen
    depths=(2, 2, 3, 2),
    widths=(16, 32, 56, 80),
    expansions=(1.0, 2.0, 2.5, 2.5),
    stem_width=8,
    ccm_width=8,
)
TINY = RWKVUNetConfig(depths=(2, 2, 4, 2), widths=(32, 48, 96, 160), expansions=(2.0, 2.5, 3.0, 3.5))
SMALL = RWKVUNetConfig(depths=(3, 3, 6, 3), widths=(32, 64, 128, 192), expansions=(2.0, 2.5, 3.0, 4.0))
BASE = RWKVUNetConfig(depths=(3, 3, 6, 3), widths=(48, 72, 144, 240), expansions=(2.0, 2.5, 4.0, 4.0))


@register_model
def rwkv_unet_nano(**overrides: Any) -> RWKVUNet:
    """Our ultra-light RWKV-UNet, 0.54 M parameters; not from the papers."""
    return RWKVUNet(override_config(NANO, overrides))


@register_model
def rwkv_unet_tiny(**overrides: Any) -> RWKVUNet:
    """RWKV-UNet-T, 3.15 M parameters."""
    return RWKVUNet(override_config(TINY, overrides))


@register_model
def rwkv_unet_small(**overrides: Any) -> RWKVUNet:
    """RWKV-UNet-S, 9.70 M parameters."""
    return RWKVUNet(override_config(SMALL, overrides))


@register_model
def rwkv_unet_base(**overrides: Any) -> RWKVUNet:
    """RWKV-UNet-B, 17.13 M parameters."""
    return RWKVUNet(override_config(BASE, overrides))
