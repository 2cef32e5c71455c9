"""From a case to the network's own grid: normalise, take slices of volumes, resize.

MONAI does the work, and is loaded when first called. transforms.py offers these names as well. Networks for
whole volumes (`dimensions: 3`) get theirs from volumes.py.
"""

from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from scipy.ndimage import zoom

from rwkvseg.data.case import Case
from rwkvseg.errors import DataError
from rwkvseg.wording import counted

FloatImage = NDArray[np.float32]


class Intensity(BaseModel):
    """What "ct" makes of intensities: clip to low..high, then (x - mean) / std; in the file's units."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    mean: float
    std: float = Field(gt=0)

    @model_validator(mode="after")
    def _limits_ascend(self) -> Self:
        if self.low > self.high:
            raise ValueError("low must not exceed high")
        return self


class Preprocessing(BaseModel):
    """How a case becomes the network's input; kept in the recipe and in the model file."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    dimensions: Literal[2, 3] = 2
    """2: pictures, and volumes slice by slice. 3: whole volumes, patch by patch (volumes.py)."""
    channels: int = Field(3, ge=1)
    """Input channels of the network; grey images are repeated to fit."""
    size: tuple[int, int] | None = (256, 256)
    """(rows, columns) that every picture or slice is resized to; None keeps its own. Not of volumes."""
    patch: tuple[int, int, int] | None = None
    """Voxels of a volume along each axis that the network sees at once."""
    spacing: tuple[float | None, float | None, float | None] | None = None
    """Of volumes: mm along each axis of the network's grid; None keeps the file's, of all axes or of one."""
    orientation: Literal["file", "RAS"] = "file"
    """Of volumes: "RAS" turns the axes to the closest canonical ones; the prediction is turned back."""
    crop: Literal["none", "nonzero"] = "none"
    """Of volumes: "nonzero" cuts away what is exactly 0 all around; nothing is predicted there."""
    normalisation: Literal["unit", "zscore", "percentile", "none", "ct"] = "unit"
    """See `normalise`; "ct", of volumes, see `Intensity`."""
    intensity: Intensity | None = None
    """Of "ct"; None lets training take it from the foreground of its cases."""
    slice_axis: int | None = Field(None, ge=0, le=2)
    """Axis along which volumes are cut; None takes the axis with the largest spacing. Not of volumes."""
    interpolation: Literal["linear", "cubic"] = "linear"
    """Of images; labels always take the nearest neighbour."""

    @model_validator(mode="before")
    @classmethod
    def _volumes_have_no_size(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("dimensions") == 3:
            return {"size": None} | content
        return content

    @field_validator("size")
    @classmethod
    def _size_is_positive(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and min(size) < 1:
            raise ValueError("both lengths must be 1 or more")
        return size

    @field_validator("patch", "spacing")
    @classmethod
    def _lengths_are_positive(cls, lengths: Any) -> Any:
        if lengths is not None and any(length is not None and length <= 0 for length in lengths):
            raise ValueError("all three lengths must be positive")
        return lengths

    @model_validator(mode="after")
    def _keys_fit_the_dimensions(self) -> Self:
        if self.dimensions == 3:
            if self.patch is None:
                raise ValueError("dimensions is 3 without patch: give the voxels a network sees, [i, j, k]")
            if self.size is not None or self.slice_axis is not None:
                raise ValueError("size and slice_axis are of slices, dimensions is 3: drop them")
        else:
            found = [key for key, none in OF_VOLUMES.items() if getattr(self, key) != none]
            if found or self.normalisation == "ct":
                told = ", ".join(found) or "normalisation ct"
                raise ValueError(f"{told}: of volumes only. Set dimensions to 3, or drop it")
        if self.intensity is not None and self.normalisation != "ct":
            raise ValueError("intensity is of normalisation ct: choose that, or drop it")
        if self.normalisation == "ct" and self.channels != 1:
            raise ValueError("normalisation ct is of one channel: set channels to 1")
        return self


OF_VOLUMES = {"patch": None, "spacing": None, "orientation": "file", "crop": "none"}
"""Keys that mean nothing to slices, and what they are there."""


def normalise(case: Case, preprocessing: Preprocessing) -> Case:
    """Scale intensities by statistics of the whole case, and fit the number of channels.

    "unit": uint8 / 255, uint16 / 65535, all else from its minimum and maximum to 0..1. "zscore": every
    channel to mean 0 and standard deviation 1. "percentile": every channel clipped to its 0.5 and 99.5
    percentiles, then to 0..1. "none": as in the file (TransUNet's hold 0..1 of the whole scan). A constant
    image becomes zeros, except by "none" and by "unit" of uint8 and uint16.

    Returns:
        The case with a float32 image of `preprocessing.channels` channels.

    Raises:
        DataError: neither one channel nor as many as the network takes.
    """
    check_channels(case, preprocessing)
    have, want = len(case.image), preprocessing.channels
    image = SCALINGS[preprocessing.normalisation](case.image)
    return case.replace(image=np.repeat(image, want, axis=0) if have < want else image)


def check_channels(case: Case, preprocessing: Preprocessing) -> None:
    """Raise DataError where a case has neither one channel nor as many as the network takes."""
    have, want = len(case.image), preprocessing.channels
    if have not in (1, want):
        raise DataError(
            f"case {case.id} has {counted(have, 'channel')}, the network takes {want}. "
            "Set preprocessing.channels to the data's number, or convert the images to grey."
        )


def slice_axis(case: Case, preprocessing: Preprocessing) -> int:
    """Spatial axis along which a volume is cut: the recipe's, else the largest spacing (ties: the last).

    A volume of a single slice is cut along that.
    """
    if preprocessing.slice_axis is not None:
        return preprocessing.slice_axis
    if case.spatial_shape.count(1) == 1:
        return case.spatial_shape.index(1)
    if case.spacing is None:
        return len(case.spatial_shape) - 1
    # rounded, so that 1 mm and 1.0000001 mm are a tie
    spacing = [round(mm, 4) for mm in case.spacing]
    return len(spacing) - 1 - spacing[::-1].index(max(spacing))


def iterate_slices(case: Case, axis: int) -> Iterator[Case]:
    """Cut a volume into 2D cases `id:0000`, `id:0001`, ...: views that keep the two other spacings."""
    spacing = None if case.spacing is None else case.spacing[:axis] + case.spacing[axis + 1 :]
    for index in range(case.spatial_shape[axis]):
        yield Case(
            id=f"{case.id}:{index:04d}",
            image=np.moveaxis(case.image, axis + 1, 0)[index],
            label=None if case.label is None else np.moveaxis(case.label, axis, 0)[index],
            spacing=spacing,
        )


def resize_image(image: FloatImage, size: tuple[int, int], interpolation: str = "linear") -> FloatImage:
    """Resize (C, H, W) to (C, *size).

    "linear": pixel centres aligned, smoothed by a Gaussian before shrinking against aliasing. "cubic": spline
    of order 3, corner pixels aligned and not smoothed.
    """
    if image.shape[1:] == tuple(size):
        return image
    if interpolation == "cubic":
        # SciPy's: MONAI's bicubic is no spline, and the published numbers rest on this one. "mirror" changes
        # only a last row or column that rounding puts outside, which would be zeros
        return np.stack([resize_spline(channel, size, order=3, mode="mirror") for channel in image])
    # averaged down to four times the size first: the Gaussian alone takes seconds for a photograph
    coarse = tuple(min(old, 4 * new) for old, new in zip(image.shape[1:], size, strict=True))
    image = _resized(image, coarse, "area")
    # MONAI smooths as if zeros lay outside; what this does to ones is divided out, else the border darkens
    ones = np.ones((1, *coarse), np.float32)
    resized = _resized(np.concatenate([image, ones]), size, "bilinear")
    return resized[:-1] / resized[-1:]


def resize_spline(
    values: NDArray[Any],
    size: tuple[int, ...],
    *,
    order: Literal[0, 3],
    mode: Literal["constant", "mirror"] = "constant",
) -> NDArray[Any]:
    """Resize (H, W) to `size` by SciPy's spline of `order`, corner pixels aligned, not smoothed.

    The default `mode` is that of TransUNet's published evaluation: a last row or column that rounding puts
    outside becomes zeros.
    """
    if values.shape == tuple(size):
        return values
    factors = [new / old for new, old in zip(size, values.shape, strict=True)]
    resized: NDArray[Any] = zoom(values, factors, order=order, mode=mode)
    return resized


def resize_label(label: NDArray[np.integer[Any]], size: tuple[int, int]) -> NDArray[np.integer[Any]]:
    """Resize (H, W) to `size` by the nearest pixel centre; values below 2^24."""
    if label.shape == tuple(size):
        return label
    resized: NDArray[np.integer[Any]] = _resized(label[None].astype(np.float32), size, "nearest-exact")[0]
    return resized.astype(label.dtype)


def _resized(values: FloatImage, size: tuple[int, ...], mode: str) -> FloatImage:
    from monai.transforms import Resize

    return _plain(Resize(size, mode=mode, anti_aliasing=mode == "bilinear")(values))


def preprocess(case: Case, preprocessing: Preprocessing) -> list[Case]:
    """Bring a case to the network's own grid: one 2D case of a picture, one per slice of a volume.

    Raises:
        DataError: the channels do not fit the network.
    """
    case = normalise(case, preprocessing)
    if len(case.spatial_shape) == 2:
        return [_resize(case, preprocessing)]
    return [_resize(item, preprocessing) for item in iterate_slices(case, slice_axis(case, preprocessing))]


def _resize(case: Case, preprocessing: Preprocessing) -> Case:
    size = preprocessing.size
    if size is None or case.spatial_shape == size:
        return case
    spacing = case.spacing
    if spacing is not None:
        lengths = zip(spacing, case.spatial_shape, size, strict=True)
        spacing = tuple(mm * old / new for mm, old, new in lengths)
    return case.replace(
        image=resize_image(case.image, size, preprocessing.interpolation),
        label=None if case.label is None else resize_label(case.label, size),
        spacing=spacing,
    )


def _unit(image: NDArray[Any]) -> FloatImage:
    if image.dtype in (np.uint8, np.uint16):
        # what `_stretch` from 0 to this makes of every such value, to the last bit, in a 25th of the time
        scaled: FloatImage = np.divide(image, np.iinfo(image.dtype).max, dtype=np.float32)
        return scaled
    return _stretch(image, float(image.min()), float(image.max()))


def _percentile(image: NDArray[Any]) -> FloatImage:
    # ScaleIntensityRangePercentiles warns and does not clip where both percentiles are equal
    limits = [np.percentile(channel, (0.5, 99.5)) for channel in image]
    return np.stack([_stretch(channel, *limit) for channel, limit in zip(image, limits, strict=True)])


def _stretch(values: NDArray[Any], low: float, high: float) -> FloatImage:
    """Map low..high to 0..1 and clip; all zeros where there is no range."""
    from monai.transforms import ScaleIntensityRange

    if not high > low:
        return np.zeros(values.shape, np.float32)
    # in float64: the range of float32 intensities may overflow float32
    scale = ScaleIntensityRange(float(low), float(high), 0, 1, clip=True)
    return _plain(scale(values.astype(np.float64)))


def _zscore(image: NDArray[Any]) -> FloatImage:
    from monai.transforms import NormalizeIntensity

    axes = tuple(range(1, image.ndim))
    standard = _plain(NormalizeIntensity(channel_wise=True)(image.astype(np.float32)))
    # what a constant channel leaves is the rounding error of its mean, divided by itself
    standard[image.min(axes) == image.max(axes)] = 0
    return standard


def _as_stored(image: NDArray[Any]) -> FloatImage:
    return image.astype(np.float32)


def _plain(values: Any) -> FloatImage:
    """MONAI's MetaTensor as an array."""
    from monai.utils import convert_to_numpy

    array: FloatImage = convert_to_numpy(values)
    return array


SCALINGS = {"unit": _unit, "zscore": _zscore, "percentile": _percentile, "none": _as_stored}
