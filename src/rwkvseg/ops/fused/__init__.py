"""The neighbours of Bi-WKV in RWKV's blocks, each in one pass over memory where Triton runs.

depthwise.py, shift*.py and *norm.py hold the definitions, which are also the plain-torch forms: on the CPU
torch's own operators are the best there is. operators.py registers the Triton forms.
"""

from rwkvseg.ops.fused.batch_norm import batch_norm_act
from rwkvseg.ops.fused.depthwise import depthwise_conv2d, depthwise_conv3d
from rwkvseg.ops.fused.instance_norm import instance_norm
from rwkvseg.ops.fused.norm import gated_layer_norm, layer_norm, residual_layer_norm
from rwkvseg.ops.fused.shift import shift_and_mix
from rwkvseg.ops.fused.shift3d import spatial_shift_and_mix

__all__ = [
    "batch_norm_act",
    "depthwise_conv2d",
    "depthwise_conv3d",
    "gated_layer_norm",
    "instance_norm",
    "layer_norm",
    "residual_layer_norm",
    "shift_and_mix",
    "spatial_shift_and_mix",
]
