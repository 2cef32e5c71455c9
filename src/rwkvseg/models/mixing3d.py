"""RWKV's two mixers on volumes: the tri-directional SpatialMix of TSE-R, and ChannelMix.

B: volumes, C: channels, D, H, W: axes, T = D*H*W tokens. Maps come and go as (B, C, D, H, W); in between they
are read as (B, D, H, W, C): a view of channels-last maps. An independent design from the abstract of U-RWKV.
Parameters of one number a channel have one axis however many orders or shares there are: weight decay spares
those.
"""

import math

import torch
from torch import Tensor, nn

from rwkvseg.models.blocks import SquaredReLUNorm
from rwkvseg.models.urwkv3d_config import URWKV3dConfig
from rwkvseg.ops import bi_wkv, gated_layer_norm, spatial_shift_and_mix
from rwkvseg.ops.scan_order import from_tokens, to_tokens


class ShiftMix3d(nn.Module):
    """Interpolate between each voxel and its shifted neighbours, once for each vector of shares.

    x: (B, C, D, H, W) -> (num_mixes, B, D, H, W, C). Without a shift it repeats x.
    """

    def __init__(self, shares: Tensor, config: URWKV3dConfig) -> None:
        super().__init__()
        self.num_mixes = len(shares)
        self.mix = nn.Parameter(shares.flatten()) if config.shift else None
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """Shift and mix."""
        if self.mix is None:
            return x.permute(0, 2, 3, 4, 1).expand(self.num_mixes, -1, -1, -1, -1, -1)
        return spatial_shift_and_mix(
            x,
            self.mix.view(self.num_mixes, -1),
            shift=self.config.shift,
            gamma=self.config.gamma,
            pad=self.config.shift_pad,
        )


class SpatialMix3d(nn.Module):
    """Mix tokens along space by bidirectional WKV in several orders, gated by the receptance.

    x: (B, C, D, H, W) -> same. Cost O(T*C*C). The orders share keys, values and receptance; each has a
    decay and a bonus, which are divided by T, and a weight in their sum. `layer` of `num_layers` is the place
    of the block in the network, which RWKV's initialisation depends on.
    """

    def __init__(self, channels: int, config: URWKV3dConfig, *, layer: int = 0, num_layers: int = 1) -> None:
        super().__init__()
        self.orders = config.scans if config.mixer == "wkv" else ()
        num_decays = min(len(self.orders), 1) if config.shared_decay else len(self.orders)
        start = _Start(channels, layer, num_layers, config.init)
        self.shift = ShiftMix3d(start.shares_of_space(), config)
        self.project_in = nn.Parameter(torch.empty(3, channels, channels))  # key, value, receptance
        if self.orders:
            self.decay = nn.Parameter(start.decay().repeat(num_decays))
            self.bonus = nn.Parameter(start.bonus().repeat(num_decays))
        self.fusion = Fusion(channels, len(self.orders), config.fusion)
        self.norm = nn.LayerNorm(channels)
        self.output = nn.Linear(channels, channels, bias=False)
        for weight in (self.project_in, self.output.weight):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every token with all others."""
        mixed = self.shift(x)  # (3, B, D, H, W, C)
        projected = torch.bmm(mixed.flatten(1, 4), self.project_in.mT).view(mixed.shape)
        kv, r = projected[:2], projected[2]
        y = self.scan(kv) if self.orders else kv[1]
        gated = gated_layer_norm(y, r, self.norm.weight, self.norm.bias, self.norm.eps)
        out: Tensor = self.output(gated)
        return out.permute(0, 4, 1, 2, 3)

    def scan(self, kv: Tensor) -> Tensor:
        """Weighted sum of the WKVs in all orders. kv: (2, B, D, H, W, C) -> (B, D, H, W, C)."""
        batch, *size, channels = kv.shape[1:]
        num_tokens = size[0] * size[1] * size[2]
        w, u = self.decay / num_tokens, self.bonus / num_tokens
        if w.numel() < len(self.orders) * channels:  # shared
            w, u = w.repeat(len(self.orders)), u.repeat(len(self.orders))
        # orders are further channels, keys and values one batch: few large steps, since launches cost time
        k, v = to_tokens(kv.flatten(0, 1), self.orders).view(2, batch, num_tokens, -1).unbind()
        y = bi_wkv(w, u, k, v)
        fused: Tensor = self.fusion(from_tokens(y, (size[0], size[1], size[2]), self.orders))
        return fused


class Fusion(nn.Module):
    """Weighted sum of maps. maps: n of (..., C) -> (..., C)."""

    def __init__(self, channels: int, num_maps: int, mode: str) -> None:
        super().__init__()
        self.num_maps = num_maps
        self.mode = mode
        self.logits = None
        if num_maps > 1 and mode != "sum":
            count = num_maps * channels if mode == "softmax_channel" else num_maps
            self.logits = nn.Parameter(torch.full((count,), 1 / num_maps if mode == "free" else 0.0))

    def weights(self) -> Tensor:
        """(n,) or (n, C), at least float32; those of "free" are no shares."""
        if self.logits is None:
            return torch.ones(self.num_maps)
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        if self.mode == "free":
            return logits
        return logits.view(self.num_maps, -1).squeeze(1).softmax(0)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Sum them up."""
        if self.logits is None:
            return sum(maps[1:], start=maps[0])
        weights = self.weights().to(maps[0].dtype).unbind()
        fused = maps[0] * weights[0]
        for x, weight in zip(maps[1:], weights[1:], strict=True):
            fused = torch.addcmul(fused, x, weight)
        return fused


class ChannelMix3d(nn.Module):
    """Mix the channels of each token and of its shifted neighbours: squared ReLU, gated by the receptance.

    x: (B, C, D, H, W) -> same; the hidden layer has `config.rate * C` channels. Cost O(T*C*C).
    """

    def __init__(self, channels: int, config: URWKV3dConfig, *, layer: int = 0, num_layers: int = 1) -> None:
        super().__init__()
        start = _Start(channels, layer, num_layers, config.init)
        self.shift = ShiftMix3d(start.shares_of_channels(), config)
        self.key = nn.Linear(channels, config.rate * channels, bias=False)
        self.norm = SquaredReLUNorm(config.rate * channels)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(config.rate * channels, channels, bias=False)
        for linear in (self.key, self.receptance, self.value):
            nn.init.trunc_normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every token's channels."""
        for_k, for_r = self.shift(x).unbind()  # (B, D, H, W, C)
        hidden = self.key(for_k)
        mixed: Tensor = self.receptance(for_r).sigmoid() * self.value(self.norm(hidden))
        return mixed.permute(0, 4, 1, 2, 3)


class _Start:
    """First values of one layer's decay, bonus and mixing shares (RWKV, arXiv:2305.13048, appendix)."""

    def __init__(self, channels: int, layer: int, num_layers: int, init: str) -> None:
        self.channel = torch.arange(channels)
        self.depth = layer / max(num_layers - 1, 1)  # from 0 to 1
        self.left = 1 - layer / num_layers  # from 1 to just above 0
        self.init = init

    def decay(self) -> Tensor:
        if self.init == "zeros":
            return torch.zeros(len(self.channel))
        return -5 + 8 * (self.channel / max(len(self.channel) - 1, 1)) ** (0.7 + 1.3 * self.depth)

    def bonus(self) -> Tensor:
        if self.init == "zeros":
            return torch.zeros(len(self.channel))
        return math.log(0.3) + 0.5 * ((self.channel + 1) % 3 - 1)

    def shares_of_space(self) -> Tensor:
        """Of keys, values, receptance: (3, C)."""
        share = self._share()
        return self._or_half(torch.stack([share, share + 0.3 * self.depth, share.sqrt()]))

    def shares_of_channels(self) -> Tensor:
        """Of keys and receptance: (2, C)."""
        return self._or_half(torch.stack([self._share()] * 2))

    def _share(self) -> Tensor:
        return (self.channel / len(self.channel)) ** self.left

    def _or_half(self, shares: Tensor) -> Tensor:
        return shares if self.init == "fancy" else torch.full_like(shares, 0.5)
