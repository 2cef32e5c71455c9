"""Ordinary convolutional parts. B: batch, C: channels, H, W: rows and columns.

Every part keeps the memory format it is given: on channels-last maps no step copies to change the layout.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkvseg.errors import ShapeError
from rwkvseg.ops import batch_norm_act, depthwise_conv2d, layer_norm, residual_layer_norm
from rwkvseg.ops.backends import is_exporting, launches_are_recorded

EPS = 1e-6  # of every norm over feature maps in the published network; norms over tokens keep torch's 1e-5

_FUSED_ACTIVATIONS = {nn.Identity: "identity", nn.ReLU: "relu", nn.SiLU: "silu"}


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map. x: (B, C, H, W) -> same."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel over its channels."""
        normed = layer_norm(x.permute(0, 2, 3, 1), self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class SquaredReLUNorm(nn.LayerNorm):
    """Squared ReLU and layer norm over the last axis, as in RWKV's channel mix. x: (B, ..., C) -> same."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise relu(x)**2."""
        return layer_norm(x, self.weight, self.bias, self.eps, squared_relu=True)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, activation; odd kernels keep the size at stride 1.

    What it is given as `residual` is added to the result.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        activation: type[nn.Module],
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.depthwise = groups == in_channels == out_channels and stride in (1, 2) and kernel % 2 == 1
        self.norm = nn.BatchNorm2d(out_channels, eps=EPS)
        self.activation = activation()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        # elsewhere the module itself, which tools that count operations know
        if self.depthwise and x.is_cuda:
            x = depthwise_conv2d(x, self.conv.weight, stride=self.conv.stride[0])
        else:
            x = self.conv(x)
        return norm_act(x, self.norm, self.activation, residual)


def norm_act(x: Tensor, norm: nn.Module, activation: nn.Module, residual: Tensor | None = None) -> Tensor:
    """Return activation(norm(x)), added to `residual` if there is one. x: (B, C, H, W) -> same.

    As one operator where launches are recorded; one by one, those of torch's own operators take less time.
    """
    if launches_are_recorded() and x.is_cuda and (residual is None or residual.dtype == x.dtype):
        name = _FUSED_ACTIVATIONS.get(type(activation))
        if name is not None and _is_plain(norm) and not _is_watched(norm, activation):
            return batch_norm_act(
                x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                training=norm.training, momentum=norm.momentum or 0.0, eps=norm.eps, activation=name,
                residual=residual, num_batches_tracked=norm.num_batches_tracked,
            )  # fmt: skip
    y: Tensor = activation(norm(x))
    return y if residual is None else residual + y


def _is_plain(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    # no other class: that for several GPUs computes something else
    if type(norm) is not nn.BatchNorm2d:
        return False
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def _is_watched(*modules: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in modules for kind in kinds)


class SqueezeExcite(nn.Module):
    """Gate channels by their global means (arXiv:1709.01507), without reduction. x: (B, C, H, W) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels, 1)
        self.expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel by a gate between 0 and 1."""
        gate: Tensor = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))  # (B, C, 1, 1)
        return x * gate.sigmoid()


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): drops a sample's residual branch with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...) -> same; in training, kept samples are scaled so that the expectation stays."""
        scale = self.draw(x)
        return x if scale is None else x * scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def draw(self, x: Tensor) -> Tensor | None:
        """Factors (B,) for the samples of x, at least float32; None where all are 1."""
        if not self.training or self.rate == 0:
            return None
        keep = 1 - self.rate
        drawn = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
        return drawn.bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Show the rate when the module is printed."""
        return f"rate={self.rate:.3g}"


def add_normed(x: Tensor, branch: Tensor, norm: LayerNorm2d, drop_path: DropPath) -> Tensor:
    """Return x + drop_path(norm(branch)) in the dtype of x. x, branch: (B, C, H, W) -> same."""
    added = residual_layer_norm(
        branch.permute(0, 2, 3, 1),
        x.permute(0, 2, 3, 1),
        norm.weight,
        norm.bias,
        norm.eps,
        scale=drop_path.draw(branch),
    )
    return added.permute(0, 3, 1, 2)


def check_image(x: Tensor, in_channels: int, *, spatial_dims: int = 2) -> None:
    """Refuse anything but a batch of floating-point images with the right number of channels.

    Raises:
        ShapeError: `x` is not (B, in_channels, H, W), or with `spatial_dims=3` (B, in_channels, D, H, W), an
            axis is empty, or it holds integers.
    """
    if x.ndim != 2 + spatial_dims or x.shape[1] != in_channels or 0 in x.shape:
        axes = "H, W" if spatial_dims == 2 else "D, H, W"
        raise ShapeError(
            f"an image batch of shape {tuple(x.shape)} does not fit (B, {in_channels}, {axes}), none 0. "
            f"Reshape it or create the model with another in_channels."
        )
    if not x.is_floating_point():
        raise ShapeError(
            f"an image batch of {x.dtype} is not floating point. Normalise it and call .float()."
        )


def pad_to_multiple(x: Tensor, multiple: int | Sequence[int]) -> Tensor:
    """Repeat the border of x (B, C, *spatial) until each axis is a multiple, of one number or of its own."""
    axes = x.shape[2:]
    multiples = [multiple] * len(axes) if isinstance(multiple, int) else multiple
    # the quotients, not remainders, let an exporter see that all stages divide
    missing = [(size + m - 1) // m * m - size for size, m in zip(axes, multiples, strict=True)]
    # an exported graph is for all sizes
    if is_exporting() or any(missing):
        return F.pad(x, [sides for m in reversed(missing) for sides in (0, m)], mode="replicate")
    return x


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of x (B, C, H, W) to `size`, pixel centres aligned; the identity costs nothing."""
    if not is_exporting() and x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
