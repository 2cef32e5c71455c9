"""`rwkvseg evaluate --region` and `data.regions`: from the command line to every file."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from rwkvseg.errors import RecipeError, UsageError
from rwkvseg.evaluation.metrics import dice
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run_folder import open_recipe_data
from small import small_recipe


@pytest.fixture
def maps(tmp_path):
    """Predictions and truths of three pictures with the labels 1, 2, 3."""
    generator = np.random.default_rng(0)
    found = {}
    for case in "abc":
        found[case] = [generator.integers(0, 4, (13, 11)).astype(np.uint8) for _ in range(2)]
        for kind, values in zip(("pred", "truth"), found[case], strict=True):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / kind / f"{case}.png")
    return found


def folders(tmp_path):
    return ["-p", tmp_path / "pred", "-t", tmp_path / "truth", "-o", tmp_path / "out"]


def test_the_table_and_the_files(rwkvseg, tmp_path, maps):
    wanted = ["--region", "whole=1+2+3", "--region", "core=label 2+3"]
    code, printed, err = rwkvseg("evaluate", *folders(tmp_path), *wanted, "--scored", "label 1,label 2")
    assert (code, err) == (0, "")
    expected = np.mean([dice(prediction > 0, truth > 0) for prediction, truth in maps.values()])
    lines = printed.splitlines()
    row = next(line for line in lines if "whole (1+2+3)" in line)
    assert f"{100 * expected:.2f}" in row
    assert lines.index(row) > next(i for i, line in enumerate(lines) if "mean" in line)
    assert "core (2+3)" in printed
    assert "label 3" not in printed
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").read_text().splitlines()))
    assert [row["name"] for row in rows[:4]] == ["label 1", "label 2", "whole", "core"]
    content = json.loads((tmp_path / "out" / "summary.json").read_text())["rwkvseg"]
    assert content["regions"][0]["dsc"]["mean"] == pytest.approx(expected)
    assert "whole (1+2+3)" in (tmp_path / "out" / "report.html").read_text()


def test_under_both_protocols(rwkvseg, tmp_path, maps):
    code, printed, _ = rwkvseg(
        "evaluate", *folders(tmp_path), "--protocol", "both", "--region", "whole=1+2+3"
    )
    assert code == 0
    assert "whole (1+2+3)" in printed
    rows = [
        row
        for row in csv.DictReader((tmp_path / "out" / "both.csv").read_text().splitlines())
        if row["name"] == "whole"
    ]
    assert {row["label"] for row in rows} == {"1+2+3"}
    for row in rows:
        prediction, truth = maps[row["case"]]
        assert float(row["strict_dsc"]) == float(row["transunet_dsc"]) == dice(prediction > 0, truth > 0)


@pytest.mark.parametrize("region", ["whole", "whole=1+7", "label 1=1+2"])
def test_what_is_no_region_is_one_line(rwkvseg, tmp_path, maps, region):
    code, printed, err = rwkvseg("evaluate", *folders(tmp_path), "--region", region)
    assert (code, printed) == (2, "")
    assert "region" in err
    assert not (tmp_path / "out").exists()


def test_recipes_name_regions_of_their_labels():
    labels = {"background": 0, "oedema": 1, "core": 2}
    recipe = Recipe.from_mapping({"name": "x", "data": {"labels": labels, "regions": {"whole": ["core", 1]}}})
    assert recipe.data.regions == {"whole": ("core", 1)}
    with pytest.raises(RecipeError, match="'heart', which is no structure"):
        Recipe.from_mapping({"name": "x", "data": {"labels": labels, "regions": {"whole": ["heart"]}}})


def test_of_the_data_folders_labels_too_before_anything_is_trained(phantom):
    content = small_recipe(phantom)
    content["data"] |= {"labels": None, "regions": {"whole": ["heart"]}}
    with pytest.raises(UsageError, match="'heart', which is no structure"):
        open_recipe_data(Recipe.from_mapping(content))
