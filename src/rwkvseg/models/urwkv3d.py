"""U-RWKV (volumetric; Cai et al., IEEE TIP 2026): an independent re-implementation from the abstract.

The abstract is all that is public: three scan directions with WKV on each, fused by learned weights
(TSE-R), and a spatial shift. Widths, levels, convolutions and training are ours; docs/reference/u_rwkv.md
says which is which. Not to be confused with U-RWKV (2D; Ye et al., arXiv:2507.11415).

B: batch, C: channels, D, H, W: axes of a volume. Read on: block, level, encoder, decoder, network, names.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.errors import UsageError
from rwkvseg.models.blocks import DropPath, check_image, pad_to_multiple
from rwkvseg.models.blocks3d import LayerNorm3d, LocalPerception3d, add_scaled, conv, conv_norm
from rwkvseg.models.mixers import BiMamba
from rwkvseg.models.mixing3d import ChannelMix3d, SpatialMix3d
from rwkvseg.models.recompute import recompute_inside
from rwkvseg.models.registry import override_config, register_model
from rwkvseg.models.urwkv3d_config import URWKV3dConfig
from rwkvseg.models.urwkv3d_strides import NUM_HALVINGS, Triple

NUM_HEADS = 3  # levels 0, 1 and 2 give logits in training


class TriScanBlock(nn.Module):
    """TSE-R: mix tokens along three scans, then channels, each after a norm and added to its input.

    x: (B, C, D, H, W) -> same; channels-last maps are not copied.
    """

    def __init__(
        self,
        channels: int,
        config: URWKV3dConfig,
        *,
        layer: int = 0,
        num_layers: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        place = {"layer": layer, "num_layers": num_layers}
        self.norm1 = LayerNorm3d(channels)
        self.spatial_mix = (
            BiMamba(channels) if config.mixer == "bi_mamba" else SpatialMix3d(channels, config, **place)
        )
        self.scale1 = nn.Parameter(torch.full((channels,), float(config.layer_scale)))
        self.norm2 = LayerNorm3d(channels)
        self.channel_mix = ChannelMix3d(channels, config, **place)
        self.scale2 = nn.Parameter(torch.full((channels,), float(config.layer_scale)))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Mix along space, then along channels."""
        x = add_scaled(x, self.spatial_mix(self.norm1(x)), self.scale1, self.drop_path)
        return add_scaled(x, self.channel_mix(self.norm2(x)), self.scale2, self.drop_path)


class Level(nn.Module):
    """One level of the encoder below the finest: down, an LP block, then LP or TSE-R blocks.

    x: (B, C of the level above, D, H, W) -> (B, C, D / stride, H / stride, W / stride).
    """

    def __init__(self, config: URWKV3dConfig, number: int) -> None:
        super().__init__()
        above, channels = config.widths[number - 1 : number + 1]
        stride = config.strides[number - 1]
        self.down = conv_norm(above, channels, stride, stride=stride, activate=False)
        self.local = LocalPerception3d(channels, config.kernels[number])
        self.mixes = number in config.mixing_levels
        self.blocks = nn.ModuleList(
            _tri_scan_block(config, number, index)
            if self.mixes
            else LocalPerception3d(channels, config.kernels[number])
            for index in range(config.depths[number - 1])
        )

    def forward(self, x: Tensor) -> Tensor:
        """Halve, mix locally, mix globally."""
        x = self.local(self.down(x))
        if self.mixes:  # tokens want their channels together, convolutions their voxels
            x = x.contiguous(memory_format=torch.channels_last_3d)
        for block in self.blocks:
            x = block(x)
        return x.contiguous()


def _tri_scan_block(config: URWKV3dConfig, number: int, index: int) -> TriScanBlock:
    depths = [config.depths[level - 1] if level in config.mixing_levels else 0 for level in range(1, 5)]
    layer, num_layers = sum(depths[: number - 1]) + index, sum(depths)
    return TriScanBlock(
        config.widths[number],
        config,
        layer=layer,
        num_layers=num_layers,
        drop_path_rate=config.drop_path_rate * layer / max(num_layers - 1, 1),
    )


class Encoder(nn.Module):
    """x: (B, in_channels, D, H, W) -> five maps (B, widths[i], ...), finest first, smaller by `strides`."""

    def __init__(self, config: URWKV3dConfig) -> None:
        super().__init__()
        width, kernel = config.widths[0], config.kernels[0]
        first = conv_norm(config.in_channels, width, kernel)
        if config.stem == "full":
            self.stem = nn.Sequential(first, conv_norm(width, width, kernel))
        else:
            self.stem = nn.Sequential(
                first, conv(width, width, kernel, groups=width), conv_norm(width, width)
            )
        self.levels = nn.ModuleList(Level(config, number) for number in range(1, NUM_HALVINGS + 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of levels 0 to 4."""
        features = [self.stem(x)]
        for level in self.levels:
            features.append(level(features[-1]))
        return features


class DecoderBlock(nn.Module):
    """Up to the size of the skip, join with it, mix locally.

    x: (B, in_channels, D, H, W), skip: (B, C, stride * D, ...) -> as skip.
    """

    def __init__(self, config: URWKV3dConfig, number: int) -> None:
        super().__init__()
        channels, below = config.widths[number : number + 2]
        stride = config.strides[number]
        self.up = nn.ConvTranspose3d(below, channels, stride, stride)
        self.join = conv_norm(2 * channels, channels)
        self.local = LocalPerception3d(channels, _decoder_kernel(config, number))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join and mix."""
        joined: Tensor = self.local(self.join(torch.cat([self.up(x), skip], dim=1)))
        return joined


def _decoder_kernel(config: URWKV3dConfig, number: int) -> Triple:
    """Larger than the encoder's where maps are small."""
    larger = {1: 1, 3: 5 if number > 0 else 3}
    first, second, third = config.kernels[number]
    return larger[first], larger[second], larger[third]


class Decoder(nn.Module):
    """Maps of levels 0 to 4 -> maps of levels 0, 1, 2 and 3."""

    def __init__(self, config: URWKV3dConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(config, number) for number in range(NUM_HALVINGS))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """From the deepest map up; the result lists the finest first."""
        *skips, x = features
        decoded: list[Tensor] = []
        for block, skip in zip(reversed(self.blocks), reversed(skips), strict=True):
            x = block(x, skip)
            decoded.insert(0, x)
        return decoded


class URWKV3d(nn.Module):
    """U-RWKV (3D): volumes (B, in_channels, D, H, W) -> logits (B, num_classes, D, H, W), any size >= 1.

    Sizes that are no multiple of the product of strides are padded behind by repeating the border, and the
    logits are cropped; the token count T, by which decays are scaled, is that of the padded volume.
    In training with `deep_supervision` it returns three logits, finest first: those of the input's size, and
    those of levels 1 and 2 of the padded volume.
    """

    spatial_dims = 3

    def __init__(self, config: URWKV3dConfig) -> None:
        super().__init__()
        self.config = config
        self.stride = tuple(_product(axis) for axis in zip(*config.strides, strict=True))
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        num_heads = NUM_HEADS if config.deep_supervision else 1
        self.heads = nn.ModuleList(
            nn.Conv3d(width, config.num_classes, 1) for width in config.widths[:num_heads]
        )
        if config.gradient_checkpointing:
            recompute_inside(
                self, r"encoder\.stem|encoder\.levels\.\d\.(local|blocks\.\d+)|decoder\.blocks\.\d+"
            )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits for a batch of volumes.

        Raises:
            ShapeError: not (B, in_channels, D, H, W), or not floating point.
        """
        check_image(x, self.config.in_channels, spatial_dims=3)
        depth, height, width = x.shape[2:]
        features = self.decoder(self.encoder(pad_to_multiple(x, self.stride)))
        logits: Tensor = self.heads[0](features[0])[..., :depth, :height, :width]
        if not self.training or len(self.heads) == 1:
            return logits
        coarser = zip(self.heads[1:], features[1:], strict=False)
        return logits, *(head(feature) for head, feature in coarser)

    def fusion_weights(self) -> dict[str, Tensor]:
        """Weights of the scan orders in each TSE-R block, by the block's name: detached, (n,) or (n, C).

        Orders are those of `config.scans`; the weights add up to 1, except those of "free" and "sum".

        Raises:
            UsageError: the mixer has no scans to be weighted.
        """
        if self.config.mixer != "wkv":
            raise UsageError(f"mixer {self.config.mixer!r} has no scans and no weights. Use mixer 'wkv'.")
        return {
            name: block.spatial_mix.fusion.weights().detach()
            for name, block in self.named_modules()
            if isinstance(block, TriScanBlock) and isinstance(block.spatial_mix, SpatialMix3d)
        }


def _product(values: tuple[int, ...]) -> int:
    product = 1
    for value in values:
        product *= value
    return product


TINY = URWKV3dConfig(widths=(16, 32, 48, 120, 240), depths=(1, 2, 2, 2))
SMALL = URWKV3dConfig(widths=(24, 48, 72, 168, 336), depths=(1, 2, 2, 2))
BASE = URWKV3dConfig(widths=(24, 48, 96, 192, 384), depths=(1, 2, 5, 2))


@register_model
def urwkv3d_tiny(**overrides: Any) -> URWKV3d:
    """U-RWKV (3D), our tiny: 3.05 M parameters."""
    return URWKV3d(override_config(TINY, overrides))


@register_model
def urwkv3d_small(**overrides: Any) -> URWKV3d:
    """U-RWKV (3D), our small: 5.97 M parameters."""
    return URWKV3d(override_config(SMALL, overrides))


@register_model
def urwkv3d_base(**overrides: Any) -> URWKV3d:
    """U-RWKV (3D), our base: 9.33 M parameters."""
    return URWKV3d(override_config(BASE, overrides))
