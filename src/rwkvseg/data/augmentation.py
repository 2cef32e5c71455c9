"""MONAI's random transforms of image and label in one Compose; behind `transforms.build_augmentation`.

MONAI derives the seed of every transform from one RandomState, so nothing is drawn from a global generator.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.data import get_track_meta, set_track_meta
from monai.transforms import (
    BorderPadd,
    CenterSpatialCropd,
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    RandSmoothDeformd,
)
from torch import Tensor

if TYPE_CHECKING:
    from rwkvseg.data.transforms import Augmentation

BOTH = ("image", "label")
BOTH_MODES = ("bilinear", "nearest")


def augment(
    settings: "Augmentation", image: Tensor, label: Tensor, generator: np.random.RandomState
) -> tuple[Tensor, Tensor]:
    """Augment image (C, *spatial) float32 and label (*spatial); same shapes and types. For one thread."""
    compose = _compose(settings, tuple(image.shape[1:]))
    compose.set_random_state(state=generator)
    with _plain_tensors():
        result = compose({"image": image, "label": label[None]})
    return result["image"], result["label"][0].to(label.dtype)


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """MONAI's MetaTensor takes twice the time, and must not leave this file."""
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(tracked)


@lru_cache(maxsize=16)
def _compose(settings: "Augmentation", size: tuple[int, ...]) -> Compose:
    """Only what has a range: MONAI counts shifts and bends in pixels, so one Compose for every size."""
    return Compose([*_geometry(settings, size), *_intensity(settings, size)])


def _geometry(settings: "Augmentation", size: tuple[int, ...]) -> Iterator[Any]:
    chances = (settings.flip_rows, settings.flip_columns, settings.flip_slices)
    for axis, chance in enumerate(chances[: len(size)]):
        if chance:
            yield RandFlipd(BOTH, chance, axis)
    if len(size) == 3:
        return
    if settings.rotation or settings.scale or settings.shift:
        # MONAI adds the 1, and draws one factor per axis
        factors = (np.expm1(-settings.scale), np.expm1(settings.scale))
        yield RandAffined(
            BOTH,
            prob=settings.geometry_probability,
            rotate_range=np.deg2rad(settings.rotation),
            translate_range=[settings.shift * side for side in size],
            scale_range=(factors, factors),
            mode=BOTH_MODES,
            padding_mode=settings.padding,
        )
    if settings.elastic:
        # not Rand2DElasticd: it bends by a twentieth of its spacing even where its magnitude is 0
        yield RandSmoothDeformd(
            BOTH,
            size,
            rand_size=(8, 8),
            field_mode="bicubic",
            align_corners=True,
            prob=settings.elastic_probability,
            def_range=2 * settings.elastic,  # a side is 2 long
            grid_mode=BOTH_MODES,
            grid_padding_mode=settings.padding,
            grid_align_corners=True,
        )


def _intensity(settings: "Augmentation", size: tuple[int, ...]) -> Iterator[Any]:
    if settings.contrast:
        yield RandScaleIntensityFixedMeand("image", settings.contrast, prob=settings.contrast_probability)
    if settings.brightness:
        yield RandShiftIntensityd("image", settings.brightness, prob=settings.brightness_probability)
    if settings.gamma:
        exponents = (np.exp(-settings.gamma), np.exp(settings.gamma))
        yield RandAdjustContrastd("image", settings.gamma_probability, exponents, retain_stats=True)
    if settings.channel_offset:
        yield RandShiftIntensityd(
            "image", settings.channel_offset, prob=settings.channel_probability, channel_wise=True
        )
    if settings.blur:
        # MONAI's filter sees zeros outside, which would darken the border
        yield BorderPadd("image", int(np.ceil(4 * settings.blur)) + 1, mode="replicate")
        sigma = (0, settings.blur)
        yield RandGaussianSmoothd("image", sigma, sigma, sigma, prob=settings.blur_probability)
        yield CenterSpatialCropd("image", size)
    if settings.noise:
        yield RandGaussianNoised("image", prob=settings.noise_probability, std=settings.noise)
