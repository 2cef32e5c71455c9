"""What the header of one DICOM file says of its image: an Instance.

Of files with functional groups (enhanced multi-frame) a frame's own group wins over the shared one.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rwkvseg.data.dicom_geometry import Plane
from rwkvseg.data.dicom_parsing import DEFLATE_LIMIT, damage_named, import_pydicom, read_dataset

TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ImageType",
    "Modality", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "FrameOfReferenceUID", "RescaleSlope",
    "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


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
    is_mosaic: bool
    """Whether a scanner tiled the slices of a volume into this one image."""
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

    @property
    def is_colour(self) -> bool:
        """Whether a pixel has three numbers, once palettes are looked up."""
        return self.samples != 1 or "PALETTE" in self.photometric


def read_instance(path: Path) -> Instance | None:
    """Read the header of a file; None if it holds no image (a report, a plan) or a segmentation.

    Raises:
        UnreadableFileError: truncated or damaged.
        MissingExtraError: pydicom is not installed.
    """
    with damage_named(path):
        header = read_dataset(path, stop_before_pixels=True, specific_tags=TAGS)
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        if kind is None:
            raise ValueError("its header ends before it says what it holds")
        if "Rows" in header and "Columns" in header:
            return None if kind in SEGMENTATIONS else _instance(header, path)
        if "Image Storage" in import_pydicom().uid.UID(str(kind)).name:
            raise ValueError("its header ends before it says how large the image is")
        return None


def _instance(header: Any, path: Path) -> Instance:
    frames = int(header.get("NumberOfFrames") or 1)
    shape = (frames, int(header.Rows), int(header.Columns))
    if min(shape) < 1 or frames > path.stat().st_size:
        raise ValueError(f"it states {shape} frames, rows and columns")
    _require_pixels(header, path, shape)
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
        is_mosaic="MOSAIC" in (header.get("ImageType") or ()),
        shape=shape,
        samples=int(header.get("SamplesPerPixel", 1)),
        photometric=str(header.get("PhotometricInterpretation", "")),
        stored_range=_stored_range(header),
        reference=str(header.get("FrameOfReferenceUID") or ""),
        planes=planes,
        scalings=tuple(scalings) if groups else (scalings[0],) * frames,
        thickness=_thickness(*places[0]),
    )


def _require_pixels(header: Any, path: Path, shape: tuple[int, ...]) -> None:
    """Refuse an image, uncompressed or deflated, that the file is too small to hold.

    Rough, so that files cut short are told of as such: twice the bytes, since some colours are stored halved.
    """
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_private or syntax.is_encapsulated:
        return
    bits = math.prod(shape) * int(header.get("SamplesPerPixel") or 1) * int(header.get("BitsAllocated") or 8)
    size = path.stat().st_size * (DEFLATE_LIMIT if syntax.is_deflated else 2)
    if bits > 8 * size:
        raise ValueError(
            f"it states {shape} frames, rows and columns, the file has {path.stat().st_size} bytes"
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
    if slope is not None and float(slope) == 0:
        raise ValueError("its rescale slope is 0, which makes all voxels equal")
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _thickness(header: Any, group: Any, shared: Any) -> float | None:
    for key in ("SpacingBetweenSlices", "SliceThickness"):
        value = _find(header, group, shared, "PixelMeasuresSequence", key)
        if value is not None and np.isfinite(float(value)) and float(value) > 0:
            return float(value)
    return None
