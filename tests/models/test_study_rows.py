"""The rows of the papers' studies, recipes/studies/rows.yaml: valid recipes with the stated counts."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from published_order import nothing_drawn, published_cost

from rwkvseg.models import create_model
from rwkvseg.training.recipe import Recipe

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "recipes" / "studies"
STUDIES = yaml.safe_load((FOLDER / "rows.yaml").read_text())
ROWS = [(study, row) for study in STUDIES for row in study["rows"]]
IDS = [f"{study['study']}: {row['name']}" for study, row in ROWS]
GROUPS = ("model.", "training.", "preprocessing.")


def recipe_of(study: dict[str, Any], row: dict[str, Any]) -> Recipe:
    return Recipe.from_file(FOLDER / f"{study['recipe']}.yaml", changes=changes(row))


def changes(row: dict[str, Any]) -> list[str]:
    return [change if change.startswith(GROUPS) else f"model.overrides.{change}" for change in row["set"]]


@pytest.mark.parametrize("name", ["synapse_base", "synapse_base_scratch"])
def test_the_recipes_are_the_papers(name: str) -> None:
    recipe = Recipe.from_file(FOLDER / f"{name}.yaml")
    assert recipe.name == name
    assert recipe.data.licence != "not stated"
    assert recipe.split.file is not None
    split = json.loads(recipe.split.file.read_text())
    assert [len(split[part]) for part in ("train", "val", "test")] == [17, 1, 12]
    assert len({*split["train"], *split["val"], *split["test"]}) == 30
    assert recipe.data.labels is not None
    assert len(recipe.data.labels) == 9
    assert (recipe.model.name, recipe.preprocessing.size) == ("rwkv_unet_base", (224, 224))
    assert recipe.training.epochs == (100 if "scratch" in name else 30)


@pytest.mark.parametrize(("study", "row"), ROWS, ids=IDS)
def test_a_row_is_a_network_with_the_stated_count(study: dict[str, Any], row: dict[str, Any]) -> None:
    recipe = recipe_of(study, row)
    if recipe.model.overrides.get("encoder", "rwkv") != "rwkv":
        assert "counted" not in row  # timm is not among what tests may install
        return
    assert recipe.preprocessing.size is not None
    model = json.dumps([recipe.model.name, recipe.model.overrides])
    assert count(model, recipe.preprocessing.size) == f"{row['counted']:.2f}"


@cache  # the papers' own network ends many tables
def count(model: str, size: tuple[int, int]) -> str:
    name, overrides = json.loads(model)
    with nothing_drawn():
        network = create_model(name, num_classes=9, **overrides)
    return f"{published_cost(network, size)[0] / 1e9:.2f}"


@pytest.mark.parametrize(("study", "row"), ROWS, ids=IDS)
def test_a_count_is_the_printed_one_or_says_why_not(study: dict[str, Any], row: dict[str, Any]) -> None:
    if "counted" not in row or "gmacs" not in row:
        return
    if study.get("v1"):  # its counts are higher throughout; the rows differ by as much as ours
        last = study["rows"][-1]
        printed, ours = (last[key] - row[key] for key in ("gmacs", "counted"))
        assert abs(printed - ours) < 0.045
    else:
        assert ("why" in row) == (row["counted"] != row["gmacs"])


def test_the_documentation_lists_every_row() -> None:
    page = (REPOSITORY / "docs" / "reference" / "studies.md").read_text().splitlines()
    for study in STUDIES:
        headings = [line for line in page if line.lower().startswith(f"### {study['study'].lower()}: ")]
        assert len(headings) == 1, study["study"]
        section = page[page.index(headings[0]) :]
        assert f"Recipe `recipes/studies/{study['recipe']}.yaml`." in section[:3]
        for row in study["rows"]:
            figures = [f"{row[key]:.2f}" if key in row else "" for key in ("hd95", "dsc", "gmacs", "counted")]
            cells = [str(row["name"]), " ".join(f"`{change}`" for change in changes(row)), *figures]
            assert f"| {' | '.join(cells)} |" in section, row["name"]
