"""The configuration of URWKV3d: its sizes and options, checked when it is made."""

import math
from dataclasses import dataclass
from typing import Any

from rwkvseg.errors import UsageError
from rwkvseg.models.urwkv3d_strides import NUM_HALVINGS, Triple
from rwkvseg.ops.scan_order import SCAN_ORDERS
from rwkvseg.ops.shift import MOST_OF_CHANNELS, PADS, check_shift

CHOICES = {
    "fusion": ("softmax", "softmax_channel", "free", "sum"),
    "mixer": ("wkv", "bi_mamba", "none"),
    "init": ("fancy", "uniform", "zeros"),
    "shift_pad": PADS,
    "stem": ("full", "dw"),
}
_SWITCHES = ("shared_decay", "deep_supervision", "gradient_checkpointing")
_OF_WKV = {"fusion": "softmax", "scans": SCAN_ORDERS, "shared_decay": False}
_LEVELS = NUM_HALVINGS + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class URWKV3dConfig:
    """What one URWKV3d is made of. Lists are taken for tuples; every field is checked.

    Levels are 0, the input's own grid, to 4. docs/reference/u_rwkv.md says what each option is for.
    """

    widths: tuple[int, ...]
    """Channels of levels 0 to 4."""

    depths: tuple[int, ...]
    """Blocks of levels 1 to 4, beside the LP block that each begins with."""

    strides: tuple[Triple, ...] = ((2, 2, 2),) * NUM_HALVINGS
    """By how much each of levels 1 to 4 is smaller than the one above, axis by axis: 1 or 2."""

    kernels: tuple[Triple, ...] = ((3, 3, 3),) * _LEVELS
    """Depthwise kernels of levels 0 to 4, axis by axis: 3, or 1 where the axis is much coarser."""

    in_channels: int = 1
    """Channels of the volumes."""

    num_classes: int = 14
    """Channels of the logits."""

    mixing_levels: tuple[int, ...] = (2, 3, 4)
    """Levels, of 1 to 4, whose blocks are TSE-R; those of the others are LP."""

    mixer: str = "wkv"
    """What mixes tokens: "wkv"; "bi_mamba" in its place; "none" leaves the values unmixed."""

    scans: tuple[str, ...] = SCAN_ORDERS
    """Orders in which the tokens are read, or how many: 1, 2 or 3."""

    fusion: str = "softmax"
    """Weights of the orders: one each, softmaxed; one each and channel; free ones; or a plain sum."""

    shared_decay: bool = False
    """Whether the orders share one decay and one bonus."""

    shift: int = 1
    """Voxels of the spatial shift: 0, 1 or 2."""

    gamma: float = MOST_OF_CHANNELS
    """Share of the channels that is shifted in each of the six directions."""

    shift_pad: str = "zeros"
    """What the shift brings in at the border: "zeros" or "replicate"."""

    rate: int = 4
    """Hidden channels of the ChannelMix over its channels."""

    init: str = "fancy"
    """Start of decay, bonus and mixing shares: RWKV's; shares of 0.5; or besides, decay and bonus of 0."""

    layer_scale: float = 1.0
    """Start of the learned factors, one a channel, of the residuals in the TSE-R blocks."""

    drop_path_rate: float = 0.0
    """Probability of dropping a residual of a TSE-R block in training, rising from 0 over the blocks."""

    stem: str = "full"
    """Second convolution of the stem: "full", or "dw" for a depthwise and a 1x1x1 one."""

    deep_supervision: bool = True
    """Whether training sees logits of levels 0, 1 and 2; else of level 0."""

    gradient_checkpointing: bool = False
    """Compute the maps inside blocks again in the backward pass: the same gradients in less memory."""

    def __post_init__(self) -> None:
        self._read_lists()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}. Give one of {', '.join(known)}.")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}. Give true or false.")
        for name in ("in_channels", "num_classes", "rate"):
            if not _is_whole(getattr(self, name), 1):
                raise UsageError(f"{name} is {getattr(self, name)!r}. Give an integer of at least 1.")
        if not _is_whole(self.shift, 0) or self.shift > 2:
            raise UsageError(f"shift is {self.shift!r}. Give 0, 1 or 2.")
        check_shift(self.shift, self.gamma, self.shift_pad)
        if not _is_number(self.drop_path_rate) or not 0 <= self.drop_path_rate < 1:
            raise UsageError(f"drop_path_rate is {self.drop_path_rate!r}. Give a number from 0 to below 1.")
        if not _is_number(self.layer_scale) or self.layer_scale == 0:
            raise UsageError(f"layer_scale is {self.layer_scale!r}. Give a number other than 0.")
        self._refuse_what_changes_nothing()

    def _read_lists(self) -> None:
        count: Any = self.scans
        if _is_whole(count, 1) and count <= len(SCAN_ORDERS):
            object.__setattr__(self, "scans", SCAN_ORDERS[:count])
        for name in ("widths", "depths", "strides", "kernels", "mixing_levels", "scans"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                raise UsageError(f"{name} is {value!r}. Give a list.")
            object.__setattr__(self, name, tuple(tuple(v) if isinstance(v, list) else v for v in value))
        self._check_numbers("widths", _LEVELS, 1)
        self._check_numbers("depths", NUM_HALVINGS, 0)
        self._check_triples("strides", NUM_HALVINGS, (1, 2))
        self._check_triples("kernels", _LEVELS, (1, 3))
        levels, scans = self.mixing_levels, self.scans
        if len(set(levels)) != len(levels) or not set(levels) <= {1, 2, 3, 4}:
            raise UsageError(f"mixing_levels is {levels!r}. Give levels from 1 to 4, each once.")
        if not scans or len(set(scans)) != len(scans) or not set(scans) <= set(SCAN_ORDERS):
            raise UsageError(f"scans is {scans!r}. Give 1, 2, 3, or some of {', '.join(SCAN_ORDERS)}.")

    def _check_numbers(self, name: str, count: int, least: int) -> None:
        values = getattr(self, name)
        if len(values) != count or not all(_is_whole(value, least) for value in values):
            raise UsageError(f"{name} is {values!r}. Give {count} integers, at least {least}.")

    def _check_triples(self, name: str, count: int, known: tuple[int, int]) -> None:
        values = getattr(self, name)
        if len(values) != count or not all(
            isinstance(v, tuple) and len(v) == 3 and all(_is_whole(n, 1) and n in known for n in v)
            for v in values
        ):
            raise UsageError(
                f"{name} is {values!r}. Give {count} triples, one number an axis: {known[0]} or {known[1]}."
            )

    def _refuse_what_changes_nothing(self) -> None:
        """No two configs shall stand for one network."""
        changed = [name for name, default in _OF_WKV.items() if getattr(self, name) != default]
        if self.mixer != "wkv" and changed:
            raise UsageError(
                f"{', '.join(changed)} would change nothing: mixer is {self.mixer!r}. Drop one of them."
            )
        if len(self.scans) == 1 and (self.fusion != "softmax" or self.shared_decay):
            raise UsageError(
                f"fusion and shared_decay would change nothing with the one scan {self.scans[0]}. Drop them."
            )


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
