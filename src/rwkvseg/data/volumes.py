"""Volumes for a volumetric network: orient, crop, normalise, resample, and the way back.

Of an image at most three copies are alive at a time, the reader's among them: orientation and crop are views,
intensities are measured on views and change slab by slab on the way to the new grid, in float32.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from rwkvseg.data.case import Case
from rwkvseg.data.preprocessing import Preprocessing, check_channels
from rwkvseg.data.volume_intensity import apply_scalings, measure_scalings
from rwkvseg.data.volume_resampling import (
    network_shape,
    resample_image,
    resample_label,
    through_plane_axis,
)
from rwkvseg.errors import DataError, GeometryError

Triple: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class VolumeGrid:
    """How a volume's own grid and the network's belong together.

    Own voxels are oriented (`axes`, `flips`), cropped (`box`) and resampled (`network_shape`). On the
    oriented, cropped grid the centres are x_network = (x + 0.5) * n_network / n - 0.5 along every axis.
    """

    shape: Triple
    """Of the case's own grid."""
    axes: Triple
    """Own axis that each oriented axis is."""
    flips: tuple[bool, bool, bool]
    """Whether each oriented axis runs against its own one."""
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    """Start and stop of the crop along the oriented axes."""
    network_shape: Triple
    """Of the network's grid."""

    @property
    def cropped_shape(self) -> Triple:
        """Shape of the oriented, cropped grid."""
        i, j, k = (stop - start for start, stop in self.box)
        return i, j, k

    def oriented(self, values: NDArray[Any]) -> NDArray[Any]:
        """View of `values` (..., *shape), oriented."""
        lead = values.ndim - 3
        turned = values.transpose(*range(lead), *(lead + axis for axis in self.axes))
        i, j, k = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return turned[..., i, j, k]

    def cropped(self, values: NDArray[Any]) -> NDArray[Any]:
        """View of `values` (..., *shape), oriented and cropped; what is written to it lands in `values`."""
        i, j, k = (slice(*side) for side in self.box)
        return self.oriented(values)[..., i, j, k]

    def to_own_index(self) -> NDArray[np.float64]:
        """(4, 4) map of network indices to the case's own: its affine times this is the network grid's."""
        turn, shrink = np.zeros((4, 4)), np.eye(4)
        turn[3, 3] = 1
        for axis in range(3):
            own, flip = self.axes[axis], self.flips[axis]
            turn[own, axis] = -1 if flip else 1
            start = self.box[axis][0]
            turn[own, 3] = self.shape[own] - 1 - start if flip else start
            step = self.cropped_shape[axis] / self.network_shape[axis]
            shrink[axis, axis], shrink[axis, 3] = step, (step - 1) / 2
        return turn @ shrink


def to_network_grid(case: Case, preprocessing: Preprocessing) -> tuple[Case, VolumeGrid]:
    """Bring a volume to the network's grid; its arrays are not changed and not shared.

    Images are interpolated linearly (cubic where the recipe says so) and smoothed before shrinking, along a
    through-plane axis (anisotropy above 3) they take the nearest slice; labels always take the nearest voxel.

    Returns:
        The case, float32 image (channels, *network_shape) with its spacing and affine, and the grids.

    Raises:
        DataError: a picture, channels that do not fit the network, or "ct" without its intensity.
        GeometryError: a spacing or orientation is asked for where the case has no spacing or affine.
    """
    grid = plan_grid(case, preprocessing)
    view = grid.cropped(case.image)
    scalings = measure_scalings(view, preprocessing, case.id)
    label = None if case.label is None else resample_label(grid.cropped(case.label), grid.network_shape)
    spacing = None if case.spacing is None else tuple(case.spacing[axis] for axis in grid.axes)
    image = resample_image(
        view,
        grid.network_shape,
        None if spacing is None else through_plane_axis(spacing, preprocessing.spacing),
        preprocessing.interpolation,
        prepare=lambda slab: apply_scalings(slab, scalings),
    )
    if len(image) < preprocessing.channels:
        image = np.repeat(image, preprocessing.channels, axis=0)
    lengths = zip(spacing or (), grid.cropped_shape, grid.network_shape, strict=False)
    done = Case(
        id=case.id,
        image=image,
        label=label,
        spacing=None if spacing is None else tuple(mm * old / new for mm, old, new in lengths),
        affine=None if case.affine is None else case.affine @ grid.to_own_index(),
    )
    return done, grid


def plan_grid(case: Case, preprocessing: Preprocessing) -> VolumeGrid:
    """Grids of `to_network_grid`, from the case's geometry and, where it is cropped, its image.

    Raises:
        DataError, GeometryError: as `to_network_grid`.
    """
    if len(case.spatial_shape) != 3:
        raise DataError(
            f"case {case.id} is a picture of {case.spatial_shape}, the network takes volumes. "
            "Give NIfTI volumes, or a model for pictures."
        )
    check_channels(case, preprocessing)
    shape: Any = case.spatial_shape
    axes, flips = _orientation(case) if preprocessing.orientation == "RAS" else ((0, 1, 2), (False,) * 3)
    whole: Any = tuple((0, shape[axis]) for axis in axes)
    grid = VolumeGrid(shape, axes, flips, whole, shape)
    box: Any = whole if preprocessing.crop == "none" else nonzero_box(grid.oriented(case.image))
    cropped: Any = tuple(stop - start for start, stop in box)
    if preprocessing.spacing is None:
        return VolumeGrid(shape, axes, flips, box, cropped)
    if case.spacing is None:
        raise GeometryError(
            f"case {case.id} has no spacing, the network wants {preprocessing.spacing} mm. "
            "Give a file whose header states it."
        )
    spacing = [case.spacing[axis] for axis in axes]
    return VolumeGrid(shape, axes, flips, box, network_shape(cropped, spacing, preprocessing.spacing))


def _orientation(case: Case) -> Any:
    """Own axis of each RAS axis, and whether it runs the other way."""
    if case.affine is None:
        raise GeometryError(
            f"case {case.id} has no affine, so its orientation is unknown. "
            "Give a file whose header states it, or use orientation: file."
        )
    orientation = io_orientation(case.affine)  # row: own axis -> RAS axis, direction
    axes = tuple(int(axis) for axis in np.argsort(orientation[:, 0]))
    return axes, tuple(bool(orientation[axis, 1] < 0) for axis in axes)


def nonzero_box(image: NDArray[Any]) -> tuple[tuple[int, int], ...]:
    """Smallest box that holds every value other than 0 of image (C, *spatial): (start, stop) of each axis.

    The whole image where there is none.
    """
    axes = range(image.ndim - 1)
    inside = [np.zeros(length, bool) for length in image.shape[1:]]
    for channel in image:
        something = channel != 0
        for axis, found in enumerate(inside):
            found |= something.any(tuple(other for other in axes if other != axis))
    if not inside[0].any():
        return tuple((0, length) for length in image.shape[1:])
    ends = (np.flatnonzero(found)[[0, -1]] for found in inside)
    return tuple((int(first), int(last) + 1) for first, last in ends)
