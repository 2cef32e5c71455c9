"""Files of one case in, a checked Case out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.arrays import array_header
from rwkvseg.data.case import Case
from rwkvseg.data.dicom import Series
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.io import Affine, Label, holds_arrays, is_volume, read_image, read_label
from rwkvseg.data.nifti import read_nifti_header
from rwkvseg.data.notices import say_once
from rwkvseg.errors import GeometryError, LabelError

WHITE = 255  # of black and white masks, which count as label 1 under two labels
AFFINE_TOLERANCE = 1e-3  # float32 headers and other tools' rounding stay far below, a wrong grid far above


def read_case(files: CaseFiles, labels: Mapping[str, int] | None = None, *, with_label: bool = True) -> Case:
    """Read a case, its channels stacked, its label checked.

    Args:
        files: where the case lies.
        labels: name -> value; every value of the label map must be known. A label map of 0 and 255 under two
            labels 0 and 1 is taken as 0 and 1, and the log says so once.
        with_label: whether to read the label, if there is one.

    Raises:
        GeometryError: image, label or channels differ in size, or in affine by more than 1e-3.
        LabelError: values that `labels` do not know.
        DataError: as `rwkvseg.data.io.read_image`.
    """
    read = _read_channels if files.series is None else _read_series
    image, spacing, affine = read(files)
    label = _read_label(files, image.shape[1:], affine, labels) if with_label and files.label else None
    return Case(id=files.id, image=image, label=label, spacing=spacing, affine=affine)


def read_geometry(files: CaseFiles) -> Case | None:
    """Case of a volume whose voxels are not read: its image is zeros of the stored type that take no memory.

    Returns:
        The case, or None of a picture.

    Raises:
        DataError: as `read_case`, as far as the header of the first channel tells.
    """
    if files.series is not None:
        return _series_geometry(files)
    if not is_volume(files.images[0]):
        return None
    if holds_arrays(files.images[0]):
        shape, dtype = array_header(files.images[0])
        return Case(id=files.id, image=np.broadcast_to(np.zeros((), dtype), (1, *shape)))
    header = read_nifti_header(files.images[0], channels_last=files.channels_last)
    channels = max(header.channels, len(files.images))
    image = np.broadcast_to(np.zeros((), header.dtype), (channels, *header.shape))
    return Case(id=files.id, image=image, spacing=header.spacing, affine=header.affine)


def read_to_show(files: CaseFiles) -> tuple[NDArray[Any], Affine | None]:
    """Image (C, *spatial) and affine of a case for pictures of it: its first file, or its DICOM series.

    Raises:
        DataError, UnreadableFileError: as `read_case`.
    """
    if files.series is not None:
        image, _, affine = _read_series(files)
    else:
        image, _, affine = read_image(files.images[0], channels_last=True)
    return image, affine


def read_case_label(files: CaseFiles, labels: Mapping[str, int] | None = None) -> tuple[Label, Affine | None]:
    """Read the label map of a case and its affine: as in its file, joined and numbered masks as one.

    What numbered masks mark is 1; what joined ones mark is 255 where they are black and white, else 1. With
    two `labels` lossy masks are taken as black and white; values are not checked.

    Raises:
        GeometryError: masks of one image that differ in size.
        LabelError, DataError: as `rwkvseg.data.io.read_label`.
    """
    assert files.label is not None
    two_labels = is_binary(labels)
    label, affine = read_label(files.label, two_labels=two_labels)
    if not files.joined and not files.instances:
        return label, affine
    marked, highest = label != 0, int(label.max())
    for path in files.joined:
        other, _ = read_label(path, two_labels=two_labels)
        _require_same_grid(path, other.shape, None, files.label, (label.shape, None))
        marked |= other != 0
        highest = max(highest, int(other.max()))
    # the same value as in the set's other masks, so that their values stay those of one convention
    value = WHITE if highest == WHITE and not files.instances else 1
    return marked.astype(np.uint8) * np.uint8(value), affine


def is_binary(labels: Mapping[str, int] | None) -> bool:
    """Whether there are two labels, 0 and 1."""
    return labels is not None and set(labels.values()) == {0, 1}


def label_values(label: Label) -> tuple[int, ...]:
    """Values that occur in a label map, ascending."""
    if label.size == 0:
        return ()
    low, high = int(label.min()), int(label.max())
    if not ((label != low) & (label != high)).any():  # most masks: nothing needs to be counted
        return (low,) if low == high else (low, high)
    if low >= 0 and high <= 65535:
        return tuple(int(value) for value in np.flatnonzero(np.bincount(label.ravel(order="K"))))
    return tuple(int(value) for value in np.unique(label))


def _read_channels(files: CaseFiles) -> tuple[NDArray[Any], tuple[float, ...] | None, Affine | None]:
    image, spacing, affine = read_image(files.images[0], channels_last=files.channels_last)
    channels = [image]
    for path in files.images[1:]:
        other, _, other_affine = read_image(path)
        _require_same_grid(path, other.shape[1:], other_affine, files.images[0], (image.shape[1:], affine))
        channels.append(other)
    return image if len(channels) == 1 else np.concatenate(channels), spacing, affine


def _read_series(files: CaseFiles) -> tuple[NDArray[Any], tuple[float, ...] | None, Affine | None]:
    series = Series.from_files(files.images)
    return series.read(), *(series.grid or (None, None))


def _series_geometry(files: CaseFiles) -> Case | None:
    series = Series.from_files(files.images)
    if series.grid is None:
        return None
    spacing, affine = series.grid
    image = np.broadcast_to(np.zeros((), np.int16), (1, *series.spatial_shape))
    return Case(id=files.id, image=image, spacing=spacing, affine=affine)


def _read_label(
    files: CaseFiles, shape: tuple[int, ...], affine: Affine | None, labels: Mapping[str, int] | None
) -> Label:
    assert files.label is not None
    label, label_affine = read_case_label(files, labels)
    _require_same_grid(files.label, label.shape, label_affine, files.images[0], (shape, affine))
    return label if labels is None else check_label_values(label, labels, files.label)


def _require_same_grid(
    path: Path,
    shape: tuple[int, ...],
    affine: Affine | None,
    reference: Path,
    grid: tuple[tuple[int, ...], Affine | None],
) -> None:
    if shape != grid[0]:
        raise GeometryError(
            f"{path} has size {_size(shape)}, {reference} has {_size(grid[0])}. "
            "Resample one of them so that both have the same grid (labels by nearest neighbour)."
        )
    if affine is None or grid[1] is None:
        return
    difference = float(np.abs(affine - grid[1]).max())
    if difference > AFFINE_TOLERANCE:
        raise GeometryError(
            f"the affine of {path} differs from that of {reference} by up to {difference:.4g} mm. "
            "Resample the label to the image's grid, or mend the header that is wrong."
        )


def check_label_values(label: Label, labels: Mapping[str, int], path: Path) -> Label:
    """Return the label map, 0 and 255 taken as 0 and 1 under two labels; `path` is for the message.

    Raises:
        LabelError: values that `labels` do not know.
    """
    values = label_values(label)
    known = set(labels.values())
    if 255 in values and set(values) <= {0, 255} and known == {0, 1}:
        say_once("masks hold 0 and 255: 255 is taken as label 1")
        binary: Label = (label == 255).astype(np.uint8)
        return binary
    unknown = [value for value in values if value not in known]
    if unknown:
        listed = ", ".join(f"{value} {name}" for name, value in labels.items())
        raise LabelError(
            f"label map {path} holds {_first(unknown)}, which no label has; known are {listed}. "
            "Add the label to dataset.json or the recipe, or mend the label map."
        )
    return label


def _first(values: list[int]) -> str:
    return ", ".join(str(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
