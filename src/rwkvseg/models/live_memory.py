"""The most memory that a call of a network, or a training step, holds at a time, found without the memory.

The network runs on tensors without content (torch's device "meta"), and every storage is counted from the
operator that makes it to the moment it is freed.
"""

import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rwkvseg.models.meta_shapes import quick_outputs


def live_bytes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Most bytes of one inference call on float32 `shape`, its input with it, the weights not.

    What a library takes inside an operator, such as a convolution's workspace, is not seen.
    """
    network = deepcopy(network).to("meta").eval()
    counter = _Live()
    with torch.no_grad(), counter:
        network(torch.empty(shape, device="meta"))
    return counter.most


def step_bytes(network: nn.Module, shape: tuple[int, ...], loss: Callable[[Any, Tensor], Tensor]) -> int:
    """Most bytes of one training step on a float32 batch of `shape` and its uint8 labels.

    Forward pass, loss and backward pass in float32: batch, maps, what autograd keeps, gradients. The weights
    themselves and what the optimiser keeps are left out, and so is what libraries take inside an operator.

    Args:
        network: stays as it is.
        shape: (B, C, *spatial).
        loss: of the network's output and the labels (B, *spatial).
    """
    network = deepcopy(network).to("meta").train()
    counter = _Live()
    with torch.enable_grad(), counter:
        image = torch.empty(shape, device="meta")
        label = torch.empty((shape[0], *shape[2:]), dtype=torch.uint8, device="meta")
        loss(network(image), label).backward()  # type: ignore[no-untyped-call]
    return counter.most


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages made within it that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = quick_outputs(func, args, kwargs)
        if outputs is None:
            outputs = func(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in _tensors((args, kwargs))}
        for output in _tensors(outputs):
            if id(output.untyped_storage()) not in given:
                self._add(output.untyped_storage())
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors among what an operator takes or gives: lists, tuples and a dictionary of them."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, list | tuple):
        for part in content:
            yield from _tensors(part)
    elif isinstance(content, dict):
        yield from _tensors(tuple(content.values()))
