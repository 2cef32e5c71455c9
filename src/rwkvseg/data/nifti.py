"""NIfTI volumes through NiBabel, in the file's own axis order (i, j, k)."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from rwkvseg.errors import DataError, GeometryError, UnreadableFileError
from rwkvseg.output import write_atomically

DAMAGE = (
    OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error,
    ImageFileError, HeaderDataError, WrapStructError,
)  # fmt: skip
NIFTI2_HEADER_SIZE = 540
DEFLATE_LIMIT = 1032  # deflate cannot compress further


# what overflows in a damaged header or in float32 becomes infinite, which the checks refuse
@np.errstate(over="ignore", invalid="ignore")
def read_nifti(
    path: Path, dtype: type[np.float32] | None = None
) -> tuple[NDArray[Any], NDArray[np.float64], tuple[float, ...]]:
    """Read values (i, j, k) with the file's scaling applied, affine to RAS+ mm, and spacing in mm.

    The spacing is the length of the affine's columns, so that both always tell the same story.

    Args:
        path: a `.nii` or `.nii.gz` file.
        dtype: what to convert to; None keeps integers that carry no scaling.

    Raises:
        UnreadableFileError: truncated (the checksum of a gzip file is verified), damaged or not NIfTI.
        DataError: more than one volume, colours, complex numbers, or lengths not in mm.
        GeometryError: an affine that maps no volume.
    """
    try:
        nifti, values = _load(path, dtype)
    except DAMAGE as error:
        raise UnreadableFileError(
            f"cannot decode {path}: {' '.join(str(error).split()) or type(error).__name__}. "
            "It is truncated, damaged or not NIfTI; fetch or export it again."
        ) from error
    affine = np.asarray(nifti.affine, dtype=np.float64)
    spacing = voxel_sizes(affine)
    if not (np.isfinite(affine).all() and np.isfinite(spacing).all()) or _is_flat(affine):
        raise GeometryError(f"{path} has an affine that maps no volume. Mend its sform or qform.")
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    while values.ndim < 3:
        values = values[..., np.newaxis]
    return values, affine, tuple(float(mm) for mm in spacing)


def _load(path: Path, dtype: type[np.float32] | None) -> tuple[Any, NDArray[Any]]:
    open_stream: Any = gzip.open if path.name.lower().endswith(".gz") else open
    with open_stream(path, "rb") as stream:
        start = stream.read(4)
        stream.seek(0)
        is_second = NIFTI2_HEADER_SIZE in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
        nifti = (nibabel.Nifti2Image if is_second else nibabel.Nifti1Image).from_stream(stream)
        _check_kind(nifti, path)
        _check_size(nifti, path)
        values = np.asanyarray(nifti.dataobj, dtype=dtype)
        while stream.read(1 << 20):  # only at its end does gzip compare the checksum
            pass
    return nifti, values.astype(values.dtype.newbyteorder("="), copy=False)


def _is_flat(affine: NDArray[np.float64]) -> bool:
    return bool(abs(np.linalg.det(affine[:3, :3])) < 1e-12)


def _check_kind(nifti: Any, path: Path) -> None:
    shape, kind = nifti.shape, nifti.get_data_dtype()
    if len(shape) > 3 and any(length != 1 for length in shape[3:]):
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
    """Refuse a damaged header before memory is taken for what it claims."""
    claimed = math.prod(nifti.shape) * nifti.get_data_dtype().itemsize
    size = path.stat().st_size
    if claimed > size * (DEFLATE_LIMIT if path.name.lower().endswith(".gz") else 1):
        raise ValueError(f"its header claims {claimed} bytes of voxels, the file has {size} bytes")


def write_nifti(path: Path, values: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write (i, j, k) with `affine` as sform and qform, whole or not at all."""
    nifti = nibabel.Nifti1Image(values, affine)
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(affine, code=1)
    nifti.set_qform(affine, code=1)  # the nearest without shear; readers prefer the sform
    with write_atomically(path) as temporary:
        nibabel.save(nifti, temporary)
