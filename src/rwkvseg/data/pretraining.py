"""Pictures as an encoder is pre-trained on them: a random crop, flipped and changed, or the middle.

Every draw comes from the generator that is handed in, so that a picture's view is a function of (seed, pass,
id), as in transforms.py.
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from rwkvseg.data.io import read_image
from rwkvseg.data.rand_augment import RandAugment, rand_augment

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
TRIES = 10  # of a crop that fits; then the largest one in the middle is taken


class PictureSettings(BaseModel):
    """Views of pictures: their size, their scale of intensities, and what is drawn at random."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    size: int = Field(224, ge=1)
    """Side of the square that the network sees."""
    normalisation: Literal["unit", "imagenet"] = "unit"
    """0..1, as this package's segmentation recipes feed pictures, or ImageNet's mean and deviation."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the picture that a training view shows."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of width to height of that crop."""
    flip_rows: float = Field(0.0, ge=0, le=1)
    flip_columns: float = Field(0.5, ge=0, le=1)
    rand_augment: RandAugment | None = None
    validation_share: float = Field(0.875, gt=0, le=1)
    """Share of the shorter side that the square in the middle shows in validation."""

    @field_validator("crop_area", "crop_ratio")
    @classmethod
    def _ranges_ascend(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not 0 < limits[0] <= limits[1] < math.inf:
            raise ValueError("give the smallest and the largest value, both above 0")
        return limits

    @field_validator("crop_area")
    @classmethod
    def _area_within_the_picture(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[1] > 1:
            raise ValueError("the largest share is 1")
        return limits


def read_rgb(path: Path) -> Image.Image:
    """Read a picture as 8-bit RGB; grey is repeated, 16 bits are cut to the upper 8.

    Raises:
        DataError, UnreadableFileError: as `rwkvseg.data.io.read_image`.
    """
    values: NDArray[Any] = read_image(path)[0]
    if values.dtype == np.uint16:
        values = values >> 8
    elif values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        values = (values - low) * (255 / (high - low) if high > low else 0.0)
    colours = np.repeat(values, 3, axis=0) if len(values) == 1 else values
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(colours.astype(np.uint8), 0, -1)))


def training_view(
    picture: Image.Image, settings: PictureSettings, generator: np.random.RandomState
) -> Tensor:
    """Crop, resize (bicubic), flip and change at random -> (3, size, size) float32."""
    box = _random_box(picture.size, settings, generator)
    view = picture.resize((settings.size, settings.size), Image.Resampling.BICUBIC, box=box)
    if generator.random_sample() < settings.flip_columns:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if generator.random_sample() < settings.flip_rows:
        view = view.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if settings.rand_augment is not None:
        view = rand_augment(view, settings.rand_augment, generator)
    return _to_tensor(view, settings)


def validation_view(picture: Image.Image, settings: PictureSettings) -> Tensor:
    """Take the square in the middle, resized (bicubic) -> (3, size, size) float32."""
    side = settings.validation_share * min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    box = (left, top, left + side, top + side)
    view = picture.resize((settings.size, settings.size), Image.Resampling.BICUBIC, box=box)
    return _to_tensor(view, settings)


def draw_mask(size: int, patch: int, ratio: float, generator: np.random.RandomState) -> Tensor:
    """Hide floor(ratio * n) of the n = ceil(size / patch)^2 patches, at least one -> (size, size) bool."""
    rows = -(-size // patch)
    hidden = np.zeros(rows * rows, dtype=bool)
    hidden[generator.permutation(rows * rows)[: max(1, int(ratio * rows * rows))]] = True
    mask = hidden.reshape(rows, rows).repeat(patch, 0).repeat(patch, 1)[:size, :size]
    return torch.from_numpy(np.ascontiguousarray(mask))


def _random_box(
    size: tuple[int, int], settings: PictureSettings, generator: np.random.RandomState
) -> tuple[float, float, float, float]:
    width, height = size
    low, high = settings.crop_ratio
    for _ in range(TRIES):
        area = width * height * generator.uniform(*settings.crop_area)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        wide, tall = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if wide <= width and tall <= height:
            left, top = generator.uniform(0, width - wide), generator.uniform(0, height - tall)
            return left, top, min(left + wide, width), min(top + tall, height)
    wide, tall = min(width, height * high), min(height, width / low)
    left, top = (width - wide) / 2, (height - tall) / 2
    return left, top, left + wide, top + tall


def _to_tensor(view: Image.Image, settings: PictureSettings) -> Tensor:
    image = torch.from_numpy(np.array(view, dtype=np.float32) / 255).permute(2, 0, 1)
    if settings.normalisation == "imagenet":
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        image = (image - mean) / deviation
    return image.contiguous()
