"""What an encoder is pre-trained as: a classifier, or a painter of what is hidden from it.

Both hold the encoder under `encoder`; their own heads are thrown away afterwards. B: batch, H, W: rows and
columns.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkvseg.models.blocks import EPS, LayerNorm2d
from rwkvseg.models.config import RWKVUNetConfig
from rwkvseg.models.rwkv_unet import STRIDE, Encoder


class EncoderClassifier(nn.Module):
    """Layer norm of the deepest map, mean over its pixels, one linear layer.

    x: (B, C, H, W) -> logits (B, num_classes). H and W must be multiples of 16.
    """

    def __init__(self, config: RWKVUNetConfig, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.norm = LayerNorm2d(config.widths[-1], eps=EPS)
        self.head = nn.Linear(config.widths[-1], num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = self.head(self.norm(self.encoder(x)[-1]).mean((2, 3)))
        return logits


class MaskedReconstruction(nn.Module):
    """Fill hidden pixels with a learned colour; predict them from the deepest map (SimMIM, arXiv:2111.09886).

    H and W must be multiples of 16: each deepest pixel paints its 16 x 16 pixels by one linear map.
    """

    def __init__(self, config: RWKVUNetConfig) -> None:
        super().__init__()
        channels = config.in_channels
        self.encoder = Encoder(config)
        self.token = nn.Parameter(torch.empty(channels))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.head = nn.Conv2d(config.widths[-1], channels * STRIDE**2, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, C, H, W), mask: (B, H, W) bool, true where hidden -> painted picture (B, C, H, W)."""
        seen = torch.where(mask.unsqueeze(1), self.token.to(x.dtype).view(1, -1, 1, 1), x)
        painted: Tensor = F.pixel_shuffle(self.head(self.encoder(seen)[-1]), STRIDE)
        return painted


def reconstruction_loss(painted: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over the hidden pixels. painted, x: (B, C, H, W), mask: (B, H, W) -> scalar."""
    hidden = mask.unsqueeze(1).to(x.dtype)
    error = (painted.float() - x).abs() * hidden
    return error.sum() / (hidden.sum() * x.shape[1]).clamp(min=1)
