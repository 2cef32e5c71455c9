"""The encoder of RWKV-UNet as the backbone of another network: a feature pyramid for any framework."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rwkvseg import create_model


class Pyramid(nn.Module):
    """Four maps brought to one width and added up from the coarsest to the finest."""

    def __init__(self, encoder: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.encoder = encoder
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in encoder.channels)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, width, ceil(H / 2), ceil(W / 2))."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, self.encoder(image), strict=True)]
        top = maps[-1]
        for finer in reversed(maps[:-1]):
            top = finer + interpolate(top, size=finer.shape[-2:], mode="nearest")
        return top


encoder = create_model(
    "rwkv_unet_tiny", in_channels=4, features_only=True
)  # encoder_weights=... to start from
print("channels", encoder.channels, "at strides", encoder.strides)
pyramid = Pyramid(encoder)
print("pyramid", tuple(pyramid(torch.rand(2, 4, 90, 130)).shape))
