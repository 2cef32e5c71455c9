"""The pixels of one DICOM file: decoded frame by frame, and scaled to the numbers that they mean."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.dicom_headers import Instance
from rwkvseg.data.dicom_parsing import damage_named, read_dataset
from rwkvseg.errors import DataError, UnreadableFileError, one_line

QUANTITIES = ("CT", "PT")  # their numbers mean something (HU, Bq/ml), whichever way they are displayed
CURE = "Install pylibjpeg[all] or python-gdcm, or decompress the file (dcmdjpeg, gdcmconv --raw)."


def read_slices(instance: Instance) -> Iterator[NDArray[np.float32]]:
    """Yield every frame (row, column), rescaled by its own slope and intercept.

    MONOCHROME1 is turned so that bright means more, except in CT and PET, whose numbers are quantities.

    Raises:
        UnreadableFileError: truncated, damaged, or of another size than the header says.
        DataError: no decoder for the compression, a table of values, or numbers beyond float32.
    """
    for values, scaling in zip(read_frames(instance), instance.scalings, strict=True):
        yield _scaled(values, instance, scaling)


def read_picture_frame(instance: Instance) -> NDArray[Any]:
    """Read the only frame as a picture (C, row, column).

    Colours are three channels. A grey picture of 8 bits stays uint8, any other becomes float32 after its
    rescaling. No window is applied.

    Raises:
        UnreadableFileError, DataError: as `read_slices`.
    """
    (frame,) = read_frames(instance)
    if frame.ndim == 3:
        colours = np.ascontiguousarray(np.moveaxis(frame, -1, 0))
        return colours if colours.dtype in (np.uint8, np.uint16) else colours.astype(np.float32)
    if instance.stored_range == (0, 255):
        return np.ascontiguousarray(_upright(frame, instance).astype(np.uint8))[np.newaxis]
    return np.ascontiguousarray(_scaled(frame, instance, instance.scalings[0]))[np.newaxis]


def read_frames(instance: Instance) -> Iterator[NDArray[Any]]:
    """Yield the stored values of every frame: (row, column), or (row, column, 3) of colours.

    Palettes and luminance become red, green and blue. Nothing is scaled.

    Raises:
        UnreadableFileError: truncated, damaged, or of another size than the header says.
        DataError: compressed in a way that no installed decoder reads, or mapped by a table.
    """
    from pydicom.pixels import apply_color_lut, pixel_array

    path, (number, *shape) = instance.path, instance.shape
    with damage_named(path):
        dataset = read_dataset(path)
        _require_readable(dataset, path)
    for index in range(number):
        with damage_named(path):  # never around a yield: it changes what the whole process warns of
            try:
                values = pixel_array(dataset, index=index)
            except RuntimeError as error:
                raise _not_decompressed(dataset, path, error) from error
            if "PALETTE" in instance.photometric:
                values = apply_color_lut(values, dataset)
            if list(values.shape) != shape + [3] * instance.is_colour:
                raise ValueError(f"a frame has the shape {list(values.shape)}, the header says {shape}")
        yield values


def _scaled(values: NDArray[Any], instance: Instance, scaling: tuple[float, float]) -> NDArray[np.float32]:
    slope, intercept = scaling
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite
        numbers = (_upright(values, instance).astype(np.float64) * slope + intercept).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(
            f"{instance.path} holds NaN or infinity, or numbers beyond float32 after its rescaling by "
            f"{slope:g} and {intercept:g}. Export it again."
        )
    return numbers


def _upright(values: NDArray[Any], instance: Instance) -> NDArray[Any]:
    """Values mirrored in their range where the smallest is displayed as white."""
    if instance.photometric != "MONOCHROME1" or instance.modality in QUANTITIES:
        return values
    low, high = instance.stored_range
    mirrored: NDArray[Any] = (low + high - values.astype(np.float64)).astype(values.dtype)
    return mirrored


def _require_readable(dataset: Any, path: Path) -> None:
    from pydicom.pixels import get_decoder

    if dataset.get("ModalityLUTSequence"):
        raise DataError(
            f"{path} maps its values by a table (Modality LUT), which is not supported. "
            "Export it with a rescale slope and intercept."
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise DataError(
            f"the pixels of {path} are compressed as {syntax.name}, which no installed decoder reads. {CURE}"
        )


def _not_decompressed(dataset: Any, path: Path, error: RuntimeError) -> UnreadableFileError:
    syntax = dataset.file_meta.TransferSyntaxUID.name
    return UnreadableFileError(
        f"cannot decompress {path} ({syntax}): {one_line(error, 200)}. "
        f"It is damaged, or its decoder lacks this form. {CURE}"
    )
