"""From DICOM to NIfTI, label pictures and DICOM segmentations: the same voxels in world coordinates."""

import csv
import sys

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from dicom_predict_cases import GRIDS, bands, predict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.pixels import unpack_bits
from scipy.spatial import cKDTree
from volume_cases import Linear, make_predictor

from dicom_cases import Grid, assert_lies_right, lps, write_multi_frame, write_picture, write_series
from rwkvseg.data.layouts import find_inputs, read_case
from rwkvseg.errors import DataError, MissingExtraError, OutputError, UsageError
from rwkvseg.evaluation.drawing import class_colour
from rwkvseg.inference import result_files
from rwkvseg.inference.dicom_seg import write_dicom_seg
from rwkvseg.inference.predict import predict_files
from rwkvseg.inference.predictor import Predictor
from small import files_below


def read_seg(path):
    """(places LPS, label number) of every pixel of every segment, by pydicom alone."""
    seg = pydicom.dcmread(path)
    bits = unpack_bits(seg.PixelData)[: int(seg.NumberOfFrames) * seg.Rows * seg.Columns]
    frames = bits.reshape(int(seg.NumberOfFrames), seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    places, numbers = [], []
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        cosines = [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
        grid = Grid(
            along_row=tuple(cosines[:3]),
            down_column=tuple(cosines[3:]),
            origin=tuple(float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient),
            spacing=(*[float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing], 1.0),
        )
        rows, columns = np.nonzero(frame)
        places.append(grid.place(rows, columns, np.zeros(len(rows))))
        named = group if "SegmentIdentificationSequence" in group else shared  # where there is one segment
        numbers += [int(named.SegmentIdentificationSequence[0].ReferencedSegmentNumber)] * len(rows)
    return seg, np.concatenate(places), np.array(numbers)


def assert_same_in_world(places, numbers, labels, affine):
    """Pixels of segments are exactly the labelled voxels."""
    tree = cKDTree(lps(labels.shape, affine).reshape(-1, 3))
    distance, index = tree.query(places)
    assert distance.max() < 1e-6
    assert len(set(index)) == len(places) == np.count_nonzero(labels)
    np.testing.assert_array_equal(np.array([0, 1, 3, 4])[numbers], labels.ravel()[index])


@pytest.mark.parametrize("reverse", [False, True], ids=["shuffled", "reversed"])
@pytest.mark.parametrize("name", GRIDS)
def test_segmentations_and_nifti_hold_the_same_voxels(tmp_path, name, reverse):
    grid = GRIDS[name]
    written = write_series(tmp_path / "ct", grid, reverse=reverse)
    case, path = predict(tmp_path / "ct", tmp_path / "nifti")
    assert path == tmp_path / "nifti" / "ct.nii.gz"
    assert_lies_right(case.image[0], case.affine, grid)
    nifti = nibabel.load(path)
    np.testing.assert_allclose(nifti.affine, case.affine, atol=1e-4)  # the header has 32 bits
    labels = np.asarray(nifti.dataobj)
    assert sorted(np.unique(labels)) == [0, 1, 3]
    low, high = case.image.min(), case.image.max()
    places = lps(labels.shape, nifti.affine)
    third = (grid.intensity(places) - low) / (high - low) * 3
    sure = np.abs(third - np.rint(third)) > 0.05
    np.testing.assert_array_equal(labels[sure], np.array([0, 1, 3])[third.clip(0, 2.9).astype(int)][sure])

    _, path = predict(tmp_path / "ct", tmp_path / "seg", wanted="dicom-seg")
    assert path == tmp_path / "seg" / "ct.dcm"
    seg, places, numbers = read_seg(path)
    assert_same_in_world(places, numbers, labels, case.affine)
    assert seg.FrameOfReferenceUID == written.frame_of_reference
    of_source = highdicom.seg.segread(path).get_pixels_by_source_instance(
        written.uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(np.array([0, 1, 3, 4])[of_source], labels.transpose(2, 1, 0))
    if "tilted" not in name:  # highdicom's volumes have right angles
        volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
        assert volume.spacing == pytest.approx((grid.spacing[2], *grid.spacing[:2]), rel=1e-6)
        assert_same_in_world(*labelled(volume), labels, case.affine)


def labelled(volume):
    """(places LPS, label numbers) of a highdicom volume."""
    places = lps(volume.spatial_shape, np.diag([-1, -1, 1, 1]) @ volume.affine)
    return places[volume.array > 0], volume.array[volume.array > 0]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    order=st.permutations(range(5)),
)
def test_segmentations_of_multi_frame_images(tmp_path, degrees, spacing, order):
    grid = Grid.rotated(degrees, spacing=spacing)
    source = write_multi_frame(tmp_path / "mr" / "a.dcm", grid, order)
    (files,) = find_inputs(tmp_path / "mr")
    case = read_case(files)
    labels = bands().predict(case)
    (done,) = predict_files(bands(), [files], tmp_path / "out", wanted="dicom-seg")
    seg, places, numbers = read_seg(done.file)
    assert_same_in_world(places, numbers, labels, case.affine)
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    of_source = highdicom.seg.segread(done.file).get_pixels_by_source_frame(
        source.SOPInstanceUID, range(1, 6), combine_segments=True, assert_missing_frames_are_empty=True
    )
    expected = labels.transpose(2, 1, 0)[list(order)]
    np.testing.assert_array_equal(np.array([0, 1, 3, 4])[of_source], expected)


def test_what_a_segmentation_says_of_itself(tmp_path):
    written = write_series(tmp_path / "ct")
    _, path = predict(tmp_path / "ct", tmp_path / "out", wanted="dicom-seg")
    seg, source = highdicom.seg.segread(path), written.datasets[0]
    for key in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert seg[key].value == source[key].value
    assert (seg.SegmentationType, seg.Modality, seg.SeriesNumber) == ("BINARY", "SEG", 1003)
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["liver", "odd thing", "never"]
    liver, odd, _ = seg.SegmentSequence
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert odd.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99RWKVSEG"
    assert odd.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "odd thing"
    for segment, value in zip(seg.SegmentSequence, (1, 3, 4), strict=True):
        lab = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(lab.to_rgb(), class_colour(value), atol=1)
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("bands", "0123456789ab")
    assert list(seg.segment_numbers) == [1, 2, 3]
    numbers = {group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
               for group in seg.PerFrameFunctionalGroupsSequence}  # fmt: skip
    assert numbers == {1, 2}  # the third does not occur
    referenced = {
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for group in seg.PerFrameFunctionalGroupsSequence
    }
    assert referenced <= set(written.uids)
    assert len(referenced) == 5


def test_segmentations_beside_their_source_are_no_input(tmp_path, caplog):
    written = write_series(tmp_path / "ct")
    predict(tmp_path / "ct", written.folder, wanted="dicom-seg")
    (files,) = find_inputs(written.folder)
    assert list(files.images) == written.files
    assert "DICOM without an image to segment: ct.dcm" in caplog.text


def test_a_slice_is_not_replaced_by_the_segmentation(tmp_path):
    written = write_series(tmp_path / "ct")
    written.files[0].rename(tmp_path / "ct" / "ct.dcm")
    before = (tmp_path / "ct" / "ct.dcm").read_bytes()
    with pytest.raises(UsageError, match=r"holds data, such as ct\.dcm"):
        predict(tmp_path / "ct", written.folder, wanted="dicom-seg")
    assert (tmp_path / "ct" / "ct.dcm").read_bytes() == before


def test_a_segmentation_of_nothing(tmp_path):
    def flatten(dataset, _):
        dataset.PixelData = bytes(len(dataset.PixelData))
        dataset.RescaleIntercept = "0"

    written = write_series(tmp_path / "ct", change=flatten)
    _, path = predict(tmp_path / "ct", tmp_path / "out", wanted="dicom-seg")
    found = highdicom.seg.segread(path).get_pixels_by_source_instance(written.uids)
    assert found.shape == (5, 7, 9, 3)
    assert not found.any()


def test_label_pictures_of_slices(tmp_path):
    written = write_series(tmp_path / "ct", Grid.rotated((20, -35, 50)))
    case, folder = predict(tmp_path / "ct", tmp_path / "out", wanted="png")
    assert folder == tmp_path / "out" / "ct"
    labels = bands().predict(case)
    with (folder / "slices.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sop_instance_uid"] for row in rows] == written.uids
    assert [row["file"] for row in rows] == [str(path) for path in written.files]
    for k, row in enumerate(rows):
        with Image.open(folder / row["picture"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), labels[:, :, k].T)
    assert len(list(folder.iterdir())) == 6


def test_label_pictures_of_frames(tmp_path):
    write_multi_frame(tmp_path / "a.dcm", Grid(), [2, 0, 4, 1, 3])
    case, folder = predict(tmp_path / "a.dcm", tmp_path / "out", wanted="png")
    with (folder / "slices.csv").open(newline="") as file:
        assert [row["frame"] for row in csv.DictReader(file)] == ["2", "4", "1", "5", "3"]
    with Image.open(folder / "0003.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), bands().predict(case)[:, :, 3].T)


@pytest.mark.parametrize("wanted", ["auto", "png", "dicom-seg"])
def test_x_rays(tmp_path, wanted):
    values = np.linspace(0, 4095, 20 * 30).reshape(20, 30).astype(np.uint16)
    source = write_picture(tmp_path / "x" / "a.dcm", values, bits=12)
    _, path = predict(tmp_path / "x", tmp_path / "out", wanted=wanted, overlay=True)
    expected = np.array([0, 1, 3])[(values / 4095 * 2.999).astype(int)]
    if wanted == "dicom-seg":
        seg = highdicom.seg.segread(path)
        found = np.array([0, 1, 3, 4])[
            seg.get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=True)[0]
        ]
    else:
        assert path == tmp_path / "out" / "x.png"
        with Image.open(path) as picture:
            found = np.asarray(picture)
    assert (found != expected).mean() < 0.01  # on the borders of the bands


def test_networks_that_see_volumes(tmp_path):
    """Oriented, resampled and windowed, and back on the series' own grid."""
    grid = Grid.rotated((90, 4, -7), shape=(13, 11, 9), spacing=(0.8, 0.7, 2.5))
    write_series(tmp_path / "ct", grid)
    (files,) = find_inputs(tmp_path / "ct")
    predictor = make_predictor(
        Linear(), patch=(8, 8, 8), orientation="RAS", spacing=(1.0, 1.0, 1.0), normalisation="unit"
    )
    (done,) = predict_files(predictor, [files], tmp_path / "nifti")
    nifti, case = nibabel.load(done.file), read_case(files)
    labels = np.asarray(nifti.dataobj)
    half = (case.image.min() + case.image.max()) / 2
    value = grid.intensity(lps(labels.shape, nifti.affine))
    sure = np.abs(value - half) > 8
    np.testing.assert_array_equal(labels[sure], (value > half)[sure])
    assert sure.mean() > 0.6
    (done,) = predict_files(predictor, [files], tmp_path / "seg", wanted="dicom-seg")
    _, places, numbers = read_seg(done.file)
    assert_same_in_world(places, numbers, labels, case.affine)


def test_formats_that_do_not_fit_are_refused_before_the_work(tmp_path):
    Image.new("L", (9, 7)).save(tmp_path / "a.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3), np.float32), np.eye(4)), tmp_path / "b.nii.gz")
    write_picture(tmp_path / "c.dcm", np.zeros((7, 9), np.uint8))
    for name, wanted, told in (
        ("a.png", "dicom-seg", "case a is no DICOM"),
        ("b.nii.gz", "dicom-seg", "case b is no DICOM"),
        ("a.png", "nifti", "case a is a picture"),
        ("b.nii.gz", "png", "case b is a NIfTI volume"),
        ("c.dcm", "nifti", "case c is a picture"),
    ):
        with pytest.raises(UsageError, match=told):
            predict_files(bands(), find_inputs(tmp_path / name), tmp_path / "out", wanted=wanted)
    assert not (tmp_path / "out").exists()


def test_without_highdicom_the_extra_is_named(tmp_path, monkeypatch):
    write_series(tmp_path / "ct")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(
        MissingExtraError, match=r"need highdicom\. Install it with pip install 'rwkvseg\[dicom\]'"
    ):
        predict(tmp_path / "ct", tmp_path / "out", wanted="dicom-seg")
    predict(tmp_path / "ct", tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("StudyInstanceUID", "lacks a StudyInstanceUID"),
        ("FrameOfReferenceUID", "lacks a FrameOfReferenceUID"),
    ],
)
def test_sources_that_nothing_can_refer_to(tmp_path, key, told):
    def forget(dataset, _):
        del dataset[key]

    write_series(tmp_path / "ct", change=forget)
    with pytest.raises(DataError, match=f"(?i){told}.*--format nifti or png"):
        predict(tmp_path / "ct", tmp_path / "out", wanted="dicom-seg")
    assert not list((tmp_path / "out").glob("*"))


def test_names_in_any_letters_come_through(tmp_path):
    def name(dataset, _):
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^Jörg"

    written = write_series(tmp_path / "ct", change=name)
    (files,) = find_inputs(written.folder)
    labels = bands().predict(read_case(files))
    names = {"background": 0, "größe": 1, "肝臓": 3, "a very long name of a structure " * 4: 4}
    described = bands().description.model_copy(update={"labels": names})
    write_dicom_seg(tmp_path / "a.dcm", files, labels, described)
    seg = highdicom.seg.segread(tmp_path / "a.dcm")
    assert seg.PatientName == "Müller^Jörg"
    found = [segment.SegmentLabel for segment in seg.SegmentSequence]
    assert found[:2] == ["größe", "肝臓"]
    assert found[2].startswith("a very long name of a structure a very")
    assert seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "肝臓"


def test_anonymised_sources_are_taken(tmp_path):
    def anonymise(dataset, _):
        for key in (
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "StudyID",
            "AccessionNumber",
            "StudyTime",
        ):
            del dataset[key]
        dataset.PatientID, dataset.PatientName = "", "no name at all^^^^^^"

    write_series(tmp_path / "ct", change=anonymise)
    _, path = predict(tmp_path / "ct", tmp_path / "out", wanted="dicom-seg")
    assert pydicom.dcmread(path).PatientID == ""


def test_a_thin_single_slice_goes_through_the_network_as_it_is(tmp_path):
    def thin(dataset, _):
        dataset.SliceThickness = "0.1"

    write_series(tmp_path / "ct", Grid(shape=(7, 9, 1)), change=thin)
    seen = []
    predictor = bands()
    predictor.network.register_forward_hook(lambda _module, inputs, _logits: seen.append(inputs[0].shape[2:]))
    (done,) = predict_files(predictor, find_inputs(tmp_path / "ct"), tmp_path / "out")
    assert seen == [(9, 7)]
    assert nibabel.load(done.file).shape == (9, 7, 1)


def test_a_series_in_two_multi_frame_files(tmp_path):
    def same_series(dataset, _):
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4"

    grid = Grid.rotated((20, -35, 50), shape=(7, 9, 6))
    write_multi_frame(tmp_path / "mr" / "a", grid, [5, 1, 3], change=same_series)
    write_multi_frame(tmp_path / "mr" / "b", grid, [0, 4, 2], change=same_series)
    case, folder = predict(tmp_path / "mr", tmp_path / "out", wanted="png")
    assert_lies_right(case.image[0], case.affine, grid)
    with (folder / "slices.csv").open(newline="") as file:
        rows = [(row["file"][-1], row["frame"]) for row in csv.DictReader(file)]
    assert rows == [("b", "1"), ("a", "2"), ("b", "3"), ("a", "3"), ("b", "2"), ("a", "1")]
    with pytest.raises(DataError, match="is spread over 2 files of many frames"):
        predict(tmp_path / "mr", tmp_path / "seg", wanted="dicom-seg")


def test_pictures_of_slices_are_replaced_as_a_whole(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_series(tmp_path / "a" / "ct", Grid(shape=(7, 9, 6)))
    write_series(tmp_path / "b" / "ct", Grid(shape=(7, 9, 4)))
    predict(tmp_path / "a" / "ct", out, wanted="png")
    _, folder = predict(tmp_path / "b" / "ct", out, wanted="png")
    before = files_below(out)
    assert len(before) == 4 + 2, "four slices, their table and the record"
    write_map, left = result_files.write_label_map, [2]

    def stop(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write_map(*arguments, **options)

    monkeypatch.setattr(result_files, "write_label_map", stop)
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path / "a" / "ct", out, wanted="png")
    assert set(files_below(out)) <= set(before)
    assert len(list(folder.glob("*.png"))) == 4
    (folder / "slices.csv").unlink()
    with pytest.raises(OutputError, match=r"holds no slices\.csv"):
        predict(tmp_path / "b" / "ct", out, wanted="png")


def test_a_screen_shot_in_a_study_is_told_before_any_work(tmp_path, monkeypatch):
    write_series(tmp_path / "study" / "a")
    write_picture(tmp_path / "study" / "shot.dcm", np.zeros((20, 30, 3), np.uint8), photometric="RGB")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", None)
        with pytest.raises(DataError, match=r"is in colour .*takes 1 channel.*--series"):
            predict_files(bands(), find_inputs(tmp_path / "study"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_label_maps_of_dicom_do_not_lie_among_it(tmp_path):
    write_series(tmp_path / "ct")
    with pytest.raises(UsageError, match="holds data"):
        predict(tmp_path / "ct", tmp_path / "ct")
    _, path = predict(tmp_path / "ct", tmp_path / "ct", wanted="dicom-seg")
    assert path.parent == tmp_path / "ct"
