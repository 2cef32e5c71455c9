"""The configuration of RWKV-UNet: its sizes and options, checked when it is made."""

import math
from dataclasses import dataclass
from typing import Any

from rwkvseg.errors import UsageError
from rwkvseg.models.options import StudyOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class RWKVUNetConfig(StudyOptions):
    """What one RWKV-UNet is made of. Lists are taken for tuples; every field is checked.

    What the papers' studies vary (token mixer, skips, decoder, ...) stands in `StudyOptions`.
    """

    depths: tuple[int, ...]
    """Blocks of stages 1 to 4, which work at strides 2, 4, 8 and 16."""

    widths: tuple[int, ...]
    """Channels that stages 1 to 4 put out."""

    expansions: tuple[float, ...]
    """Inner width over input width of the blocks of stages 1 to 4; a stage's first block has twice that."""

    stem_width: int = 24
    """Channels of the stem, and of the decoder's last block."""

    in_channels: int = 3
    """Channels of the images: 3 as they are, 1 is repeated to 3, any other number gets a stem of its own."""

    num_classes: int = 1
    """Channels of the logits."""

    drop_path_rate: float = 0.05
    """Probability of dropping a residual in training: rising from 0 over the blocks, whole in the CCM."""

    gradient_checkpointing: bool = False
    """Compute the maps inside blocks again in the backward pass: the same gradients in less memory."""

    ccm_width: int | None = None
    """Channels that each stage brings into the CCM; None: as many as stage 1 puts out."""

    def __post_init__(self) -> None:
        StudyOptions.__post_init__(self)
        for name in ("depths", "widths", "expansions"):
            values = getattr(self, name)
            if (
                not isinstance(values, list | tuple)
                or len(values) != 4
                or not all(_positive(v) for v in values)
            ):
                raise UsageError(f"{name} is {values!r}. Give four positive numbers, one for each stage.")
            object.__setattr__(self, name, tuple(values))
        inner = () if self.ccm_width is None else ("ccm_width",)
        for name in ("stem_width", "in_channels", "num_classes", *inner):
            if not _positive(getattr(self, name), int):
                raise UsageError(f"{name} is {getattr(self, name)!r}. Give an integer of at least 1.")
        for name in ("depths", "widths"):
            if not all(isinstance(value, int) for value in getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)!r}. Give integers.")
        if min(int(width * ratio) for width, ratio in zip(self.widths, self.expansions, strict=True)) < 1:
            raise UsageError(
                f"expansions {self.expansions} leave no channel of widths {self.widths}. Raise them."
            )
        if not isinstance(self.gradient_checkpointing, bool):
            raise UsageError(
                f"gradient_checkpointing is {self.gradient_checkpointing!r}. Give true or false."
            )
        rate = self.drop_path_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise UsageError(f"drop_path_rate is {rate!r}. Give a number from 0 to below 1.")


def _positive(value: object, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < math.inf
