"""Arrays and DICOM made to hurt: claims of huge sizes, values in other files, objects to unpickle, bombs."""

import pickle
import struct
import zipfile

import h5py
import numpy as np
import pytest
from harness import refused
from readers import GRID, NOISE, numbered

from dicom_cases import write_multi_frame, write_picture, write_series
from rwkvseg.data.arrays import array_header
from rwkvseg.data.io import read_image, read_label
from rwkvseg.data.layouts import find_inputs, read_case

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


class Spring:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def npy_bytes(shape, descr="<f4", body=b"", version=(1, 0)):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + body


def zip_of(path, content, method=zipfile.ZIP_DEFLATED, name="image.npy"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return path


NPZ_TRAPS = {
    "objects": npy_bytes((2, 2), "|O", pickle.dumps([Spring()] * 4)),
    "objects in fields": npy_bytes((2, 2), [("a", "|O"), ("b", "<f4")], pickle.dumps(Spring())),
    "a pickle and no array": pickle.dumps(Spring()),
    "texts": npy_bytes((2, 2), "<U3", bytes(48)),
    "complex numbers": npy_bytes((2, 2), "<c8", bytes(32)),
    "dates": npy_bytes((2, 2), "<M8[s]", bytes(32)),
    "more than it has": npy_bytes((100_000, 100_000)),
    "beyond 64 bits": npy_bytes((2**40, 2**40)),
    "less than nothing": npy_bytes((-1, -1), body=bytes(4)),
    "four axes": npy_bytes((1, 1, 1, 1), body=bytes(4)),
    "one number": npy_bytes((), body=bytes(4)),
    "nothing": npy_bytes((0, 4)),
    "a header of 4 GiB": b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 1) + b"{",
    "a header that nests": b"\x93NUMPY\x01\0" + struct.pack("<H", 60_000) + b"(" * 60_000,
    "a header without end": b"\x93NUMPY\x01\0" + struct.pack("<H", 9) + b"{'descr':",
    "a bomb": npy_bytes((5000, 2000), body=bytes(40_000_000 - 4)),
}


@pytest.mark.parametrize("trap", NPZ_TRAPS)
def test_npz_traps(tmp_path, trap):
    path = zip_of(tmp_path / "a.npz", NPZ_TRAPS[trap])
    assert path.stat().st_size < 500_000
    refused(path, read_image)
    refused(zip_of(path, NPZ_TRAPS[trap], name="label.npy"), read_label)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_what_numpy_writes_is_inflated(tmp_path, method):
    """LZMA's header may ask for a dictionary of 4 GiB, bzip2 squeezes a thousandfold again."""
    content = npy_bytes((3, 4), body=VALUES.tobytes())
    assert read_image(zip_of(tmp_path / "a.npz", content))[0].shape == (1, 3, 4)
    assert f"compressed by method {method}" in refused(
        zip_of(tmp_path / "a.npz", content, method), read_image
    )


def test_a_zip_directory_may_not_lie(tmp_path):
    """Sizes in the directory are claims like any other."""
    path = zip_of(tmp_path / "a.npz", npy_bytes((3, 4), body=VALUES.tobytes()))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)
    assert "claims" in refused(path, read_image)
    refused(path, array_header)


def h5_file(path, make):
    with h5py.File(path, "w") as file:
        make(file, path.parent)
    return path


def put_elsewhere(folder):
    with h5py.File(folder / "secret.h5", "w") as file:
        file["image"] = file["label"] = VALUES
    (folder / "secret.bin").write_bytes(VALUES.tobytes())


def virtual(file, _folder):
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "image", (3, 4))
    file.create_virtual_dataset("image", layout)


def packed(file, shape, chunks, fill=None, **options):
    wide = tuple(max(pair) for pair in zip(shape, chunks, strict=True))
    dataset = file.create_dataset("image", shape, "f4", chunks=chunks, maxshape=wide, **options)
    if fill is not None:
        dataset[:2, :2] = fill


def of_filter(file, number):
    """A chunk that a filter which nobody has must undo."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((3, 4))
    creation.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
    space, kind = h5py.h5s.create_simple((3, 4)), h5py.h5t.IEEE_F32LE
    dataset = h5py.h5d.create(file.id, b"image", kind, space, dcpl=creation)
    dataset.write_direct_chunk((0, 0), b"nobody knows")


def of_objects(file):
    dataset = file.create_dataset("image", (2, 2), h5py.special_dtype(vlen=np.uint8))
    dataset[0, 0] = np.frombuffer(pickle.dumps(Spring()), np.uint8)


H5_TRAPS = {
    "a link to another file": (
        lambda f, _: f.update(image=h5py.ExternalLink("secret.h5", "image")),
        "no array",
    ),
    "a link to itself": (lambda f, _: f.update(image=h5py.SoftLink("/image")), "no array"),
    "values in another file": (
        lambda f, folder: f.create_dataset(
            "image", (3, 4), "f4", external=[(str(folder / "secret.bin"), 0, 48)]
        ),
        "lies in other files",
    ),
    "values of another data set": (virtual, "lies in other files"),
    "huge and empty": (lambda f, _: packed(f, (10**5, 10**5), (64, 64)), "claims"),
    "huge and nearly empty": (lambda f, _: packed(f, (10**5, 10**5), (64, 64), 1), "claims"),
    "of a huge chunk": (lambda f, _: packed(f, (3, 4), (10_000, 10_000)), "chunks claim"),
    "of a huge chunk that is packed": (
        lambda f, _: packed(f, (3, 4), (4000, 4000), compression="gzip"),
        "chunks claim",
    ),
    "of a filter that nobody has": (lambda f, _: of_filter(f, 32_123), "cannot decode"),
    "of objects": (lambda f, _: of_objects(f), "not numbers"),
    "of texts": (lambda f, _: f.update(image="text"), "not numbers"),
    "of fields": (lambda f, _: f.update(image=np.zeros((2, 2), [("a", "f4"), ("b", "i4")])), "not numbers"),
    "a folder": (lambda f, _: f.create_group("image"), "no array"),
    "of no space": (lambda f, _: f.update(image=h5py.Empty("f4")), "shape None"),
    "of five axes": (lambda f, _: f.update(image=np.zeros((1,) * 5)), "has the shape"),
}


@pytest.mark.parametrize("trap", H5_TRAPS)
def test_h5_traps(tmp_path, trap):
    make, words = H5_TRAPS[trap]
    put_elsewhere(tmp_path)
    path = h5_file(tmp_path / "a.h5", make)
    assert path.stat().st_size < 100_000
    assert words in refused(path, read_image)


def dicom_cases(path):
    return [read_case(case, with_label=False) for case in find_inputs(path)]


def claims(**tags):
    def change(dataset, index):
        numbered(dataset, index)
        for key, value in tags.items():
            setattr(dataset, key, value)

    return change


def with_groups(number):
    def change(dataset, index):
        numbered(dataset, index)
        dataset.NumberOfFrames = number
        dataset.PerFrameFunctionalGroupsSequence = [dataset.PerFrameFunctionalGroupsSequence[0]] * number

    return change


DICOM_TRAPS = {
    "slices of 65535 x 65535": lambda p: write_series(
        p.parent, GRID, change=claims(Rows=65535, Columns=65535)
    ),
    "slices of 9000 x 9000": lambda p: write_series(p.parent, GRID, change=claims(Rows=9000, Columns=9000)),
    "no rows": lambda p: write_series(p.parent, GRID, change=claims(Rows=0)),
    "2147483647 frames": lambda p: write_multi_frame(
        p, GRID, (0, 1, 2), change=claims(NumberOfFrames=2**31 - 1)
    ),
    "-1 frames": lambda p: write_multi_frame(p, GRID, (0, 1, 2), change=claims(NumberOfFrames=-1)),
    "frames of 60000 x 60000": lambda p: write_multi_frame(
        p, GRID, (0, 1, 2), change=claims(Rows=60000, Columns=60000)
    ),
    "200 frames described, 3 there": lambda p: write_multi_frame(p, GRID, (0, 1, 2), change=with_groups(200)),
    "a picture of 40000 x 40000": lambda p: write_picture(p, NOISE, Rows=40000, Columns=40000),
    "65535 colours": lambda p: write_picture(p, NOISE, SamplesPerPixel=65535),
    "65528 bits": lambda p: write_picture(p, NOISE[..., 0], BitsAllocated=65528),
    "infinite spacing": lambda p: write_series(
        p.parent, GRID, change=claims(PixelSpacing=["1e300", "1e300"])
    ),
    "slices nowhere": lambda p: write_series(
        p.parent, GRID, change=claims(ImagePositionPatient=["1e308", "-1e308", "1e308"])
    ),
}


@pytest.mark.parametrize("trap", DICOM_TRAPS)
def test_dicom_traps(tmp_path, trap):
    (tmp_path / "s").mkdir()
    DICOM_TRAPS[trap](tmp_path / "s" / "x.dcm")
    refused(tmp_path / "s", dicom_cases)


@pytest.mark.parametrize("side", [3000, 20_000])
def test_compressed_slices_may_not_claim_what_they_do_not_hold(tmp_path, side):
    def change(dataset, index):
        numbered(dataset, index)
        dataset.compress("1.2.840.10008.1.2.5")  # RLE
        dataset.Rows = dataset.Columns = side

    write_series(tmp_path / "s", GRID, change=change)
    refused(tmp_path / "s", dicom_cases)
