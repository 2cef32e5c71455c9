"""A DICOM file through pydicom, the extra `dicom`, which is imported when first needed.

Damage becomes an error that names the file, and nothing is inflated beyond memory.
"""

import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rwkvseg.errors import MissingExtraError, RWKVSegError, UnreadableFileError, one_line
from rwkvseg.memory import available_memory, show_size

SUFFIXES = (".dcm", ".dicom")
BARE = (b"\x02\0", b"\x08\0")  # first tags of data sets are of group 2 or 8
DEFLATED = b"1.2.840.10008.1.2.1.99"
DEFLATE_LIMIT = 1032  # deflate cannot compress further
START = 1024  # bytes of a file that tell how it is encoded


def is_dicom(path: Path) -> bool:
    """Whether a file may be DICOM: as `is_marked`, or by a beginning like that of old files."""
    start = _start(path)
    return is_marked(path) or (len(start) == 132 and start[:2] in BARE)


def is_marked(path: Path) -> bool:
    """Whether a file says by its mark or its name that it is DICOM."""
    return _start(path)[128:] == b"DICM" or path.suffix.lower() in SUFFIXES


def read_dataset(path: Path, **options: Any) -> Any:
    """Read a file as pydicom's Dataset whose transfer syntax is known.

    Args:
        path: with or without preamble.
        options: of pydicom's `dcmread`.

    Raises:
        UnreadableFileError: truncated, damaged, or beyond memory once inflated.
        MissingExtraError: pydicom is not installed.
    """
    with damage_named(path):
        return _read(path, **options)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Make whatever pydicom raises about a file an error that names it; its warnings go."""
    try:
        with quiet():
            yield
    except RWKVSegError:
        raise
    except Exception as error:  # of damaged files pydicom raises whatever its parts raise
        raise UnreadableFileError(
            f"cannot decode {path}: {one_line(error, 200)}. "
            "It is truncated, damaged or not DICOM; fetch or export it again."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what pydicom and highdicom say of odd values, in tags that nobody here reads."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def import_pydicom() -> Any:
    """The module pydicom.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtraError(
            "DICOM files need pydicom. Install it with pip install 'rwkvseg[dicom]'."
        ) from error
    return pydicom


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(132)
    except OSError:
        return b""


def _read(path: Path, **options: Any) -> Any:
    pydicom = import_pydicom()
    with path.open("rb") as file:
        start = file.read(START)
        file.seek(0)
        if DEFLATED in start:
            _require_inflatable(file, start)
        dataset = pydicom.dcmread(file, force=start[128:132] != b"DICM", **options)
    if dataset.file_meta.get("TransferSyntaxUID") is None:
        implicit, little = dataset.original_encoding
        names = {(True, True): "ImplicitVRLittleEndian", (False, True): "ExplicitVRLittleEndian"}
        dataset.file_meta.TransferSyntaxUID = getattr(
            pydicom.uid, names.get((implicit, little), "ExplicitVRBigEndian")
        )
    return dataset


def _require_inflatable(file: BinaryIO, start: bytes) -> None:
    """Refuse a file that inflates beyond memory; pydicom would inflate it at once."""
    if start[132:136] != b"\x02\0\0\0":
        raise ValueError("it is deflated and does not say where its data set starts")
    file.seek(144 + int.from_bytes(start[140:144], "little"))  # behind the file meta information
    inflater, size, limit = zlib.decompressobj(-zlib.MAX_WBITS), 0, available_memory() // 4
    while piece := (inflater.unconsumed_tail or file.read(1 << 16)):
        size += len(inflater.decompress(piece, 1 << 20))
        if size > limit:
            raise ValueError(f"it inflates to more than {show_size(limit)}")
    file.seek(0)
