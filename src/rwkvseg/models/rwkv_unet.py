"""RWKV-UNet for 2D segmentation (Jiang et al., arXiv:2501.08458), as its published weights need it.

B: batch, C: channels, H, W: rows and columns. Read on: config, block, encoder, skips (CCM), decoder, network.
Where the papers' words and the authors' code differ, it follows the code: see docs/reference/rwkv_unet.md.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
from rwkvseg.models.config import RWKVUNetConfig
from rwkvseg.models.encoders import create_encoder, encoder_widths
from rwkvseg.models.mixers import create_mixer
from rwkvseg.models.mixing import ChannelMix
from rwkvseg.models.options import OWN_ENCODER
from rwkvseg.models.recompute import recompute_inside
from rwkvseg.models.registry import override_config, register_model

STRIDE = 16  # of the deepest stage: inputs are padded to a multiple of it
FIRST_MIXING_STAGE = 3  # earlier stages are convolutional and use batch norm


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
        projected: Tensor = self.project(self._mix_locally(inner))
        return x + self.drop_path(projected) if self.residual else projected

    def _mix_locally(self, inner: Tensor) -> Tensor:
        if isinstance(self.squeeze_excite, nn.Identity):  # inner + local as one step with norm and activation
            added: Tensor = self.local(inner, residual=inner if self.residual else None)
            return added
        local: Tensor = self.squeeze_excite(self.local(inner))
        return inner + local if self.residual else local


class Encoder(nn.Module):
    """Stem and four stages. x: (B, C, H, W) -> four maps at strides 2, 4, 8, 16."""

    def __init__(self, config: RWKVUNetConfig) -> None:
        super().__init__()
        channels = _stem_channels(config)
        # not below 3 inside, so that weights for 3 channels fit any number
        inner = max(channels, 3)
        self.stem = PerceptionBlock(channels, config.stem_width, inner, norm=nn.Identity(), squeeze=True)
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        self.stages = nn.ModuleList(
            _build_stage(config, number, drop_path_rates=[rates.pop(0) for _ in range(depth)])
            for number, depth in enumerate(config.depths, start=1)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of stages 1 to 4; the stem's own map feeds stage 1 only."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _build_stage(config: RWKVUNetConfig, number: int, *, drop_path_rates: list[float]) -> nn.Sequential:
    late = number >= FIRST_MIXING_STAGE
    mixer = config.mixer if late or config.shallow_mixer else "none"
    block = _forms(config).block

    def norm(channels: int) -> nn.Module:
        return LayerNorm2d(channels, eps=EPS) if late else nn.BatchNorm2d(channels, eps=EPS)

    in_width, width = (config.stem_width, *config.widths)[number - 1 : number + 1]
    expansion = config.expansions[number - 1]
    first = block(in_width, width, int(in_width * expansion * 2), norm=norm(in_width), stride=2)
    inner = int(width * expansion)
    others = [
        block(
            width,
            width,
            inner,
            norm=norm(width),
            mixer=create_mixer(mixer, inner),
            residual=True,
            drop_path_rate=rate,
        )
        for rate in drop_path_rates[1:]
    ]
    return nn.Sequential(first, *others)


def _stem_channels(config: RWKVUNetConfig) -> int:
    return 3 if config.in_channels == 1 else config.in_channels


def check_and_repeat_grey(x: Tensor, config: RWKVUNetConfig) -> Tensor:
    """Images as the stem takes them: a single grey channel is repeated where three are expected.

    Raises:
        ShapeError: not (B, in_channels, H, W), or not floating point.
    """
    if _stem_channels(config) == 3 and x.ndim == 4 and x.shape[1] == 1:
        check_image(x, 1)
        return x.expand(-1, 3, -1, -1)
    check_image(x, config.in_channels)
    return x


class CrossChannelMix(nn.Module):
    """CCM: let the skip connections of three stages exchange channels at the finest of their sizes.

    Maps (B, C_i, H_i, W_i), finest first -> the first `num_outputs` (default: all) of them, mixed.
    Projections run at each map's own size: 1x1 convolutions commute with bilinear resizing, and so does the
    bias, since the weights sum to one.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        *,
        inner: int | None = None,
        rate: int = 2,
        drop_path_rate: float = 0.0,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        inner = inner or widths[0]
        self.num_inputs = len(widths)
        self.project_in = nn.ModuleList(nn.Conv2d(width, inner, 1) for width in widths)
        self.channel_mix = ChannelMix(len(widths) * inner, rate)
        self.norm = LayerNorm2d(len(widths) * inner)
        self.drop_path = DropPath(drop_path_rate)
        self.project_out = nn.ModuleList(nn.Conv2d(inner, width, 1) for width in widths[:num_outputs])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Mix the maps' channels and hand maps back, each at its own width and size."""
        size = _size(features[0])
        inward = [resize(project(x), size) for project, x in zip(self.project_in, features, strict=True)]
        mixed = self.mix(torch.cat(inward[::-1], dim=1))  # the published order: coarsest first
        parts = mixed.chunk(len(features), dim=1)[::-1]
        return [
            project(resize(part, _size(x)))
            for project, part, x in zip(self.project_out, parts, features, strict=False)
        ]

    def mix(self, x: Tensor) -> Tensor:
        """x: all maps (B, C, H, W) -> same."""
        return add_normed(x, self.channel_mix(x), self.norm, self.drop_path)


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
        joined = [2 if level < config.skips else 1 for level in range(3)]  # of strides 2, 4, 8: with a skip?
        widths = [fourth, joined[2] * third, joined[1] * second, joined[0] * first]
        block = _forms(config).decoder_block
        self.blocks = nn.ModuleList(
            block(in_width, width, config.decoder_kernel)
            for in_width, width in zip(widths, (third, second, first, config.stem_width), strict=True)
        )

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """x: the deepest map; skips: those kept of the maps at strides 2, 4, 8, finest first."""
        x = self.blocks[0](x)
        for level, block in zip((2, 1, 0), self.blocks[1:], strict=True):
            if level < len(skips):
                x = block(torch.cat([resize(x, _size(skips[level])), skips[level]], dim=1))
            else:
                height, width = _size(x)
                x = block(resize(x, (2 * height, 2 * width)))
        return x


class Forms(NamedTuple):
    """Of which blocks a network is built: those of this file, or for a study of the papers other ones."""

    block: Callable[..., nn.Module]
    ccm: type[CrossChannelMix]
    decoder_block: Callable[[int, int, int], nn.Module]


def _forms(config: RWKVUNetConfig) -> Forms:
    if not config.has_rare_forms:
        return Forms(PerceptionBlock, CrossChannelMix, DecoderBlock)
    from rwkvseg.models.studies import study_forms  # they are made from the blocks of this file

    return study_forms(config)


class RWKVUNet(nn.Module):
    """RWKV-UNet: images (B, in_channels, H, W) -> logits (B, num_classes, H, W), any H, W >= 1.

    Sizes that are no multiple of 16 are padded at the bottom and right by repeating the border, and the
    logits are cropped; the token count T, by which SpatialMix scales its decay, is that of the padded map.
    Training on one image of at most 16 x 16 is impossible: batch norm needs more than one deepest pixel.
    Any module with four maps at strides 2, 4, 8, 16 may be the `encoder`: see rwkvseg/models/encoders.py.
    """

    def __init__(self, config: RWKVUNetConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        if encoder is None and config.encoder != OWN_ENCODER:
            encoder = create_encoder(config.encoder, _stem_channels(config))
        if encoder is not None:
            config = replace(config, widths=encoder_widths(encoder, _stem_channels(config)))
        self.config = config
        self.encoder = Encoder(config) if encoder is None else encoder
        self.ccm = _build_ccm(config)
        self.decoder = Decoder(config)
        self.head = nn.Conv2d(config.stem_width, config.num_classes, 1)
        if config.gradient_checkpointing:
            recompute_inside(self, r"encoder\.stem|encoder\.stages\.\d+\.\d+|ccm|decoder\.blocks\.\d+")

    def forward(self, x: Tensor) -> Tensor:
        """Logits for a batch of images; a single grey channel is repeated where three are expected.

        Raises:
            ShapeError: not (B, in_channels, H, W), or not floating point.
        """
        x = check_and_repeat_grey(x, self.config)
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, STRIDE)
        *skips, deepest = self.encoder(x)
        skips = skips[: self.config.skips] if self.ccm is None else self.ccm(skips[: self.ccm.num_inputs])
        # the head commutes with the last doubling as the CCM's projections do, on a quarter of the pixels
        logits = resize(self.head(self.decoder(deepest, skips)), _size(x))
        return logits[..., :height, :width]


def _build_ccm(config: RWKVUNetConfig) -> CrossChannelMix | None:
    if not config.ccm or config.skips == 0:
        return None
    return _forms(config).ccm(
        config.widths[: 3 if config.ccm_inputs == "all" else config.skips],
        inner=config.ccm_width,
        rate=config.ccm_rate,
        drop_path_rate=config.drop_path_rate,
        num_outputs=config.skips,
    )


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
