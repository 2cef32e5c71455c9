"""RWKV's two mixers on feature maps (Vision-RWKV, arXiv:2403.02308): SpatialMix and ChannelMix.

B: batch, C: channels, H, W: rows and columns, T = H*W tokens. Maps come and go as (B, C, H, W); tokens live
inside `SpatialMix.forward` only. In between, maps are read as (B, H, W, C): a view of channels-last maps.
"""

import torch
from torch import Tensor, nn

from rwkvseg.models.blocks import SquaredReLUNorm
from rwkvseg.ops import bi_wkv, gated_layer_norm, shift_and_mix


class SpatialMix(nn.Module):
    """Mix tokens along space by bidirectional WKV, gated by the receptance. Cost O(H*W*C*C).

    x: (B, C, H, W) -> same. Decay and bonus are divided by T, so their effect depends on the map's size
    (the published code's rule; RWKV-UNet's papers do not state it).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.zeros(channels))
        self.bonus = nn.Parameter(torch.zeros(channels))
        self.mix_k = nn.Parameter(torch.full((channels,), 0.5))
        self.mix_v = nn.Parameter(torch.full((channels,), 0.5))
        self.mix_r = nn.Parameter(torch.full((channels,), 0.5))
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.norm = nn.LayerNorm(channels)
        self.output = nn.Linear(channels, channels, bias=False)
        for linear in (self.key, self.value, self.receptance, self.output):
            nn.init.trunc_normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every token with all others."""
        height, width = x.shape[-2:]
        num_tokens = height * width
        for_k, for_v, for_r = shift_and_mix(x, [self.mix_k, self.mix_v, self.mix_r])  # (B, H, W, C)
        k = self.key(for_k).flatten(1, 2)  # (B, T, C)
        v = self.value(for_v).flatten(1, 2)
        r = self.receptance(for_r).flatten(1, 2)
        wkv = bi_wkv(self.decay / num_tokens, self.bonus / num_tokens, k, v)
        gated = gated_layer_norm(wkv, r, self.norm.weight, self.norm.bias, self.norm.eps)
        mixed: Tensor = self.output(gated).unflatten(1, (height, width))
        return mixed.permute(0, 3, 1, 2)


class ChannelMix(nn.Module):
    """Mix the channels of each token and of its shifted neighbour: squared ReLU, gated by the receptance.

    x: (B, C, H, W) -> same; the hidden layer has `rate * C` channels. Cost O(H*W*C*C).
    """

    def __init__(self, channels: int, rate: int = 2) -> None:
        super().__init__()
        self.mix_k = nn.Parameter(torch.full((channels,), 0.5))
        self.mix_r = nn.Parameter(torch.full((channels,), 0.5))
        self.key = nn.Linear(channels, rate * channels, bias=False)
        self.norm = SquaredReLUNorm(rate * channels)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(rate * channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every token's channels."""
        for_k, for_r = shift_and_mix(x, [self.mix_k, self.mix_r])  # (B, H, W, C)
        hidden = self.key(for_k)
        r = self.receptance(for_r)
        mixed: Tensor = r.sigmoid() * self.value(self.norm(hidden))
        return mixed.permute(0, 3, 1, 2)
