"""Two trainings of one split, compared as they lie: tables, tests by patient, pictures."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from rwkvseg.evaluation.statistics import paired_permutation_test
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from small import files_below, small_recipe


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """Runs of one and two epochs on ten patients of two frames each; the folder has moved since."""
    root = tmp_path_factory.mktemp("trained")
    for kind in ("images", "masks"):
        (root / "data" / kind).mkdir(parents=True)
        for number, path in enumerate(sorted((phantom / kind).iterdir())):
            shutil.copy(path, root / "data" / kind / f"patient{number // 2:02d}_frame{number % 2}.png")
    for name in ("dataset.json", "labels.json"):
        if (phantom / name).exists():
            shutil.copy(phantom / name, root / "data")
    for epochs in (1, 2):
        recipe = small_recipe(root / "data", epochs=epochs) | {"split": {"rule": "grouped"}}
        train(Recipe.from_mapping(recipe), root / f"run{epochs}", device="cpu")
    (root / "moved").mkdir()
    for epochs in (1, 2):
        shutil.move(root / f"run{epochs}", root / "moved")
    return root


def test_runs_of_train_are_compared_by_patient_with_pictures(trained, rwkvseg, tmp_path):
    first, second = (trained / "moved" / f"run{epochs}" for epochs in (1, 2))
    arguments = ("compare", f"one={first}", f"two={second}", "--pictures", "2", "-o", tmp_path / "out")
    code, printed, err = rwkvseg(*arguments, "--json")
    assert (code, err) == (0, "")
    content = json.loads(printed)
    split = json.loads((first / "split.json").read_text())["test"]
    assert {case.partition("_")[0] for case in split}.isdisjoint(
        case.partition("_")[0] for case in json.loads((first / "split.json").read_text())["train"]
    )
    assert content["cases"] == len(split) == 2
    assert content["grouped"] is True
    summaries = [
        json.loads((run / "evaluation" / "test" / "summary.json").read_text())["rwkvseg"]
        for run in (first, second)
    ]
    for run, summary in zip(content["runs"], summaries, strict=True):
        assert run["rows"][-1]["dsc"]["mean"] == summary["mean"]["dsc"]["mean"]
    a, b = ([case["dsc"] for case in summary["cases"]] for summary in (summaries[1], summaries[0]))
    groups = [case["group"] for case in summaries[0]["cases"]]
    assert set(groups) == {case.partition("_")[0] for case in split}
    (dsc,) = (entry for entry in content["differences"] if entry["metric"] == "dsc")
    by_hand = paired_permutation_test(a, b, groups=groups)
    assert dsc["permutation"]["difference"] == pytest.approx(np.mean(a) - np.mean(b))
    assert dsc["permutation"]["p_value"] == by_hand.p_value
    assert files_below(tmp_path / "out") == ["comparison.html", "comparison.png"]
    with Image.open(tmp_path / "out" / "comparison.png") as sheet:
        rows, columns = 2, 4  # two cases; image, truth and a column a run
        assert sheet.height > rows * 256
        assert sheet.width > columns * 256
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert all(case in page for case in split)
    code, printed, _ = rwkvseg(*arguments[:3])
    assert "bootstrapped over patients or videos" in " ".join(printed.split())


def test_the_report_of_a_run_says_what_it_was_made_with(trained):
    run = trained / "moved" / "run1"
    page = (run / "evaluation" / "test" / "report.html").read_text()
    for words in (
        "predicted under protocol",
        "small",
        "grouped split, seed 0",
        "2 cases, size 40 x 36",
        "trained on",
    ):
        assert words in page
    context = json.loads((run / "evaluation" / "test" / "summary.json").read_text())["rwkvseg"]["context"]
    assert context["predicted_under"] == "strict"
    assert len(context["resize"]["cases"]) == 2  # 40 x 36 through a network of 32 x 32
