"""Ordinary convolutional parts for volumes. B: batch, C: channels, D, H, W: axes of a volume."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwkvseg.models.blocks import DropPath
from rwkvseg.models.urwkv3d_strides import Triple
from rwkvseg.ops import depthwise_conv3d, instance_norm, layer_norm

POINT = (1, 1, 1)


class LayerNorm3d(nn.LayerNorm):
    """Layer norm over the channels of a map. x: (B, C, D, H, W) -> same."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each voxel over its channels."""
        normed = layer_norm(x.permute(0, 2, 3, 4, 1), self.weight, self.bias, self.eps)
        return normed.permute(0, 4, 1, 2, 3)


class InstanceNorm3d(nn.Module):
    """Instance norm with weight and bias, and GELU if wanted, for maps of a single voxel too.

    x: (B, C, D, H, W) -> same.
    """

    def __init__(self, channels: int, *, gelu: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each volume over its voxels."""
        return instance_norm(x, self.weight, self.bias, gelu=self.gelu)


class DepthwiseConv3d(nn.Conv3d):
    """A kernel of odd sides for each channel, zeros outside. x: (B, C, D, H, W) -> same."""

    def __init__(self, channels: int, kernel: Triple) -> None:
        padding = _triple([side // 2 for side in kernel])
        super().__init__(channels, channels, kernel, padding=padding, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve each channel."""
        return depthwise_conv3d(x, self.weight)


def conv(
    in_channels: int, out_channels: int, kernel: Triple, *, stride: Triple = POINT, groups: int = 1
) -> nn.Conv3d:
    """Convolution without bias; odd kernels keep the size at stride 1, one that is its stride cuts blocks."""
    if groups == in_channels == out_channels and stride == POINT:
        return DepthwiseConv3d(in_channels, kernel)
    padding = [0 if s > 1 else k // 2 for k, s in zip(kernel, stride, strict=True)]
    return nn.Conv3d(in_channels, out_channels, kernel, stride, _triple(padding), groups=groups, bias=False)


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: Triple = POINT,
    *,
    stride: Triple = POINT,
    groups: int = 1,
    activate: bool = True,
) -> nn.Sequential:
    """`conv`, instance norm and, if wanted, GELU."""
    return nn.Sequential(
        conv(in_channels, out_channels, kernel, stride=stride, groups=groups),
        InstanceNorm3d(out_channels, gelu=activate),
    )


class LocalPerception3d(nn.Module):
    """LP block: expand, depthwise convolution, project, added to the input. x: (B, C, D, H, W) -> same."""

    def __init__(self, channels: int, kernel: Triple, *, expansion: int = 2) -> None:
        super().__init__()
        inner = expansion * channels
        self.expand = conv_norm(channels, inner)
        self.local = conv_norm(inner, inner, kernel, groups=inner)
        self.project = conv_norm(inner, channels, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix each channel with its surroundings."""
        local: Tensor = self.project(self.local(self.expand(x)))
        return x + local


def add_scaled(x: Tensor, branch: Tensor, scale: Tensor, drop_path: DropPath) -> Tensor:
    """Return x + scale * drop_path(branch). x, branch: (B, C, D, H, W), scale: (C,) -> as x."""
    factor = scale.view(-1, 1, 1, 1)
    drawn = drop_path.draw(branch)
    if drawn is not None:
        factor = factor * drawn.view(-1, 1, 1, 1, 1)
    return torch.addcmul(x, branch, factor)


def _triple(values: Sequence[int]) -> Triple:
    first, second, third = values
    return first, second, third
