import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.data.transforms import Augmentation
from rwkvseg.errors import RecipeError, UsageError
from rwkvseg.models.registry import list_models
from rwkvseg.training import recipe as recipe_module
from rwkvseg.training.recipe import Recipe
from small import small_recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.startswith("pretrain_"))
GROUPS = {
    "data": recipe_module.DataSettings,
    "split": recipe_module.SplitSettings,
    "preprocessing": Preprocessing,
    "model": recipe_module.ModelSettings,
    "loss": recipe_module.LossSettings,
    "optimizer": recipe_module.OptimizerSettings,
    "training": recipe_module.TrainingSettings,
    "augmentation": Augmentation,
}


def refused(content, *changes, tmp_path=None):
    """Message with which a recipe, or a file of it with changes, is refused."""
    if changes:
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(RecipeError) as caught:
            Recipe.from_file(path, changes=changes)
    else:
        with pytest.raises(RecipeError) as caught:
            Recipe.from_mapping(content)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_defaults_are_the_papers():
    recipe = Recipe.from_mapping({"name": "x"})
    assert (recipe.loss.cross_entropy, recipe.loss.dice) == (0.5, 1.0)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.schedule) == (1e-4, "epoch")
    assert (recipe.training.epochs, recipe.training.batch_size) == (300, 8)
    assert recipe.preprocessing.size == (256, 256)
    assert (recipe.split.rule, recipe.training.report) == ("paper", "last")


def test_an_unknown_key_at_the_top_lists_the_known_ones():
    message = refused({"name": "x", "trianing": {}})
    assert "unknown key 'trianing'" in message
    assert all(group in message for group in GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_an_unknown_key_in_a_group_lists_the_known_ones(group):
    message = refused({"name": "x", group: {"no_such_key": 1}})
    known = message.partition("known here: ")[2].partition(". Change")[0].split(", ")
    assert f"unknown key '{group}.no_such_key'" in message
    assert known == list(GROUPS[group].model_fields)


BAD = [
    ({"name": "a b"}, "name = 'a b'"),
    ({"name": "a/b"}, "name = 'a/b'"),
    ({}, "key 'name' is missing"),
    ({"name": "x", "data": {"layout": "nnUNet"}}, "data.layout = 'nnUNet'.*'nnunet', 'msd' or 'transunet'"),
    ({"name": "x", "data": {"labels": {"background": 0, "liver": 2}}}, "without gaps"),
    ({"name": "x", "data": {"labels": {"a": 0, "b": 1, "c": 1}}}, "without gaps"),
    ({"name": "x", "data": {"labels": {"background": 0}}}, "at least background and one structure"),
    ({"name": "x", "split": {"rule": "random"}}, "split.rule = 'random'.*'paper'"),
    ({"name": "x", "split": {"seed": -1}}, "split.seed = -1.*greater than or equal to 0"),
    ({"name": "x", "preprocessing": {"size": [64]}}, "preprocessing.size"),
    ({"name": "x", "preprocessing": {"size": [64, 0]}}, "both lengths must be 1 or more"),
    ({"name": "x", "model": {"name": "unet"}}, "model.name = 'unet': known networks are .*rwkv_unet_tiny"),
    ({"name": "x", "model": {"overrides": {"num_classes": 3}}}, "num_classes the number of labels"),
    ({"name": "x", "model": {"overrides": {"in_channels": 3}}}, "in_channels is preprocessing.channels"),
    ({"name": "x", "loss": {"cross_entropy": 0, "dice": 0}}, "at least one a positive weight"),
    ({"name": "x", "loss": {"dice": -1}}, "loss.dice = -1"),
    ({"name": "x", "optimizer": {"learning_rate": 0}}, "optimizer.learning_rate = 0.*greater than 0"),
    ({"name": "x", "optimizer": {"learning_rate": math.inf}}, "finite"),
    ({"name": "x", "optimizer": {"learning_rate": math.nan}}, "optimizer.learning_rate = nan"),
    ({"name": "x", "optimizer": {"min_learning_rate": 1}}, "must not exceed learning_rate"),
    ({"name": "x", "optimizer": {"gradient_clip": 0}}, "optimizer.gradient_clip = 0"),
    ({"name": "x", "training": {"epochs": 0}}, "training.epochs = 0"),
    ({"name": "x", "training": {"epochs": 1.5}}, "training.epochs = 1.5.*integer"),
    ({"name": "x", "training": {"batch_size": "many"}}, "training.batch_size = 'many'"),
    ({"name": "x", "training": {"workers": -1}}, "0 or more, or 'auto'"),
    ({"name": "x", "training": {"precision": "fp16"}}, "'auto', 'float32' or 'bfloat16'"),
    ({"name": "x", "training": {"report": "best", "epochs": 2, "validate_every": 3}}, "nothing is validated"),
    ({"name": "x", "augmentation": {"flip_rows": 1.5}}, "augmentation.flip_rows = 1.5"),
    ({"name": "x", "training": 3}, "training = 3"),
    ({"name": "x", "loss": None}, "loss = None"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[row[1] for row in BAD])
def test_a_bad_value_is_refused_with_key_and_rule(content, message):
    assert re.search(message, refused(content))


def test_every_bad_key_is_named_at_once():
    message = refused({"name": "x", "training": {"epochs": 0, "batch": 4}, "loss": {"dice": -1}})
    assert all(key in message for key in ("training.epochs", "training.batch", "loss.dice"))


def test_set_wins_over_the_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: x\ntraining: {epochs: 9, seed: 4}\nsplit:\n")
    changes = [
        "training.epochs=3",
        "training.epochs=2",  # the last one wins
        "optimizer.learning_rate=1e-3",
        "preprocessing.size=[48, 40]",
        "preprocessing.normalisation=zscore",
        "model.overrides.depths=[1, 1, 1, 1]",
        "data.labels={background: 0, polyp: 1}",
        "split.seed=5",  # an empty group is no value
        "optimizer.gradient_clip=",  # nothing is null
        "data.citation=a=b",
    ]
    recipe = Recipe.from_file(path, changes=changes)
    assert (recipe.training.epochs, recipe.training.seed, recipe.split.seed) == (2, 4, 5)
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.preprocessing.size == (48, 40)
    assert recipe.preprocessing.normalisation == "zscore"
    assert recipe.model.overrides == {"depths": [1, 1, 1, 1]}
    assert recipe.data.labels == {"background": 0, "polyp": 1}
    assert recipe.optimizer.gradient_clip is None
    assert recipe.data.citation == "a=b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.epochs", "has no value. Write it as key=value"),
        ("=3", "has no value"),
        ("", "has no value"),
        ("name.sub=3", "'name' is a value, not a group"),
        ("training.epochs.sub=3", "'epochs' is a value, not a group"),
        ("training.size=[1", "not valid YAML"),
        ("training.epoch=3", "unknown key 'training.epoch'; known here: epochs, "),
        ("training.epochs=x", "training.epochs = 'x'"),
        ("nothing=3", "unknown key 'nothing'"),
    ],
)
def test_a_bad_set_is_refused(tmp_path, change, message):
    content = {"name": "x", "training": {"epochs": 3}}
    assert message in refused(content, change, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: [x", "not valid YAML: .*line 1.* Mend that line"),
        (b"name: x\n\ttraining: 3", "not valid YAML"),
        (b"\xff\xfe\x00", "is no UTF-8 text. Save it as UTF-8"),
        (b"name: x\ntraining:\n  epochs: 3\ntraining:\n  epochs: 4", "key training again.*line 4"),
        (b"name: x\ntraining:\n  epochs: 3\n  epochs: 4", "key epochs again"),
        (b"", "holds no keys. Start from one in recipes/"),
        (b"- a\n- b\n", "holds no keys"),
        (b"name: !!python/object/apply:os.system ['echo hacked']", "not valid YAML"),
        (b"1: 2\nname: x", "cannot be used"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.from_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["absent", "folder"])
def test_no_file_is_refused(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "absent.yaml"
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*\. Check the path\."):
        Recipe.from_file(path)


def test_a_split_file_is_relative_to_the_recipe_and_survives_the_copy(tmp_path):
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "r.yaml"
    path.write_text("name: x\nsplit: {file: splits/a.json}\n")
    recipe = Recipe.from_file(path)
    assert recipe.split.file == tmp_path / "recipes" / "splits" / "a.json"
    copy = tmp_path / "run" / "recipe.yaml"
    copy.parent.mkdir()
    copy.write_text(recipe.to_yaml())
    assert Recipe.from_file(copy) == recipe


names = st.text("abcXYZ09._-", min_size=1, max_size=8)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@settings(max_examples=30)
@given(
    name=names,
    description=texts,
    rate=st.floats(1e-12, 1e3),
    clip=st.none() | st.floats(1e-6, 10),
    epochs=st.integers(1, 10**9),
    size=st.none() | st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    structures=st.lists(texts, min_size=1, max_size=4, unique=True),
    workers=st.just("auto") | st.integers(0, 64),
)
@example(
    name="0",
    description="next line \x85, line \u2028 and paragraph \u2029",
    rate=1.0,
    clip=None,
    epochs=1,
    size=None,
    structures=["0\x85"],
    workers="auto",
)
def test_yaml_round_trip(tmp_path_factory, name, description, rate, clip, epochs, size, structures, workers):
    labels = {"background": 0} | {f"s {text}": value for value, text in enumerate(structures, 1)}
    recipe = Recipe.from_mapping(
        {
            "name": name,
            "description": description,
            "data": {"path": "some/folder", "labels": labels},
            "preprocessing": {"size": size},
            "optimizer": {"learning_rate": rate, "gradient_clip": clip},
            "training": {"epochs": epochs, "workers": workers},
            "model": {"overrides": {"drop_path_rate": 0.25}},
        }
    )
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.from_file(path) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_recipes_that_come_along_are_valid(path):
    recipe = Recipe.from_file(path)
    assert recipe.name == path.stem
    assert recipe.data.licence != "not stated"
    assert recipe.split.file is None or recipe.split.file.is_file()


def test_every_network_may_be_named():
    for name in list_models():
        assert Recipe.from_mapping({"name": "x", "model": {"name": name}}).model.name == name


def test_a_recipe_cannot_be_changed(phantom):
    recipe = Recipe.from_mapping(small_recipe(phantom))
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.epochs = 3


def test_bad_overrides_of_the_network_are_refused_before_anything_is_written(tmp_path, phantom):
    from rwkvseg.training.run import train

    content = small_recipe(phantom)
    for overrides in ({"depth": [1, 1, 1, 1]}, {"depths": [1, 2]}):
        content["model"]["overrides"] = overrides
        with pytest.raises(UsageError, match="depths"):
            train(Recipe.from_mapping(content), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
