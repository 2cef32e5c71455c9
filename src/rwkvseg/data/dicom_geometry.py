"""Where the slices of a DICOM series lie: sorted along their normal, checked, and their affine.

DICOM's patient coordinates are LPS+ mm, ours RAS+. The pixel of row r and column c of a slice lies at
position + c * between_columns * along_row + r * between_rows * down_column (PS3.3 C.7.6.2.1.1). File names
and instance numbers are not looked at.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.errors import GeometryError
from rwkvseg.wording import counted

Vector = NDArray[np.float64]

SAME_TOLERANCE = 1e-4  # of directions and pixel spacings within a series: 0.05 mm over 500 pixels or mm
LENGTH_TOLERANCE = 1e-3  # of directions that should be unit vectors; scanners round them to three decimals
STEP_TOLERANCE = 0.05  # of a voxel: positions are written with few decimals
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Plane:
    """Place of one slice in LPS+ mm."""

    name: str
    """For messages: its file, and the frame where the file has several."""
    shape: tuple[int, int]
    """Rows and columns."""
    position: tuple[float, float, float]
    """Centre of the first pixel (ImagePositionPatient)."""
    orientation: tuple[float, float, float, float, float, float]
    """Unit vectors along a row and down a column (ImageOrientationPatient)."""
    spacing: tuple[float, float]
    """Distance between rows and between columns (PixelSpacing, in its order)."""


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Slices in order, as the volume (i, j, k): column, row, slice."""

    order: tuple[int, ...]
    """Index of the plane that each slice k is."""
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    """(4, 4): (i, j, k) to RAS+ mm, right-handed; sheared where slices are shifted against each other."""
    tilt: float
    """Degrees between the direction of the slices and their normal, as a tilted gantry leaves them; 0 where
    the shift over all slices is below half a pixel."""


def stack_planes(planes: Sequence[Plane], name: str, thickness: float = 1.0) -> Stack:
    """Order slices along their normal and find their common affine.

    Args:
        planes: in any order.
        name: of the series, for messages.
        thickness: mm, the third spacing of a single slice.

    Raises:
        GeometryError: sizes, orientations or pixel spacings differ; two slices at one place; gaps that are
            not even, as a missing slice leaves them; slices that do not lie on a line.
    """
    _require_same(planes, name)
    along_row, down_column = _directions(planes[0], name)
    normal = np.cross(along_row, down_column)
    positions = np.array([plane.position for plane in planes])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    heights, positions = heights[order], positions[order]
    between_rows, between_columns = planes[0].spacing
    step = normal * thickness
    if len(planes) > 1:
        ordered = [planes[index] for index in order]
        _require_even_gaps(heights, ordered, name)
        step = (positions[-1] - positions[0]) / (len(planes) - 1)
        _require_line(positions, step, ordered, name)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * between_columns, down_column * between_rows
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    rows, columns = planes[0].shape
    return Stack(
        order=tuple(int(index) for index in order),
        shape=(columns, rows, len(planes)),
        affine=LPS_TO_RAS @ affine,
        tilt=_tilt(step, normal, (len(planes) - 1) / (0.5 * min(planes[0].spacing))),
    )


def _require_same(planes: Sequence[Plane], name: str) -> None:
    _refuse_several(Counter(f"{plane.shape[0]} x {plane.shape[1]} pixels" for plane in planes), name)
    for what in ("orientation", "spacing"):
        kinds: dict[tuple[float, ...], int] = defaultdict(int)
        for plane in planes:
            value = getattr(plane, what)
            like = (kind for kind in kinds if np.allclose(kind, value, rtol=0, atol=SAME_TOLERANCE))
            kinds[next(like, value)] += 1
        counts = {f"{what} {_numbers(kind)}": number for kind, number in kinds.items()}
        _refuse_several(counts, name)


def _refuse_several(counts: Any, name: str) -> None:
    if len(counts) > 1:
        told = ", ".join(f"{number} of {kind}" for kind, number in list(counts.items())[:4])
        raise GeometryError(
            f"{name} holds slices of {len(counts)} kinds: {told}. It is a scout, or several volumes in one: "
            "leave it out, or put each kind into a series of its own."
        )


def _directions(plane: Plane, name: str) -> tuple[Vector, Vector]:
    along_row, down_column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    lengths = float(np.linalg.norm(along_row)), float(np.linalg.norm(down_column))
    skew = max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(along_row @ down_column)))
    if not skew <= LENGTH_TOLERANCE:  # also of NaN
        raise GeometryError(
            f"{name}: the ImageOrientationPatient {_numbers(plane.orientation)} of {plane.name} is not two "
            "unit vectors at a right angle. Export the series again."
        )
    if not (min(plane.spacing) > 0 and np.isfinite([*plane.spacing, *plane.position]).all()):
        raise GeometryError(
            f"{name}: {plane.name} states a pixel spacing of {_numbers(plane.spacing)} mm at "
            f"{_numbers(plane.position)}. Export the series again."
        )
    return along_row, down_column


def _require_even_gaps(heights: Vector, ordered: Sequence[Plane], name: str) -> None:
    """Heights: position of the slices along their normal in mm, ascending."""
    gaps = np.diff(heights)
    same = gaps <= 1e-3 * min(ordered[0].spacing)
    if same.any():
        places = len(heights) - int(same.sum())
        first = int(np.argmax(same))
        raise GeometryError(
            f"{name} has {len(heights)} slices at {counted(places, 'place')}: {ordered[first].name} and "
            f"{ordered[first + 1].name} both lie at {heights[first]:.4g} mm along the normal. "
            "These are copies, or several volumes in one series (times, echoes, b-values): keep one of each."
        )
    step = float(np.median(gaps))
    uneven = np.flatnonzero(np.abs(gaps - step) > STEP_TOLERANCE * step)
    if not len(uneven):
        return
    told = [
        f"{gaps[k]:.4g} mm from {heights[k]:.4g} mm ({ordered[k].name}) to {heights[k + 1]:.4g} mm "
        f"({ordered[k + 1].name})"
        for k in uneven[:3]
    ]
    more = f", and {len(uneven) - 3} more" if len(uneven) > 3 else ""
    raise GeometryError(
        f"{name} has {len(heights)} slices {step:.4g} mm apart, but {'; '.join(told)}{more}. Slices are "
        "missing or lie unevenly: fetch the whole series again, or resample it to even distances."
    )


def _require_line(positions: Vector, step: Vector, ordered: Sequence[Plane], name: str) -> None:
    on_line = positions[0] + np.arange(len(positions))[:, None] * step
    off = np.linalg.norm(positions - on_line, axis=1)
    voxel = min(*ordered[0].spacing, float(np.linalg.norm(step)))
    worst = int(off.argmax())
    if off[worst] > STEP_TOLERANCE * voxel:
        raise GeometryError(
            f"{name}: {ordered[worst].name} lies {off[worst]:.4g} mm off the line of even steps from the "
            f"first slice to the last, the shortest side of a voxel is {voxel:.4g} mm. No affine fits: "
            "resample the series."
        )


def _tilt(step: Vector, normal: Vector, steps_a_half_pixel: float) -> float:
    height = float(step @ normal)
    aside = float(np.linalg.norm(step - height * normal))
    return float(np.degrees(np.arctan2(aside, height))) if aside * steps_a_half_pixel > 1 else 0.0


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.5g}" for value in values) + ")"
