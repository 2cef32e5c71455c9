import csv
import json
import math
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image

from rwkvseg.data.layouts import open_data
from rwkvseg.errors import DataError, GeometryError, LabelError, OutputError
from rwkvseg.evaluation.metrics import dice, hausdorff_95
from rwkvseg.inference import evaluate as evaluate_module
from rwkvseg.inference.evaluate import evaluate
from rwkvseg.inference.pairs import pair_files
from small import files_below

SHAPE = (9, 13)
SPACING = (0.8, 1.5, 3.0)


def write_picture(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def write_volume(path, values, spacing=SPACING, shift=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[0, 3] = shift
    nibabel.save(nibabel.Nifti1Image(np.asarray(values, np.uint8), affine), path)


def block(*slices, value=1, shape=SHAPE):
    values = np.zeros(shape, np.uint8)
    values[slices] = value
    return values


@pytest.fixture
def folders(tmp_path):
    """Predictions and truths of three pictures: hit, miss, and a class that truth lacks."""
    truth = {
        "a": block(slice(2, 6), slice(3, 9)),
        "b": block(slice(0, 3), slice(0, 3)) + block(slice(5, 8), slice(5, 9), value=2),
        "c": block(slice(1, 4), slice(1, 5), value=2),
    }
    predicted = {
        "a": block(slice(3, 7), slice(3, 9)),
        "b": block(slice(0, 3), slice(0, 4)),
        "c": block(slice(1, 4), slice(1, 5), value=2) + block(8, 12),
    }
    for case in truth:
        write_picture(tmp_path / "truth" / f"{case}.png", truth[case])
        write_picture(tmp_path / "pred" / f"{case}.png", predicted[case])
    return tmp_path, truth, predicted


def read_scores(path):
    with path.open(newline="") as file:
        return {(row["case"], int(row["label"])): row for row in csv.DictReader(file)}


def test_scores_and_summary_equal_a_hand_computation(folders):
    root, truth, predicted = folders
    result = evaluate(root / "pred", root / "truth", root / "out")
    means = []
    rows = read_scores(root / "out" / "scores.csv")
    for case, map_ in truth.items():
        counted = []
        for label in (1, 2):
            theirs, ours = map_ == label, predicted[case] == label
            row = rows[case, label]
            if not theirs.any() and not ours.any():
                assert (row["dsc"], row["hd95_px"], row["outcome"]) == ("", "", "absent")
                continue
            counted.append(dice(ours, theirs))
            assert float(row["dsc"]) == counted[-1]
            if not ours.any():
                assert float(row["hd95_px"]) == pytest.approx(math.hypot(*SHAPE))
                assert row["outcome"] == "missed"
            elif not theirs.any():
                assert (row["hd95_px"], row["outcome"]) == ("", "false_positive")
            else:
                assert float(row["hd95_px"]) == pytest.approx(hausdorff_95(ours, theirs))
        means.append(np.mean(counted))
    assert result.summary.mean.dsc.mean == pytest.approx(np.mean(means))
    assert [case.dsc for case in result.summary.cases] == pytest.approx(means)
    content = json.loads((root / "out" / "summary.json").read_text())
    assert content["foreground_mean"]["TP"] is not None
    assert files_below(root / "out") == ["report.html", "scores.csv", "summary.csv", "summary.json"]
    assert result.not_predicted == []


def test_volumes_are_measured_in_mm(tmp_path):
    shape = (7, 6, 5)
    truth = block(slice(1, 4), slice(1, 4), slice(1, 4), shape=shape)
    predicted = block(slice(2, 5), slice(1, 4), slice(1, 5), shape=shape)
    write_volume(tmp_path / "truth" / "v.nii.gz", truth)
    write_volume(tmp_path / "pred" / "v.nii.gz", predicted)
    result = evaluate(tmp_path / "pred", tmp_path / "truth", tmp_path / "out")
    row = read_scores(tmp_path / "out" / "scores.csv")["v", 1]
    assert float(row["hd95_mm"]) == pytest.approx(hausdorff_95(predicted == 1, truth == 1, SPACING))
    assert result.summary.unit == "mm"
    result = evaluate(tmp_path / "pred", tmp_path / "truth", tmp_path / "out2", protocol="transunet")
    row = read_scores(tmp_path / "out2" / "scores.csv")["v", 1]
    assert float(row["hd95_px"]) == pytest.approx(hausdorff_95(predicted == 1, truth == 1))


def test_transunet_scores_what_the_literature_scores(folders):
    root, _, _ = folders
    result = evaluate(root / "pred", root / "truth", root / "out", protocol="transunet")
    rows = read_scores(root / "out" / "scores.csv")
    assert float(rows["c", 1]["dsc"]) == 1.0  # predicted though absent
    assert float(rows["a", 2]["dsc"]) == 0.0  # absent from both
    dsc = [float(row["dsc"]) for row in rows.values()]
    assert result.summary.mean.dsc.mean == pytest.approx(np.mean(dsc))


@pytest.mark.parametrize("ending", ["", "_mask", "_segmentation", "_gt"])
def test_truths_are_found_by_id(folders, ending):
    root, _, _ = folders
    for case in "abc":
        (root / "truth" / f"{case}.png").rename(root / "truth" / f"{case}{ending}.png")
    found = pair_files(root / "pred", root / "truth")
    assert [(pair.case, pair.truth.name) for pair in found.pairs] == [(c, f"{c}{ending}.png") for c in "abc"]
    assert (found.not_predicted, found.labels) == ((), None)


def test_equal_names_win_over_endings(folders):
    root, _, _ = folders
    for folder in ("pred", "truth"):
        (root / folder / "a.png").rename(root / folder / "a_mask.png")
    found = pair_files(root / "pred", root / "truth")
    assert [pair.case for pair in found.pairs] == ["a_mask", "b", "c"]


def test_two_truths_of_one_case_are_refused(folders):
    root, _, _ = folders
    shutil.copy(root / "truth" / "a.png", root / "truth" / "a_mask.png")
    with pytest.raises(DataError, match=r"a\.png and .*a_mask\.png are both truths of case 'a'"):
        evaluate(root / "pred", root / "truth", root / "out")


def test_truths_without_prediction_are_listed_and_not_scored(folders):
    root, _, _ = folders
    (root / "pred" / "b.png").unlink()
    result = evaluate(root / "pred", root / "truth", root / "out")
    assert result.not_predicted == ["b"]
    assert json.loads((root / "out" / "not_predicted.json").read_text()) == ["b"]
    assert [case.case for case in result.summary.cases] == ["a", "c"]
    assert "1 truth without a prediction" in (root / "out" / "report.html").read_text()


def refused(root, error, match, **arguments):
    with pytest.raises(error, match=match) as caught:
        evaluate(root / "pred", root / "truth", root / "out", **arguments)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert not (root / "out").exists()


def test_a_prediction_without_truth_is_refused(folders):
    root, _, _ = folders
    (root / "truth" / "b.png").unlink()
    refused(root, DataError, "1 of 3 predictions without truth in .*truth: b")


def test_empty_and_missing_folders_are_refused(folders):
    root, _, _ = folders
    shutil.move(root / "pred", root / "kept")
    refused(root, DataError, "pred is not a folder")
    (root / "pred").mkdir()
    refused(root, DataError, "holds no label maps. Run `rwkvseg predict` into it first")
    shutil.copytree(root / "kept", root / "pred", dirs_exist_ok=True)
    shutil.rmtree(root / "truth")
    (root / "truth").mkdir()
    refused(root, DataError, "truth holds no label maps")


def test_another_size_is_refused(folders):
    root, _, _ = folders
    write_picture(root / "pred" / "b.png", np.zeros((SHAPE[0] + 1, SHAPE[1])))
    refused(root, GeometryError, r"b\.png has size \(10, 13\), its truth .* has \(9, 13\)")


def test_another_affine_is_refused(tmp_path):
    values = block(slice(1, 3), shape=(4, 4, 4))
    write_volume(tmp_path / "truth" / "v.nii.gz", values)
    write_volume(tmp_path / "pred" / "v.nii.gz", values, shift=0.5)
    refused(tmp_path, GeometryError, "the affine of .* differs from its truth's by up to 0.5 mm")
    write_volume(tmp_path / "pred" / "v.nii.gz", values, shift=5e-4)
    assert evaluate(tmp_path / "pred", tmp_path / "truth", tmp_path / "out").summary.mean.dsc.mean == 1


def test_pictures_and_volumes_do_not_mix(folders):
    root, _, _ = folders
    for folder in ("pred", "truth"):
        write_volume(root / folder / "v.nii.gz", block(slice(1, 3), shape=(4, 4, 4)))
    refused(root, DataError, r"v\.nii\.gz is measured in mm, the cases before it in px")


@pytest.mark.parametrize("name", ["a.png", "b.png"])
@pytest.mark.parametrize("folder", ["pred", "truth"])
def test_damaged_files_are_refused(folders, folder, name):
    root, _, _ = folders
    path = root / folder / name
    path.write_bytes(path.read_bytes()[:40])
    refused(root, DataError, f"cannot decode .*{folder}/{name}")


def test_labels_come_from_the_caller_the_record_or_the_values(folders):
    root, _, _ = folders

    def names(**arguments):
        result = evaluate(root / "pred", root / "truth", root / "out", **arguments)
        return [row.name for row in result.summary.classes]

    assert names() == ["label 1", "label 2"]
    record = {"labels": {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}, "protocol": "transunet"}
    (root / "pred" / "prediction.json").write_text(json.dumps(record))
    assert names() == ["liver", "spleen", "kidney"]
    assert names(labels={"background": 0, "x": 1, "y": 2}) == ["x", "y"]
    shutil.rmtree(root / "out")
    refused(root, LabelError, "holds 2, which no label has", labels={"background": 0, "x": 1})


def test_labels_of_the_data_folder(small_run, phantom, tmp_path):
    for path in (small_run / "predictions" / "test").glob("*.png"):
        (tmp_path / "pred").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "pred")
    result = evaluate(tmp_path / "pred", phantom, tmp_path / "out")
    assert [row.name for row in result.summary.classes] == ["liver", "spleen", "kidney", "aorta"]
    assert len(result.not_predicted) == 18
    assert result.context.record.protocol is None


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"labels": 3}', b'{"labels": {"a": "b"}}', b'{"protocol": "x"}', b"\xff", b""]
)
def test_a_damaged_record_is_refused(folders, content):
    root, _, _ = folders
    (root / "pred" / "prediction.json").write_bytes(content)
    refused(root, DataError, r"cannot read .*prediction\.json: .* Remove it or predict again")


@pytest.mark.parametrize(("ours", "theirs"), [(255, 255), (1, 255), (255, 1)])
def test_255_is_binary(tmp_path, ours, theirs):
    for case in "ab":
        write_picture(tmp_path / "pred" / f"{case}.png", block(slice(1, 4), value=ours))
        write_picture(tmp_path / "truth" / f"{case}.png", block(slice(1, 5), value=theirs))
    result = evaluate(tmp_path / "pred", tmp_path / "truth", tmp_path / "out")
    assert [(row.name, row.label) for row in result.summary.classes] == [("label 1", 1)]
    assert result.summary.mean.dsc.mean == pytest.approx(2 * 3 / 7)


def test_a_value_that_the_labels_lack_is_refused(folders):
    root, _, _ = folders
    write_picture(root / "truth" / "c.png", block(3, 3, value=7))
    labels = {"background": 0, "one": 1, "two": 2}
    refused(root, LabelError, r"c\.png holds 7, which no label has; known are 0 background", labels=labels)


def test_maps_without_any_structure(tmp_path):
    for folder in ("pred", "truth"):
        write_picture(tmp_path / folder / "a.png", np.zeros(SHAPE))
    refused(tmp_path, DataError, "holds anything but background")
    result = evaluate(tmp_path / "pred", tmp_path / "truth", tmp_path / "out", labels={"bg": 0, "x": 1})
    assert math.isnan(result.summary.mean.dsc.mean)


def test_only_some_cases(folders):
    root, _, _ = folders
    result = evaluate(root / "pred", root / "truth", root / "out", only={"a", "c"})
    assert [case.case for case in result.summary.cases] == ["a", "c"]


def test_the_report_shows_the_images(folders):
    root, _, _ = folders
    blank = evaluate(root / "pred", root / "truth", root / "blank").report.read_text()
    noise = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3))
    for case in "abc":
        write_picture(root / "images" / f"{case}.png", noise)
    shown = evaluate(root / "pred", root / "truth", root / "shown", images=root / "images").report.read_text()
    for text in (blank, shown):
        assert text.count("data:image/png;base64,") >= 3
    assert len(shown) > len(blank)  # noise is not squeezed as well as grey
    (root / "images" / "a.png").unlink()  # an image that is not there is drawn grey
    evaluate(root / "pred", root / "truth", root / "out", images=root / "images")


def test_images_that_are_named_must_be_there_those_of_the_record_need_not(folders):
    root, _, _ = folders
    refused(root, DataError, "nowhere does not exist", images=root / "nowhere")
    (root / "pred" / "prediction.json").write_text(json.dumps({"images": str(root / "nowhere")}))
    evaluate(root / "pred", root / "truth", root / "out")
    (root / "nowhere").mkdir()
    evaluate(root / "pred", root / "truth", root / "out")


def test_a_damaged_image_is_found_before_anything_is_written(folders):
    root, _, _ = folders
    write_picture(root / "images" / "a.png", np.zeros(SHAPE))
    path = root / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:40])
    refused(root, DataError, r"cannot decode .*images/a\.png", images=root / "images")


def test_a_full_disk_leaves_no_half_file(folders, file_size_limit):
    root, _, _ = folders
    with file_size_limit(3000), pytest.raises(OutputError, match="cannot write"):
        evaluate(root / "pred", root / "truth", root / "out")
    assert "report.html" not in files_below(root / "out")
    assert not [name for name in files_below(root / "out") if "partial" in name]


def test_a_forced_layout_is_kept(phantom, phantom_3d, tmp_path):
    """A folder that holds two layouts is read as the caller says."""
    both = tmp_path / "both"
    shutil.copytree(phantom, both)
    shutil.copytree(phantom_3d, both, dirs_exist_ok=True)
    case = open_data(phantom).cases[0]
    (tmp_path / "pred").mkdir()
    shutil.copy(case.label, tmp_path / "pred")
    result = evaluate(tmp_path / "pred", both, tmp_path / "out", layout="images")
    assert result.summary.mean.dsc.mean == 1
    assert result.summary.unit == "px"


@pytest.mark.parametrize("room", [2**25, 150, 0])
def test_several_cases_at_a_time_change_nothing(folders, monkeypatch, room):
    root, _, _ = folders
    monkeypatch.setattr(evaluate_module, "MOST_PIXELS_AT_ONCE", room)
    written = []
    for threads in (1, 3):
        monkeypatch.setattr(evaluate_module, "available_cores", lambda threads=threads: threads)
        result = evaluate(root / "pred", root / "truth", root / "out")
        # repr, since NaN is not equal to itself
        files = [(root / "out" / name).read_bytes() for name in ("scores.csv", "summary.csv", "summary.json")]
        written.append((repr(result.scores), files))
    assert written[0] == written[1]


def test_the_first_fault_is_told_however_many_cases_are_read_at_a_time(folders, monkeypatch):
    root, _, _ = folders
    monkeypatch.setattr(evaluate_module, "available_cores", lambda: 3)
    (root / "pred" / "b.png").write_bytes(b"no picture")
    (root / "pred" / "c.png").write_bytes(b"none either")
    labels = {"background": 0, "one": 1, "two": 2}
    with pytest.raises(DataError, match=r"pred.b\.png"):
        evaluate(root / "pred", root / "truth", root / "out", labels=labels)


def test_progress_is_told(folders):
    root, _, _ = folders
    told = []
    evaluate(
        root / "pred", root / "truth", root / "out", on_case=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
