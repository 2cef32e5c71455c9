"""`rwkvseg compare` from predictions on disk to tables and pictures, for pictures and volumes."""

import io
import json
import shutil
from base64 import b64decode
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from rwkvseg.errors import DataError
from rwkvseg.evaluation.drawing import class_colour
from rwkvseg.evaluation.evaluations import read_evaluations
from rwkvseg.inference.compare import read_compared
from rwkvseg.inference.evaluate import evaluate
from small import files_below

SPACING = (0.8, 1.5, 3.0)


def write_picture(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def write_volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.asarray(values, np.uint8), np.diag([*SPACING, 1.0])), path)


def make_runs(folder):
    """Run folders "a" and "b" beside "data": four pictures of odd size, masks of 0 and 255."""
    generator = np.random.default_rng(0)
    for index in range(4):
        mask = np.zeros((21, 17), np.uint8)
        mask[4 : 10 + index, 3:12] = 255
        write_picture(folder / "data" / "images" / f"{index}.png", generator.integers(0, 255, (21, 17, 3)))
        write_picture(folder / "data" / "masks" / f"{index}.png", mask)
        for run, shift in (("a", index), ("b", 1)):
            predicted = np.roll(mask, shift, 0) // 255
            write_picture(folder / run / "predictions" / "test" / f"{index}.png", predicted)
    evaluate_runs(folder)
    return folder


def evaluate_runs(folder, names="ab"):
    for run in names:
        evaluate(folder / run / "predictions/test", folder / "data", folder / run / "evaluation/test")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Evaluated runs, not to be changed."""
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runs_to_change(tmp_path):
    return make_runs(tmp_path)


def read(runs, names, **options):
    return read_compared(read_evaluations([str(runs / "a"), str(runs / "b")]), names, **options)


def test_every_run_is_shown_on_the_same_image(runs):
    (worst, best) = read(runs, ["3", "0"])
    mask = np.asarray(Image.open(runs / "data" / "masks" / "3.png")) // 255
    image = np.asarray(Image.open(runs / "data" / "images" / "3.png"))
    for picture, shift in zip(worst, (3, 1), strict=True):
        np.testing.assert_array_equal(picture.truth, mask)
        np.testing.assert_array_equal(picture.prediction, np.roll(mask, shift, 0))
        np.testing.assert_array_equal(picture.image, image)
    assert worst[0].dsc < worst[1].dsc
    assert best[0].dsc == 1 > best[1].dsc


def test_of_a_volume_all_runs_show_one_slice(tmp_path):
    truth = np.zeros((9, 8, 7), np.uint8)
    truth[2:6, 2:6, 1:6] = 1
    wrong = {"a": [(2, 3)], "b": [(5, 4), (2, 3)], "c": [(5, 4)]}  # (slice, wrong columns)
    for run, faults in wrong.items():
        predicted = truth.copy()
        for index, columns in faults:
            predicted[:columns, :, index] = 0
        write_volume(tmp_path / run / "v.nii.gz", predicted)
        write_volume(tmp_path / "truth" / "v.nii.gz", truth)
        evaluate(tmp_path / run, tmp_path / "truth", tmp_path / f"evaluation_{run}")
    found = read_evaluations([str(tmp_path / f"evaluation_{run}") for run in wrong])
    (pictures,) = read_compared(found, ["v"])
    # slice 5 misses two columns in b and c, slice 2 one in a and b
    assert {picture.caption for picture in pictures} == {"slice 5 of axis 2"}
    assert [int((picture.truth != picture.prediction).sum()) for picture in pictures] == [0, 8, 8]
    assert pictures[0].spacing == pytest.approx(SPACING[:2])
    assert (pictures[0].image == 128).all()  # nobody knows where the images are


def test_the_sheet_has_a_row_a_case_and_a_column_a_run(runs, rwkvseg, tmp_path):
    out = tmp_path / "out"
    code, printed, err = rwkvseg("compare", runs / "a", runs / "b", "--pictures", "2", "-o", out)
    assert (code, err) == (0, "")
    assert files_below(out) == ["comparison.html", "comparison.png"]
    assert str(out / "comparison.png") in printed
    sheet = np.asarray(Image.open(out / "comparison.png"))
    panel, gap = 256 // 17 + 1, 6
    width, height = 17 * panel, 21 * panel
    assert sheet.shape[1] == 4 * width + 3 * gap
    assert sheet.shape[0] == 2 * (height + 22 + 30)
    yellow = (sheet == class_colour(1)).all(axis=2)
    columns = [yellow[:, i * (width + gap) :][:, :width] for i in range(4)]
    assert not columns[0].any()
    first, second = (np.flatnonzero(column.any(axis=1)) for column in (columns[1], columns[2]))
    # worst case of the first run: it lies three rows of pixels below the truth
    assert second[0] - first[0] == 3 * panel
    page = (out / "comparison.html").read_text()
    assert page.count("<figure>") == 2
    assert "http" not in page
    png = page.split("data:image/png;base64,")[1].split('"')[0]
    assert Image.open(io.BytesIO(b64decode(png))).size == (sheet.shape[1], height)


def test_names_are_escaped_and_long_ones_cut(runs, rwkvseg, tmp_path):
    name = "<b>" + "x" * 200 + "[red]"
    code, printed, _ = rwkvseg(
        "compare", runs / "a", f"{name}={runs / 'b'}", "--pictures", "1", "-o", tmp_path / "out"
    )
    assert code == 0
    assert "[red]" in printed.replace("\n", "")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page


def test_tables_and_tests_are_printed(runs, rwkvseg):
    code, printed, err = rwkvseg("compare", f"first={runs / 'a'}", runs / "b")
    assert (code, err) == (0, "")
    for words in (
        "4 cases",
        "DSC %",
        "HD95 px",
        "DSC: difference from first",
        "signed-rank",
        "p cannot be below",
    ):
        assert words in printed
    assert not (Path.cwd() / "comparison").exists()


def test_json_is_one_object(runs, rwkvseg, tmp_path):
    code, printed, err = rwkvseg(
        "compare", runs / "a", runs / "b", "--json", "--pictures", "1", "-o", tmp_path / "out"
    )
    assert (code, err) == (0, "")
    content = json.loads(printed)
    assert [run["label"] for run in content["runs"]] == ["a", "b"]
    assert len(content["differences"]) == 2
    assert content["files"] == [str(tmp_path / "out" / f"comparison.{end}") for end in ("html", "png")]


def test_without_a_test_part_val_is_compared_and_it_is_said(runs_to_change, rwkvseg, tmp_path):
    for run in "ab":
        (runs_to_change / run / "evaluation" / "test").rename(runs_to_change / run / "evaluation" / "val")
    command = ["compare", runs_to_change / "a", runs_to_change / "b"]
    code, printed, err = rwkvseg(*command)
    assert (code, err) == (0, "")
    assert "Compared on the val part, since no run has a test part." in " ".join(printed.split())
    content = json.loads(rwkvseg(*command, "--json")[1])
    assert "val part" in content["remarks"][0]
    assert json.loads(rwkvseg(*command, "--json", "--part", "val")[1])["remarks"] == []
    assert rwkvseg(*command, "--part", "test")[0] == 1


def test_what_cannot_be_compared_is_one_line(runs, rwkvseg):
    code, printed, err = rwkvseg("compare", runs / "a")
    assert (code, printed) == (2, "")
    assert "two or more" in err
    code, _, err = rwkvseg("compare", runs / "a", runs / "b", "--part", "val")
    assert code == 1
    assert "val" in err


def test_a_case_fewer_is_noticed(runs_to_change, rwkvseg):
    (runs_to_change / "b" / "predictions" / "test" / "3.png").unlink()
    evaluate_runs(runs_to_change, "b")
    code, printed, err = rwkvseg("compare", runs_to_change / "a", runs_to_change / "b")
    assert (code, printed) == (1, "")
    assert err.startswith("error: 'a' and 'b' are scored on 4 and 3 cases")
    assert "(3)" in err


def test_a_run_folder_may_move_and_the_images_too(runs_to_change):
    runs = runs_to_change
    moved = runs / "moved"
    moved.mkdir()
    for name in "ab":
        shutil.move(runs / name, moved / name)
    shutil.move(runs / "data" / "images", runs / "pictures")
    (grey,) = read(moved, ["2"])
    assert (grey[0].image == 128).all()
    (found,) = read(moved, ["2"], images=runs / "pictures")
    np.testing.assert_array_equal(found[1].image, np.asarray(Image.open(runs / "pictures" / "2.png")))
    (runs / "data" / "masks" / "2.png").unlink()
    with pytest.raises(DataError, match=r"truth of case '2' is no longer at .*evaluate again"):
        read(moved, ["2"])


def test_groups_of_the_data_folder_reach_the_comparison(runs_to_change, rwkvseg):
    runs = runs_to_change
    (runs / "data" / "groups.csv").write_text("id,group\n0,p\n1,p\n2,q\n3,q\n")
    evaluate_runs(runs)
    code, printed, _ = rwkvseg("compare", runs / "a", runs / "b", "--json")
    assert code == 0
    content = json.loads(printed)
    assert content["grouped"] is True
    ranks = content["differences"][0]["signed_rank"]
    assert ranks["higher"] + ranks["lower"] + ranks["equal"] == 2


def test_folders_that_hold_no_single_evaluation(tmp_path):
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "both.json").write_text("{}")
    with pytest.raises(DataError, match=r"absent does not exist\. Check the path"):
        read_evaluations([str(tmp_path / "absent"), str(tmp_path / "both")])
    with pytest.raises(DataError, match=r"Give .*both/strict or .*both/transunet"):
        read_evaluations([str(tmp_path / "both"), str(tmp_path / "absent")])
