"""RandAugment (Cubuk et al., arXiv:1909.13719) on Pillow pictures: some of 15 changes, each of one strength.

The strength is drawn per change from a normal distribution around `magnitude` and cut to 0..10; every change
grows with it ("increasing", as the training recipes of recent ImageNet encoders have it).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import BaseModel, ConfigDict, Field

FILL = (124, 116, 104)  # ImageNet's mean colour comes in where a change uncovers the outside

Change = Callable[[Image.Image, float], Image.Image]  # the strength is -1..1, or 0..1 where no sign is drawn


class RandAugment(BaseModel):
    """Number and strength of the changes; the defaults are "m9-mstd0.5-inc1"."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    layers: int = Field(2, ge=1)
    """Changes drawn for a picture, with replacement."""
    probability: float = Field(0.5, ge=0, le=1)
    """Of carrying out a change that was drawn."""
    magnitude: float = Field(9.0, ge=0, le=10)
    deviation: float = Field(0.5, ge=0)
    """Standard deviation of the strength about `magnitude`."""


def rand_augment(
    picture: Image.Image, settings: RandAugment, generator: np.random.RandomState
) -> Image.Image:
    """Change an RGB picture at random; same size and mode."""
    for name in generator.choice(sorted(CHANGES), settings.layers):
        carried_out = generator.random_sample() < settings.probability
        level = np.clip(generator.normal(settings.magnitude, settings.deviation), 0, 10) / 10
        sign = 1 if generator.random_sample() < 0.5 or name in ONE_SIDED else -1
        if carried_out:
            picture = CHANGES[name](picture, float(sign * level))
    return picture


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
    )


def _solarize_add(picture: Image.Image, level: float) -> Image.Image:
    added = int(110 * level)
    return picture.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


CHANGES: dict[str, Change] = {
    "autocontrast": lambda picture, _: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _: ImageOps.equalize(picture),
    "invert": lambda picture, _: ImageOps.invert(picture),
    "rotate": lambda picture, level: picture.rotate(30 * level, Image.Resampling.BILINEAR, fillcolor=FILL),
    "posterize": lambda picture, level: ImageOps.posterize(picture, max(1, 4 - int(4 * level))),
    "solarize": lambda picture, level: ImageOps.solarize(picture, 256 - int(256 * level)),
    "solarize_add": _solarize_add,
    "colour": lambda picture, level: ImageEnhance.Color(picture).enhance(1 + 0.9 * level),
    "contrast": lambda picture, level: ImageEnhance.Contrast(picture).enhance(1 + 0.9 * level),
    "brightness": lambda picture, level: ImageEnhance.Brightness(picture).enhance(1 + 0.9 * level),
    "sharpness": lambda picture, level: ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * level),
    "shear_columns": lambda picture, level: _affine(picture, (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_rows": lambda picture, level: _affine(picture, (1, 0, 0, 0.3 * level, 1, 0)),
    "shift_columns": lambda picture, level: _affine(picture, (1, 0, 0.45 * level * picture.width, 0, 1, 0)),
    "shift_rows": lambda picture, level: _affine(picture, (1, 0, 0, 0, 1, 0.45 * level * picture.height)),
}
ONE_SIDED = {"autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add"}
