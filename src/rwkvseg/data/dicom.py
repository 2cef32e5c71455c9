"""DICOM: files of a series in, a volume (C, i, j, k) or a picture (C, row, column) out.

A volume's axes are column, row and slice: the order in which DICOM stores them, as NiBabel's (i, j, k) is
that of NIfTI. Slices go along their normal, so the axes are right-handed. A single image that does not say
where it lies (an X-ray, a screen shot) is a picture.
"""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from rwkvseg.data.dicom_geometry import Stack, stack_planes
from rwkvseg.data.dicom_headers import Instance, read_instance
from rwkvseg.data.dicom_pixels import read_frames, read_picture_frame, read_slices
from rwkvseg.data.notices import say_once
from rwkvseg.errors import DataError, GeometryError
from rwkvseg.memory import available_memory, show_size
from rwkvseg.wording import counted

Grid = tuple[tuple[float, ...], NDArray[np.float64]]


class Series:
    """Files of one series, in order and checked; no pixel is read before `read`.

    Args:
        instances: of one series, in any order.

    Raises:
        DataError: no volume and no picture.
        GeometryError: the slices make no volume, see `stack_planes`.
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.name = _name(instances)
        self.instances = instances = _without_copies(instances, self.name)
        self.stack = _stack(instances, self.name)

    @classmethod
    def from_files(cls, paths: Sequence[Path]) -> "Series":
        """Read the headers of the files of one series.

        Raises:
            UnreadableFileError, MissingExtraError, DataError, GeometryError: as above.
        """
        found = {path: read_instance(path) for path in paths}
        empty = next((path for path, instance in found.items() if instance is None), None)
        if empty is not None:
            raise DataError(f"{empty} holds no image. Leave it out.")
        return cls([instance for instance in found.values() if instance is not None])

    @property
    def files(self) -> tuple[Path, ...]:
        """In the order of the slices."""
        owners = [instance.path for instance in self.instances for _ in instance.planes or (None,)]
        order = (0,) if self.stack is None else self.stack.order
        return tuple(dict.fromkeys(owners[index] for index in order))

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """(i, j, k), or (row, column) of a picture."""
        return self.instances[0].shape[1:] if self.stack is None else self.stack.shape

    @property
    def grid(self) -> Grid | None:
        """Spacing in mm and affine to RAS+ mm; None of a picture."""
        if self.stack is None:
            return None
        return tuple(float(mm) for mm in voxel_sizes(self.stack.affine)), self.stack.affine

    def read(self) -> NDArray[Any]:
        """Read the image (1, i, j, k) float32, or the picture (C, row, column) uint8, uint16 or float32.

        Raises:
            UnreadableFileError: a file is truncated, damaged or of another size than its header says.
            DataError: more than memory, or as `read_slices` and `read_picture_frame`.
        """
        self._require_memory()
        if self.stack is None:
            return read_picture_frame(self.instances[0])
        place = {plane: k for k, plane in enumerate(self.stack.order)}
        slices = (values for instance in self.instances for values in read_slices(instance))
        first = next(slices)  # before memory is taken for what headers claim
        image = np.empty((1, *self.stack.shape), np.float32, order="F")  # a slice is one block of memory
        for index, values in enumerate(chain((first,), slices)):
            image[0, :, :, place[index]] = values.T
        return image

    def _require_memory(self) -> None:
        largest = max(instance.path.stat().st_size for instance in self.instances)
        needed, available = 4 * math.prod(self.spatial_shape) + largest, available_memory()
        if needed > available:
            size = " x ".join(map(str, self.spatial_shape))
            raise DataError(
                f"{self.name} holds {size} voxels, which take {show_size(needed)} of memory to read, this "
                f"machine has {show_size(available)}. Cut it, or use a larger machine."
            )


def _name(instances: Sequence[Instance]) -> str:
    first = instances[0]
    number = f" {first.number}" if first.number else ""
    told = f" ({first.description})" if first.description else ""
    return f"DICOM series{number}{told} in {first.path.parent}"


def _without_copies(instances: Sequence[Instance], name: str) -> list[Instance]:
    """One of each SOPInstanceUID, where the others hold the same pixels."""
    known: dict[str, Instance] = {}
    kept, copies = [], []
    for instance in instances:
        other = known.setdefault(instance.uid, instance) if instance.uid else instance
        if other is instance:
            kept.append(instance)
        elif not _same_image(other, instance):
            raise DataError(
                f"{name}: {other.path.name} and {instance.path.name} are the same instance ({instance.uid}) "
                "with different contents. Keep the right one."
            )
        else:
            copies.append(instance.path.name)
    if copies:
        some = ", ".join(copies[:3]) + (", ..." if len(copies) > 3 else "")
        say_once(f"{name}: {counted(len(copies), 'copy', 'copies')} passed over: {some}")
    return kept


def _same_image(one: Instance, other: Instance) -> bool:
    same_place = [plane.position for plane in one.planes] == [plane.position for plane in other.planes]
    if not same_place or one.shape != other.shape or one.scalings != other.scalings:
        return False
    pairs = zip(read_frames(one), read_frames(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _stack(instances: Sequence[Instance], name: str) -> Stack | None:
    """Slices in order; None of a picture, which is a single image that does not say where it lies."""
    first = instances[0]
    if len(instances) == 1 and not first.planes and first.shape[0] == 1:
        return None
    _require_volume(instances, name)
    planes = [plane for instance in instances for plane in instance.planes]
    if first.thickness is None and len(planes) == 1:
        say_once(f"{name}: its only slice states no thickness, 1 mm is taken")
    stack = stack_planes(planes, name, first.thickness or 1.0)
    if stack.tilt:
        say_once(
            f"{name} is sheared by {stack.tilt:.1f} degrees (tilted gantry): its affine carries the shear, "
            "distances and volumes measured by spacing alone are off"
        )
    return stack


def _require_volume(instances: Sequence[Instance], name: str) -> None:
    without = [instance for instance in instances if not instance.planes]
    if without:
        first = without[0]
        frames = f", {first.shape[0]} frames" if first.shape[0] > 1 else ""
        raise DataError(
            f"{name}: {len(without)} of {counted(len(instances), 'file')} without a place in space "
            f"(ImagePositionPatient), such as {first.path.name}{frames}. They make no volume "
            "(a film, or pictures): give single pictures, or leave them out."
        )
    mosaic = next((instance for instance in instances if instance.is_mosaic), None)
    if mosaic is not None:
        raise DataError(
            f"{name}: {mosaic.path.name} is a mosaic, many slices tiled into one image. "
            "Export the series as slices or as an enhanced image, or convert it to NIfTI (dcm2niix)."
        )
    colour = next((instance for instance in instances if instance.is_colour), None)
    if colour is not None:
        raise DataError(
            f"{name}: {colour.path.name} holds colours ({colour.photometric}), volumes hold one number per "
            "voxel. Leave the series out, or convert it to grey."
        )
    references = {instance.reference for instance in instances}
    if len(references) > 1:
        raise GeometryError(
            f"{name} holds slices of {len(references)} frames of reference (FrameOfReferenceUID), so their "
            "places cannot be compared. Put each into a series of its own."
        )
