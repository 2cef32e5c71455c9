"""Settings of augmentation on the network's own grid.

Every draw comes from one generator that is a function of (seed, epoch, case): workers, platforms and
PYTHONHASHSEED change nothing. How the settings are carried out is in augmentation.py.
"""

import hashlib
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Augmentation(BaseModel):
    """Ranges, 0 for none, and probabilities; by default nothing is changed.

    Intensities are in units of the normalised image (1 is the whole range after "unit", one deviation after
    "zscore").
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    geometry_probability: float = Field(1.0, ge=0, le=1)
    """Of rotation, scale and shift, which are one resampling."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Degrees either way; of volumes about each axis, in mm."""
    scale: float = Field(0.0, ge=0, le=2)
    """Every axis is shrunk by a factor of its own, uniform in exp(-scale)..exp(scale)."""
    shift: float = Field(0.0, ge=0, le=1)
    """Fraction of each side, either way; magnified as the picture is."""
    through_plane: int | None = Field(None, ge=0, le=2)
    """Of volumes of thick slices: axis about which alone they are rotated, and which is neither scaled nor
    shifted."""
    flip_rows: float = Field(0.0, ge=0, le=1)
    """Probability of turning the picture upside down; of volumes, of reversing axis 0."""
    flip_columns: float = Field(0.0, ge=0, le=1)
    """Probability of swapping left and right; of volumes, of reversing axis 1."""
    flip_slices: float = Field(0.0, ge=0, le=1)
    """Of volumes: probability of reversing axis 2."""
    elastic_probability: float = Field(1.0, ge=0, le=1)
    elastic: float = Field(0.0, ge=0, le=0.2)
    """Largest displacement, at 8 x 8 control points, as a fraction of each side. Not of volumes."""
    padding: Literal["reflection", "zeros"] = "reflection"
    """What comes in from outside; "zeros" is background in the label. Around volumes there are zeros."""
    contrast_probability: float = Field(1.0, ge=0, le=1)
    contrast: float = Field(0.0, ge=0, lt=1)
    """Factor 1 + u about the mean, u uniform in -contrast..contrast."""
    brightness_probability: float = Field(1.0, ge=0, le=1)
    brightness: float = Field(0.0, ge=0)
    """Offset of all channels, either way."""
    gamma_probability: float = Field(0.5, ge=0, le=1)
    gamma: float = Field(0.0, ge=0, le=2)
    """Exponent of intensities in their range, uniform in exp(-gamma)..exp(gamma); mean and deviation stay."""
    channel_probability: float = Field(1.0, ge=0, le=1)
    channel_offset: float = Field(0.0, ge=0)
    """Offset of each channel by itself, either way."""
    blur_probability: float = Field(0.5, ge=0, le=1)
    blur: float = Field(0.0, ge=0, le=20)
    """Largest standard deviation of a Gaussian, in pixels, drawn for rows and columns separately."""
    noise_probability: float = Field(0.5, ge=0, le=1)
    noise: float = Field(0.0, ge=0)
    """Largest standard deviation of Gaussian noise."""


def sample_generator(seed: int, epoch: int, case_id: str) -> np.random.RandomState:
    """Generator of one draw, by SHA-256 of "seed:epoch:case_id".

    >>> sample_generator(0, 3, "a").randint(1000) == sample_generator(0, 3, "a").randint(1000)
    True
    """
    digest = hashlib.sha256(f"{seed}:{epoch}:{case_id}".encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4").astype(np.uint32))
