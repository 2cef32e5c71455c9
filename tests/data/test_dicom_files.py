"""Folders of DICOM: several series, what is no DICOM, what is damaged."""

import io
import os
import random
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import generate_uid

from dicom_cases import Grid, write_multi_frame, write_picture, write_series
from rwkvseg.data.layouts import find_inputs, read_case
from rwkvseg.errors import DataError, GeometryError, RWKVSegError, UnreadableFileError, UsageError

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def numbered(number):
    def change(dataset, _):
        dataset.SeriesNumber = number

    return change


def ids(cases):
    return [case.id for case in cases]


def test_every_series_of_a_study_is_a_case_named_by_its_folder(tmp_path):
    write_series(tmp_path / "p1" / "ct")
    write_series(tmp_path / "p1" / "mr", Grid.rotated((0, 90, 0)))
    write_series(tmp_path / "p2" / "ct")
    found = find_inputs(tmp_path)
    assert ids(found) == ["p1_ct", "p1_mr", "p2_ct"]
    assert [len(case.images) for case in found] == [5, 5, 5]


def test_series_in_one_folder_are_told_by_number_and_description(tmp_path):
    study = tmp_path / "study"
    for number, name in ((2, "T1 (ax) / post"), (7, "T2")):
        write_series(tmp_path / name[:2], change=numbered(number), description=name)
        study.mkdir(exist_ok=True)
        for path in sorted((tmp_path / name[:2]).iterdir()):
            shutil.move(path, study / f"{number}{path.name}")
    assert ids(find_inputs(study)) == ["study_2_T1_ax_post", "study_7_T2"]


def test_a_series_spread_over_folders_is_one_case(tmp_path):
    written = write_series(tmp_path / "scan")
    for k, path in enumerate(written.files):
        (tmp_path / "scan" / f"part{k % 2}").mkdir(exist_ok=True)
        path.rename(tmp_path / "scan" / f"part{k % 2}" / path.name)
    (files,) = find_inputs(tmp_path)
    assert files.id == "scan"
    assert [path.name for path in files.images] == [path.name for path in written.files]


def test_two_patients_whose_files_have_the_same_names(tmp_path):
    for patient in ("a", "b"):
        write_series(tmp_path / patient / "s", description="same")
    assert ids(find_inputs(tmp_path)) == ["a_s", "b_s"]
    series = [generate_uid(), generate_uid()]
    for k, uid in enumerate(series):
        written = write_series(tmp_path / "c", series=uid, description="same")
        for path in written.files:
            path.rename(path.with_name(f"{k}{path.name}"))
    assert len(set(ids(find_inputs(tmp_path)))) == 4


@pytest.mark.parametrize("by", ["number", "uid", "id"])
def test_series_can_be_chosen(tmp_path, by):
    write_series(tmp_path / "scout", change=numbered(1))
    written = write_series(tmp_path / "ct", change=numbered(4))
    wanted = {"number": "4", "uid": written.series, "id": "ct"}[by]
    assert ids(find_inputs(tmp_path, [wanted])) == ["ct"]
    assert ids(find_inputs(tmp_path, [wanted, "1"])) == ["ct", "scout"]


def test_a_series_that_is_not_there(tmp_path):
    written = write_series(tmp_path / "ct", change=numbered(4))
    with pytest.raises(
        UsageError, match=rf"no series 9\. There are ct \(number 4, UID {written.series}, 5 im"
    ):
        find_inputs(tmp_path, ["4", "9"])
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="--series is of DICOM"):
        find_inputs(tmp_path / "a.png", ["4"])


def test_a_refused_series_says_what_else_there_is(tmp_path):
    def turn(dataset, k):
        dataset.SeriesNumber = 1
        if k == 0:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    write_series(tmp_path / "scout", change=turn)
    write_series(tmp_path / "ct", change=numbered(4))
    with pytest.raises(GeometryError, match=r"2 kinds.* Or choose others with --series: ct \(number 4"):
        find_inputs(tmp_path)
    assert ids(find_inputs(tmp_path, ["4"])) == ["ct"]


def test_pictures_of_one_series_are_cases_of_their_own(tmp_path):
    series = generate_uid()
    for name in ("front", "side"):
        write_picture(tmp_path / "x" / name, np.zeros((4, 5), np.uint8), SeriesInstanceUID=series)
    found = find_inputs(tmp_path / "x")
    assert [case.images[0].name for case in found] == ["front", "side"]
    assert ids(found) == ["x_0_front", "x_0_side"]


def test_what_is_no_image_is_passed_over_and_named(tmp_path, caplog):
    written = write_series(tmp_path / "ct")
    shutil.copy(SAMPLES / "rtplan.dcm", written.folder)
    shutil.copy(SAMPLES / "dicomdirtests" / "DICOMDIR", written.folder)
    (written.folder / "notes.txt").write_text("notes")
    (written.folder / "numbers").write_bytes(b"\x02\0" + bytes(500))  # might be old DICOM by its first bytes
    (written.folder / ".hidden").write_text("hidden")
    (files,) = find_inputs(written.folder)
    assert len(files.images) == 5
    assert "passed over 2 files, no DICOM: notes.txt, numbers" in caplog.text
    assert "passed over 2 files, DICOM without an image to segment: DICOMDIR, rtplan.dcm" in caplog.text


def test_names_never_meet(tmp_path):
    for name in ("a b", "a_b", "A-b", "a/b"):
        write_series(tmp_path / name, description="x")
    found = ids(find_inputs(tmp_path))
    assert len({name.lower() for name in found}) == 4


def test_a_single_file_is_called_by_its_name(tmp_path):
    write_multi_frame(tmp_path / "scan 7.dcm", Grid(), range(5))
    assert ids(find_inputs(tmp_path / "scan 7.dcm")) == ["scan 7"]
    (tmp_path / "numbers").write_bytes(b"\x02\0" + bytes(500))
    with pytest.raises(DataError, match="numbers is of no known format"):
        find_inputs(tmp_path / "numbers")


def test_what_cannot_be_opened_is_passed_over_or_named(tmp_path, caplog):
    written = write_series(tmp_path / "ct")
    (written.folder / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(written.folder / "pipe")
    assert len(find_inputs(written.folder)[0].images) == 5
    assert not caplog.text


def test_a_folder_without_any(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(DataError, match=r"holds no images\. Give a file, a folder of images or DICOM"):
        find_inputs(tmp_path)
    with pytest.raises(DataError, match=r"notes.txt is of no known format\. Use NIfTI, DICOM"):
        find_inputs(tmp_path / "notes.txt")


def test_pictures_among_dicom_are_refused(tmp_path):
    written = write_series(tmp_path / "ct")
    Image.new("L", (3, 3)).save(written.folder / "preview.png")
    with pytest.raises(DataError, match="holds 1 picture or NIfTI volume among DICOM files"):
        find_inputs(written.folder)


def test_files_without_preamble_are_read(tmp_path):
    def bare(path):
        content = path.read_bytes()[132:]
        path.write_bytes(content)

    written = write_series(tmp_path / "ct")
    whole = read_case(find_inputs(tmp_path / "ct")[0])
    for path in written.files:
        bare(path)
    np.testing.assert_array_equal(read_case(find_inputs(tmp_path / "ct")[0]).image, whole.image)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    written = write_series(tmp_path / "ct")
    path = written.files[2]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UnreadableFileError, match=rf"cannot decode .*{path.name}"):
        read_case(find_inputs(tmp_path / "ct")[0])


def test_an_empty_file_with_the_suffix_is_named(tmp_path):
    written = write_series(tmp_path / "ct")
    (written.folder / "empty.dcm").write_bytes(b"")
    with pytest.raises(UnreadableFileError, match=r"cannot decode .*empty.dcm"):
        find_inputs(written.folder)


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr("rwkvseg.data.dicom_parsing.available_memory", lambda: 2**19)
    with pytest.raises(UnreadableFileError, match="it inflates to more than 128 KiB"):
        find_inputs(shutil.copy(SAMPLES / "image_dfl.dcm", tmp_path / "a.dcm"))
    monkeypatch.setattr("rwkvseg.data.dicom_parsing.available_memory", lambda: 2**24)
    find_inputs(tmp_path / "a.dcm")


def test_frames_beyond_the_file_are_refused(tmp_path):
    def claim(dataset, _):
        dataset.NumberOfFrames = 10**9
        del dataset.PerFrameFunctionalGroupsSequence

    write_multi_frame(tmp_path / "a.dcm", Grid(), range(5), change=claim)
    with pytest.raises(UnreadableFileError, match=r"it states \(1000000000, 7, 9\) frames"):
        find_inputs(tmp_path / "a.dcm")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    write_multi_frame(folder / "multi.dcm", Grid(), [2, 0, 1, 4, 3])
    write_series(folder / "ct")
    write_picture(folder / "xray.dcm", np.zeros((20, 30), np.uint16), bits=12)
    ct = min((folder / "ct").iterdir())
    names = ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "image_dfl.dcm", "examples_palette.dcm"]
    paths = [folder / "multi.dcm", ct, folder / "xray.dcm", *(SAMPLES / name for name in names)]
    return paths


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 6), seed=st.integers(0, 2**32), changes=st.integers(1, 12), cut=st.booleans())
def test_mutated_files_are_read_or_refused(originals, tmp_path, which, seed, changes, cut):
    draw = random.Random(seed)
    content = bytearray(originals[which].read_bytes())
    for _ in range(changes):
        content[draw.randrange(128, min(len(content), 3000))] = draw.choice(
            [0, 1, 127, 255, draw.randrange(256)]
        )
    if cut:
        del content[draw.randrange(len(content)) :]
    path = tmp_path / "mutated.dcm"
    path.write_bytes(content)
    with redirect_stderr(io.StringIO()):
        try:
            for files in find_inputs(path):
                read_case(files)
        except RWKVSegError:  # anything else fails the test
            return


def test_other_images_need_no_pydicom(tmp_path):
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    (tmp_path / "notes").write_text("notes")
    program = (
        "import sys; sys.modules['pydicom'] = sys.modules['highdicom'] = None\n"
        "import rwkvseg.inference.predict, pathlib\n"
        "from rwkvseg.data import find_inputs, read_case\n"
        f"print(read_case(find_inputs(pathlib.Path({str(tmp_path)!r}))[0]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "image=1 x (3, 3) uint8" in done.stdout


def test_pictures_above_dicom_are_refused_and_a_series_is_found_beside_them(tmp_path):
    written = write_series(tmp_path / "study" / "ct")
    Image.new("L", (3, 3)).save(tmp_path / "study" / "preview.png")
    with pytest.raises(DataError, match=r"holds 1 picture or NIfTI volume among DICOM files, or above them"):
        find_inputs(tmp_path / "study")
    (files,) = find_inputs(tmp_path / "study", [written.datasets[0].SeriesInstanceUID])
    assert len(files.images) == len(written.datasets)


def test_a_slope_of_zero_is_refused(tmp_path):
    def flat(dataset, _):
        dataset.RescaleSlope, dataset.RescaleIntercept = "0", "5"

    write_series(tmp_path / "ct", change=flat)
    with pytest.raises(DataError, match="its rescale slope is 0"):
        find_inputs(tmp_path / "ct")
