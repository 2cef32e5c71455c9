"""Floor 0: tensors in, tensors out; imports torch only."""

from rwkvseg.ops.fused import (
    batch_norm_act,
    depthwise_conv2d,
    depthwise_conv3d,
    gated_layer_norm,
    instance_norm,
    layer_norm,
    residual_layer_norm,
    shift_and_mix,
    spatial_shift_and_mix,
)
from rwkvseg.ops.shift import q_shift, spatial_shift
from rwkvseg.ops.wkv import available_backends, bi_wkv, naive_bi_wkv

__all__ = [
    "available_backends",
    "batch_norm_act",
    "bi_wkv",
    "depthwise_conv2d",
    "depthwise_conv3d",
    "gated_layer_norm",
    "instance_norm",
    "layer_norm",
    "naive_bi_wkv",
    "q_shift",
    "residual_layer_norm",
    "shift_and_mix",
    "spatial_shift",
    "spatial_shift_and_mix",
]
