"""The recipes that come along: found by name, listed, copied with what they name, and put into a wheel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvseg.errors import RecipeError, UsageError
from rwkvseg.training import shipped_recipes
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.shipped_recipes import copy_recipe, find_recipe, get_recipe, list_recipes

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "recipes"
ROWS = {"rows", "landmark", "volumes"}  # tables of studies, no recipes


def read(recipe, path=None):
    kind = Recipe if recipe.command == "train" else PretrainRecipe
    return kind.from_file(path or recipe.path)


def test_every_recipe_is_listed_once_and_is_what_the_list_says():
    files = [path for path in RECIPES.rglob("*.yaml") if path.stem not in ROWS]
    found = list_recipes()
    assert sorted(found) == sorted(path.stem for path in files)  # no two of one name
    assert list(found) == sorted(found)
    for recipe in found.values():
        content = read(recipe)
        told = (recipe.name, recipe.description, recipe.model, recipe.licence, recipe.citation)
        data = content.data
        assert told == (content.name, content.description, content.model.name, data.licence, data.citation)


def test_files_win_over_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("kvasir_seg_tiny") == RECIPES / "kvasir_seg_tiny.yaml"
    assert find_recipe("synapse_base") == RECIPES / "studies" / "synapse_base.yaml"
    (tmp_path / "kvasir_seg_tiny").mkdir()  # the data, for instance
    assert find_recipe(Path("kvasir_seg_tiny")) == RECIPES / "kvasir_seg_tiny.yaml"
    (tmp_path / "kvasir_seg_tiny").rmdir()
    (tmp_path / "kvasir_seg_tiny").write_text("name: mine")
    assert find_recipe("kvasir_seg_tiny") == Path("kvasir_seg_tiny")
    for path in ("mine.yaml", "some/folder", "runs/kvasir/recipe.yaml"):
        assert find_recipe(path) == Path(path)


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("kvasir_tiny", "kvasir_seg_tiny"),
        ("Kvasir-SEG-tiny", "kvasir_seg_tiny"),
        ("hippocampus", "hippocampus_urwkv3d_tiny"),
        ("imagenet", "pretrain_imagenet_tiny"),
    ],
)
def test_unknown_names_list_those_near(wanted, near):
    with pytest.raises(
        RecipeError, match=rf"'{wanted}' is neither.* Did you mean .*\b{near}\b.*rwkvseg recipes"
    ):
        find_recipe(wanted)


def test_a_name_like_no_other_and_a_path_of_a_shipped_name(tmp_path):
    with pytest.raises(RecipeError) as refused:
        get_recipe("zzz")
    assert "Did you mean" not in str(refused.value)
    with pytest.raises(
        RecipeError, match=r"no file .*kvasir_seg_tiny\.yaml, but a recipe of that name: give kvasir_"
    ):
        find_recipe(tmp_path / "recipes" / "kvasir_seg_tiny.yaml")


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_copies_say_the_same_and_stand_alone(name, tmp_path):
    recipe = get_recipe(name)
    written = copy_recipe(name, tmp_path / "mine.yaml")
    assert written[0] == tmp_path / "mine.yaml"
    assert {path.parent for path in written} == {tmp_path}
    comments = [line for line in recipe.path.read_text().splitlines() if line.startswith("#")]
    assert [line for line in written[0].read_text().splitlines() if line.startswith("#")] == comments
    ours, theirs = (content.model_dump(mode="json") for content in (read(recipe, written[0]), read(recipe)))
    copied = set()
    for own, shipped in pairs_of_files(ours, theirs):
        assert Path(own).parent == tmp_path
        assert Path(own).read_bytes() == Path(shipped).read_bytes()
        copied.add(Path(own))
    assert {*written[1:]} == copied
    assert ours == theirs


def pairs_of_files(ours, theirs):
    """Every two files that both name, which are then taken out."""
    for key in list(theirs):
        if isinstance(theirs[key], dict):
            yield from pairs_of_files(ours[key], theirs[key])
        elif isinstance(theirs[key], str) and theirs[key].startswith(str(RECIPES)):
            yield ours.pop(key), theirs.pop(key)


def test_copies_into_folders_and_over_files(tmp_path):
    assert copy_recipe("glas_tiny", tmp_path) == [tmp_path / "glas_tiny.yaml"]
    with pytest.raises(UsageError, match=r"glas_tiny\.yaml exists already"):
        copy_recipe("glas_tiny", tmp_path)
    first = copy_recipe("landmark_2d", tmp_path / "new" / "one.yaml")
    second = copy_recipe("landmark_3d", tmp_path / "new" / "two.yaml")  # the same split file, equal
    assert first[1:] == second[1:] == [tmp_path / "new" / "landmark.json"]
    (tmp_path / "new" / "landmark.json").write_text("{}")
    with pytest.raises(UsageError, match=r"landmark\.json exists already"):
        copy_recipe("landmark_3d", tmp_path / "new" / "three.yaml")
    assert not (tmp_path / "new" / "three.yaml").exists()
    with pytest.raises(UsageError, match=r"a file kvasir_seg_tiny_scratch\.yaml of its own"):
        copy_recipe("pretrain_masked_kvasir_tiny", tmp_path / "kvasir_seg_tiny_scratch.yaml")
    with pytest.raises(RecipeError, match="neither a file"):
        copy_recipe("nothing", tmp_path)


def test_an_installation_without_recipes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_recipes, "__file__", str(tmp_path / "a" / "b" / "c" / "d" / "x.py"))
    with pytest.raises(RecipeError, match=r"holds no recipes\. Install"):
        list_recipes()


def test_the_command_lists_shows_and_copies(rwkvseg, fails, tmp_path):
    code, out, _ = rwkvseg("recipes", "--json")
    assert code == 0
    listed = json.loads(out)
    assert [entry["name"] for entry in listed] == list(list_recipes())
    assert {"description", "model", "licence", "citation", "command", "path"} <= listed[0].keys()
    code, out, _ = rwkvseg("recipes")
    assert code == 0
    assert all(name in out for name in list_recipes())
    code, out, _ = rwkvseg("recipes", "kvasir_seg_tiny")
    assert (code, out) == (0, (RECIPES / "kvasir_seg_tiny.yaml").read_text())
    code, out, _ = rwkvseg("recipes", "landmark_3d", "-o", tmp_path / "mine.yaml")
    assert code == 0
    assert out == f"written: {tmp_path / 'mine.yaml'}\nwritten: {tmp_path / 'landmark.json'}\n"
    assert "exists already" in fails(2, "recipes", "landmark_3d", "-o", tmp_path / "mine.yaml")
    assert "Give its name" in fails(2, "recipes", "-o", tmp_path / "all")
    assert "Did you mean glas_tiny" in fails(2, "recipes", "glas_tny")


@pytest.mark.parametrize(
    ("command", "name"), [("train", "kvasir_seg_tiny"), ("pretrain", "pretrain_imagenet_tiny")]
)
def test_trainings_take_names(command, name, fails):
    assert "neither a file nor a recipe" in fails(2, command, "no_such_recipe")
    assert "names no data" in fails(2, command, name)


def test_the_list_is_made_without_torch():
    code = "from rwkvseg.training.shipped_recipes import *; list_recipes(); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "lightning"}.isdisjoint(done.stdout.split())


@pytest.mark.slow
def test_a_built_package_has_them_and_an_editable_one_needs_no_copy(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="pip brings the one that builds")
    steps = ["egg_info", "--egg-base", tmp_path, "build_py", "--build-lib", tmp_path / "lib"]
    subprocess.run([sys.executable, "setup.py", "-q", *map(str, steps)], cwd=REPOSITORY, check=True)
    built = tmp_path / "lib" / "rwkvseg" / "recipes"
    for path in RECIPES.rglob("*"):
        assert path.is_dir() or (built / path.relative_to(RECIPES)).read_bytes() == path.read_bytes()
    code = "from rwkvseg.training.shipped_recipes import *; print(find_recipe('synapse_base'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "lib")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == built / "studies" / "synapse_base.yaml"
    assert not (REPOSITORY / "src" / "rwkvseg" / "recipes").exists()
