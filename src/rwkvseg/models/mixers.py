"""Token mixers that the papers compare SpatialMix with (v2, table 2), by name.

B: batch, C: channels, H, W: rows and columns, T = H*W tokens. Maps come and go as (B, C, H, W). All are
without biases where SpatialMix has none, know no fixed size, and export to standard operators.
"""

import math
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rwkvseg.errors import UsageError
from rwkvseg.models.mixing import SpatialMix
from rwkvseg.ops.backends import is_exporting
from rwkvseg.ops.selective_scan import scan_backend, selective_scan
from rwkvseg.ops.token_conv import causal_conv_silu

MAX_HEADS = 8


def create_mixer(name: str, channels: int) -> nn.Module | None:
    """Build a token mixer (B, channels, H, W) -> same; None for "none".

    Raises:
        UsageError: unknown name.
    """
    mixers = {
        "spatial_mix": SpatialMix,
        "attention": SelfAttention,
        "linear_attention": FocusedLinearAttention,
        "bi_mamba": BiMamba,
    }
    if name == "none":
        return None
    if name not in mixers:
        raise UsageError(f"there is no mixer {name!r}. Choose one of {', '.join(mixers)}, none.")
    return mixers[name](channels)


def _num_heads(channels: int) -> int:
    """Return 8, or the largest number below it that divides the channels."""
    return max(heads for heads in range(1, MAX_HEADS + 1) if channels % heads == 0)


def _linear(in_channels: int, out_channels: int) -> nn.Linear:
    linear = nn.Linear(in_channels, out_channels, bias=False)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    return linear


class SelfAttention(nn.Module):
    """Multi-head self-attention (arXiv:1706.03762) over all pixels. Cost O(T*T*C).

    x: (B, C, H, W) -> same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_heads = _num_heads(channels)
        self.project_in = _linear(channels, 3 * channels)
        self.output = _linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every token with all others."""
        tokens = x.flatten(2).transpose(1, 2)  # (B, T, C)
        heads: Tensor = self.project_in(tokens).unflatten(2, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()  # (B, heads, T, C / heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.output(mixed).transpose(1, 2).unflatten(2, x.shape[2:])
        return out


class FocusedLinearAttention(nn.Module):
    """Focused linear attention (arXiv:2308.00442): f(q) f(k)^T v + depthwise 5x5 of v. Cost O(T*C*C).

    f keeps the length of a positive vector and raises its entries to a power, which sharpens its direction.
    x: (B, C, H, W) -> same.
    """

    def __init__(self, channels: int, *, power: int = 3, kernel: int = 5) -> None:
        super().__init__()
        self.num_heads = _num_heads(channels)
        self.power = power
        self.scale = nn.Parameter(torch.zeros(channels))
        self.project_in = _linear(channels, 3 * channels)
        self.local = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.output = _linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every token with all others."""
        tokens = x.flatten(2).transpose(1, 2)  # (B, T, C)
        q, k, v = self.project_in(tokens).chunk(3, dim=2)
        local = self.local(v.transpose(1, 2).reshape(x.shape))
        q, k, v = (self._heads(part) for part in (self._focus(q), self._focus(k), v))
        # in float32, as the focus: means over all tokens, and a quotient of small numbers
        with torch.autocast(x.device.type, enabled=False):
            summary = k.transpose(2, 3) @ v.to(k.dtype) / k.shape[2]  # (B, heads, C / heads, C / heads)
            mixed = q @ summary / (q * k.mean(2, keepdim=True)).sum(3, keepdim=True)
        mixed = mixed.to(v.dtype).transpose(2, 3).reshape(x.shape)
        out: Tensor = self.output((mixed + local).permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)

    def _focus(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> same, positive."""
        x = x.to(torch.promote_types(x.dtype, torch.float32)).relu() + 1e-6  # no vector is zero
        x = x / F.softplus(self.scale)
        length = x.norm(dim=2, keepdim=True)
        sharp = (x / length) ** self.power
        focused: Tensor = sharp * (length / sharp.norm(dim=2, keepdim=True))
        return focused

    def _heads(self, x: Tensor) -> Tensor:
        batch, num_tokens, channels = x.shape
        return x.reshape(batch, num_tokens, self.num_heads, channels // self.num_heads).transpose(1, 2)


class BiMamba(nn.Module):
    """Bidirectional Mamba of Vision Mamba (arXiv:2401.09417, algorithm 1) over the pixels, row by row.

    x: (B, C, H, W) -> same, any number of axes behind C. Cost O(T*C*C) and, for the scan, O(T*2C*16).
    """

    def __init__(self, channels: int, *, expansion: int = 2) -> None:
        super().__init__()
        inner = expansion * channels
        self.project_in = nn.Linear(channels, 2 * inner, bias=False)
        self.forth = CausalScan(inner, rank=math.ceil(channels / 16))
        self.back = CausalScan(inner, rank=math.ceil(channels / 16), reverse=True)
        self.output = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every token with those before it and with those after it."""
        values, gate = self.project_in(x.flatten(2).transpose(1, 2)).chunk(2, dim=2)  # (B, T, 2C)
        mixed = self.forth(values) + self.back(values)
        out: Tensor = self.output(mixed * F.silu(gate)).transpose(1, 2).unflatten(2, x.shape[2:])
        return out


class CausalScan(nn.Module):
    """One direction of Mamba (arXiv:2312.00752): short convolution, then the selective scan.

    x: (B, T, E) -> same; token t sees the tokens up to t, in reverse those from t on. In plain torch the scan
    has memory of O(T*E*states), and is computed again for the gradient instead of kept.
    """

    def __init__(
        self, channels: int, *, rank: int, states: int = 16, kernel: int = 4, reverse: bool = False
    ) -> None:
        super().__init__()
        self.reverse = reverse
        self.splits = (rank, states, states)
        self.conv = nn.Conv1d(channels, channels, kernel, padding=kernel - 1, groups=channels)
        self.select = nn.Linear(channels, sum(self.splits), bias=False)
        self.step = nn.Linear(rank, channels)
        # one axis, so that weight decay spares it
        self.log_rate = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(channels))
        self.skip = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():  # softplus of the bias is a step from 0.001 to 0.1
            step = torch.exp(torch.empty(channels).uniform_(math.log(0.001), math.log(0.1)))
            self.step.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x: Tensor) -> Tensor:
        """Mix every token with the earlier ones, in reverse with the later ones."""
        chosen = scan_backend("auto", [x, self.conv.weight, self.log_rate], states=self.splits[1])
        if chosen == "triton":
            return self._by_kernels(x)
        mixed = self._by_torch(x.flip(1) if self.reverse else x)
        return mixed.flip(1) if self.reverse else mixed

    def _by_kernels(self, x: Tensor) -> Tensor:
        options: dict[str, Any] = {"reverse": self.reverse, "backend": "triton"}
        x = causal_conv_silu(x, self.conv.weight, cast(Tensor, self.conv.bias), **options)
        return selective_scan(x, *self._selected(x), self.skip, **options)

    def _by_torch(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x.transpose(1, 2)).narrow(2, 0, x.shape[1]).transpose(1, 2))
        inputs, scan = (x, *self._selected(x)), partial(selective_scan, backend="torch")
        if torch.is_grad_enabled() and not is_exporting():
            scanned: Tensor = checkpoint(scan, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            scanned = scan(*inputs)
        return scanned + self.skip * x

    def _selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps, rates and both shares."""
        low_rank, b, c = self.select(x).split(self.splits, dim=2)
        return F.softplus(self.step(low_rank)), -self.log_rate.exp().view(x.shape[2], -1), b, c
