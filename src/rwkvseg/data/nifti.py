"""NIfTI volumes through NiBabel, in the file's own axis order (i, j, k)."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from rwkvseg.data.notices import without_warnings
from rwkvseg.errors import DataError, GeometryError, UnreadableFileError, one_line
from rwkvseg.memory import available_memory, show_size
from rwkvseg.output import write_atomically

DAMAGE = (
    OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error,
    ImageFileError, HeaderDataError, WrapStructError,
)  # fmt: skip
NIFTI2_HEADER_SIZE = 540
FORMS = (
    *("sform_code", "srow_x", "srow_y", "srow_z", "qform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)  # and the spacing
DEFLATE_LIMIT = 1032  # deflate cannot compress further


@dataclass(frozen=True, slots=True)
class NiftiHeader:
    """What a file says of its volume before a voxel is read."""

    shape: tuple[int, ...]
    """(i, j, k)."""
    dtype: np.dtype[Any]
    """As stored."""
    affine: NDArray[np.float64]
    """To RAS+ mm."""
    spacing: tuple[float, ...]
    """Length in mm of the affine's columns, so that both always tell the same story."""
    channels: int = 1
    """Length of a fourth axis."""


def read_nifti(
    path: Path, dtype: type[np.float32] | None = None, *, channels_last: bool = False
) -> tuple[NDArray[Any], NDArray[np.float64], tuple[float, ...]]:
    """Read values (i, j, k) with the file's scaling applied, affine to RAS+ mm, and spacing in mm.

    Args:
        path: a `.nii` or `.nii.gz` file.
        dtype: what to convert to; None keeps integers that carry no scaling.
        channels_last: whether a fourth axis is allowed, as of channels; the values are then (C, i, j, k),
            also where there is none.

    Raises:
        UnreadableFileError: truncated (the checksum of a gzip file is verified), damaged or not NIfTI.
        DataError: more than one volume, colours, complex numbers, lengths not in mm, more than memory.
        GeometryError: an affine that maps no volume, or spacings of 0 mm.
    """
    with _opened(path, channels_last=channels_last) as (stream, nifti, header):
        # what overflows in float32 becomes infinite, which `read_image` refuses
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.asanyarray(nifti.dataobj, dtype=dtype)
        while stream.read(1 << 20):  # only at its end does gzip compare the checksum
            pass
    shape = (*header.shape, header.channels) if channels_last else header.shape
    values = values.astype(values.dtype.newbyteorder("="), copy=False).reshape(shape, order="A")
    return np.moveaxis(values, -1, 0) if channels_last else values, header.affine, header.spacing


def read_nifti_header(path: Path, *, channels_last: bool = False) -> NiftiHeader:
    """Read all but the voxels.

    Raises:
        DataError: as `read_nifti`, as far as the header tells.
    """
    with _opened(path, channels_last=channels_last) as (_, _, header):
        return header


@contextmanager
def _opened(path: Path, *, channels_last: bool) -> Iterator[tuple[Any, Any, NiftiHeader]]:
    """Stream, image whose voxels are not read, and its checked header; damage becomes UnreadableFileError."""
    open_stream = _ShortGzip if path.name.lower().endswith(".gz") else _ShortFile
    try:
        with open_stream(path) as stream:
            nifti = _image(stream, path)
            yield stream, nifti, _header(nifti, path, channels_last=channels_last)
    except DAMAGE as error:
        raise UnreadableFileError(
            f"cannot decode {path}: {one_line(error)}. "
            "It is truncated, damaged or not NIfTI; fetch or export it again."
        ) from error


class _ShortFile(io.BufferedReader):
    """File that takes memory for what it holds; Python's takes it for whatever is asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._most = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self._most if size is None or size < 0 else min(size, self._most))


class _ShortGzip(gzip.GzipFile):
    """The same for what is compressed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._most = path.stat().st_size * DEFLATE_LIMIT

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self._most if size is None or size < 0 else min(size, self._most))


@np.errstate(all="ignore")  # what a damaged header makes of its numbers is checked below
def _image(stream: Any, path: Path) -> Any:
    start = stream.read(4)
    is_second = NIFTI2_HEADER_SIZE in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
    kind: Any = nibabel.Nifti2Image if is_second else nibabel.Nifti1Image
    stream.seek(0)
    with without_warnings():  # of odd header extensions, which nobody here reads
        _check_spacing(kind.header_class.from_fileobj(stream, check=False), path)
        stream.seek(0)
        return kind.from_stream(stream)


@np.errstate(all="ignore")  # damaged headers hold all sorts of numbers
def _header(nifti: Any, path: Path, *, channels_last: bool) -> NiftiHeader:
    _check_kind(nifti, path, axes=4 if channels_last else 3)
    _check_size(nifti, path)
    affine = np.asarray(nifti.affine, dtype=np.float64)
    spacing = voxel_sizes(affine)
    if not (np.isfinite(affine).all() and np.isfinite(spacing).all()) or _is_flat(affine):
        raise GeometryError(f"{path} has an affine that maps no volume. Mend its sform or qform.")
    shape = (*nifti.shape[:3], 1, 1)[:3]
    channels = (*nifti.shape[3:4], 1)[0]
    return NiftiHeader(shape, nifti.get_data_dtype(), affine, tuple(float(mm) for mm in spacing), channels)


def _check_spacing(header: Any, path: Path) -> None:
    """Refuse what NiBabel would take for 1 mm."""
    lengths = header["dim"][1 : 1 + min(3, max(0, int(header["dim"][0])))]
    zero = [axis for axis, n in enumerate(lengths) if n > 1 and header["pixdim"][1 + axis] == 0]
    if zero and header["sform_code"] <= 0:
        raise GeometryError(
            f"{path} states a spacing of 0 mm along axis {zero[0]}, and no sform. Mend its pixdim."
        )


def _is_flat(affine: NDArray[np.float64]) -> bool:
    return bool(abs(np.linalg.det(affine[:3, :3])) < 1e-12)


def _check_kind(nifti: Any, path: Path, *, axes: int) -> None:
    shape, kind = nifti.shape, nifti.get_data_dtype()
    if any(length != 1 for length in shape[axes:]):
        raise DataError(
            f"{path} has {len(shape)} axes {shape}, more than one volume. Save one file per channel in the "
            "nnU-Net layout (CASE_0000.nii.gz, CASE_0001.nii.gz), or one per time point."
        )
    if kind.kind not in "iuf":
        raise DataError(f"{path} stores {kind} and not one number per voxel. Export it as plain intensities.")
    if 0 in shape:
        raise DataError(f"{path} has shape {shape}, so no voxels. Export it again.")
    unit = nifti.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise DataError(f"{path} states its lengths in {unit}. Convert its header to mm.")


def _check_size(nifti: Any, path: Path) -> None:
    """Refuse a damaged header, or a volume beyond memory, before memory is taken for what it claims."""
    voxels, item = math.prod(nifti.shape), nifti.get_data_dtype().itemsize
    claimed, size = voxels * item, path.stat().st_size
    if claimed > size * (DEFLATE_LIMIT if path.name.lower().endswith(".gz") else 1):
        raise ValueError(f"its header claims {claimed} bytes of voxels, the file has {size} bytes")
    needed, available = voxels * (item + 4), available_memory()  # as stored, and as float32
    if needed > available:
        raise DataError(
            f"{path} holds {' x '.join(map(str, nifti.shape))} voxels, which take {show_size(needed)} of "
            f"memory to read, this machine has {show_size(available)}. Cut it, or use a larger machine."
        )


def write_nifti(
    path: Path, values: NDArray[Any], affine: NDArray[np.float64], *, like: Path | None = None
) -> None:
    """Write (i, j, k) or (i, j, k, C) with `affine` as sform and qform, whole or not at all.

    A file `like` it with the same affine passes its own sform, qform and their codes on: where those disagree
    or are missing, programs differ in which they go by, and shall find both files in one place.

    A qform holds no shear. Where the nearest without would put a voxel more than half a voxel off, its code
    is 0: ITK, which wants right angles, then refuses the file, and would misplace it otherwise.
    """
    nifti = nibabel.Nifti1Image(values, affine)
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(affine, code=1)
    nifti.set_qform(affine, code=1)
    corners = np.array([*product(*((0, length - 1) for length in values.shape[:3]))])
    off = apply_affine(affine, corners) - apply_affine(nifti.get_qform(), corners)
    if np.linalg.norm(off, axis=1).max() > voxel_sizes(affine).min() / 2:
        nifti.set_qform(affine, code=0)
    if like is not None:
        _take_forms(nifti.header, affine, like)
    with write_atomically(path) as temporary:
        nibabel.save(nifti, temporary)


def _take_forms(header: Any, affine: NDArray[np.float64], like: Path) -> None:
    with without_warnings():
        theirs: Any = nibabel.load(like).header
    if not np.allclose(theirs.get_best_affine(), affine):
        return
    for name in FORMS:
        header[name] = theirs[name]
    header["pixdim"][:4] = theirs["pixdim"][:4]
