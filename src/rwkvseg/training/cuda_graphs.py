"""Training through CUDA graphs: the host launches a network's thousands of kernels once, not at every step.

Small networks and small batches are bound by the host: a step of U-RWKV (3D) tiny is 2,500 launches.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.inference.cuda_recorder import end_failed_recording
from rwkvseg.inference.recorded_calls import first_line
from rwkvseg.ops.ahead import kernels_compiled_ahead
from rwkvseg.ops.backends import launches_recorded

Network = Callable[..., Any]


class _Call(nn.Module):
    """The network under another roof: recording replaces `forward`, which validation still needs as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(*inputs)


def graphed(
    network: nn.Module, example: tuple[Tensor, ...], *, autocast: torch.dtype | None = None
) -> Network | None:
    """Record forward and backward pass of `network`, which is in training mode, for inputs like `example`.

    Weights, gradients and running statistics are those of `network`, and random numbers inside still follow
    `torch.manual_seed`. What is recorded cannot look at values: of a network that asks the device for a
    number there is no recording, and a warning says so.

    Args:
        network: on a CUDA device.
        example: its inputs; shapes, types and layouts are recorded, the numbers do not matter.
        autocast: type to compute in; None for that of the weights.

    Returns:
        A function that does what `network` does, fast for inputs of the shapes of `example`; or None.
    """
    call = _Call(network)
    # recording runs on a stream of its own, of which gradients then remind torch at every step
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet is not None:
        quiet(False)
    pool, here = torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    try:
        # the cache would hand a recorded copy of the weights to what runs outside the recording
        mixed = torch.autocast("cuda", autocast, autocast is not None, cache_enabled=False)
        with _buffers_kept(network), launches_recorded(), mixed:
            if os.environ.get("RWKVSEG_COMPILE_AHEAD") != "0":
                compile_kernels_of_step(call, example)
            torch.cuda.make_graphed_callables(call, example, allow_unused_input=True, pool=pool)
    except (RuntimeError, AssertionError) as error:
        torch.cuda.set_stream(here)  # where a recording fails, torch does not go back to it
        end_failed_recording(example[0].device, pool)
        warnings.warn(
            f"training runs without CUDA graphs, since recording failed: {first_line(error)}. "
            "It is slower for it, not different; training.cuda_graphs: false avoids the attempt.",
            stacklevel=2,
        )
        return None

    shapes = [part.shape for part in example]

    def run(*inputs: Tensor) -> Any:
        return (call if [part.shape for part in inputs] == shapes else network)(*inputs)

    return run


def compile_kernels_of_step(network: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Compile the Triton kernels of a forward and a backward pass side by side, without running them.

    Buffers of `network` may change; nothing else does. What fails here is left for the step itself to say.
    """
    devices = [example[0].device] if example[0].is_cuda else []
    # whatever it is: compiling ahead leans on the inside of Triton, and only saves time
    with suppress(Exception), torch.random.fork_rng(devices), kernels_compiled_ahead():
        outputs = network(*example)
        heads = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        torch.autograd.grad(heads, weights, [torch.zeros_like(head) for head in heads], allow_unused=True)


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """Undo what trial runs add to running statistics."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
