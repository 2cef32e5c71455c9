"""Files of arrays: values and axes, and every way in which a file may be damaged or hostile."""

import pickle
import sys
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from rwkvseg.data.arrays import array_header, read_array, write_arrays
from rwkvseg.data.io import case_id, is_volume, read_image, read_label
from rwkvseg.errors import DataError, MissingExtraError, UnreadableFileError

IMAGE = np.arange(3 * 4 * 5, dtype=np.float64).reshape(3, 4, 5) / 7
LABEL = (IMAGE > 4).astype(np.float32)


def write(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)
    return path


@pytest.mark.parametrize("name", ["v.npz", "v.h5", "v.npy.h5"])
def test_slices_come_last(tmp_path, name):
    path = write(tmp_path / name, image=IMAGE, label=LABEL)
    image, spacing, affine = read_image(path)
    assert (image.dtype, spacing, affine) == (np.float32, None, None)
    np.testing.assert_array_equal(image[0], np.moveaxis(IMAGE, 0, -1).astype(np.float32))
    label, affine = read_label(path)
    assert (label.dtype, affine) == (np.int32, None)
    np.testing.assert_array_equal(label[..., 1], LABEL[1])
    assert array_header(path)[0] == (4, 5, 3)
    assert (case_id(path), is_volume(path)) == ("v", True)


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_slices_are_pictures_and_small_integers_stay(tmp_path, suffix):
    path = write(tmp_path / f"s.{suffix}", image=IMAGE[0].astype(np.uint16), label=LABEL[0] > 0)
    assert not is_volume(path)
    assert read_image(path)[0].dtype == np.uint16
    assert read_label(path)[0].dtype == np.uint8


@given(
    values=arrays_of.arrays(
        st.sampled_from(["u1", "u2", "<i2", ">i4", "<f4", ">f8"]),
        arrays_of.array_shapes(min_dims=2, max_dims=3, max_side=6),
        elements=st.integers(0, 200),
    ),
    suffix=st.sampled_from([".npz", ".npy.h5"]),
)
def test_what_is_written_is_read(tmp_path_factory, values, suffix):
    path = tmp_path_factory.mktemp("arrays") / f"x{suffix}"
    write_arrays(path, image=values, label=values.astype(np.uint8))
    found = read_array(path, "image")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(read_array(path, "label"), values.astype(np.uint8))
    assert array_header(path)[0] == values.shape
    assert [other.name for other in path.parent.iterdir()] == [path.name]


class Bomb:
    """What a pickle would do if anybody read it."""

    def __reduce__(self):
        return (sys.exit, ("unpickled",))


def test_nothing_is_unpickled(tmp_path):
    path = write(tmp_path / "x.npz", image=np.array([[Bomb()]], dtype=object), label=LABEL[0])
    with pytest.raises(DataError, match="stores object and not numbers"):
        read_image(path)
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.writestr("image.npy", pickle.dumps(Bomb()))
    with pytest.raises(UnreadableFileError, match=r"y\.npz: the magic string is not correct"):
        read_image(tmp_path / "y.npz")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("image", data=np.array([[b"x", b"y"]], dtype=object), dtype=h5py.string_dtype())
    with pytest.raises(DataError, match="and not numbers"):
        read_image(tmp_path / "x.h5")


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_faults_are_told(tmp_path, suffix):
    def path(**arrays):
        return write(tmp_path / f"x.{suffix}", **arrays)

    with pytest.raises(DataError, match=r"has no array 'image'; it holds images, label\. Write the arrays"):
        read_image(path(images=IMAGE, label=LABEL))
    with pytest.raises(DataError, match=r"has the shape \(3,\)"):
        read_image(path(image=IMAGE[:, 0, 0]))
    with pytest.raises(DataError, match=r"has the shape \(0, 4\), so no values"):
        read_image(path(image=IMAGE[0, :0, :4].reshape(0, 4)))
    with pytest.raises(DataError, match="NaN or infinity in 1 of 20"):
        read_image(path(image=np.where(np.arange(20).reshape(4, 5) == 7, np.nan, 1.0)))
    with pytest.raises(DataError, match="stores complex"):
        read_image(path(image=IMAGE.astype(complex)))


@pytest.mark.parametrize("name", ["x.npz", "x.h5"])
def test_damage_is_no_crash(tmp_path, name):
    path = write(tmp_path / name, image=IMAGE, label=LABEL)
    whole = path.read_bytes()
    for size in (0, 1, 40, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableFileError, match="cannot decode"):
            read_image(path)
    place = whole.find(IMAGE[1].tobytes())
    path.write_bytes(whole[: place + 5] + bytes([whole[place + 5] ^ 1]) + whole[place + 6 :])
    if name == "x.npz":
        with pytest.raises(UnreadableFileError, match="CRC"):
            read_image(path)


def test_claims_beyond_the_file_take_no_memory(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("image", shape=(1 << 20, 1 << 10, 1 << 10), dtype="f8", chunks=(1, 64, 64))
    with pytest.raises(UnreadableFileError, match="its header claims 8796093022208 bytes of 'image'"):
        read_image(tmp_path / "x.h5")
    path = write(tmp_path / "x.npz", image=IMAGE)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("image.npy").replace(b"(3, 4, 5)", b"(3, 4, 9)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", content)
    with pytest.raises(UnreadableFileError, match=r"claims an array of \(3, 4, 9\) float64, it has"):
        read_image(path)


def test_other_files_are_not_read_through_links(tmp_path):
    other = write(tmp_path / "other.h5", image=IMAGE)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"] = h5py.ExternalLink(str(other), "image")
    with pytest.raises(DataError, match="has no array 'image'"):
        read_image(tmp_path / "x.h5")
    (tmp_path / "raw").write_bytes(b"12345678")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.create_dataset("image", (2, 4), "u1", external=[(str(tmp_path / "raw"), 0, 8)])
    with pytest.raises(DataError, match="lies in other files"):
        read_image(tmp_path / "y.h5")


def test_h5py_is_asked_for(tmp_path, monkeypatch):
    path = write(tmp_path / "x.h5", image=IMAGE)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py, which is not installed.*pip install 'rwkvseg\[h5\]'"):
        read_image(path)
    np.testing.assert_array_equal(read_image(write(tmp_path / "x.npz", image=IMAGE))[0].shape, (1, 4, 5, 3))


KINDS = {
    "plain.npz": lambda path: np.savez(path, image=IMAGE, label=LABEL),
    "packed.npz": lambda path: np.savez_compressed(path, image=IMAGE, label=LABEL),
    "plain.h5": lambda path: write(path, image=IMAGE, label=LABEL),
    "packed.npy.h5": lambda path: write_arrays(path, image=IMAGE, label=LABEL.astype(np.uint8)),
}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    path = tmp_path / name
    KINDS[name](path)
    whole, refusals = path.read_bytes(), []
    places = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=12)

    @settings(max_examples=60, derandomize=True, database=None)
    @given(places=places, cut=st.none() | st.integers(0, len(whole)))
    def check(places, cut):
        content = bytearray(whole)
        for place, value in places:
            content[place] = value
        path.write_bytes(bytes(content[:cut]))
        try:
            image, spacing, affine = read_image(path)
            label, _ = read_label(path)
        except DataError as error:
            refusals.append(str(error))
            return
        assert image.ndim in (3, 4)
        assert (spacing, affine, label.dtype.kind in "iu") == (None, None, True)
        assert np.isfinite(image).all()

    check()
    assert refusals
    assert all(str(path) in message for message in refusals)
