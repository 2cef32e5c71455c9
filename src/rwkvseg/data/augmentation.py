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
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    RandSmoothDeformd,
)
from monai.utils import MAX_SEED
from torch import Tensor

from rwkvseg.data.affine_augmentation import RandomAffine

if TYPE_CHECKING:
    from rwkvseg.data.transforms import Augmentation

BOTH = ("image", "label")
BOTH_MODES = ("bilinear", "nearest")


def augment(
    settings: "Augmentation", image: Tensor, label: Tensor, generator: np.random.RandomState
) -> tuple[Tensor, Tensor]:
    """Augment image (C, *spatial) float32 and label (*spatial); same shapes and types. For one thread."""
    compose, seeded = _compose(settings, tuple(image.shape[1:]))
    for states in seeded:
        seed = int(generator.randint(MAX_SEED, dtype="uint32"))
        for state in states:
            state.seed(seed)
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
def _compose(
    settings: "Augmentation", size: tuple[int, ...]
) -> tuple[Compose, list[list[np.random.RandomState]]]:
    """Only what has a range: MONAI counts shifts and bends in pixels, so one Compose for every size.

    Returns:
        The Compose, and of each random transform the generators that `Compose.set_random_state` would make
        anew from one seed. Seeding those that are there again is cheaper and gives the same numbers.
    """
    compose = Compose([*_geometry(settings, size), *_intensity(settings, size)])
    compose.set_random_state(seed=0)
    return compose, [_states(part) for part in compose.transforms if isinstance(part, Randomizable)]


def _states(part: Any) -> list[np.random.RandomState]:
    """Generators of a transform and of the transforms in it."""
    inner = (value for value in vars(part).values() if isinstance(value, Randomizable))
    return [*([part.R] if "R" in vars(part) else []), *(state for value in inner for state in _states(value))]


def _geometry(settings: "Augmentation", size: tuple[int, ...]) -> Iterator[Any]:
    chances = (settings.flip_rows, settings.flip_columns, settings.flip_slices)
    for axis, chance in enumerate(chances[: len(size)]):
        if chance:
            yield RandFlipd(BOTH, chance, axis)
    if len(size) == 3:
        return
    if settings.rotation or settings.scale or settings.shift:
        yield RandomAffine(
            size,
            probability=settings.geometry_probability,
            rotation=float(np.deg2rad(settings.rotation)),
            shift=[settings.shift * side for side in size],
            scale=settings.scale,
            padding=settings.padding,
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
