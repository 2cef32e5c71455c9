"""How much memory a training on a GPU will take, known before any of it is taken.

A step is run on tensors without content (`live_memory.step_bytes`): forward pass, loss, backward pass, in
float32 and by torch's own operators. docs/explanation/plan.md says what was measured against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from rwkvseg.errors import UsageError
from rwkvseg.memory import show_size
from rwkvseg.models.live_memory import step_bytes
from rwkvseg.models.registry import create_model
from rwkvseg.training.losses import SegmentationLoss

CONTEXT = 600 * 2**20  # CUDA itself and the libraries' kernels; not measured, a customary figure
OPTIMISER = 2  # AdamW keeps two numbers a weight
MIXED = 0.75
"""What a step takes in bfloat16, workspaces of the libraries included, of what its float32 tensors take.

Their tensors alone take 0.54; on an H200 0.63 and 0.64 were measured with workspaces, see the document above.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One network on one size of image or patch."""

    name: str
    channels: int
    classes: int
    sides: tuple[int, ...]
    """Rows and columns, or the patch."""
    overrides: tuple[tuple[str, Any], ...] = ()
    """Of the network's config; a tuple, so that estimates can be remembered."""

    def build(self) -> nn.Module:
        """Make the network with fresh weights."""
        return create_model(
            self.name, in_channels=self.channels, num_classes=self.classes, **dict(self.overrides)
        )


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of a training, by what they are for."""

    context: int
    weights: int
    """Weights, gradients and the optimiser's state."""
    step: int
    """The rest of a step at its height, times `MIXED`."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.context + self.weights + self.step

    def __str__(self) -> str:
        parts = ("step", self.step), ("weights and optimiser", self.weights), ("CUDA", self.context)
        return ", ".join(f"{name} {show_size(size)}" for name, size in parts)

    def as_object(self) -> Mapping[str, int]:
        """Fields and sum, for JSON."""
        return {"context": self.context, "weights": self.weights, "step": self.step, "total": self.total}


def estimate_memory(candidate: Candidate, batch_size: int) -> MemoryEstimate:
    """Estimate the memory of training `candidate` with AdamW in bfloat16 on batches of `batch_size`.

    The gradients of the step before count beside the weights: they live through the forward pass.
    """
    parameters, each = _measured(candidate)
    weights = 4 * parameters * (2 + OPTIMISER)
    return MemoryEstimate(CONTEXT, weights, int(MIXED * each * batch_size))


@lru_cache(maxsize=256)
def _measured(candidate: Candidate) -> tuple[int, int]:
    """Parameters, and bytes of a step for each image: half of what two take, since norms want two.

    What does not grow with the batch, such as gradients of weights, is counted with each: never too little.
    """
    network = candidate.build()
    stride = getattr(network, "stride", ())
    loss = SegmentationLoss(stride=stride if isinstance(stride, tuple) else ())
    two = step_bytes(network, (2, candidate.channels, *candidate.sides), loss)
    return sum(parameter.numel() for parameter in network.parameters()), -(-two // 2)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A candidate with the batch that fits, and what that takes."""

    candidate: Candidate
    batch_size: int
    memory: MemoryEstimate
    limit: int

    @property
    def told(self) -> str:
        """What it takes of what there is."""
        return f"takes about {show_size(self.memory.total)} of {show_size(self.limit)}"


def fit_batch(candidate: Candidate, batches: Sequence[int], limit: int) -> Fitted | None:
    """The first of `batches` that fits into `limit` bytes, or None."""
    for batch in batches:
        memory = estimate_memory(candidate, batch)
        if memory.total <= limit:
            return Fitted(candidate, batch, memory, limit)
    return None


def refuse(candidate: Candidate, batch_size: int, limit: int) -> UsageError:
    """Error that names the least that would do: `candidate` is the smallest there is."""
    least = estimate_memory(candidate, batch_size).total
    sides = " x ".join(map(str, candidate.sides))
    what = "pictures" if len(candidate.sides) == 2 else "patches"
    return UsageError(
        f"--gpu-memory allows {show_size(limit)}; even {candidate.name} on {batch_size} {what} of {sides} "
        f"would take about {-(-least // 2**20)} MiB. Give at least that."
    )
