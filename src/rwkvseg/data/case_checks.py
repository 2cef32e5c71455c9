"""The files of one case, read one at a time: what is wrong with them, and a trace of the image."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from rwkvseg.data.duplicates import Trace, image_look, pixel_digest
from rwkvseg.data.findings import Finding
from rwkvseg.data.io import (
    PICTURE_SUFFIXES,
    Affine,
    as_integers,
    case_suffix,
    read_stored_image,
    read_stored_label,
)
from rwkvseg.data.listing import FoundCase
from rwkvseg.data.pictures import exif_orientation
from rwkvseg.data.reading import AFFINE_TOLERANCE, is_binary, label_values
from rwkvseg.errors import DataError, GeometryError, LabelError

TRUNCATED = re.compile(
    r"truncated|ended before|end of file|unexpected end|expected \d+ bytes|header claims|is empty",
    re.IGNORECASE,
)


@dataclass(slots=True)
class CheckedCase:
    """Findings about one case, the values in its label map, and what its image looked like."""

    found: FoundCase
    root: Path
    known: Mapping[str, int] | None
    findings: list[Finding] = field(default_factory=list)
    values: set[int] = field(default_factory=set)
    trace: Trace | None = None

    def find(self, kind: str, path: Path, what: str, cure: str) -> None:
        """Add a finding about one of the files."""
        self.findings.append(Finding(kind, what, cure, (self.found.id,), self.inside(path)))

    def inside(self, path: Path) -> str:
        """Path within the data folder; as it is of a file outside."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


@dataclass(frozen=True, slots=True)
class _Grid:
    path: Path
    shape: tuple[int, ...]
    affine: Affine | None


def _check_orientation(checked: CheckedCase, path: Path) -> None:
    """Find pictures that a viewer shows turned, while their pixels are taken as they lie in the file."""
    number = exif_orientation(path) if case_suffix(path) in PICTURE_SUFFIXES else 1
    if number != 1:
        checked.find(
            "orientation",
            path,
            f"by its EXIF tag (orientation {number}, not applied here) viewers turn or mirror it",
            "Check that the mask fits the pixels as stored; or save the picture turned, without the tag",
        )


def check_case(
    found: FoundCase, root: Path, known: Mapping[str, int] | None, part: str | None
) -> CheckedCase:
    """Read each file of a case and list its faults; at most one array is held at a time.

    Args:
        found: the case's files.
        root: the data folder, which the findings leave out of paths.
        known: label name -> value, or None where nothing names them.
        part: of the split, for the trace.
    """
    checked = CheckedCase(found, root, known)
    grid, digest, look, whole = None, b"", None, bool(found.images)
    for path in found.images:
        try:
            image, _, affine = read_stored_image(path, channels_last=found.channels_last)
        except DataError as error:
            _explain(checked, path, error)
            whole = False
            continue
        _check_orientation(checked, path)
        grid = _compare(checked, grid, _Grid(path, image.shape[1:], affine))
        plain = _check_intensities(checked, path, image)
        digest = pixel_digest(image, digest)
        if path == found.images[0] and plain:
            look = image_look(image)
        del image
    if whole and grid is not None:
        checked.trace = Trace(found.id, part, digest, look, len(grid.shape))
    _check_labels(checked, grid)
    return checked


def _check_intensities(checked: CheckedCase, path: Path, image: NDArray[Any]) -> bool:
    """Find NaN, infinity and constant images; whether all values are finite."""
    counts = _non_finite(image)
    for kind, number in counts.items():
        what = f"{kind_name(kind)} in {number} of {image.size} {_cells(image[0])} of the image"
        checked.find(kind, path, what, "Replace them, for instance by the background's intensity")
    if not counts and image.min() == image.max():
        what = f"every {_cells(image[0])[:-1]} of the image is {image.flat[0]:g}"
        checked.find("constant_image", path, what, "Export the image again, or take the case out")
    return not counts


def _check_labels(checked: CheckedCase, grid: _Grid | None) -> None:
    read, empty = False, True
    for path in checked.found.labels:
        try:
            stored, affine = read_stored_label(path, two_labels=is_binary(checked.known))
            _compare(checked, grid, _Grid(path, stored.shape, affine))
            counts = _non_finite(stored)
            for kind, number in counts.items():
                what = f"{kind_name(kind)} in {number} of {stored.size} {_cells(stored)} of the label map"
                checked.find(kind, path, what, "Replace them by 0 or a label")
            values = set() if counts else set(label_values(as_integers(stored, path)))
        except DataError as error:
            _explain(checked, path, error)
            continue
        if not counts:
            read, empty = True, empty and values <= {0}
            _check_values(checked, path, values)
        else:
            empty = False
        del stored
    if read and empty:
        cure = "Right where there is nothing to mark; else mark it, or take the case out"
        checked.find("empty_mask", checked.found.labels[0], "the label map holds background only", cure)


def _check_values(checked: CheckedCase, path: Path, values: set[int]) -> None:
    checked.values |= values
    if checked.known is None or checked.found.instances:
        return
    known = set(checked.known.values())
    if known == {0, 1} and values <= {0, 255}:  # which the readers take as 0 and 1
        return
    unknown = sorted(values - known)
    if unknown:
        some = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        named = ", ".join(f"{value} {name}" for name, value in checked.known.items())
        what = f"the label map holds {some}, which no label has; known are {named}"
        checked.find("unknown_label", path, what, "Add the label to dataset.json, or mend the label map")


def _compare(checked: CheckedCase, first: _Grid | None, other: _Grid) -> _Grid:
    """Compare two files' grids; the first is the measure, and returned."""
    if first is None:
        return other
    if other.shape != first.shape:
        what = f"is {_size(other.shape)}, {checked.inside(first.path)} is {_size(first.shape)}"
        checked.find(
            "size", other.path, what, "Resample one to the other's grid (labels by nearest neighbour)"
        )
    if other.affine is not None and first.affine is not None:
        _compare_affines(checked, first, other)
    return first


def _compare_affines(checked: CheckedCase, first: _Grid, other: _Grid) -> None:
    assert first.affine is not None
    assert other.affine is not None
    limit = f"(tolerance {AFFINE_TOLERANCE:g} mm)"
    spacings = voxel_sizes(first.affine), voxel_sizes(other.affine)
    if np.abs(spacings[0] - spacings[1]).max() > AFFINE_TOLERANCE:
        here, there = (" x ".join(f"{mm:.6g}" for mm in spacing) for spacing in spacings[::-1])
        what = f"has a spacing of {here} mm, {checked.inside(first.path)} of {there} mm {limit}"
        cure = "Resample the label to the image's grid, or mend the header that is wrong"
        checked.find("spacing", other.path, what, cure)
        return  # its affine differs in consequence
    difference = float(np.abs(first.affine - other.affine).max())
    if difference > AFFINE_TOLERANCE:
        measure = checked.inside(first.path)
        what = f"its affine differs from that of {measure} by up to {difference:.6g} mm {limit}"
        cure = "Resample it to the same grid, or mend the header that is wrong"
        checked.find("affine", other.path, what, cure)


def _explain(checked: CheckedCase, path: Path, error: DataError) -> None:
    """Turn a reader's error into a finding; its last sentence is the cure."""
    what, _, cure = str(error).replace(f"{path} ", "").replace(f" {path}", "").rpartition(". ")
    if path.is_file() and path.stat().st_size == 0:
        what = "the file is empty: 0 bytes"
    kind = "unreadable"
    if isinstance(error, LabelError):
        kind = "label_values"
    elif isinstance(error, GeometryError):
        kind = "spacing" if "spacing" in what else "affine"
    elif TRUNCATED.search(what):
        kind = "truncated"
    checked.find(kind, path, what, cure.rstrip("."))


def _non_finite(values: NDArray[Any]) -> dict[str, int]:
    """Number of NaN and of infinite values, those that occur."""
    if values.dtype.kind != "f":
        return {}
    bad = values[~np.isfinite(values)]
    nan = int(np.isnan(bad).sum())
    return {kind: number for kind, number in (("nan", nan), ("inf", bad.size - nan)) if number}


def kind_name(kind: str) -> str:
    """How NaN and infinity are called in a sentence."""
    return {"nan": "NaN", "inf": "infinity"}[kind]


def _cells(grid: NDArray[Any]) -> str:
    return "pixels" if grid.ndim == 2 else "voxels"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
