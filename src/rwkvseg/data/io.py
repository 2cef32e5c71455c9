"""Reading and writing single files: the one place that knows what Pillow, NiBabel and h5py return.

Pictures come as (C, row, column), volumes as (C, i, j, k) in the order of the file; docs/reference/data.md
lists formats. A file of arrays (arrays.py) is image and label at once.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.arrays import ARRAY_SUFFIXES, array_header, read_array
from rwkvseg.data.nifti import read_nifti, read_nifti_header, write_nifti
from rwkvseg.data.pictures import picture_size, read_picture, read_picture_label, write_picture
from rwkvseg.errors import DataError, LabelError, OutputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUME_SUFFIXES = (".nii.gz", ".nii")

Affine = NDArray[np.float64]
Label = NDArray[np.integer[Any]]


def case_suffix(path: Path) -> str | None:
    """Known suffix of a file in lower case, or None; `.nii.gz` counts as one.

    >>> case_suffix(Path("a.NII.gz"))
    '.nii.gz'
    """
    name = path.name.lower()
    known = VOLUME_SUFFIXES + PICTURE_SUFFIXES + ARRAY_SUFFIXES
    return next((suffix for suffix in known if name.endswith(suffix)), None)


def holds_arrays(path: Path) -> bool:
    """Whether the file is one of arrays, by its name."""
    return case_suffix(path) in ARRAY_SUFFIXES


def case_id(path: Path) -> str:
    """File name without its image suffix.

    >>> case_id(Path("folder/patient 1.v2.nii.gz"))
    'patient 1.v2'
    """
    suffix = case_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def is_volume(path: Path) -> bool:
    """Whether the file is a volume: by its name, of arrays by their axes; else it is a picture.

    Raises:
        DataError: no such file, or of no known format.
        UnreadableFileError: a damaged file of arrays.
    """
    suffix = case_suffix(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder, not an image. Give one of its files.")
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the path.")
    if suffix is None:
        raise DataError(
            f"{path} is of no known format. Use one of {' '.join(VOLUME_SUFFIXES + PICTURE_SUFFIXES)}."
        )
    return len(array_header(path)[0]) == 3 if suffix in ARRAY_SUFFIXES else suffix in VOLUME_SUFFIXES


def read_image(
    path: Path, *, channels_last: bool = False
) -> tuple[NDArray[Any], tuple[float, ...] | None, Affine | None]:
    """Read image (C, *spatial), spacing in mm and affine.

    Pictures keep uint8 or uint16 (C = 1 or 3, alpha dropped, palettes become colours, EXIF orientation not
    applied as masks do not carry it) and have neither spacing nor affine. NIfTI volumes come as float32 with
    C = 1 (or as many as a fourth axis has, if that is where channels are), and so do arrays, without spacing
    and affine, except that they keep uint8 and uint16.

    Raises:
        DataError: no such file, not one picture or volume, or NaN among the voxels.
        UnreadableFileError: truncated, damaged or of another format.
    """
    image, spacing, affine = read_stored_image(path, channels_last=channels_last)
    _refuse_non_finite(image, path)
    return image, spacing, affine


def read_stored_image(
    path: Path, *, channels_last: bool = False
) -> tuple[NDArray[Any], tuple[float, ...] | None, Affine | None]:
    """Read as `read_image`, NaN and infinity included."""
    if _has_arrays(path):
        return _image_array(path)[np.newaxis], None, None
    if is_volume(path):
        values, affine, spacing = read_nifti(path, dtype=np.float32, channels_last=channels_last)
        return values if channels_last else values[np.newaxis], spacing, affine
    return read_picture(path), None, None


def read_label(path: Path, *, two_labels: bool = False) -> tuple[Label, Affine | None]:
    """Read the integers of a label map (*spatial) as they stand in the file, and its affine.

    Where there are only `two_labels`, a lossy picture is taken as black and white.

    Raises:
        LabelError: NaN, fractions, colours, or a lossy picture that is not black and white.
        DataError, UnreadableFileError: as `read_image`.
    """
    values, affine = read_stored_label(path, two_labels=two_labels)
    return as_integers(values, path), affine


def read_stored_label(path: Path, *, two_labels: bool = False) -> tuple[NDArray[Any], Affine | None]:
    """Read as `read_label`, numbers of a volume as they are: NaN and fractions included.

    Raises:
        LabelError: colours, or a lossy picture that is not black and white.
        DataError, UnreadableFileError: as `read_image`.
    """
    if _has_arrays(path):
        return read_array(path, "label"), None
    if is_volume(path):
        values, affine, _ = read_nifti(path)
        return values, affine
    return read_picture_label(path, two_labels=two_labels), None


def _has_arrays(path: Path) -> bool:
    return holds_arrays(path) and path.is_file()


@np.errstate(over="ignore", invalid="ignore")  # what overflows becomes infinite, which `read_image` refuses
def _image_array(path: Path) -> NDArray[Any]:
    values = read_array(path, "image")
    return values if values.dtype in (np.uint8, np.uint16) else values.astype(np.float32)


def count_pixels(path: Path) -> int:
    """Pixels or voxels of a label map or one channel of an image, by its header.

    Raises:
        DataError, UnreadableFileError: as `read_image`, as far as the header tells.
    """
    if _has_arrays(path):
        return math.prod(array_header(path)[0])
    return math.prod(read_nifti_header(path).shape) if is_volume(path) else math.prod(picture_size(path))


def expected_pixels(path: Path) -> int:
    """As `count_pixels`; 0 of a file that cannot be read, which shows when it is read."""
    try:
        return count_pixels(path)
    except DataError:
        return 0


def write_label_map(
    path: Path, prediction: Label, affine: Affine | None = None, *, like: Path | None = None
) -> None:
    """Write a label map, whole or not at all, in the smallest of uint8 and uint16 that holds its values.

    (row, column) is written as grey picture without palette, (i, j, k) as NIfTI whose sform and qform are
    `affine` (None: the identity), or those of the file `like`, see `write_nifti`.

    Raises:
        LabelError: values outside 0..65535.
        OutputError: shape and suffix do not fit, or the disk refuses.
    """
    low, high = (int(prediction.min()), int(prediction.max())) if prediction.size else (0, 0)
    if low < 0 or high > 65535:
        raise LabelError(f"label map for {path} holds {low}..{high}. Only 0..65535 can be written.")
    compact = prediction.astype(np.uint8 if high < 256 else np.uint16)
    suffix = case_suffix(path)
    if prediction.ndim == 2 and suffix == ".png":
        write_picture(path, compact)
    elif prediction.ndim == 3 and suffix in VOLUME_SUFFIXES:
        write_nifti(path, compact, np.eye(4) if affine is None else affine, like=like)
    else:
        raise OutputError(
            f"cannot write a label map of shape {prediction.shape} as {path.name}. "
            "Use .png for 2 axes and .nii.gz or .nii for 3."
        )


def _refuse_non_finite(values: NDArray[Any], path: Path) -> None:
    if values.dtype.kind != "f":
        return
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise DataError(
            f"{path} holds NaN or infinity in {bad} of {values.size} voxels. "
            "Replace them, for instance by the background's intensity."
        )


def as_integers(values: NDArray[Any], path: Path) -> Label:
    """Return integers as they are; whole floats, which some tools write, as int32.

    Raises:
        LabelError: NaN, fractions, or values beyond 32 bits; `path` is for the message.
    """
    if values.dtype.kind in "iu":
        return values
    finite = np.isfinite(values)
    if not finite.all():
        bad = values.size - int(np.count_nonzero(finite))
        raise LabelError(
            f"label map {path} holds NaN or infinity in {bad} of {values.size} voxels. "
            "Replace them by 0 or a label."
        )
    rounded = np.rint(values)
    # a scale factor stored in float32 moves whole numbers by some 1e-7 of their size
    fractional = np.abs(values - rounded) > 1e-4
    if fractional.any():
        some = ", ".join(f"{value:.4g}" for value in np.unique(values[fractional])[:5])
        raise LabelError(
            f"label map {path} holds fractions such as {some}. "
            "Resample label maps with nearest neighbour so that they stay whole numbers."
        )
    if np.abs(rounded).max(initial=0) > np.iinfo(np.int32).max:
        raise LabelError(f"label map {path} holds values beyond 32 bits. Renumber the labels from 0 up.")
    whole: Label = rounded.astype(np.int32)
    return whole
