"""The main job through the command line: train, predict, evaluate, on pictures and volumes, made and real."""

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

from rwkvseg.data.io import write_label_map
from rwkvseg.data.nifti import write_nifti
from rwkvseg.data.phantom import PHANTOM_LABELS, make_phantom_3d
from rwkvseg.evaluation.metrics import dice, hausdorff_95
from rwkvseg.training import demo as demo_module
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from rwkvseg.training.run_folder import open_recipe_data
from small import files_below, small_recipe


@pytest.fixture
def rwkvseg(rwkvseg):
    """Run the program in this process; it must succeed. What it printed."""

    def run(*arguments):
        code, out, err = rwkvseg(*arguments)
        assert (code, err) == (0, "")
        return out

    return run


def write_recipe(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def read_picture(path):
    with Image.open(path) as picture:
        return picture.mode, np.array(picture)


RUN_FILES = {
    "recipe.yaml",
    "environment.json",
    "split.json",
    "cases.json",
    "fingerprint.json",
    "metrics.csv",
    "curves.png",
    "summary.json",
    "checkpoints/last.ckpt",
    "checkpoints/best.ckpt",
    "model/model.safetensors",
    "model/model.json",
    "evaluation/test/report.html",
    "evaluation/val/scores.csv",
}


def test_pictures(rwkvseg, phantom, tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", small_recipe(phantom))
    run = tmp_path / "run"
    out = rwkvseg("train", recipe, "-o", run, "--device", "cpu", "--set", "training.epochs=1")
    assert "epoch 1/1  loss" in out
    assert "test (2 cases)" in out
    assert set(files_below(run)) >= RUN_FILES
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["epochs"] == 1
    summary = json.loads((run / "summary.json").read_text())
    assert summary["results"]["test"]["cases"] == 2
    cases = json.loads((run / "cases.json").read_text())
    assert len(cases) == 20
    assert all(len(digest) == 64 for case in cases for digest in case["sha256"].values())
    assert {name for case in cases for name in case["sha256"]} >= {"images/phantom-0000.png"}

    arguments = ("-m", run, "-i", phantom, "--part", "test", "--device", "cpu")
    rwkvseg("predict", *arguments, "-o", tmp_path / "pred", "--overlay", "--report", tmp_path / "run.json")
    test = json.loads((run / "split.json").read_text())["test"]
    assert files_below(tmp_path / "pred") == sorted(
        [*[f"{case}.png" for case in test], *[f"overlays/{case}.png" for case in test], "prediction.json"]
    )
    report = json.loads((tmp_path / "run.json").read_text())
    assert [case["case"] for case in report["cases"]] == test
    for case in test:
        mode, values = read_picture(tmp_path / "pred" / f"{case}.png")
        assert (mode, values.shape) == ("L", (40, 36))
        assert set(np.unique(values)) <= set(PHANTOM_LABELS.values())
        inside = read_picture(run / "predictions" / "test" / f"{case}.png")[1]
        np.testing.assert_array_equal(values, inside)

    out = rwkvseg("evaluate", "-p", tmp_path / "pred", "-t", phantom, "-o", tmp_path / "eval")
    assert "not scored: 18 truths" in out
    inside = run / "evaluation" / "test" / "scores.csv"
    assert (tmp_path / "eval" / "scores.csv").read_bytes() == inside.read_bytes()
    rwkvseg("evaluate", "-p", tmp_path / "pred", "-t", phantom / "masks", "-o", tmp_path / "eval2")
    assert (tmp_path / "eval2" / "scores.csv").read_bytes() == inside.read_bytes()


def test_volumes_with_an_oblique_affine(rwkvseg, tmp_path):
    data = tmp_path / "data"
    cases = make_phantom_3d(10, (20, 17, 9), (1.2, 0.9, 5.0), oblique=True)
    for case in cases:
        write_nifti(data / "imagesTr" / f"{case.id}_0000.nii.gz", case.image[0], case.affine)
        write_label_map(data / "labelsTr" / f"{case.id}.nii.gz", case.label, case.affine)
    description = {"channel_names": {"0": "phantom"}, "labels": PHANTOM_LABELS, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(description))
    content = small_recipe(data, epochs=1)
    run = tmp_path / "run"
    rwkvseg("train", write_recipe(tmp_path / "r.yaml", content), "-o", run, "--device", "cpu")
    assert json.loads((run / "summary.json").read_text())["results"]["test"]["mean"]["hd95_mm"]

    out = tmp_path / "pred"
    rwkvseg("predict", "-m", run / "model", "-i", data / "imagesTr", "-o", out, "--device", "cpu")
    assert len(files_below(out)) == 11
    for case in cases:
        written = nibabel.load(out / f"{case.id}.nii.gz")
        original = nibabel.load(data / "imagesTr" / f"{case.id}_0000.nii.gz")
        np.testing.assert_array_equal(written.affine, original.affine)
        assert written.shape == case.spatial_shape
        assert set(np.unique(np.asarray(written.dataobj))) <= set(PHANTOM_LABELS.values())

    printed = rwkvseg("evaluate", "-p", out, "-t", data / "labelsTr", "-o", tmp_path / "eval")
    assert "HD95 mm" in printed
    rows = (tmp_path / "eval" / "scores.csv").read_text().splitlines()
    assert rows[0].startswith("case,label,name,dsc,hd95_mm,outcome,")
    for row in rows[1:]:
        case_id, label, _, dsc, hd95, outcome = row.split(",")[:6]
        case = next(case for case in cases if case.id == case_id)
        prediction = np.asarray(nibabel.load(out / f"{case_id}.nii.gz").dataobj) == int(label)
        truth = case.label == int(label)
        if outcome == "scored":
            assert float(dsc) == pytest.approx(dice(prediction, truth))
            assert float(hd95) == pytest.approx(hausdorff_95(prediction, truth, (1.2, 0.9, 5.0)), rel=1e-5)
        elif outcome == "missed":
            assert float(hd95) == pytest.approx(math.hypot(20 * 1.2, 17 * 0.9, 9 * 5.0), rel=1e-5)


def test_a_recipe_of_a_run_trains_again(rwkvseg, small_run, tmp_path):
    rwkvseg("train", small_run / "recipe.yaml", "-o", tmp_path / "again", "--device", "cpu")
    for name in ("model/model.safetensors", "split.json", "recipe.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (small_run / name).read_bytes()


def test_a_split_file_beside_the_recipe_is_kept_in_the_run(phantom, tmp_path):
    folds = [
        {"train": [f"phantom-{i:04d}" for i in ids], "val": ["phantom-0008"]} for ids in ((0, 1), (2, 5, 7))
    ]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    content = small_recipe(phantom, epochs=1) | {"split": {"file": "splits_final.json", "fold": 1}}
    recipe = Recipe.from_file(write_recipe(tmp_path / "r.yaml", content))
    split = open_recipe_data(recipe)[2]
    assert split.train == tuple(folds[1]["train"])
    result = train(recipe, tmp_path / "run", device="cpu")
    assert list(result.evaluations) == ["val"]  # no test part, no test
    assert str(tmp_path) not in (tmp_path / "run" / "recipe.yaml").read_text().replace(str(phantom), "")
    (tmp_path / "splits_final.json").unlink()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    again = Recipe.from_file(moved / "recipe.yaml")
    assert again.split.file == moved / "split.json"
    assert open_recipe_data(again)[2] == split
    assert train(again, moved, device="cpu", resume=True).summary["results"] == result.summary["results"]


def test_structures_that_no_validation_case_holds(tmp_path):
    """Nothing to measure is None in the files, not NaN, and no reason to fail after the training."""
    for index in range(10):
        for folder in ("images", "masks"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            values = np.full((32, 32), 90 if folder == "images" else 0, np.uint8)
            Image.fromarray(values).save(tmp_path / "data" / folder / f"{index}.png")
    content = small_recipe(tmp_path / "data", epochs=3, batch_size=2)
    content["data"]["labels"] = {"background": 0, "organ": 1}
    content["optimizer"]["learning_rate"] = 0.05
    result = train(Recipe.from_mapping(content), tmp_path / "run", device="cpu")
    text = (tmp_path / "run" / "summary.json").read_text()
    assert "NaN" not in text
    assert result.summary["best_val_dsc_on_network_grid"] in (None, 0.0)
    assert "nan" not in (tmp_path / "run" / "metrics.csv").read_text()


def test_the_demo(rwkvseg, tmp_path, monkeypatch):
    full = demo_module.demo_recipe(Path("demo/data"))
    assert (full.model.name, full.preprocessing.size) == ("rwkv_unet_tiny", (128, 128))

    def small(data, *, seed=0):
        return Recipe.from_mapping(small_recipe(data, epochs=1, seed=seed) | {"split": {"seed": seed}})

    monkeypatch.setattr(demo_module, "demo_recipe", small)
    monkeypatch.setattr(demo_module, "NUMBER_OF_CASES", 20)
    out = rwkvseg("demo", "-o", tmp_path / "demo", "--device", "cpu")
    assert "2 unseen test cases" in out
    report = tmp_path / "demo" / "run" / "evaluation" / "test" / "report.html"
    assert f"pictures: {report}\n" in out
    assert report.read_text().count("data:image/png;base64,") >= 3
    again = rwkvseg("demo", "-o", tmp_path / "demo", "--device", "cpu")  # goes on, here: only tests
    assert out.splitlines()[-1] == again.splitlines()[-1]


def pick(folder, path, numbers, suffix):
    """Write a split file of the first cases."""
    names = sorted(item.name.removesuffix(suffix) for item in folder.iterdir())
    train_, val, test = numbers
    parts = {"train": names[:train_], "val": names[train_ : train_ + val], "test": names[-test:]}
    path.write_text(json.dumps(parts))
    return parts


@pytest.mark.shared_data
def test_kvasir(rwkvseg, shared_data, tmp_path):
    data = shared_data / "Kvasir-SEG-256"
    split = pick(data / "images", tmp_path / "split.json", (10, 3, 4), ".jpg")
    content = small_recipe(data, epochs=2, steps_per_epoch=2) | {
        "split": {"file": "split.json"},
        "preprocessing": {"channels": 3, "size": [64, 64]},
    }
    content["data"]["labels"] = {"background": 0, "polyp": 1}
    run = tmp_path / "run"
    rwkvseg("train", write_recipe(tmp_path / "r.yaml", content), "-o", run, "--device", "cpu")
    out = tmp_path / "pred"
    arguments = ("-m", run, "-i", data, "--part", "test", "--device", "cpu", "--overlay")
    rwkvseg("predict", *arguments, "-o", out, "--report", tmp_path / "report.json")
    for case in split["test"]:
        mode, values = read_picture(out / f"{case}.png")
        with Image.open(data / "images" / f"{case}.jpg") as image:
            assert (mode, values.shape[::-1]) == ("L", image.size)
        assert set(np.unique(values)) <= {0, 1}
        assert (out / "overlays" / f"{case}.png").is_file()
    rwkvseg("evaluate", "-p", out, "-t", data, "-o", tmp_path / "eval")
    inside = run / "evaluation" / "test" / "scores.csv"
    assert (tmp_path / "eval" / "scores.csv").read_bytes() == inside.read_bytes()
    rows = inside.read_text().splitlines()
    assert rows[0].startswith("case,label,name,dsc,hd95_px,outcome,")
    assert [row.split(",")[0] for row in rows[1:]] == split["test"]


@pytest.mark.shared_data
def test_acdc(rwkvseg, shared_data, tmp_path):
    data = shared_data / "ACDC-nii"
    split = pick(data / "imagesTr", tmp_path / "split.json", (3, 1, 2), ".nii.gz")
    content = small_recipe(data, epochs=2, steps_per_epoch=2) | {
        "split": {"file": "split.json"},
        "preprocessing": {"channels": 1, "size": [64, 64], "normalisation": "percentile"},
    }
    content["data"]["labels"] = {"background": 0, "right": 1, "myocardium": 2, "left": 3}
    run = tmp_path / "run"
    rwkvseg("train", write_recipe(tmp_path / "r.yaml", content), "-o", run, "--device", "cpu")
    out = tmp_path / "pred"
    arguments = ("-m", run, "-i", data, "--part", "test", "--device", "cpu", "--overlay")
    rwkvseg("predict", *arguments, "-o", out, "--report", tmp_path / "report.json")
    for case in split["test"]:
        image, written = (nibabel.load(folder / f"{case}.nii.gz") for folder in (data / "imagesTr", out))
        assert written.shape == image.shape
        np.testing.assert_array_equal(written.affine, image.affine)
        assert set(np.unique(np.asarray(written.dataobj))) <= {0, 1, 2, 3}
        assert (out / "overlays" / f"{case}.png").is_file()
    reported = json.loads((tmp_path / "report.json").read_text())
    assert [case["case"] for case in reported["cases"]] == split["test"]
    rwkvseg("evaluate", "-p", out, "-t", data / "labelsTr", "-o", tmp_path / "eval", "--images", data)
    scores = (tmp_path / "eval" / "scores.csv").read_bytes()
    assert scores == (run / "evaluation" / "test" / "scores.csv").read_bytes()
    assert scores.startswith(b"case,label,name,dsc,hd95_mm,outcome,")
