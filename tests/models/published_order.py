"""RWKV-UNet in the published order of steps, and what it costs then as the papers count: by ptflops 0.7.5.

What the papers count is this order: projections of the CCM at the finest size, resizing also where the size
is right, doublings and norms as modules, the head at the full size. Ours computes the same in fewer steps.
Not on the meta device: there ptflops also counts the steps into which torch takes its norms apart.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # ptflops replaces functions of torch, which must be imported whole before
import torch.nn.functional as F
from ptflops import get_model_complexity_info
from ptflops.pytorch_ops import bn_flops_counter_hook
from torch import Tensor, nn

from rwkvseg.models import RWKVUNet, rwkv_unet, studies
from rwkvseg.models.blocks import DropPath, LayerNorm2d, SquaredReLUNorm
from rwkvseg.models.mixing import SpatialMix
from rwkvseg.models.rwkv_unet import CrossChannelMix, Decoder


def published_cost(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Multiply-accumulates for one image of three channels and `size`, and parameters, as ptflops counts."""
    if isinstance(model, RWKVUNet):
        model.decoder.up = nn.Upsample(scale_factor=2, mode="bilinear")
    with (
        torch.no_grad(),
        published_order(),
        mock.patch.object(SpatialMix, "forward", _spatial_mix_as_counted),
        mock.patch.object(nn.Conv2d, "_conv_forward", _nothing_of_that_shape),
        mock.patch.object(F, "linear", _nothing_projected),
        _no_trace_of_ptflops(),
    ):
        macs, parameters = get_model_complexity_info(
            model,
            (3, *size),
            as_strings=False,
            print_per_layer_stat=False,
            backend="pytorch",
            ost=io.StringIO(),
            custom_modules_hooks=dict.fromkeys((LayerNorm2d, SquaredReLUNorm), bn_flops_counter_hook),
        )
    assert isinstance(macs, int)
    return macs, parameters


def _nothing_of_that_shape(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In place of a convolution, which ptflops counts by its shapes alone."""
    sides = [
        (side + 2 * pad - step * (kernel - 1) - 1) // stride + 1
        for side, pad, step, kernel, stride in zip(
            x.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True
        )
    ]
    return x.new_zeros(x.shape[0], self.out_channels, *sides)


def _nothing_projected(x: Tensor, weight: Tensor, _: Tensor | None = None) -> Tensor:
    return x.new_zeros(*x.shape[:-1], weight.shape[0])


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Within it networks are built with zeros for random numbers, which take longer than what is counted."""
    names = ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_")
    with mock.patch.multiple(nn.init, **dict.fromkeys(names, _zero)):
        yield


def _zero(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return nn.init.zeros_(tensor)


@contextmanager
def published_order() -> Iterator[None]:
    """Within it networks compute what they compute outside, in the order and place of the authors' code."""
    with (
        mock.patch.object(rwkv_unet, "add_normed", _add),
        mock.patch.object(studies, "add_normed", _add),
        mock.patch.object(CrossChannelMix, "forward", _ccm),
        mock.patch.object(Decoder, "forward", _decoder),
        mock.patch.object(RWKVUNet, "forward", _network),
    ):
        yield


@contextmanager
def _no_trace_of_ptflops() -> Iterator[None]:
    """It puts back what it replaced, but inherited methods as Tensor's own."""
    kept: dict[Any, dict[str, Any]] = {place: dict(vars(place)) for place in (F, torch, Tensor)}
    try:
        yield
    finally:
        for place, before in kept.items():
            for name in [name for name in vars(place) if not name.startswith("__")]:
                if name not in before:
                    delattr(place, name)
                elif vars(place)[name] is not before[name]:
                    setattr(place, name, before[name])


def _add(x: Tensor, branch: Tensor, norm: LayerNorm2d, drop_path: DropPath) -> Tensor:
    return x + drop_path(norm(branch))


def _spatial_mix_as_counted(self: SpatialMix, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)  # shift and WKV are not counted
    _, v, r = self.key(tokens), self.value(tokens), self.receptance(tokens)
    return self.output(torch.sigmoid(r) * self.norm(v)).transpose(1, 2).reshape(x.shape)


def _ccm(self: CrossChannelMix, features: list[Tensor]) -> list[Tensor]:
    size = features[0].shape[2:]
    finest, *others = features
    inward = [self.project_in[0](finest)]
    inward += [p(_resize(x, size)) for p, x in zip(self.project_in[1:], others, strict=True)]
    parts = self.mix(torch.cat(inward[::-1], 1)).chunk(len(features), 1)[::-1]
    return [
        _resize(p(part), x.shape[2:]) for p, part, x in zip(self.project_out, parts, features, strict=False)
    ]


def _resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear")


def _decoder(self: Decoder, x: Tensor, skips: list[Tensor]) -> Tensor:
    up = getattr(self, "up", nn.Upsample(scale_factor=2, mode="bilinear"))
    x = up(self.blocks[0](x))
    for level, block in zip((2, 1, 0), self.blocks[1:], strict=True):
        x = up(block(torch.cat([x, skips[level]], 1) if level < len(skips) else x))
    return x


def _network(self: RWKVUNet, x: Tensor) -> Tensor:
    *skips, deepest = self.encoder(x)
    skips = skips[: self.config.skips] if self.ccm is None else self.ccm(skips[: self.ccm.num_inputs])
    return self.head(self.decoder(deepest, skips))
