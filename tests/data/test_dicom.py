"""Reading: intensities, order, multi-frame, pictures, pydicom's own files."""

import logging
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.pixels import pixel_array
from pydicom.uid import RLELossless

from dicom_cases import (
    Grid,
    assert_lies_right,
    put_pixels,
    write_multi_frame,
    write_picture,
    write_series,
)
from rwkvseg.data.dicom import Series
from rwkvseg.data.dicom_parsing import quiet
from rwkvseg.data.layouts import find_inputs, open_data, read_case
from rwkvseg.data.reading import read_geometry
from rwkvseg.errors import DataError, GeometryError, MissingExtraError, UnreadableFileError

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def read_only(path):
    (files,) = find_inputs(path)
    return read_case(files)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (20, -35, 50), (90, 0, 0), (0, 180, 0), (90, 90, 0)], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_every_voxel_lies_where_its_intensity_says(tmp_path, degrees, reverse):
    written = write_series(tmp_path / "scan", Grid.rotated(degrees), reverse=reverse)
    (files,) = find_inputs(tmp_path / "scan")
    assert files.id == "scan"
    assert files.series == written.series
    assert list(files.images) == written.files  # along the normal, whatever their names
    case = read_case(files)
    assert case.image.dtype == np.float32
    assert case.spacing == pytest.approx((0.5, 0.8, 2.5))
    assert_lies_right(case.image[0], case.affine, written.grid)
    geometry = read_geometry(files)
    assert geometry.image.shape == case.image.shape
    np.testing.assert_array_equal(geometry.affine, case.affine)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    order=st.permutations(range(5)),
)
def test_multi_frame_images_of_any_orientation(tmp_path, degrees, spacing, order):
    grid = Grid.rotated(degrees, spacing=spacing)
    write_multi_frame(tmp_path / "enhanced", grid, order)
    case = read_only(tmp_path / "enhanced")
    assert_lies_right(case.image[0], case.affine, grid)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (20, -35, 50)], ids=str)
def test_simpleitk_reads_the_same_volume(tmp_path, degrees):
    written = write_series(tmp_path / "scan", Grid.rotated(degrees))
    case = read_only(tmp_path / "scan")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(written.folder)))
    volume = reader.Execute()
    np.testing.assert_allclose(
        SimpleITK.GetArrayFromImage(volume).transpose(2, 1, 0), case.image[0], atol=1e-3
    )
    for index in ((0, 0, 0), (8, 6, 4), (3, 2, 1)):
        place = np.array(volume.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose((case.affine @ [*index, 1])[:3], place, atol=1e-6)


def test_a_tilted_gantry_is_a_sheared_affine_and_said(tmp_path, caplog):
    grid = Grid(shear=(0, 0.9, 0))
    write_series(tmp_path / "scan", grid)
    case = read_only(tmp_path / "scan")
    assert_lies_right(case.image[0], case.affine, grid)
    assert "sheared by 19.8 degrees (tilted gantry)" in caplog.text


def test_slices_of_negative_and_of_signed_values(tmp_path):
    grid = Grid(slope=(30.0, -50.0, 2.0))

    def signed(dataset, k):
        values = np.rint(grid.values()[:, :, k] * 2).astype(np.int16)
        put_pixels(dataset, values)
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "0"

    write_series(tmp_path / "scan", grid, change=signed)
    case = read_only(tmp_path / "scan")
    assert case.image.min() < -500
    assert_lies_right(case.image[0], case.affine, grid)


def test_monochrome1_is_turned_but_quantities_stay(tmp_path):
    def as_white(modality):
        def change(dataset, _):
            dataset.Modality, dataset.PhotometricInterpretation = modality, "MONOCHROME1"
            dataset.BitsStored, dataset.HighBit = 14, 13
            del dataset.RescaleSlope, dataset.RescaleIntercept

        return change

    plain = write_series(tmp_path / "plain", change=as_white("CT"))
    write_series(tmp_path / "white", change=as_white("MR"))
    ct, mr = read_only(plain.folder), read_only(tmp_path / "white")
    assert ct.image.max() < 2**14
    np.testing.assert_array_equal(mr.image, 2**14 - 1 - ct.image)


def test_copies_are_passed_over_and_named(tmp_path, caplog):
    written = write_series(tmp_path / "scan")
    (tmp_path / "scan" / "more").mkdir()
    (tmp_path / "scan" / "more" / "copy").write_bytes(written.files[2].read_bytes())
    before = list(warnings.filters), logging.getLogger("pydicom").level
    assert read_only(tmp_path / "scan").spatial_shape == (9, 7, 5)
    assert "1 copy passed over: copy" in caplog.text
    assert (warnings.filters, logging.getLogger("pydicom").level) == before
    other = pydicom.dcmread(written.files[2])
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(tmp_path / "scan" / "more" / "copy")
    with pytest.raises(
        DataError, match=r"IM\d+ and copy are the same instance \(.*\) with different contents"
    ):
        find_inputs(tmp_path / "scan")


def test_a_missing_slice_is_refused_before_anything_is_read(tmp_path):
    written = write_series(tmp_path / "scan", Grid(shape=(4, 3, 8)))
    written.files[3].unlink()
    with pytest.raises(
        GeometryError, match=r"7 slices 2.5 mm apart, but 5 mm from 105 mm \(IM\d+\) to 110 mm"
    ):
        find_inputs(tmp_path / "scan")


def test_slices_without_a_place_are_refused(tmp_path):
    def forget(dataset, k):
        if k in (1, 2):
            del dataset.ImagePositionPatient

    write_series(tmp_path / "scan", change=forget)
    with pytest.raises(DataError, match="2 of 5 files without a place in space"):
        find_inputs(tmp_path / "scan")


def test_places_of_different_frames_of_reference_are_refused(tmp_path):
    def move(dataset, k):
        if k > 2:
            dataset.FrameOfReferenceUID = "1.2.3"

    write_series(tmp_path / "scan", change=move)
    with pytest.raises(GeometryError, match="holds slices of 2 frames of reference"):
        find_inputs(tmp_path / "scan")


def test_compressed_frames_are_read_one_by_one(tmp_path):
    grid = Grid.rotated((20, -35, 50))
    write_multi_frame(
        tmp_path / "a.dcm", grid, [2, 0, 4, 1, 3], change=lambda dataset, _: dataset.compress(RLELossless)
    )
    case = read_only(tmp_path / "a.dcm")
    assert_lies_right(case.image[0], case.affine, grid)


def test_a_mosaic_is_refused(tmp_path):
    def tile(dataset, _):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]

    write_series(tmp_path / "scan", Grid(shape=(8, 8, 1)), change=tile)
    with pytest.raises(DataError, match=r"IM0001 is a mosaic, many slices tiled into one image\. Export"):
        find_inputs(tmp_path / "scan")


def test_a_film_is_refused(tmp_path):
    frames = np.zeros((6, 4, 5), np.uint8)
    write_picture(tmp_path / "film.dcm", frames, NumberOfFrames=6)
    with pytest.raises(DataError, match=r"such as film.dcm, 6 frames\. They make no volume"):
        find_inputs(tmp_path / "film.dcm")


def test_coloured_volumes_are_refused(tmp_path):
    def paint(dataset, _):
        put_pixels(dataset, np.zeros((7, 9, 3), np.uint8), "RGB")

    write_series(tmp_path / "scan", change=paint)
    with pytest.raises(DataError, match=r"IM\d+ holds colours \(RGB\), volumes hold one number per voxel"):
        find_inputs(tmp_path / "scan")


def test_a_single_slice_is_a_volume(tmp_path, caplog):
    write_series(tmp_path / "thick", Grid(shape=(7, 9, 1)))
    case = read_only(tmp_path / "thick")
    assert case.spatial_shape == (9, 7, 1)
    assert case.spacing == pytest.approx((0.5, 0.8, 1))
    assert "thickness" not in caplog.text

    def forget(dataset, _):
        del dataset.SliceThickness

    write_series(tmp_path / "flat", Grid(shape=(7, 9, 1)), change=forget)
    assert read_only(tmp_path / "flat").spacing == pytest.approx((0.5, 0.8, 1))
    assert "its only slice states no thickness, 1 mm is taken" in caplog.text


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_x_rays_are_pictures_in_which_bright_means_more(tmp_path, photometric):
    values = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)
    write_picture(tmp_path / "a.dcm", values, photometric=photometric, bits=12)
    case = read_only(tmp_path / "a.dcm")
    assert (case.id, case.affine, case.spacing) == ("a", None, None)
    expected = 4095 - values if photometric == "MONOCHROME1" else values
    np.testing.assert_array_equal(case.image[0], expected)
    small = (values // 16).astype(np.uint8)
    write_picture(tmp_path / "b.dcm", small, photometric=photometric)
    case = read_only(tmp_path / "b.dcm")
    assert case.image.dtype == np.uint8
    np.testing.assert_array_equal(case.image[0], 255 - small if photometric == "MONOCHROME1" else small)


def test_colours_are_three_channels(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 31, 3)).astype(np.uint8)
    write_picture(tmp_path / "a.dcm", values, photometric="RGB")
    np.testing.assert_array_equal(read_only(tmp_path / "a.dcm").image, values.transpose(2, 0, 1))


def test_a_table_of_values_is_refused(tmp_path):
    write_picture(tmp_path / "a.dcm", np.zeros((4, 5), np.uint8), ModalityLUTSequence=[pydicom.Dataset()])
    with pytest.raises(DataError, match=r"a.dcm maps its values by a table \(Modality LUT\)"):
        read_only(tmp_path / "a.dcm")


@pytest.mark.parametrize("slope", ["1e38", "nan"])
def test_numbers_beyond_float32_are_refused(tmp_path, slope):
    def blow_up(dataset, _):
        dataset.RescaleSlope = slope

    with quiet():
        write_series(tmp_path / "scan", change=blow_up)
    with pytest.raises(
        DataError, match=r"holds NaN or infinity, or numbers beyond float32 after its rescaling"
    ):
        read_only(tmp_path / "scan")


def test_more_than_memory_is_refused(tmp_path, monkeypatch):
    write_series(tmp_path / "scan")
    (files,) = find_inputs(tmp_path / "scan")
    monkeypatch.setattr("rwkvseg.data.dicom.available_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"holds 9 x 7 x 5 voxels, which take .* this machine has 1000 B"):
        read_case(files)


def test_a_volume_is_read_slice_by_slice_into_one_array(tmp_path):
    write_series(tmp_path / "scan", Grid(shape=(64, 80, 120)))
    (files,) = find_inputs(tmp_path / "scan")
    series = Series.from_files(files.images)
    tracemalloc.start()
    image = series.read()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < image.nbytes + 2**20  # one slice in all its forms takes less


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    write_series(tmp_path / "scan")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rwkvseg\[dicom\]'"):
        find_inputs(tmp_path / "scan")


@pytest.mark.parametrize(
    "name",
    ["", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_padded"],
)
def test_every_encoding_of_one_slice_gives_the_same(name):
    case, plain = read_only(SAMPLES / f"MR_small{name}.dcm"), read_only(SAMPLES / "MR_small.dcm")
    np.testing.assert_array_equal(case.image, plain.image)
    np.testing.assert_array_equal(case.affine, plain.affine)
    dataset = pydicom.dcmread(SAMPLES / "MR_small.dcm")
    np.testing.assert_array_equal(plain.image[0, :, :, 0], dataset.pixel_array.T)
    first = (plain.affine @ [0, 0, 0, 1])[:3] * (-1, -1, 1)
    np.testing.assert_allclose(first, [float(v) for v in dataset.ImagePositionPatient])


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        ("CT_small", (0.661468, 0.661468, 5)),
        ("693_J2KI", (0.478516, 0.478516, 20)),
        ("J2K_pixelrep_mismatch", None),
    ],
)
def test_ct_slices_of_pydicom(name, spacing):
    case, dataset = read_only(SAMPLES / f"{name}.dcm"), pydicom.dcmread(SAMPLES / f"{name}.dcm")
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    np.testing.assert_array_equal(case.image[0, :, :, 0], dataset.pixel_array.T * slope + intercept)
    assert spacing is None or case.spacing == pytest.approx(spacing)


@pytest.mark.parametrize(
    ("name", "channels", "kind"),
    [
        ("examples_rgb_color", 3, np.uint8),
        ("examples_jpeg2k", 3, np.uint8),
        ("examples_palette", 3, np.uint16),
        ("SC_ybr_full_422_uncompressed", 3, np.uint8),
        ("SC_rgb_rle_16bit", 3, np.uint16),
        ("SC_rgb_small_odd_big_endian", 3, np.uint8),
        ("JPEGLSNearLossless_16", 1, np.float32),
        ("image_dfl", 1, np.uint8),
    ],
)
def test_pictures_of_pydicom(name, channels, kind):
    case = read_only(SAMPLES / f"{name}.dcm")
    assert case.image.dtype == kind
    assert len(case.image) == channels
    if name != "examples_palette":
        found = pixel_array(pydicom.dcmread(SAMPLES / f"{name}.dcm"))
        np.testing.assert_array_equal(case.image, np.moveaxis(np.atleast_3d(found), -1, 0))


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("MR_truncated", UnreadableFileError, "number of bytes of pixel data is less than expected"),
        ("SC_rgb_jpeg_gdcm", DataError, "compressed as JPEG Lossless, .* which no installed decoder reads"),
        ("JPEG-lossy", UnreadableFileError, r"cannot decompress .*JPEG-lossy.dcm \(JPEG Extended"),
        ("badVR", UnreadableFileError, "cannot decode .*badVR.dcm"),
        ("no_meta", UnreadableFileError, "its header ends before it says what it holds"),
        ("rtdose", DataError, "rtdose.dcm, 15 frames"),
        ("rtplan", DataError, "such as rtplan.dcm, holds an image to segment"),
        ("liver_1frame", DataError, "such as liver_1frame.dcm, holds an image to segment"),
    ],
)
def test_what_pydicoms_files_are_refused_for(name, error, told):
    with pytest.raises(error, match=told):
        read_only(SAMPLES / f"{name}.dcm")


def test_files_that_are_no_image_are_no_series():
    with pytest.raises(DataError, match=r"rtplan.dcm holds no image\. Leave it out"):
        Series.from_files([SAMPLES / "rtplan.dcm"])


@pytest.mark.parametrize("given", [".", "study", "study/series"])
def test_a_folder_of_dicom_is_no_data_folder_and_says_why(tmp_path, given):
    write_series(tmp_path / "study" / "series")
    with pytest.raises(DataError, match=r"holds DICOM files, which come without labels.*data convert"):
        open_data(tmp_path / given)
