"""Gradient checkpointing: a block's inner maps are computed again in the backward pass instead of kept."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from rwkvseg.ops.backends import is_exporting


def recompute_inside(network: nn.Module, blocks: str) -> None:
    """Let parts of `network` keep only their inputs for the backward pass (arXiv:1604.06174).

    Same values and gradients as without: random numbers (drop path) are drawn again as they were, and the
    second computation leaves the running statistics of batch norms alone. Without gradients nothing differs.

    Args:
        network: changed in place; its state dict stays as it is.
        blocks: regular expression of the parts' names, as `named_modules` gives them, none inside another.
    """
    classes: dict[type[nn.Module], type[nn.Module]] = {}
    for name, block in network.named_modules():
        if re.fullmatch(blocks, name):
            # a class, no replaced method: copies of the network must run their own weights
            object.__setattr__(block, "__class__", classes.setdefault(type(block), _recomputed(type(block))))


def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *inputs: Any) -> Any:
        if not torch.is_grad_enabled() or is_exporting():
            return kind.forward(self, *inputs)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _statistics_aside(self)

        call = partial(kind.forward, self)
        if torch.compiler.is_compiling():  # a compiled graph counts statistics in its forward part only
            return checkpoint(call, *inputs, use_reentrant=False)
        return checkpoint(call, *inputs, use_reentrant=False, context_fn=contexts)

    return type(kind.__name__, (kind,), {"forward": forward})


@contextmanager
def _statistics_aside(block: nn.Module) -> Iterator[None]:
    """Let the batch norms in `block` count into copies of their running statistics."""
    # the buffers are exchanged, not switched off: the forward must save as many tensors as it did at first
    kept = [(norm, dict(norm._buffers)) for norm in block.modules() if isinstance(norm, _BatchNorm)]
    for norm, buffers in kept:
        for name, value in buffers.items():
            norm._buffers[name] = None if value is None else value.clone()
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)
