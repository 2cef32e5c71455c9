import gzip
import struct
import warnings
from pathlib import Path
from unittest.mock import patch

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nibabel.affines import from_matvec
from PIL import Image
from scipy.spatial.transform import Rotation

from rwkvseg.data.io import case_id, count_pixels, read_image, read_label, write_label_map
from rwkvseg.data.reading import label_values
from rwkvseg.errors import DataError, GeometryError, LabelError, OutputError, UnreadableFileError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
OBLIQUE = from_matvec(
    Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix() * [0.7, 0.9, 5], [-9, 4, 77]
)


def save_nifti(path, values, affine=OBLIQUE):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def save_picture(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".bmp", ".PNG"])
def test_grey_and_colour_pictures_come_channel_first(tmp_path, suffix):
    grey, spacing, affine = read_image(save_picture(tmp_path / f"g{suffix}", GREY))
    colour, _, _ = read_image(save_picture(tmp_path / f"c{suffix}", COLOUR))
    assert (spacing, affine) == (None, None)
    assert grey.dtype == colour.dtype == np.uint8
    np.testing.assert_array_equal(grey, GREY[None])
    np.testing.assert_array_equal(colour, COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    image, _, _ = read_image(save_picture(tmp_path / f"d{suffix}", DEEP))
    label, _ = read_label(tmp_path / f"d{suffix}")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[0], DEEP)
    np.testing.assert_array_equal(label, DEEP)


def test_big_endian_and_float_tiff(tmp_path):
    Image.fromarray(DEEP.astype(">u2")).save(tmp_path / "b.tif")
    Image.fromarray(DEEP.astype(np.float32) / 2).save(tmp_path / "f.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif")[0][0], DEEP)
    np.testing.assert_array_equal(read_image(tmp_path / "f.tif")[0][0], DEEP.astype(np.float32) / 2)
    with pytest.raises(LabelError, match="fractions such as"):
        read_label(tmp_path / "f.tif")


def test_alpha_is_dropped_palette_becomes_colour_and_bits_become_white(tmp_path):
    alpha = np.dstack([COLOUR, np.zeros((5, 7), np.uint8)])
    np.testing.assert_array_equal(
        read_image(save_picture(tmp_path / "a.png", alpha))[0], COLOUR.transpose(2, 0, 1)
    )
    save_picture(tmp_path / "la.png", np.dstack([GREY, GREY]))
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[0], GREY[None])
    indices = Image.fromarray(GREY % 3)
    indices.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    indices.save(tmp_path / "p.png", transparency=bytes([0, 255, 128]))
    assert read_image(tmp_path / "p.png")[0].shape == (3, 5, 7)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png")[0][2] == 255, GREY % 3 == 2)
    np.testing.assert_array_equal(read_label(tmp_path / "p.png")[0], GREY % 3)
    save_picture(tmp_path / "bits.png", GREY > 99)
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[0][0], (GREY > 99) * 255)
    np.testing.assert_array_equal(read_label(tmp_path / "bits.png")[0], GREY > 99)


def test_exif_orientation_is_not_applied_as_masks_carry_none(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    save_picture(tmp_path / "r.jpg", COLOUR, exif=exif)
    assert read_image(tmp_path / "r.jpg")[0].shape == (3, 5, 7)


def test_masks_with_equal_channels_are_accepted_and_colours_refused(tmp_path):
    equal = np.dstack([GREY % 4] * 3)
    np.testing.assert_array_equal(read_label(save_picture(tmp_path / "e.png", equal))[0], GREY % 4)
    alpha = np.dstack([equal, GREY])
    np.testing.assert_array_equal(read_label(save_picture(tmp_path / "ea.png", alpha))[0], GREY % 4)
    with pytest.raises(
        LabelError, match=r"c\.png is a colour picture: row 0, column 0 is \[\d+, \d+, \d+\]\. Save"
    ):
        read_label(save_picture(tmp_path / "c.png", COLOUR))


def test_a_jpeg_mask_must_be_black_and_white(tmp_path):
    square = np.zeros((64, 64), np.uint8)
    assert set(np.unique(read_label(save_picture(tmp_path / "z.jpg", square))[0])) == {0}
    square[11:37, 9:40] = 255
    with pytest.raises(LabelError, match=r"m\.jpg is a JPEG.*Threshold it at 127 and save it as PNG"):
        read_label(save_picture(tmp_path / "m.jpg", square, quality=60))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".nii.gz", ".nii"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_unreadable(tmp_path, suffix, kept):
    path = tmp_path / f"t{suffix}"
    if suffix.startswith(".nii"):
        save_nifti(path, RNG.integers(0, 99, (20, 20, 9)).astype(np.int16))
    else:
        save_picture(path, RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    for read in (read_image, read_label):
        with pytest.raises(UnreadableFileError, match=rf"cannot decode .*t{suffix}: .+ (fetch|export)"):
            read(path)


def test_a_damaged_gzip_fails_its_checksum(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", np.zeros((9, 9, 9), np.int16))
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    content[-40] ^= 1  # a voxel: only the checksum can tell
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match="CRC"):
        read_image(path)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_damage_never_escapes_as_a_foreign_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    name = data.draw(st.sampled_from(["x.png", "x.tif", "x.jpg", "x.nii", "x.nii.gz"]))
    path = folder / name
    save_nifti(path, DEEP[..., None].astype(np.int16)) if ".nii" in name else save_picture(path, COLOUR)
    content = bytearray(path.read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8)
    ):
        content[place % min(len(content), 400)] = value
    path.write_bytes(content)
    with patch.object(
        Image, "MAX_IMAGE_PIXELS", 10_000
    ):  # a damaged header may claim what takes seconds to fill
        for read in (read_image, read_label):
            try:
                read(path)
            except DataError as error:
                assert name in str(error)  # noqa: PT017 - most damage is harmless, so nothing need be raised


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n"], ids=["empty", "text", "eps"]
)
@pytest.mark.parametrize("name", ["x.png", "x.nii", "x.nii.gz"])
def test_foreign_content_is_unreadable(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableFileError, match=name):
        read_image(tmp_path / name)


def test_missing_unknown_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt is of no known format\. Use one of \.nii\.gz"):
        read_label(tmp_path / "a.txt")
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)


def test_tiff_pages_and_huge_pictures_are_refused(tmp_path, monkeypatch):
    page = Image.fromarray(GREY)
    page.save(tmp_path / "s.tif", save_all=True, append_images=[page, page])
    with pytest.raises(DataError, match=r"holds 3 pages\. Save each"):
        read_image(tmp_path / "s.tif")
    save_picture(tmp_path / "h.png", GREY)
    for limit in (20, 10):  # Pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=f"more than {limit} pixels. Cut it into tiles"):
            read_image(tmp_path / "h.png")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_keeps_axis_order_and_geometry(tmp_path, suffix, image_class):
    values = RNG.integers(-1000, 1000, (4, 6, 3)).astype(np.int16)
    nibabel.save(image_class(values, OBLIQUE), tmp_path / f"v{suffix}")
    image, spacing, affine = read_image(tmp_path / f"v{suffix}")
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, values[None])
    np.testing.assert_allclose(spacing, (0.7, 0.9, 5), rtol=1e-6)
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)


def test_nifti_scaling_big_endian_and_singleton_axes(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nifti = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2, 1), np.eye(4), header)
    nifti.header.set_slope_inter(0.5, 10)
    nibabel.save(nifti, tmp_path / "s.nii")
    content = bytearray((tmp_path / "s.nii").read_bytes())
    struct.pack_into(">ff", content, 112, 0.5, 10)
    (tmp_path / "s.nii").write_bytes(content)
    stored = np.asarray(nibabel.load(tmp_path / "s.nii").dataobj)
    image, _, _ = read_image(tmp_path / "s.nii")
    assert image.shape == (1, 4, 3, 2)
    assert image.dtype.isnative
    np.testing.assert_allclose(image[0], stored[..., 0])
    save_nifti(tmp_path / "flat.nii", np.ones((4, 3), np.uint8))
    assert read_image(tmp_path / "flat.nii")[0].shape == (1, 4, 3, 1)


def test_nifti_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"4 axes \(2, 3, 4, 5\).*CASE_0000"):
        read_image(save_nifti(tmp_path / "a.nii", np.zeros((2, 3, 4, 5), np.uint8)))
    with pytest.raises(DataError, match=r"complex64.*plain intensities"):
        read_image(save_nifti(tmp_path / "b.nii", np.zeros((2, 3, 4), np.complex64)))
    rgb = np.zeros((2, 3, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(DataError, match="not one number per voxel"):
        read_image(save_nifti(tmp_path / "c.nii", rgb))
    micron = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    micron.header.set_xyzt_units("micron")
    nibabel.save(micron, tmp_path / "d.nii")
    with pytest.raises(DataError, match="lengths in micron"):
        read_image(tmp_path / "d.nii")
    flat = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    flat.header["sform_code"] = 1
    flat.header["srow_x"] = flat.header["srow_y"] = flat.header["srow_z"] = 0
    (tmp_path / "e.nii").write_bytes(flat.header.binaryblock + bytes(4) + bytes(24))
    with pytest.raises(GeometryError, match="maps no volume"):
        read_image(tmp_path / "e.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path, suffix):
    nifti = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    header = bytearray(nifti.header.binaryblock)
    struct.pack_into("<8h", header, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    content = bytes(header) + bytes(28)
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    with pytest.raises(UnreadableFileError, match="header claims 35181150961663 bytes"):
        read_image(tmp_path / f"a{suffix}")


def test_nan_is_counted(tmp_path):
    values = np.zeros((2, 3, 4), np.float32)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    save_nifti(tmp_path / "n.nii.gz", values)
    with pytest.raises(DataError, match=r"n\.nii\.gz holds NaN or infinity in 3 of 24 voxels\. Replace"):
        read_image(tmp_path / "n.nii.gz")
    with pytest.raises(LabelError, match=r"label map .*n\.nii\.gz holds NaN or infinity in 3 of 24"):
        read_label(tmp_path / "n.nii.gz")
    save_nifti(tmp_path / "big.nii", np.full((2, 2, 2), 1e300))
    with pytest.raises(DataError, match="8 of 8"):
        read_image(tmp_path / "big.nii")


def test_whole_floats_are_labels_and_fractions_are_not(tmp_path):
    label, affine = read_label(save_nifti(tmp_path / "w.nii.gz", np.float32([[[0, 1, 2]]])))
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, [[[0, 1, 2]]])
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)
    with pytest.raises(LabelError, match=r"fractions such as 0\.5, 1\.25\. Resample"):
        read_label(save_nifti(tmp_path / "f.nii.gz", np.float32([[[0, 0.5, 1.25]]])))
    with pytest.raises(LabelError, match="beyond 32 bits"):
        read_label(save_nifti(tmp_path / "l.nii.gz", np.float32([[[0, 1e20]]])))


@pytest.mark.parametrize(
    ("highest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)]
)
def test_written_label_maps_come_back(tmp_path, highest, dtype):
    picture = np.array([[0, highest, 1]], np.int64)
    write_label_map(tmp_path / "new" / "p.png", picture)
    label, _ = read_label(tmp_path / "new" / "p.png")
    assert label.dtype == dtype
    np.testing.assert_array_equal(label, picture)
    write_label_map(tmp_path / "v.nii.gz", picture[None], OBLIQUE)
    volume = nibabel.load(tmp_path / "v.nii.gz")
    assert volume.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(volume.dataobj), picture[None])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "p.png", "v.nii.gz"]


def test_affine_survives_exactly_from_image_to_prediction(tmp_path):
    save_nifti(tmp_path / "i.nii.gz", np.zeros((2, 3, 4), np.uint8))
    _, _, affine = read_image(tmp_path / "i.nii.gz")
    write_label_map(tmp_path / "p.nii", np.ones((2, 3, 4), np.uint8), affine)
    source, result = nibabel.load(tmp_path / "i.nii.gz"), nibabel.load(tmp_path / "p.nii")
    np.testing.assert_array_equal(result.affine, source.affine)
    assert result.header["sform_code"] > 0
    assert result.header["qform_code"] > 0
    np.testing.assert_allclose(result.get_qform(), source.affine, atol=1e-4)
    assert result.header.get_xyzt_units()[0] == "mm"
    write_label_map(tmp_path / "p.nii", np.ones((2, 3, 4), np.uint8))
    np.testing.assert_array_equal(nibabel.load(tmp_path / "p.nii").affine, np.eye(4))


def test_label_maps_that_cannot_be_written(tmp_path):
    with pytest.raises(LabelError, match=r"holds -1\.\.70000. Only 0\.\.65535"):
        write_label_map(tmp_path / "a.png", np.array([[-1, 70000]]))
    for name, shape in (("a.nii.gz", (2, 2)), ("a.png", (2, 2, 2)), ("a.jpg", (2, 2))):
        with pytest.raises(OutputError, match=r"\.png for 2 axes and \.nii\.gz or \.nii for 3"):
            write_label_map(tmp_path / name, np.zeros(shape, np.uint8))
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        write_label_map(tmp_path / "file" / "a.png", np.zeros((2, 2), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a"),
        ("a.b.NII.GZ", "a.b"),
        ("x.nii", "x"),
        ("no_suffix", "no_suffix"),
        ("v1.2.jpeg", "v1.2"),
    ],
)
def test_case_id(name, expected):
    assert case_id(Path("folder") / name) == expected


def test_pixels_are_counted_by_the_header(tmp_path):
    assert count_pixels(save_picture(tmp_path / "g.png", GREY)) == 35
    assert count_pixels(save_picture(tmp_path / "c.jpg", COLOUR)) == 35
    assert count_pixels(save_nifti(tmp_path / "v.nii.gz", np.zeros((3, 4, 5), np.uint8))) == 60
    np.savez(tmp_path / "slice.npz", image=np.zeros((4, 6), np.float32), label=np.zeros((4, 6), np.uint8))
    assert count_pixels(tmp_path / "slice.npz") == 24
    (tmp_path / "no.png").write_bytes(b"not one")
    with pytest.raises(UnreadableFileError, match=r"no\.png"):
        count_pixels(tmp_path / "no.png")


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.int32]),
        hnp.array_shapes(min_side=0, max_side=5),
        elements=st.integers(0, 2) | st.integers(0, 120),
    ),
    st.sampled_from([0, -50]),
)
def test_values_of_a_label_map_are_numpys(label, shift):
    shifted = label if label.dtype == np.uint8 else label + label.dtype.type(shift)
    assert label_values(shifted) == tuple(np.unique(shifted).tolist())


def test_odd_metadata_raises_no_warning(tmp_path):
    save_picture(tmp_path / "e.jpg", COLOUR, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "e.jpg")[0].shape == (3, 5, 7)
