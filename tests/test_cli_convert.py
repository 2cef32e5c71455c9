"""Layouts through the command line: converted, verified, trained on, predicted and evaluated."""

import json
import shutil

import numpy as np
import pytest
import yaml

from array_folders import write_acdc, write_synapse
from rwkvseg.data.layouts import open_data, read_case
from rwkvseg.data.pictures import write_picture
from small import files_below, small_recipe


def test_convert_and_back(rwkvseg, phantom_3d, tmp_path):
    code, out, err = rwkvseg(
        "data", "convert", phantom_3d, tmp_path / "msd", "--to", "msd", "--channel", "CT"
    )
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 'msd'}: 10 cases\nnothing was lost\n"
    code, out, _ = rwkvseg("data", "convert", tmp_path / "msd", tmp_path / "Dataset001_x", "--to", "nnunet")
    assert (code, out.splitlines()[1:]) == (0, ["nothing was lost"])
    before, after = open_data(phantom_3d), open_data(tmp_path / "Dataset001_x")
    assert (after.labels, after.channels, after.licence) == (before.labels, ("CT",), before.licence)
    for one, other in zip(before.cases, after.cases, strict=True):
        first, second = read_case(one, before.labels), read_case(other, after.labels)
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.label, second.label)
        np.testing.assert_array_equal(first.affine, second.affine)


def test_what_is_lost_is_said_on_screen_and_in_the_file(rwkvseg, phantom_3d, tmp_path):
    code, out, _ = rwkvseg(
        "data", "convert", phantom_3d, tmp_path / "t", "--to", "transunet", "--window", -1, 1
    )
    assert code == 0
    lost = [line.removeprefix("lost in ") for line in out.splitlines() if line.startswith("lost in ")]
    assert [line.split(":")[0] for line in lost] == ["10 of 10 cases"] * 2
    assert "spacing and affine" in lost[0]
    assert "outside --window" in lost[1]
    assert "note: all cases are in the part train: the source names no parts. Give them with --split" in out
    record = json.loads((tmp_path / "t" / "conversion.json").read_text())
    assert record["lost"] == lost
    assert record["options"]["window"] == [-1, 1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "nifti"], 2, "'nifti' is not one of"),
        (["--to", "msd", "--label", "tumor"], 2, "'tumor' is no label. Write --label NAME=VALUE"),
        (["--to", "msd", "--label", "a=1", "--label", "b=1"], 2, "two labels share a value"),
        (["--to", "msd", "--label", "a=1", "--label", "background=2"], 2, "background is 2, and must be 0"),
        (["--to", "msd", "--layout", "dcm"], 1, "unknown layout 'dcm'. Choose one of auto, images, beside"),
        (["--to", "msd", "--window", "1", "2"], 2, "a window is for images and transunet"),
        (["--to", "msd", "--split", "none.json"], 1, "split file none.json does not exist"),
        (["--to", "msd", "--label", "a=1"], 1, "which no label has; known are 0 background, 1 a"),
    ],
)
def test_faults_are_one_line(rwkvseg, phantom_3d, tmp_path, arguments, code, message):
    found, out, err = rwkvseg("data", "convert", phantom_3d, tmp_path / "x", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_fold_is_chosen_on_the_command_line(rwkvseg, phantom, tmp_path):
    names = [case.id for case in open_data(phantom).cases]
    folds = [{"train": names[5:], "val": names[:5]}, {"train": names[:15], "val": names[15:]}]
    split = tmp_path / "splits_final.json"
    split.write_text(json.dumps(folds))
    assert rwkvseg("data", "verify", phantom, "--split", split)[0] == 2
    code, out, _ = rwkvseg("data", "verify", phantom, "--split", split, "--fold", 1)
    assert (code, "(train 15, val 5)" in out) == (0, True)
    target = tmp_path / "parted"
    assert (
        rwkvseg("data", "convert", phantom, target, "--to", "images", "--split", split, "--fold", 0)[0] == 0
    )
    assert sum(case.part == "val" for case in open_data(target).cases) == 5


def run_recipe(rwkvseg, tmp_path, data, *changes, **content):
    recipe = small_recipe(data, epochs=1, batch_size=2) | content
    recipe["preprocessing"] |= {"normalisation": "none", "interpolation": "cubic"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return rwkvseg("train", tmp_path / "recipe.yaml", "-o", tmp_path / "run", "--device", "cpu", *changes)


def test_train_on_slices_and_test_on_volumes(rwkvseg, tmp_path):
    data = write_synapse(tmp_path / "Synapse", train=4, test=2, shape=(3, 20, 17))
    split = {
        "train": ["case0005", "case0006", "case0007"],
        "val": ["case0008"],
        "test": ["case0001", "case0002"],
    }
    (tmp_path / "split.json").write_text(json.dumps(split))
    code, out, err = run_recipe(rwkvseg, tmp_path, data, split={"file": "split.json"})
    assert (code, err) == (0, "")
    assert "test (2 cases)" in out
    kept = json.loads((tmp_path / "run" / "split.json").read_text())
    assert (len(kept["train"]), len(kept["val"]), kept["test"]) == (9, 3, ["case0001", "case0002"])
    arguments = ("-m", tmp_path / "run", "-i", data, "-o", tmp_path / "p", "--protocol", "transunet")
    assert rwkvseg("predict", *arguments)[0] == 0
    assert files_below(tmp_path / "p") == ["case0001.nii.gz", "case0002.nii.gz", "prediction.json"]
    for truth in (data, data / "test_vol_h5"):
        out = tmp_path / f"e_{truth.name}"
        code, text, _ = rwkvseg(
            "evaluate", "-p", tmp_path / "p", "-t", truth, "-o", out, "--protocol", "transunet"
        )
        assert code == 0
        assert "HD95 px" in text
    summaries = [
        json.loads((tmp_path / f"e_{name}" / "summary.json").read_text())
        for name in ("Synapse", "test_vol_h5")
    ]
    assert summaries[0]["mean"] == summaries[1]["mean"]
    assert summaries[0]["rwkvseg"]["classes"][0]["name"] == "aorta"


def test_train_on_acdc_by_the_papers_rule(rwkvseg, tmp_path):
    data = write_acdc(tmp_path / "ACDC", (1, 22, 40, 50))
    code, _, err = run_recipe(rwkvseg, tmp_path, data, split={"rule": "official"})
    assert (code, err) == (0, "")
    kept = json.loads((tmp_path / "run" / "split.json").read_text())
    assert (len(kept["train"]), kept["val"], kept["test"]) == (
        6,
        ["patient022_frame01"],
        ["patient001_frame01"],
    )
    assert rwkvseg("data", "verify", data)[0] == 0


def test_masks_in_several_files_are_trained_on_scored_and_pictured(rwkvseg, phantom, tmp_path):
    folder = tmp_path / "busi"
    for index, case in enumerate(open_data(phantom).cases):
        kind = folder / ("benign", "malignant")[index % 2]
        kind.mkdir(parents=True, exist_ok=True)
        shutil.copy(case.images[0], kind / f"{kind.name} ({index}).png")
        label = read_case(case).label
        halves = (label > 0).astype(np.uint8) * 255, np.zeros_like(label, np.uint8)
        halves[1][:20], halves[0][:20] = halves[0][:20], 0
        for end, half in zip(("_mask", "_mask_1"), halves, strict=True):
            write_picture(kind / f"{kind.name} ({index}){end}.png", half)
    content = {"data": {"path": str(folder), "labels": {"background": 0, "tumor": 1}}}
    recipe = small_recipe(folder, epochs=1) | content
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name in ("a", "b"):
        assert rwkvseg("train", tmp_path / "recipe.yaml", "-o", tmp_path / name, "--device", "cpu")[0] == 0
    (case, *_) = json.loads((tmp_path / "a/evaluation/test/summary.json").read_text())["metric_per_case"]
    name = case["reference_file"].split("/")[-1].removesuffix("_mask.png")
    files = next(files for files in open_data(folder).cases if files.id == name)
    marked = int(read_case(files, {"background": 0, "tumor": 1}).label.sum())
    assert marked == case["metrics"]["1"]["n_ref"]
    code, _, err = rwkvseg("compare", tmp_path / "a", tmp_path / "b", "--pictures", 1, "-o", tmp_path / "c")
    assert (code, err) == (0, "")
    code, out, _ = rwkvseg("data", "convert", folder, tmp_path / "i", "--to", "images", "--label", "tumor=1")
    assert (code, out.endswith("nothing was lost\n")) == (0, True)
