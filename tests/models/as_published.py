"""RWKV-UNet with its steps in the order and place that the authors' code has them, on the weights of ours.

What the papers count is this order: projections of the CCM at the finest size, resizing also where the size
is right, doublings as modules, the head at the full size. Ours computes the same in fewer steps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkvseg.models import RWKVUNet
from rwkvseg.models.rwkv_unet import CrossChannelMix


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=tuple(like.shape[-2:]), mode="bilinear", align_corners=False)


class AsPublished(nn.Module):
    """Images with sides that 16 divides -> logits, equal to the network's own."""

    def __init__(self, network: RWKVUNet) -> None:
        super().__init__()
        self.network = network
        self.doubling = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        *features, x = self.network.encoder(x)
        skips = self.mix(self.network.ccm, features)
        for block, skip in zip(self.network.decoder.blocks, [*reversed(skips), None], strict=True):
            x = self.doubling(block(x))
            x = x if skip is None else torch.cat([x, skip], dim=1)
        logits: Tensor = self.network.head(x)
        return logits

    @staticmethod
    def mix(ccm: CrossChannelMix, features: list[Tensor]) -> list[Tensor]:
        finest = features[0]
        projected = [p(resized(x, finest)) for p, x in zip(ccm.project_in, features, strict=True)]
        x = torch.cat(projected[::-1], dim=1)
        x = x + ccm.norm(ccm.channel_mix(x))
        parts = x.chunk(3, dim=1)[::-1]
        return [
            resized(project(part), like)
            for project, part, like in zip(ccm.project_out, parts, features, strict=True)
        ]
