"""One DICOM file through pydicom: what its header says, and its pixels frame by frame.

The one place that knows what pydicom returns; pydicom (the extra `dicom`) is imported when first needed.
"""

import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.dicom_geometry import Plane
from rwkvseg.errors import DataError, MissingExtraError, RWKVSegError, UnreadableFileError
from rwkvseg.memory import available_memory, show_size

TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality",
    "InstanceNumber", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "FrameOfReferenceUID", "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
QUANTITIES = ("CT", "PT")  # their numbers mean something (HU, Bq/ml), whichever way they are displayed
SUFFIXES = (".dcm", ".dicom")
BARE = (b"\x02\0", b"\x08\0")  # first tags of data sets are of group 2 or 8
CURE = "Install pylibjpeg[all] or python-gdcm, or decompress the file (dcmdjpeg, gdcmconv --raw)."
DEFLATED = b"1.2.840.10008.1.2.1.99"
START = 1024  # bytes of a file that tell whether it is DICOM


@dataclass(frozen=True, slots=True)
class Instance:
    """Header of one file that holds an image."""

    path: Path
    uid: str
    """SOPInstanceUID."""
    series: str
    """SeriesInstanceUID."""
    number: int
    """SeriesNumber, 0 where there is none."""
    description: str
    modality: str
    shape: tuple[int, int, int]
    """Frames, rows, columns."""
    samples: int
    """Per pixel: 1 grey or palette, 3 colours."""
    photometric: str
    stored_range: tuple[int, int]
    """Lowest and highest value that its bits can hold."""
    reference: str
    """FrameOfReferenceUID: places in different ones have nothing to do with each other."""
    planes: tuple[Plane, ...]
    """One a frame, none where the file does not say where it lies."""
    scalings: tuple[tuple[float, float], ...]
    """Slope and intercept of every frame."""
    thickness: float | None
    """Spacing between slices or their thickness in mm, where stated."""


def is_dicom(path: Path) -> bool:
    """Whether a file may be DICOM: as `is_marked`, or by a beginning like that of old files."""
    start = _start(path)
    return is_marked(path) or (len(start) == 132 and start[:2] in BARE)


def is_marked(path: Path) -> bool:
    """Whether a file says by its mark or its name that it is DICOM."""
    return _start(path)[128:] == b"DICM" or path.suffix.lower() in SUFFIXES


def read_instance(path: Path) -> Instance | None:
    """Read the header of a file; None if it holds no image (a report, a plan) or a segmentation.

    Raises:
        UnreadableFileError: truncated or damaged.
        MissingExtraError: pydicom is not installed.
    """
    with damage_named(path):
        header = _read(path, stop_before_pixels=True, specific_tags=TAGS)
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        if kind is None:
            raise ValueError("its header ends before it says what it holds")
        if "Rows" in header and "Columns" in header:
            return None if kind in SEGMENTATIONS else _instance(header, path)
        if "Image Storage" in import_pydicom().uid.UID(str(kind)).name:
            raise ValueError("its header ends before it says how large the image is")
        return None


def read_source(path: Path) -> Any:
    """Whole header of a file as pydicom's Dataset, without pixels.

    Raises:
        UnreadableFileError, MissingExtraError: as `read_instance`.
    """
    with damage_named(path):
        return _read(path, stop_before_pixels=True)


def read_frames(instance: Instance) -> Iterator[NDArray[Any]]:
    """Yield the stored values of every frame: (row, column), or (row, column, 3) of colours.

    Palettes and luminance become red, green and blue. Nothing is scaled.

    Raises:
        UnreadableFileError: truncated, damaged, or of another size than the header says.
        DataError: compressed in a way that no installed decoder reads, or more than memory.
    """
    from pydicom.pixels import apply_color_lut, pixel_array

    path, (number, *shape) = instance.path, instance.shape
    with damage_named(path):
        dataset = _read(path)
        _require_readable(dataset, path)
    for index in range(number):
        with damage_named(path):  # never around a yield: it changes what the whole process warns of
            try:
                values = pixel_array(dataset, index=index)
            except RuntimeError as error:
                raise _not_decompressed(dataset, path, error) from error
            if "PALETTE" in instance.photometric:
                values = apply_color_lut(values, dataset)
            if list(values.shape[:2]) != shape:
                raise ValueError(f"a frame has {values.shape[:2]} pixels, the header says {shape}")
        yield values


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Make whatever pydicom raises about a file an error that names it; its warnings go."""
    try:
        with quiet():
            yield
    except RWKVSegError:
        raise
    except Exception as error:  # of damaged files pydicom raises whatever its parts raise
        told = " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__
        raise UnreadableFileError(
            f"cannot decode {path}: {told}. It is truncated, damaged or not DICOM; fetch or export it again."
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
    told = " ".join(str(error).split())[:200].rstrip(". ")
    syntax = dataset.file_meta.TransferSyntaxUID.name
    return UnreadableFileError(
        f"cannot decompress {path} ({syntax}): {told}. It is damaged, or its decoder lacks this form. {CURE}"
    )


def _instance(header: Any, path: Path) -> Instance:
    frames = int(header.get("NumberOfFrames") or 1)
    shape = (frames, int(header.Rows), int(header.Columns))
    if min(shape) < 1 or frames > path.stat().st_size:
        raise ValueError(f"it states {shape} frames, rows and columns")
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    if groups and len(groups) != frames:
        raise ValueError(f"it states {frames} frames and describes {len(groups)}")
    places = [(header, group, shared) for group in groups] or [(header, None, None)]
    names = [path.name] if frames == 1 else [f"{path.name}, frame {k + 1}" for k in range(len(groups))]
    found = [_plane(*place, name, shape[1:]) for place, name in zip(places, names, strict=False)]
    planes = tuple(plane for plane in found if plane is not None)
    if planes and len(planes) != frames:
        raise ValueError(f"{frames - len(planes)} of its {frames} frames do not say where they lie")
    scalings = [_scaling(*place) for place in places]
    return Instance(
        path=path,
        uid=str(header.get("SOPInstanceUID", "")),
        series=str(header.get("SeriesInstanceUID", "")),
        number=int(header.get("SeriesNumber") or 0),
        description=str(header.get("SeriesDescription") or ""),
        modality=str(header.get("Modality") or ""),
        shape=shape,
        samples=int(header.get("SamplesPerPixel", 1)),
        photometric=str(header.get("PhotometricInterpretation", "")),
        stored_range=_stored_range(header),
        reference=str(header.get("FrameOfReferenceUID") or ""),
        planes=planes,
        scalings=tuple(scalings) if groups else (scalings[0],) * frames,
        thickness=_thickness(*places[0]),
    )


def _stored_range(header: Any) -> tuple[int, int]:
    bits = int(header.get("BitsStored") or header.get("BitsAllocated") or 8)
    if not 1 <= bits <= 64:
        raise ValueError(f"it states {bits} bits a pixel")
    half = 2 ** (bits - 1)
    return (-half, half - 1) if header.get("PixelRepresentation") == 1 else (0, 2 * half - 1)


def _find(header: Any, group: Any, shared: Any, sequence: str, key: str) -> Any:
    """Value of a frame: in its functional group, the shared one, or, of files without groups, the header."""
    for place in (group, shared):
        if place is not None and place.get(sequence):
            value = place[sequence][0].get(key)
            if value is not None:
                return value
    return header.get(key) if group is None else None


def _plane(header: Any, group: Any, shared: Any, name: str, shape: Any) -> Plane | None:
    position = _find(header, group, shared, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _find(header, group, shared, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _find(header, group, shared, "PixelMeasuresSequence", "PixelSpacing")
    if not position or not orientation or not spacing:
        return None
    values: Any = [tuple(float(value) for value in item) for item in (position, orientation, spacing)]
    if [len(item) for item in values] != [3, 6, 2]:
        lengths = [len(item) for item in values]
        raise ValueError(f"its position, orientation and spacing have {lengths} values, not 3, 6 and 2")
    return Plane(name, shape, *values)


def _scaling(header: Any, group: Any, shared: Any) -> tuple[float, float]:
    found = [
        _find(header, group, shared, "PixelValueTransformationSequence", key)
        for key in ("RescaleSlope", "RescaleIntercept")
    ]
    slope, intercept = found
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _thickness(header: Any, group: Any, shared: Any) -> float | None:
    for key in ("SpacingBetweenSlices", "SliceThickness"):
        value = _find(header, group, shared, "PixelMeasuresSequence", key)
        if value is not None and np.isfinite(float(value)) and float(value) > 0:
            return float(value)
    return None
