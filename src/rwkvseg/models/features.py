"""An encoder alone, as other frameworks take backbones: images in, maps at strides 2, 4, 8, 16 out."""

from torch import Tensor, nn

from rwkvseg.errors import UsageError
from rwkvseg.models.blocks import pad_to_multiple
from rwkvseg.models.rwkv_unet import STRIDE, RWKVUNet, check_and_repeat_grey


class EncoderFeatures(nn.Module):
    """The encoder of an RWKV-UNet. x: (B, in_channels, H, W) -> four maps (B, channels[i], H_i, W_i).

    H_i = ceil(H / strides[i]), W_i likewise, for any H, W >= 1: sizes that are no multiple of 16 are padded
    by repeating the border, and the maps cropped.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, RWKVUNet):
            raise UsageError(
                f"{type(network).__name__} has no encoder that gives maps at strides 2 to 16. "
                "Drop features_only, or choose an rwkv_unet."
            )
        self.encoder = network.encoder
        self.config = network.config
        self.channels: tuple[int, ...] = tuple(getattr(network.encoder, "widths", network.config.widths))
        self.strides = (2, 4, 8, 16)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of the four stages, finest first.

        Raises:
            ShapeError: not (B, in_channels, H, W), or not floating point.
        """
        x = check_and_repeat_grey(x, self.config)
        height, width = x.shape[-2:]
        maps: list[Tensor] = self.encoder(pad_to_multiple(x, STRIDE))
        return [
            feature[..., : -(-height // stride), : -(-width // stride)]
            for feature, stride in zip(maps, self.strides, strict=True)
        ]
