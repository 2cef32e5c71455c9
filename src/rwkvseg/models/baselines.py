"""MONAI's networks behind our contract, for fair tables. MONAI is imported when one is built, not before."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rwkvseg.errors import UsageError
from rwkvseg.models.blocks import check_image, pad_to_multiple
from rwkvseg.models.registry import override_config, register_model


@dataclass(frozen=True, kw_only=True, slots=True)
class BasicUNetConfig:
    """What MONAI's BasicUNet is made of."""

    features: tuple[int, ...] = (32, 64, 128, 256, 512, 32)
    """Channels at strides 1, 2, 4, 8, 16, then of the last decoder block."""

    in_channels: int = 3
    """Channels of the images."""

    num_classes: int = 1
    """Channels of the logits."""

    def __post_init__(self) -> None:
        if not isinstance(self.features, list | tuple) or len(self.features) != 6:
            raise UsageError(f"features is {self.features!r}. Give six numbers, as MONAI's BasicUNet takes.")
        for value in (*self.features, self.in_channels, self.num_classes):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{value!r} is no number of channels. Give integers of at least 1.")
        object.__setattr__(self, "features", tuple(self.features))


class PaddedNetwork(nn.Module):
    """A network that wants multiples of `stride`, for any size: pad by repeating the border, crop the logits.

    Images (B, in_channels, H, W) -> logits (B, num_classes, H, W).
    """

    def __init__(self, network: nn.Module, *, in_channels: int, stride: int) -> None:
        super().__init__()
        self.network = network
        self.in_channels = in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Logits on the grid of the images.

        Raises:
            ShapeError: not (B, in_channels, H, W), or not floating point.
        """
        check_image(x, self.in_channels)
        height, width = x.shape[-2:]
        logits: Tensor = self.network(pad_to_multiple(x, self.stride))
        return logits[..., :height, :width]


@register_model
def monai_basic_unet(**overrides: Any) -> PaddedNetwork:
    """MONAI's U-Net (BasicUNet, Falk et al. 2019) in 2D with batch norm, as a peer of RWKV-UNet."""
    from monai.networks.nets import BasicUNet  # listing the models must not import it

    config = override_config(BasicUNetConfig(), overrides)
    network = BasicUNet(
        spatial_dims=2,
        in_channels=config.in_channels,
        out_channels=config.num_classes,
        features=config.features,
        norm="batch",
    )
    return PaddedNetwork(network, in_channels=config.in_channels, stride=16)
