"""DICOM series made with pydicom: any orientation, spacing and order, classic or multi-frame.

Voxels hold a linear function of their place in DICOM's own coordinates (LPS+ mm), so a volume that was
flipped, transposed or shifted on its way shows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds
from scipy.spatial.transform import Rotation

Change = Callable[[Dataset, int], None]
LPS_TO_RAS = np.array([-1, -1, 1])


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the slices of a series lie; lengths in mm, LPS+."""

    shape: tuple[int, int, int] = (7, 9, 5)  # rows, columns, slices
    spacing: tuple[float, float, float] = (0.8, 0.5, 2.5)  # between rows, columns, slices
    along_row: tuple[float, ...] = (1, 0, 0)
    down_column: tuple[float, ...] = (0, 1, 0)
    origin: tuple[float, ...] = (-31.25, 12.5, 100)
    shear: tuple[float, ...] = (0, 0, 0)  # added to every step from slice to slice
    slope: tuple[float, ...] = (3.0, -5.0, 2.0)  # intensity per mm

    @classmethod
    def rotated(cls, degrees: Sequence[float], **changes: Any) -> "Grid":
        """Turned about the three axes."""
        turned = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
        return cls(along_row=tuple(turned[:, 0]), down_column=tuple(turned[:, 1]), **changes)

    @property
    def step(self) -> NDArray[np.float64]:
        """From one slice to the next."""
        return np.cross(self.along_row, self.down_column) * self.spacing[2] + self.shear

    def place(self, row: Any, column: Any, index: Any) -> NDArray[np.float64]:
        """(..., 3): of pixels."""
        row, column, index = (np.asarray(value)[..., None] for value in (row, column, index))
        return (
            np.array(self.origin)
            + row * self.spacing[0] * np.array(self.down_column)
            + column * self.spacing[1] * np.array(self.along_row)
            + index * self.step
        )

    def values(self) -> NDArray[np.float64]:
        """(row, column, slice): intensities."""
        return self.intensity(self.place(*np.indices(self.shape)))

    def intensity(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of places (..., 3)."""
        return places @ np.array(self.slope) + 400


@dataclass
class Written:
    """A series on disk."""

    folder: Path
    grid: Grid
    files: list[Path]  # slice by slice
    uids: list[str]
    series: str
    frame_of_reference: str
    datasets: list[Dataset] = field(default_factory=list)


def write_series(
    folder: Path,
    grid: Grid | None = None,
    *,
    change: Change = lambda _dataset, _index: None,
    series: str | None = None,
    study: str | None = None,
    reverse: bool = False,
    description: str = "Axial 2.5",
) -> Written:
    """One file a slice; names and instance numbers say nothing, or the reverse of the truth."""
    grid = grid or Grid()
    folder.mkdir(parents=True, exist_ok=True)
    series, study, reference = series or generate_uid(), study or generate_uid(), generate_uid()
    number = grid.shape[2]
    numbers = list(range(number, 0, -1)) if reverse else np.random.default_rng(3).permutation(number) + 1
    written = Written(folder, grid, [], [], series, reference)
    values = grid.values()
    for k in range(number):
        dataset = base_dataset(CTImageStorage, "CT", series, study)
        dataset.SeriesNumber, dataset.SeriesDescription = 3, description
        dataset.FrameOfReferenceUID = reference
        dataset.InstanceNumber = int(numbers[k])
        dataset.ImagePositionPatient = decimal(grid.place(0, 0, k))
        dataset.ImageOrientationPatient = decimal((*grid.along_row, *grid.down_column))
        dataset.PixelSpacing = decimal(grid.spacing[:2])
        dataset.SliceThickness = "1.0"  # not the distance of the slices
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.25", str(-1024 + k)
        put_pixels(dataset, np.rint((values[:, :, k] + 1024 - k) / 0.25).astype(np.uint16))
        change(dataset, k)
        path = folder / f"IM{numbers[k]:04d}"
        dataset.save_as(path, enforce_file_format=True)
        written.files.append(path)
        written.uids.append(str(dataset.SOPInstanceUID))
        written.datasets.append(dataset)
    return written


def write_multi_frame(
    path: Path, grid: Grid, order: Sequence[int], *, change: Change = lambda _dataset, _index: None
) -> Dataset:
    """Enhanced MR image: frame n is slice order[n], each with its own rescaling."""
    dataset = base_dataset(EnhancedMRImageStorage, "MR", generate_uid(), generate_uid())
    dataset.FrameOfReferenceUID = generate_uid()
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = decimal(grid.spacing[:2]), 1.0
    orientation.ImageOrientationPatient = decimal((*grid.along_row, *grid.down_column))
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames, groups, values = [], [], grid.values()
    for k in order:
        group, position, transformation = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = decimal(grid.place(0, 0, k))
        transformation.RescaleSlope, transformation.RescaleIntercept = "0.25", str(-1024 + k)
        group.PlanePositionSequence = [position]
        group.PixelValueTransformationSequence = [transformation]
        groups.append(group)
        frames.append(np.rint((values[:, :, k] + 1024 - k) / 0.25).astype(np.uint16))
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = len(order)
    put_pixels(dataset, np.stack(frames))
    change(dataset, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def write_picture(
    path: Path,
    values: NDArray[Any],
    *,
    photometric: str = "MONOCHROME2",
    bits: int | None = None,
    **tags: Any,
) -> Dataset:
    """An X-ray (grey) or a screen shot (row, column, 3) that does not say where it lies."""
    colour = values.ndim == 3
    kind = SecondaryCaptureImageStorage if colour else DigitalXRayImageStorageForPresentation
    dataset = base_dataset(kind, "ES" if colour else "DX", generate_uid(), generate_uid())
    put_pixels(dataset, values, photometric, bits)
    for key, value in tags.items():
        setattr(dataset, key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def base_dataset(kind: str, modality: str, series: str, study: str) -> FileDataset:
    """What every image has."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = series, study, modality
    dataset.PatientID, dataset.PatientName = "P1", "Doe^Jane"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyDate = "19700101", "F", "20240102"
    dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "101010", "7", "A1"
    return dataset


def put_pixels(
    dataset: Dataset, values: NDArray[Any], photometric: str = "MONOCHROME2", bits: int | None = None
) -> None:
    """Store (row, column), (frame, row, column) or (row, column, 3)."""
    colour = values.ndim == 3 and photometric == "RGB"
    dataset.Rows, dataset.Columns = values.shape[:2] if colour else values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    dataset["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"


def decimal(values: Sequence[float]) -> list[str]:
    """As DICOM writes numbers, in at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]


def lps(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(i, j, k, 3): place of every voxel in LPS+ mm by an affine to RAS+ mm."""
    indices = np.moveaxis(np.indices(shape), 0, -1)
    return (indices @ affine[:3, :3].T + affine[:3, 3]) * LPS_TO_RAS


def assert_lies_right(image: NDArray[Any], affine: NDArray[np.float64], grid: Grid) -> None:
    """Every voxel of (i, j, k) holds what its place says; intensities were rounded to a quarter."""
    rows, columns, slices = grid.shape
    assert sorted(image.shape) == sorted((columns, rows, slices))
    places = lps(image.shape, affine)
    np.testing.assert_allclose(image, grid.intensity(places), atol=0.126)
    expected = grid.place(*np.indices(grid.shape)).reshape(-1, 3)
    found = places.reshape(-1, 3)
    np.testing.assert_allclose(_sorted(found), _sorted(expected), atol=1e-6)


def _sorted(places: NDArray[np.float64]) -> NDArray[np.float64]:
    rounded = np.round(places, 5) + 0.0
    return places[np.lexsort(rounded.T)]


def changed(grid: Grid, **changes: Any) -> Grid:
    """The grid with other fields."""
    return replace(grid, **changes)
