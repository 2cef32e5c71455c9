"""MONAI's networks behind our contract, for fair tables. MONAI is imported when one is built, not before.

Every one is 2D; `spatial_dims=3` makes its form for volumes. See docs/reference/baselines.md.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rwkvseg.errors import MissingExtraError, ShapeError, UsageError
from rwkvseg.models.blocks import check_image
from rwkvseg.models.registry import override_config, register_model
from rwkvseg.ops.backends import is_exporting


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineConfig:
    """What every baseline has."""

    in_channels: int = 3
    """Channels of the images."""

    num_classes: int = 1
    """Channels of the logits."""

    spatial_dims: int = 2
    """2 for pictures and slices, 3 for volumes."""

    def __post_init__(self) -> None:
        for name in ("in_channels", "num_classes"):
            _check_count(name, getattr(self, name))
        if self.spatial_dims not in (2, 3) or isinstance(self.spatial_dims, bool):
            raise UsageError(f"spatial_dims is {self.spatial_dims!r}. Give 2 or 3.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthsConfig(BaselineConfig):
    """A network that is described by the channels of its levels."""

    features: tuple[int, ...]
    """Channels of every level, see docs/reference/baselines.md; as many as the default has."""

    levels: int
    """How many they are; only monai_unet takes another number, from 2 on."""

    def __post_init__(self) -> None:
        BaselineConfig.__post_init__(self)
        if not isinstance(self.levels, int) or isinstance(self.levels, bool) or self.levels < 2:
            raise UsageError(f"levels is {self.levels!r}. Give an integer, at least 2.")
        if not isinstance(self.features, list | tuple) or len(self.features) != self.levels:
            raise UsageError(f"features is {self.features!r}. Give {self.levels} numbers of channels.")
        for value in self.features:
            _check_count("features", value)
        object.__setattr__(self, "features", tuple(self.features))


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthConfig(BaselineConfig):
    """A network that is described by one number of channels."""

    features: int
    """Channels at the finest level."""

    multiple_of: int = 1
    """What divides them; not to be changed."""

    def __post_init__(self) -> None:
        BaselineConfig.__post_init__(self)
        _check_count("features", self.features)
        if self.features % self.multiple_of:
            raise UsageError(f"features is {self.features}. Give a multiple of {self.multiple_of}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class UNETRConfig(WidthConfig):
    """UNETR, whose position embedding is made for one size."""

    hidden: int = 768
    """Channels of its transformer, a multiple of the 12 heads."""

    image_size: int | None = None
    """Longest side it takes; shorter images are padded to it. None: 256 in 2D, 96 in 3D."""

    def __post_init__(self) -> None:
        WidthConfig.__post_init__(self)
        _check_count("hidden", self.hidden)
        if self.hidden % 12:
            raise UsageError(f"hidden is {self.hidden}. Give a multiple of the 12 heads.")
        if self.image_size is not None:
            _check_count("image_size", self.image_size)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(
            f"{name}: {value!r} is no number of channels or pixels. Give an integer, at least 1."
        )


class PaddedNetwork(nn.Module):
    """A network that wants certain sizes, for any size: pad by repeating the border, crop the logits.

    Images (B, in_channels, *spatial) -> logits (B, num_classes, *spatial). Of several outputs (deep
    supervision) the finest, which comes first, is given.

    Args:
        network: MONAI's.
        config: channels and number of axes.
        stride: sides are padded to its next multiple.
        smallest: and at least to this; instance norm needs more than one deepest pixel.
        largest: longer sides are refused; None takes any.
    """

    def __init__(
        self,
        network: nn.Module,
        config: BaselineConfig,
        *,
        stride: int,
        smallest: int = 1,
        largest: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.in_channels = config.in_channels
        self.spatial_dims = config.spatial_dims
        self.stride = stride
        self.smallest = smallest
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        """Logits on the grid of the images.

        Raises:
            ShapeError: not (B, in_channels, *spatial), too large, or not floating point.
        """
        check_image(x, self.in_channels, spatial_dims=self.spatial_dims)
        sides = x.shape[2:]
        if self.largest is not None and max(sides) > self.largest:
            raise ShapeError(
                f"images of {' x '.join(map(str, sides))} are larger than the {self.largest} pixels that the "
                f"position embedding was made for. Create the model with image_size={max(sides)}."
            )
        stride = self.stride
        wanted = [max(self.smallest, (side + stride - 1) // stride * stride) for side in sides]
        pads = [(0, want - side) for want, side in zip(wanted, sides, strict=True)]
        if is_exporting() or any(after for _, after in pads):  # as `pad_to_multiple`
            x = F.pad(x, [amount for pad in reversed(pads) for amount in pad], mode="replicate")
        outputs = self.network(x)
        logits: Tensor = outputs[0] if isinstance(outputs, list | tuple) else outputs
        for axis, side in enumerate(sides, start=2):
            logits = logits.narrow(axis, 0, side)
        return logits


@register_model
def monai_basic_unet(**overrides: Any) -> PaddedNetwork:
    """MONAI's BasicUNet (Falk et al. 2019) with batch norm: two convolutions a level."""
    config = _widths((32, 64, 128, 256, 512, 32), overrides)
    from monai.networks.nets import BasicUNet

    return PaddedNetwork(
        BasicUNet(**_common(config), features=config.features, norm="batch"), config, stride=16
    )


@register_model
def monai_unet(**overrides: Any) -> PaddedNetwork:
    """MONAI's UNet (Kerfoot et al. 2018) with two residual units a level and batch norm."""
    config = _widths((32, 64, 128, 256, 512), overrides, any_levels=True)
    from monai.networks.nets import UNet

    halvings = config.levels - 1
    network = UNet(
        **_common(config), channels=config.features, strides=(2,) * halvings, num_res_units=2, norm="batch"
    )
    return PaddedNetwork(network, config, stride=2**halvings)


@register_model
def monai_attention_unet(**overrides: Any) -> PaddedNetwork:
    """MONAI's AttentionUnet (Oktay et al. 2018) at its published widths."""
    config = _widths((64, 128, 256, 512, 1024), overrides)
    from monai.networks.nets import AttentionUnet

    network = AttentionUnet(**_common(config), channels=config.features, strides=(2,) * 4)
    return PaddedNetwork(network, config, stride=16)


@register_model
def monai_unet_plus_plus(**overrides: Any) -> PaddedNetwork:
    """MONAI's BasicUNetPlusPlus (Zhou et al. 2018) at its published widths, with batch norm, one output."""
    config = _widths((32, 64, 128, 256, 512, 32), overrides)
    from monai.networks.nets import BasicUNetPlusPlus

    network = BasicUNetPlusPlus(**_common(config), features=config.features, norm="batch")
    for index in (1, 2, 3):  # heads of the outputs that are not asked for would never be trained
        setattr(network, f"final_conv_0_{index}", nn.Identity())
    return PaddedNetwork(network, config, stride=16)


@register_model
def monai_segresnet(**overrides: Any) -> PaddedNetwork:
    """MONAI's SegResNet (Myronenko 2018) with 32 channels, group norm."""
    config = override_config(WidthConfig(features=32, multiple_of=8), overrides)
    from monai.networks.nets import SegResNet

    return PaddedNetwork(SegResNet(**_common(config), init_filters=config.features), config, stride=8)


@register_model
def monai_dynunet(**overrides: Any) -> PaddedNetwork:
    """MONAI's DynUNet: nnU-Net's plain U-Net (Isensee et al. 2021), six levels, instance norm, one output."""
    config = _widths((32, 64, 128, 256, 512, 512), overrides)
    from monai.networks.nets import DynUNet

    network = DynUNet(
        **_common(config),
        kernel_size=[3] * 6,
        strides=[1, 2, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 5,
        filters=config.features,
    )
    for part in ("input_block", "downsamples", "bottleneck", "upsamples"):
        delattr(network, part)  # second names of modules that run as parts of skip_layers
    return PaddedNetwork(network, config, stride=32, smallest=64)


@register_model
def monai_swin_unetr(**overrides: Any) -> PaddedNetwork:
    """MONAI's SwinUNETR (Hatamizadeh et al. 2022) with 24 channels, instance norm."""
    config = override_config(WidthConfig(features=24, multiple_of=12), overrides)
    _need_einops("monai_swin_unetr")
    from monai.networks.nets import SwinUNETR

    return PaddedNetwork(
        SwinUNETR(**_common(config), feature_size=config.features), config, stride=32, smallest=64
    )


@register_model
def monai_unetr(**overrides: Any) -> PaddedNetwork:
    """MONAI's UNETR (Hatamizadeh et al. 2022), a ViT-B encoder with a position embedding for one size."""
    config = override_config(UNETRConfig(features=16), overrides)
    _need_einops("monai_unetr")
    from monai.networks.nets import UNETR

    wanted = config.image_size or (256 if config.spatial_dims == 2 else 96)
    size = -(-wanted // 16) * 16
    network = UNETR(
        **_common(config),
        img_size=size,
        feature_size=config.features,
        hidden_size=config.hidden,
        mlp_dim=4 * config.hidden,
    )
    for block in network.vit.blocks:  # MONAI makes a norm for a cross attention that is not there
        block.norm_cross_attn = nn.Identity()
    return PaddedNetwork(network, config, stride=16, smallest=size, largest=size)


def _widths(
    features: tuple[int, ...], overrides: dict[str, Any], *, any_levels: bool = False
) -> WidthsConfig:
    if not any_levels and overrides.get("levels", len(features)) != len(features):
        raise UsageError(
            f"{len(features)} features are what this network has. Drop levels, or choose monai_unet."
        )
    return override_config(WidthsConfig(features=features, levels=len(features)), overrides)


def _common(config: BaselineConfig) -> dict[str, int]:
    return {
        "spatial_dims": config.spatial_dims,
        "in_channels": config.in_channels,
        "out_channels": config.num_classes,
    }


def _need_einops(name: str) -> None:
    if importlib.util.find_spec("einops") is None:
        raise MissingExtraError(f"{name} needs einops. Install it with pip install 'rwkvseg[baselines]'.")
