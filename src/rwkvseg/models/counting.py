"""What a network costs: parameters, multiply-accumulates, memory for training. See docs/reference/counts.md.

Counted while the network runs on tensors without content (torch's device "meta"): exact, and quick.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rwkvseg.errors import MissingExtraError, UsageError
from rwkvseg.models.meta_shapes import QuickShapes, quick_outputs
from rwkvseg.models.registry import create_model, list_models
from rwkvseg.models.rwkv_unet import CrossChannelMix, RWKVUNet

SIZES = {2: 256, 3: 96}  # of pictures and of volumes, along every axis
CHANNELS = {2: 3, 3: 1}
SMALLEST = 32  # below it the deepest map of some networks is one pixel, which norms refuse in training
_MADE_FOR_ONE_SIZE = {"monai_unetr"}
_FLOPS_OF_WKV = 8  # a token's channel: numerator and denominator, from before and from behind, 2 FLOP a MAC

_PER_OUTPUT = {
    *("relu", "relu_", "leaky_relu", "leaky_relu_", "_prelu_kernel", "elu", "elu_", "gelu", "silu", "silu_"),
    *("hardtanh", "hardtanh_", "_softmax", "upsample_nearest2d", "upsample_nearest3d"),
    *("upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
}
_PER_INPUT = {"max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"}
_NORMS = {"native_batch_norm", "native_layer_norm", "native_group_norm"}
_BIASED = {"convolution": 2, "addmm": 0}  # operator: which argument is the bias


@dataclass(frozen=True)
class Cost:
    """Costs of one network for one image of `size`."""

    name: str
    size: tuple[int, ...]
    """Rows and columns, or all axes of a volume."""
    parameters: int
    macs: int
    """As the papers count: products, biases, norms, activations, resizing, in the papers' order of steps."""
    macs_run: int
    """Convolutions, matrix products and WKV as they run here."""
    activation_bytes: int
    """What autograd keeps in float32 for the backward pass of one image."""


def measure(
    name: str,
    size: int | Sequence[int] | None = None,
    *,
    in_channels: int | None = None,
    num_classes: int = 1,
    **overrides: Any,
) -> Cost:
    """Count what the registered network `name` costs for one picture or volume.

    Args:
        name: one of `list_models()`.
        size: pixels along every axis, or along each; None: 256 for pictures, 96 for volumes.
        in_channels: None: 3 for pictures, 1 for volumes.
        num_classes: channels of the logits.
        overrides: fields of the network's config.

    Raises:
        UsageError: `size` is below 32 or has another number of axes than the network's, or `create_model`
            refuses the arguments.

    >>> measure("rwkv_unet_tiny", 256).parameters
    3145761
    """
    if name in _MADE_FOR_ONE_SIZE:
        sides = _sides(SIZES[overrides.get("spatial_dims", 2)] if size is None else size, 1)
        overrides = {"image_size": max(sides)} | overrides
    network = _build(name, in_channels, num_classes=num_classes, **overrides)
    dims = getattr(network, "spatial_dims", 2)
    sides = _sides(SIZES[dims] if size is None else size, dims)
    if len(sides) != dims:
        raise _OtherAxesError(f"size is {size}, {name} has {dims} axes. Give as many numbers, or one.")
    if min(sides) < SMALLEST:
        raise UsageError(f"size is {size}. Give at least {SMALLEST}.")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    network = network.to("meta")
    image = torch.empty(1, CHANNELS[dims] if in_channels is None else in_channels, *sides, device="meta")
    macs, macs_run = count_macs(network.eval(), image)
    return Cost(name, sides, parameters, macs, macs_run, activation_bytes(network.train(), image))


def _build(name: str, in_channels: int | None, **overrides: Any) -> nn.Module:
    network = create_model(name, in_channels=in_channels or CHANNELS[2], **overrides)
    if in_channels is None and getattr(network, "spatial_dims", 2) == 3:
        return create_model(name, in_channels=CHANNELS[3], **overrides)
    return network


def _sides(size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (size,) * dims if isinstance(size, int) else tuple(size)


class _OtherAxesError(UsageError):
    """A size for networks with another number of axes."""


def measure_all(
    size: int | Sequence[int] | None = None, *, num_classes: int = 1
) -> tuple[list[Cost], list[str]]:
    """Costs of every registered network, and why some could not be built here (an extra is missing).

    A size with several axes leaves out the networks that have another number of them.

    Raises:
        UsageError: `size` is below 32, or no network has its number of axes.
    """
    costs, missing, other = [], [], []
    for name in list_models():
        try:
            costs.append(measure(name, size, num_classes=num_classes))
        except _OtherAxesError as error:
            other.append(error)
        except MissingExtraError as error:
            missing.append(str(error))
    if other and not costs:
        raise other[0]
    return costs, missing


def count_macs(network: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """(as the papers count, products that run) of one call of a network in evaluation mode."""
    wkv = {torch.ops.rwkvseg.bi_wkv_scan: _flops_of_wkv}
    products = FlopCounterMode(display=False, custom_mapping=wkv)
    elementwise, order = _Elementwise(), _PapersOrder(network)
    # torch counts no fused attention on a CPU: its products are counted one by one
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), products, elementwise:
        network(*inputs)
    order.remove()
    run = int(products.get_total_flops()) // 2
    return run + elementwise.count + order.more, run


def activation_bytes(network: nn.Module, *inputs: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of one call, every storage once, weights left out."""
    weights = {x.untyped_storage()._cdata for x in [*network.parameters(), *network.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # holds them, so that no address comes twice

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return x

    quick = QuickShapes()  # type: ignore[no-untyped-call]
    with torch.enable_grad(), quick, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outputs = network(*inputs)  # held until all is counted
    total = sum(storage.nbytes() for storage in kept.values())
    del outputs
    return total


def _flops_of_wkv(w: Any, u: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return _FLOPS_OF_WKV * int(math.prod(k))


class _Elementwise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is no product: biases, activations and resizing 1, norms 2 an element."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = quick_outputs(func, args, kwargs)
        if outputs is None:
            outputs = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        first = outputs[0] if isinstance(outputs, tuple | list) else outputs
        if name in _PER_OUTPUT:
            self.count += first.numel()
        elif name in _PER_INPUT:
            self.count += args[0].numel()
        elif name in _NORMS:
            self.count += 2 * first.numel()
        elif name in _BIASED and args[_BIASED[name]] is not None:
            self.count += first.numel()
        return outputs


class _PapersOrder:
    """Counts what the papers' order of steps adds: 1x1 convolutions at a larger size than here."""

    def __init__(self, network: nn.Module) -> None:
        self.more = 0
        self.hooks = [
            module.register_forward_pre_hook(self._mixing)
            for module in network.modules()
            if isinstance(module, CrossChannelMix)
        ]
        if isinstance(network, RWKVUNet):
            self.hooks.append(network.head.register_forward_hook(self._head))

    def _mixing(self, module: Any, inputs: tuple[list[Tensor]]) -> None:
        pixels = [feature.shape[-2] * feature.shape[-1] for feature in inputs[0]]
        for projections in (module.project_in, module.project_out):
            # fewer maps may come out than go in
            for projection, own in zip(projections, pixels, strict=False):
                self.more += _size(projection) * (pixels[0] - own)

    def _head(self, module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        half = logits.shape[-2] * logits.shape[-1]
        self.more += _size(module) * 3 * half

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
