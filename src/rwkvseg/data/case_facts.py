"""What a fingerprint knows of one case, a few hundred bytes."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from rwkvseg.data.case import Case
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.intensity_statistics import BLOCK
from rwkvseg.data.reading import read_geometry
from rwkvseg.data.volumes import nonzero_box


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """Geometry and labels of one case; axes are the file's."""

    id: str
    part: str | None
    group: str | None
    checksums: dict[str, str]
    """SHA-256 of its files, as in the cases.json of a run."""
    shape: tuple[int, ...]
    channels: int
    dtype: str
    """Of the image as it is stored."""
    spacing: tuple[float, ...] | None
    orientation: str | None
    """Axis codes such as RAS."""
    voxels: dict[int, int]
    """Label value -> voxels or pixels, background included."""
    box: tuple[int, ...] | None
    """Sides of the smallest box that holds all labelled voxels; None where there are none."""
    inner: tuple[int, ...]
    """Sides of the smallest box that holds all intensities other than 0."""
    labelled_outside: int
    """Labelled voxels that lie outside of that box."""

    @property
    def box_share(self) -> float | None:
        """Share of the image that the labelled box takes."""
        return None if self.box is None else float(np.prod(self.box) / np.prod(self.shape))

    @property
    def inner_share(self) -> float:
        """Share of the image within its border of zeros."""
        return float(np.prod(self.inner) / np.prod(self.shape))

    @property
    def slice_axis(self) -> int:
        """Axis along which a volume is cut into slices, as `preprocessing.slice_axis` without a recipe's."""
        if self.spacing is None:
            return len(self.shape) - 1
        lengths = [round(mm, 4) for mm in self.spacing]
        return len(lengths) - 1 - lengths[::-1].index(max(lengths))

    def sliced(self) -> Self:
        """A volume as the pictures that it is cut into: sizes within the slices, no geometry; voxels stay."""
        box = None if self.box is None else self._without_axis(self.box)
        shape, inner = (self._without_axis(sides) for sides in (self.shape, self.inner))
        return replace(self, shape=shape, inner=inner, box=box, spacing=None, orientation=None)

    def _without_axis(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        return sides[: self.slice_axis] + sides[self.slice_axis + 1 :]

    def as_object(self) -> dict[str, Any]:
        """Fields for JSON; what is not known is left out."""
        content = {
            "id": self.id,
            "part": self.part,
            "group": self.group,
            "size": list(self.shape),
            "channels": self.channels,
            "type": self.dtype,
            "spacing_mm": None if self.spacing is None else [round(mm, 6) for mm in self.spacing],
            "orientation": self.orientation,
            "voxels": {str(value): number for value, number in sorted(self.voxels.items())},
            "labelled_box": None if self.box is None else list(self.box),
            "nonzero_box": list(self.inner),
            "sha256": self.checksums,
        }
        return {key: value for key, value in content.items() if value is not None}


def gather_facts(files: CaseFiles, case: Case, checksums: dict[str, str]) -> CaseFacts:
    """Look at a case that was read, with its label, from `files`."""
    stored = read_geometry(files)  # volumes are read as float32, whatever their type
    label = case.label
    assert label is not None, case.id
    labelled = label != 0
    total = int(np.count_nonzero(labelled))
    inner = nonzero_box(case.image)
    within = int(np.count_nonzero(labelled[tuple(slice(*side) for side in inner)]))
    return CaseFacts(
        id=case.id,
        part=files.part,
        group=files.group,
        checksums=checksums,
        shape=case.spatial_shape,
        channels=len(case.image),
        dtype=str((stored or case).image.dtype),
        spacing=case.spacing,
        orientation=None if case.affine is None else "".join(map(str, aff2axcodes(case.affine))),
        voxels=count_values(label),
        box=_sides(nonzero_box(labelled[None])) if total else None,
        inner=_sides(inner),
        labelled_outside=total - within,
    )


def count_values(label: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Value -> number of voxels that have it, for the values that occur.

    >>> count_values(np.array([[0, 2], [2, 2]]))
    {0: 1, 2: 3}
    """
    counts: Counter[int] = Counter()
    flat = label.ravel(order="K")
    for start in range(0, flat.size, BLOCK):  # `unique` of a whole volume sorts it, `bincount` copies it
        values, numbers = np.unique(flat[start : start + BLOCK], return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return dict(sorted(counts.items()))


def _sides(box: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)
