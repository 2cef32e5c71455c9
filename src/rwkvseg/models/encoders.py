"""Other encoders in front of RWKV-UNet's decoder: any module with four maps, and those of the optional timm.

B: batch, C: channels, H, W: rows and columns. An encoder maps images (B, C, H, W), H and W multiples of 16,
to four maps (B, C_i, H / s, W / s) at strides s = 2, 4, 8, 16, finest first.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.errors import MissingExtraError, ShapeError, UsageError
from rwkvseg.models.blocks import resize

STRIDES = (2, 4, 8, 16)
_PROBE = 64  # rows and columns of the image by which an encoder is checked


def encoder_widths(encoder: nn.Module, in_channels: int) -> tuple[int, ...]:
    """Return the channels of the encoder's four maps: its own `widths`, or those for a trial image of zeros.

    The trial runs in evaluation mode, so no statistics change; the mode is set back.

    Raises:
        ShapeError: not four maps at strides 2, 4, 8 and 16.
    """
    stated = getattr(encoder, "widths", None)
    if stated is not None:
        return tuple(stated)
    modes = {module: module.training for module in encoder.modules()}
    device = next((parameter.device for parameter in encoder.parameters()), None)
    with torch.no_grad():
        maps = encoder.eval()(torch.zeros(1, in_channels, _PROBE, _PROBE, device=device))
    for module, mode in modes.items():
        module.training = mode
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in maps]
    wanted = [(_PROBE // stride, _PROBE // stride) for stride in STRIDES]
    if [shape[2:] for shape in shapes] != wanted:
        raise ShapeError(
            f"for an image of shape {(1, in_channels, _PROBE, _PROBE)} the encoder gives {shapes}. "
            f"Give four maps (B, C, H, W) at strides {', '.join(map(str, STRIDES))}, finest first."
        )
    return tuple(x.shape[1] for x in maps)


def create_encoder(name: str, in_channels: int) -> nn.Module:
    """Build the encoder "timm/<name>" with fresh weights.

    Raises:
        MissingExtraError: timm is not installed.
        UsageError: timm knows no such network, or it has no maps at strides 2 (or 4) to 16 (or 32).
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            f"encoder {name!r} needs timm. Install rwkvseg[timm], with the torchvision that fits your torch."
        ) from error
    model_name = name.removeprefix("timm/")
    try:
        network = timm.create_model(model_name, features_only=True, pretrained=False, in_chans=in_channels)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"timm cannot build {model_name!r} with feature maps: {error}. See timm.list_models()."
        ) from error
    strides = tuple(network.feature_info.reduction())
    start = next((first for first in (2, 4) if set(_from(first)) <= set(strides)), None)
    if start is None:
        raise UsageError(
            f"{name!r} has maps at strides {strides}. Choose a network with 2, 4, 8, 16 or 4, 8, 16, 32."
        )
    chosen = tuple(strides.index(stride) for stride in _from(start))
    network = timm.create_model(
        model_name, features_only=True, pretrained=False, in_chans=in_channels, out_indices=chosen
    )
    return TimmEncoder(network, enlarge=start // 2)


def _from(first: int) -> tuple[int, ...]:
    return tuple(first * stride // 2 for stride in STRIDES)


class TimmEncoder(nn.Module):
    """A timm network whose finest map has stride 2, or 4: then it sees the images doubled.

    x: (B, C, H, W) -> four maps at strides 2, 4, 8, 16 of x.
    """

    def __init__(self, network: Any, *, enlarge: int) -> None:
        super().__init__()
        self.network = network
        self.enlarge = enlarge
        self.widths = tuple(network.feature_info.channels())
        self.channels_come_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C_i, H / s, W / s)."""
        height, width = x.shape[2] * self.enlarge, x.shape[3] * self.enlarge
        maps = self.network(resize(x, (height, width)))
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_come_last else list(maps)
