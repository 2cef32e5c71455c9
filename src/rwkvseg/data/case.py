"""Case: one image with its label and geometry, in one array layout for pictures and volumes."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from rwkvseg.errors import GeometryError


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One image, its label and where its voxels lie (docs/adr/0002).

    Pictures have the axes (row, column), no spacing and no affine; volumes keep NiBabel's order (i, j, k) and
    nothing is transposed between file and network.

    Raises:
        GeometryError: image, label, spacing and affine do not fit each other.

    >>> Case("x", np.zeros((3, 4, 5), np.uint8))
    Case(id='x', image=3 x (4, 5) uint8, label=none, spacing=none, orientation=none, 60 B)
    """

    id: str
    """Unique name within its data folder; also the stem of the prediction's file."""
    image: NDArray[Any]
    """(C, *spatial) intensities."""
    label: NDArray[np.integer[Any]] | None = None
    """(*spatial) label values, or None where nothing is annotated."""
    spacing: tuple[float, ...] | None = None
    """Distance in mm between neighbours along each spatial axis."""
    affine: NDArray[np.float64] | None = None
    """(4, 4) map of voxel indices (i, j, k) to RAS+ mm."""

    def __post_init__(self) -> None:
        shape = self.spatial_shape
        if self.image.ndim not in (3, 4):
            raise GeometryError(
                f"case {self.id}: image has shape {self.image.shape}. "
                "Give it one channel axis and 2 or 3 spatial axes."
            )
        if 0 in self.image.shape:
            raise GeometryError(
                f"case {self.id}: image has shape {self.image.shape}, so no pixels. Give each axis some."
            )
        if self.label is not None and self.label.shape != shape:
            raise GeometryError(
                f"case {self.id}: label has shape {self.label.shape}, image has {shape}. "
                "Resample the label to the image's grid."
            )
        if self.spacing is not None and (len(self.spacing) != len(shape) or not _all_positive(self.spacing)):
            raise GeometryError(
                f"case {self.id}: spacing {self.spacing} does not fit {len(shape)} axes. "
                "Give one positive number of mm per axis."
            )
        if self.affine is not None and (self.affine.shape != (4, 4) or not np.isfinite(self.affine).all()):
            raise GeometryError(
                f"case {self.id}: affine must be 4 x 4 finite numbers. Mend the file's header."
            )

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Shape without the channel axis."""
        return self.image.shape[1:]

    def replace(self, **changes: Any) -> Self:
        """Copy with some fields changed; the arrays that are not named are shared."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        label = "none" if self.label is None else str(self.label.dtype)
        spacing = "none" if self.spacing is None else " x ".join(f"{mm:.4g}" for mm in self.spacing) + " mm"
        axes = ("none",) if self.affine is None else aff2axcodes(self.affine)
        memory = self.image.nbytes + (0 if self.label is None else self.label.nbytes)
        image = f"{len(self.image)} x {self.spatial_shape} {self.image.dtype}"
        return (
            f"Case(id={self.id!r}, image={image}, label={label}, spacing={spacing}, "
            f"orientation={''.join(str(axis) for axis in axes)}, {_readable(memory)})"
        )


def _all_positive(spacing: tuple[float, ...]) -> bool:
    return all(np.isfinite(mm) and mm > 0 for mm in spacing)


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
