"""Multiply-accumulates as the papers print them: ptflops 0.7.5 over the published order of steps.

Our network projects before it resizes where the published one does it the other way round, and calls norms
as functions, which ptflops does not see. Here it runs in the published order. Not on the meta device: there
ptflops also counts the steps into which torch takes its norms apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from ptflops import get_model_complexity_info
from ptflops.pytorch_ops import bn_flops_counter_hook
from torch import Tensor, nn

from rwkvseg.models import RWKVUNet, rwkv_unet, studies
from rwkvseg.models.blocks import DropPath, LayerNorm2d
from rwkvseg.models.mixing import SpatialMix
from rwkvseg.models.rwkv_unet import CrossChannelMix, Decoder


def published_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates for one image of three channels and `size`, as ptflops counts them."""
    assert isinstance(model, RWKVUNet)
    model.decoder.up = nn.Upsample(scale_factor=2, mode="bilinear")
    hooks = {LayerNorm2d: bn_flops_counter_hook}
    with torch.no_grad(), _published_order():
        macs, _ = get_model_complexity_info(
            model,
            (3, *size),
            as_strings=False,
            print_per_layer_stat=False,
            backend="pytorch",
            custom_modules_hooks=hooks,
        )
    assert isinstance(macs, int)
    return macs


@contextmanager
def _published_order() -> Iterator[None]:
    with (
        mock.patch.object(rwkv_unet, "add_normed", _add),
        mock.patch.object(studies, "add_normed", _add),
        mock.patch.object(SpatialMix, "forward", _spatial_mix),
        mock.patch.object(CrossChannelMix, "forward", _ccm),
        mock.patch.object(Decoder, "forward", _decoder),
        mock.patch.object(RWKVUNet, "forward", _network),
    ):
        yield


def _add(x: Tensor, branch: Tensor, norm: LayerNorm2d, drop_path: DropPath) -> Tensor:
    return x + drop_path(norm(branch))


def _spatial_mix(self: SpatialMix, x: Tensor) -> Tensor:
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
    x = self.up(self.blocks[0](x))
    for level, block in zip((2, 1, 0), self.blocks[1:], strict=True):
        x = self.up(block(torch.cat([x, skips[level]], 1) if level < len(skips) else x))
    return x


def _network(self: RWKVUNet, x: Tensor) -> Tensor:
    *skips, deepest = self.encoder(x)
    skips = skips[: self.config.skips] if self.ccm is None else self.ccm(skips[: self.ccm.num_inputs])
    return self.head(self.decoder(deepest, skips))
