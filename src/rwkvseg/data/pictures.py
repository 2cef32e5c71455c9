"""Pictures (PNG, JPEG, TIFF, BMP) through Pillow: (C, row, column) out, nothing decoded halfway."""

import io
import math
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwkvseg.data.notices import without_warnings
from rwkvseg.errors import DataError, LabelError, UnreadableFileError, one_line
from rwkvseg.output import write_atomically

ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
"""Modes whose last channel is transparency."""
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # never others: Pillow would start Ghostscript on a disguised EPS
DEFLATE_LIMIT = 1032  # bytes that one byte can stand for, see nifti.py
PNG_BYTES = {"1": 1 / 8, "P": 1 / 8, "L": 1 / 8, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 2, "I": 2}
"""Fewest bytes of a pixel before compression: grey and palettes may have one bit."""
PIXELS_A_BYTE: dict[str, float] = {
    "BMP 0": 8,
    "JPEG": 4096,  # a block of 64 takes a bit; with arithmetic coding somewhat less
    "MPO": 4096,
    "TIFF raw": 8,
    "TIFF packbits": 8 * 64,
    "TIFF tiff_lzw": 8 * 1500,  # a code of 12 bits stands for 4096 bytes at most
    "TIFF tiff_deflate": 8 * DEFLATE_LIMIT,
    "TIFF tiff_adobe_deflate": 8 * DEFLATE_LIMIT,
}
"""Most pixels that a byte of the file can stand for, by format and compression; others know no limit."""
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


def exif_orientation(path: Path) -> int:
    """How a viewer turns or mirrors a picture (EXIF 274): 1 if not at all, or if the file cannot be read."""
    try:
        with without_warnings(), Image.open(path, formats=FORMATS) as image:
            return int(image.getexif().get(274, 1))
    except DAMAGE:
        return 1


def read_picture(path: Path) -> NDArray[Any]:
    """Read a picture as (C, row, column): uint8 or uint16 with C = 1 or 3, float32 for a float TIFF."""
    picture = _decode(path)
    if picture.mode in ("1", "LA", "La"):
        picture = picture.convert("L")
    elif picture.mode not in ("L", "F") and not picture.mode.startswith("I"):
        with without_warnings():  # transparency is dropped on purpose
            picture = picture.convert("RGB")
    values = _integers(picture)
    return np.ascontiguousarray(values[np.newaxis] if values.ndim == 2 else np.moveaxis(values, -1, 0))


def picture_size(path: Path) -> tuple[int, int]:
    """(rows, columns) of a picture, by its header.

    Raises:
        UnreadableFileError: as `read_picture`.
    """
    picture = _decode(path, pixels=False)
    return picture.height, picture.width


def left_behind(path: Path) -> tuple[str, ...]:
    """What of a picture `read_picture` does not give back; empty where it gives back all.

    Raises:
        UnreadableFileError: as `read_picture`.
    """
    picture = _decode(path, pixels=False)
    stored = " ".join(str(tile) for tile in getattr(picture, "tile", ()))
    lost = {
        "transparency (alpha): colours and greys are kept as they stand beneath it": (
            picture.mode in ALPHA or "transparency" in picture.info
        ),
        "colours of 16 bit: their upper 8 bits are kept": (
            picture.mode in ("RGB", "RGBA") and re.search(r"RGBA?X*;16", stored) is not None
        ),
        "colours of print (CMYK) become red, green and blue": picture.mode == "CMYK",
    }
    return tuple(what for what, is_so in lost.items() if is_so)


def read_picture_label(path: Path, *, two_labels: bool = False) -> NDArray[Any]:
    """Read the numbers stored in a mask (row, column): palette indices, not colours; bits as 0 and 1.

    Where there are only two labels, a JPEG is taken as 255 above 127 and as 0 below (Kvasir-SEG's masks).

    Raises:
        LabelError: channels that differ, or a JPEG that is not black and white under more labels.
    """
    picture = _decode(path)
    values = _integers(picture)
    if values.ndim == 3:
        values = _common_channel(values, picture.mode, path)
    if picture.format in ("JPEG", "MPO") and not ((values == 0) | (values == 255)).all():
        if two_labels:
            return np.where(values > 127, 255, 0).astype(np.uint8)
        some = ", ".join(str(value) for value in np.unique(values)[:6])
        raise LabelError(
            f"mask {path} is a JPEG, whose compression changed its values ({some}, ...). "
            "Threshold it at 127 and save it as PNG, or name two labels, 0 and 1: then that is done for you."
        )
    return values


def write_picture(path: Path, values: NDArray[Any]) -> None:
    """Write PNG, whole or not at all: (row, column) uint8 or uint16, or colours (row, column, 3) uint8."""
    with write_atomically(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")


class _WithinItsSize(io.BufferedReader):
    """File of which no more is asked than it holds: Pillow takes what a damaged length claims."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes."""
        whole = size is None or size < 0
        return super().read(-1 if whole else min(size or 0, max(0, self.size - self.tell())))


def _decode(path: Path, *, pixels: bool = True) -> Image.Image:
    """Open a picture and decode all of it, or its header alone."""
    with without_warnings():  # Pillow warns of odd metadata, which nobody here reads
        try:
            with _WithinItsSize(path.open("rb", buffering=0)) as file:
                picture: Image.Image = Image.open(file, formats=FORMATS)
                _check_number_of_pixels(picture)
                # phones add a preview as second frame and call it MPO
                pages = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1
                _check_claim(picture, path.stat().st_size)
                if pages == 1 and pixels:
                    picture.load()
        except Image.DecompressionBombError as error:
            raise DataError(
                f"{path} has more than {Image.MAX_IMAGE_PIXELS} pixels. Cut it into tiles or shrink it."
            ) from error
        except DAMAGE as error:
            raise UnreadableFileError(
                f"cannot decode {path}: {one_line(error)}. "
                "It is truncated, damaged or not a PNG, JPEG, TIFF or BMP; fetch or export it again."
            ) from error
    if pages > 1:
        raise DataError(f"{path} holds {pages} pages. Save each as a picture, or the stack as NIfTI.")
    return picture


def _check_number_of_pixels(picture: Image.Image) -> None:
    """Refuse what Pillow itself only warns of, up to twice its limit."""
    if Image.MAX_IMAGE_PIXELS is not None and picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def _check_claim(picture: Image.Image, size: int) -> None:
    """Refuse a damaged header before memory is taken for the pixels that it claims."""
    compression = picture.info.get("compression")
    if picture.format == "PNG":
        most = size * DEFLATE_LIMIT / PNG_BYTES.get(picture.mode, 1)
    elif picture.format == "BMP" and compression in (1, 2):  # run lengths may leave out all that is black
        return
    else:
        most = size * PIXELS_A_BYTE.get(f"{picture.format} {compression}".removesuffix(" None"), math.inf)
    if picture.width * picture.height > most:
        raise ValueError(
            f"its header claims {picture.width} x {picture.height} pixels, the file has {size} bytes"
        )


def _integers(picture: Image.Image) -> NDArray[Any]:
    """Pixels in native byte order: (row, column) or (row, column, channel)."""
    values = np.asarray(picture)
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "i" and values.min() >= 0 and values.max() <= 65535:
        return values.astype(np.uint16)  # Pillow opens some 16-bit files as 32-bit
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _common_channel(values: NDArray[Any], mode: str, path: Path) -> NDArray[Any]:
    colours = values[..., :-1] if mode in ALPHA else values
    differs = (colours != colours[..., :1]).any(axis=-1)
    if not differs.any():
        return np.ascontiguousarray(colours[..., 0])
    place = np.unravel_index(int(differs.argmax()), differs.shape)
    raise LabelError(
        f"mask {path} is a colour picture: row {place[0]}, column {place[1]} is {colours[place].tolist()}. "
        "Save it as grey PNG whose values are the labels."
    )
