"""Arrays `image` and `label` in one file, as TransUNet keeps them: npz of slices, h5 of volumes.

Files hold (row, column) or (slice, row, column); here the slices come last, so that those of a volume are cut
along the axis that slices are cut along by default, and look like the files of single slices. Such files have
neither spacing nor affine. Nothing is ever unpickled.
"""

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from rwkvseg.errors import DataError, MissingExtraError, UnreadableFileError, one_line
from rwkvseg.memory import available_memory, show_size
from rwkvseg.output import write_atomically

ARRAY_SUFFIXES = (".npy.h5", ".h5", ".npz")
DAMAGE = (
    OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, SyntaxError,
    NotImplementedError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
DEFLATE_LIMIT = 1032  # deflate cannot compress further
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_array(path: Path, name: str) -> NDArray[Any]:
    """Read the array `name` as (row, column) or (row, column, slice).

    Raises:
        UnreadableFileError: truncated, damaged or of another format.
        DataError: no such array, neither two nor three axes, no plain numbers, more than memory.
        MissingExtraError: h5py is not installed and the file is HDF5.
    """
    with _opened(path, name) as (values, _, _):
        read = np.asarray(values[...])
    native = np.dtype(np.uint8) if read.dtype == bool else read.dtype.newbyteorder("=")
    return _slices_last(read.astype(native, copy=False))


def array_header(path: Path, name: str = "image") -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape of what `read_array` returns, and the type as stored; nothing but the header is read.

    Raises:
        UnreadableFileError, DataError, MissingExtraError: as `read_array`, as far as the header tells.
    """
    with _opened(path, name) as (_, shape, dtype):
        return ((*shape[1:], shape[0]) if len(shape) == 3 else shape), dtype


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays (row, column) or (row, column, slice) as npz or h5, whole or not at all.

    Raises:
        OutputError: the disk refuses.
        MissingExtraError: h5py is not installed and `path` is HDF5.
    """
    stored = {name: _slices_first(values) for name, values in arrays.items()}
    with write_atomically(path) as temporary:
        if path.name.lower().endswith(".npz"):
            # arrays are positional-only names to numpy's stubs, a mapping to numpy
            cast(Any, np.savez_compressed)(temporary, **stored)
            return
        with _h5py().File(temporary, "w") as file:
            for name, values in stored.items():
                file.create_dataset(name, data=values, compression="gzip")


def _slices_last(values: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(values, 0, -1) if values.ndim == 3 else values


def _slices_first(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(values, -1, 0) if values.ndim == 3 else values)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[Any, tuple[int, ...], np.dtype[Any]]]:
    """Something whose [...] are the values, their shape in the file and their type, all checked."""
    opened = _npz_array if path.name.lower().endswith(".npz") else _h5_array
    try:
        with opened(path, name) as array:
            _check(path, name, array.shape, array.dtype)
            yield array, tuple(array.shape), array.dtype
    except DAMAGE as error:
        raise UnreadableFileError(
            f"cannot decode {path}: {one_line(error)}. "
            "It is truncated, damaged or of another format; fetch or export it again."
        ) from error


def _check(path: Path, name: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> None:
    """Refuse a damaged header, or more than memory holds, before memory is taken for what it claims."""
    if dtype.kind not in "iufb" or dtype.subdtype is not None:
        raise DataError(f"'{name}' in {path} stores {dtype} and not numbers. Export it as plain numbers.")
    if shape is None or len(shape) not in (2, 3):
        raise DataError(
            f"'{name}' in {path} has the shape {shape}. Write (row, column), or (slice, row, column)."
        )
    if 0 in shape:
        raise DataError(f"'{name}' in {path} has the shape {shape}, so no values. Export it again.")
    claimed, size = math.prod(shape) * dtype.itemsize, path.stat().st_size
    if claimed > size * DEFLATE_LIMIT:
        raise ValueError(f"its header claims {claimed} bytes of '{name}', the file has {size} bytes")
    needed, available = math.prod(shape) * (dtype.itemsize + 4), available_memory()
    if needed > available:
        raise DataError(
            f"{path} holds {' x '.join(map(str, shape))} values, which take {show_size(needed)} of memory "
            f"to read, this machine has {show_size(available)}. Cut it, or use a larger machine."
        )


class _NpzArray:
    """A member of a zip file whose header is read, and whose values are when asked for."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"format {version} of its array is unknown")
        self.shape, _, self.dtype = HEADERS[version](stream)
        self.stream = stream
        held = size - stream.tell()
        if not self.dtype.hasobject and math.prod(self.shape) * self.dtype.itemsize != held:
            raise ValueError(f"its header claims an array of {self.shape} {self.dtype}, it has {held} bytes")

    def __getitem__(self, _: Any) -> NDArray[Any]:
        self.stream.seek(0)
        values: NDArray[Any] = npy.read_array(self.stream, allow_pickle=False)
        while self.stream.read(1 << 16):  # only at its end is the checksum compared
            pass
        return values


@contextmanager
def _npz_array(path: Path, name: str) -> Iterator[_NpzArray]:
    with zipfile.ZipFile(path) as archive:
        names = {member.removesuffix(".npy"): member for member in archive.namelist()}
        if name not in names:
            raise _lacking(path, name, names)
        member = archive.getinfo(names[name])
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"'{name}' is compressed by method {member.compress_type}, which NumPy never takes"
            )
        if member.file_size > path.stat().st_size * DEFLATE_LIMIT:
            raise ValueError(f"it claims {member.file_size} bytes of '{name}'")
        with archive.open(member) as stream:
            yield _NpzArray(cast(BinaryIO, stream), member.file_size)


@contextmanager
def _h5_array(path: Path, name: str) -> Iterator[Any]:
    h5py = _h5py()
    with h5py.File(path, "r") as file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(
            file[name], h5py.Dataset
        ):
            raise _lacking(path, name, file)
        dataset = file[name]
        if dataset.external or dataset.is_virtual:  # values in other files: whatever a stranger names
            raise DataError(f"'{name}' in {path} lies in other files. Export it as one file.")
        if dataset.chunks:  # each is inflated whole, however small the part of it that is within the shape
            chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
            if chunk > min(available_memory(), path.stat().st_size * DEFLATE_LIMIT):
                raise ValueError(f"its chunks claim the shape {dataset.chunks}")
        yield dataset


def _lacking(path: Path, name: str, known: Any) -> DataError:
    some = ", ".join(sorted(map(str, known))[:5]) or "nothing"
    return DataError(f"{path} has no array '{name}'; it holds {some}. Write the arrays image and label.")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError(
            "files .h5 need h5py, which is not installed. Install it with pip install 'rwkvseg[h5]'."
        ) from error
    return h5py
