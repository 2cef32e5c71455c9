"""From a folder to a recipe with reasons that trains as it is; what cannot be planned is explained."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import GIB, facts, fingerprint

from data_folders import write_pictures, write_volumes
from rwkvseg.data.fingerprint_reader import take_fingerprint
from rwkvseg.data.phantom import PHANTOM_LABELS
from rwkvseg.errors import DataError, UsageError
from rwkvseg.models.urwkv3d_config import URWKV3dConfig
from rwkvseg.training import plan_memory
from rwkvseg.training.plan import make_plan, write_plan
from rwkvseg.training.plan_choices import Choice, PlanOptions, nested
from rwkvseg.training.plan_text import recipe_text
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from rwkvseg.training.run_folder import open_recipe_data

OPTIONS = PlanOptions(8 * GIB)


def test_the_recipe_is_what_was_chosen_and_gives_its_reasons(phantom, tmp_path):
    out = tmp_path / "my plan.yaml"
    plan = make_plan(take_fingerprint(phantom), out, OPTIONS)
    paths = write_plan(plan, out)
    assert paths == [*(tmp_path / f"my_plan_fold{fold}.json" for fold in range(5)), out]
    recipe = Recipe.from_file(out)
    assert recipe.name == "my_plan"
    assert recipe.data.labels == PHANTOM_LABELS
    assert recipe.split.file == (tmp_path / "my_plan_fold0.json").resolve()
    text = " ".join(out.read_text().replace("#", " ").split())
    for choice in plan.choices:
        assert choice.sentence in text
    assert yaml.safe_load(out.read_text()) == plan.content
    folder, labels, split = open_recipe_data(recipe)
    assert (len(folder.cases), labels) == (20, PHANTOM_LABELS)
    assert (len(split.train), len(split.val), split.test) == (16, 4, ())


def test_every_choice_that_matters_has_a_reason(phantom_3d, tmp_path):
    plan = make_plan(take_fingerprint(phantom_3d), tmp_path / "x.yaml", OPTIONS)
    why = {choice.key: choice.why for choice in plan.choices}
    for key in (
        *("split.file", "preprocessing.dimensions", "preprocessing.patch", "preprocessing.spacing"),
        *("preprocessing.normalisation", "model.name", "model.overrides", "training.batch_size"),
        *("training.epochs", "augmentation.rotation", "optimizer.learning_rate", "loss.cross_entropy"),
    ):
        assert why[key].endswith("."), key
        assert len(why[key]) > 8, key


def steps(recipe, number=2, batch=2):
    """The recipe, cut short."""
    training = recipe.training.model_copy(
        update={
            "epochs": 1,
            "steps_per_epoch": number,
            "batch_size": batch,
            "validate_every": 1,
            "workers": 0,
        }
    )
    return recipe.model_copy(update={"training": training})


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("name", ["phantom", "phantom_3d"])
def test_a_planned_recipe_trains_without_edits(name, request, tmp_path):
    """Cut to two steps for time only."""
    out = tmp_path / "plan.yaml"
    found = take_fingerprint(request.getfixturevalue(name))
    write_plan(make_plan(found, out, PlanOptions(GIB)), out)
    result = train(steps(Recipe.from_file(out)), tmp_path / "run", device="cpu")
    assert list(result.evaluations) == ["val"]
    assert (tmp_path / "run" / "model" / "model.json").exists()


def test_folders_of_all_kinds_give_recipes_that_can_be_opened(tmp_path):
    write_pictures(tmp_path / "white", 4, white=255)
    write_pictures(tmp_path / "colour", 60, (16, 20, 3))
    for part, number in (("train", 12), ("test", 3)):
        write_pictures(tmp_path / "parts" / part, number)
    write_pictures(tmp_path / "patients", 6, names=[f"patient{n // 2}_frame{n}" for n in range(6)])
    write_volumes(tmp_path / "flat", [(20, 24, 5)] * 4)
    write_volumes(tmp_path / "ct", [(20, 24, 12)] * 4, (1.0, 1.0, 4.0), channel="CT")
    told = {}
    for folder in sorted(path for path in tmp_path.iterdir() if path.is_dir()):
        out = tmp_path / f"{folder.name}.yaml"
        write_plan(make_plan(take_fingerprint(folder), out, OPTIONS), out)
        recipe = Recipe.from_file(out)
        _, labels, split = open_recipe_data(recipe)
        sizes = (len(split.train), len(split.val), len(split.test))
        told[folder.name] = (recipe.preprocessing.dimensions, recipe.split.rule, sizes, max(labels.values()))
    assert told == {
        "colour": (2, "paper", (48, 6, 6), 1),
        "ct": (3, "paper", (3, 1, 0), 1),
        "flat": (2, "paper", (3, 1, 0), 1),
        "parts": (2, "official", (11, 1, 3), 1),
        "patients": (2, "paper", (4, 2, 0), 1),
        "white": (2, "paper", (3, 1, 0), 1),
    }
    assert Recipe.from_file(tmp_path / "ct.yaml").preprocessing.normalisation == "ct"


def test_nothing_is_overwritten_unless_asked(phantom, tmp_path):
    out = tmp_path / "a.yaml"
    plan = make_plan(take_fingerprint(phantom), out, OPTIONS)
    write_plan(plan, out)
    out.write_text("mine")
    with pytest.raises(
        UsageError, match=r"a_fold0\.json is there already\. Choose another -o, or add --overwrite"
    ):
        write_plan(plan, out)
    assert out.read_text() == "mine"
    write_plan(plan, out, overwrite=True)
    assert Recipe.from_file(out).name == "a"


def volumes(number=4, **changes):
    return fingerprint([facts(f"v{n}", (32, 32, 32), **changes) for n in range(number)])


def plan_of(found, **options):
    return make_plan(found, Path("x.yaml"), PlanOptions(8 * GIB, **options))


def test_dimensions_are_the_datas_unless_asked():
    thin = fingerprint([facts(f"v{n}", (32, 32, 7)) for n in range(4)])
    assert plan_of(volumes()).content["preprocessing"]["dimensions"] == 3
    assert plan_of(thin).content["preprocessing"]["dimensions"] == 2
    assert plan_of(volumes(), dimensions=2).content["preprocessing"]["dimensions"] == 2
    assert plan_of(thin, dimensions=3).content["preprocessing"]["dimensions"] == 3
    pictures = fingerprint([facts(f"p{n}", (32, 32)) for n in range(4)])
    with pytest.raises(UsageError, match="--dimensions is 3, the data are pictures"):
        plan_of(pictures, dimensions=3)
    with pytest.raises(UsageError, match=r"--variant is nano\. For 3D choose one of base, small, tiny"):
        plan_of(volumes(), variant="nano")


def test_what_cannot_be_planned_is_explained(tmp_path):
    with pytest.raises(DataError, match=r"^1 labelled case: at least 3"):
        plan_of(volumes(1))
    odd = [facts("a", (32, 32), channels=2), facts("b", (32, 32)), facts("c", (32, 32))]
    with pytest.raises(DataError, match="have 2, 3 channels"):
        plan_of(fingerprint(odd))
    write_pictures(tmp_path, 4, white=7)
    with pytest.raises(DataError, match=r"the label maps hold 0, 7: not 0, 1, 2.*labels\.json"):
        plan_of(take_fingerprint(tmp_path))
    (tmp_path / "labels.json").write_text(json.dumps({"labels": {"polyp": 7}}))
    with pytest.raises(DataError, match=r"without gaps\. Renumber"):
        plan_of(take_fingerprint(tmp_path))
    (tmp_path / "masks" / "case2.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"1 case of .* cannot be read\. The first: .*case2\.png.*data verify"
    ):
        plan_of(take_fingerprint(tmp_path))


def test_structures_that_are_not_there(tmp_path):
    write_pictures(tmp_path, 4, white=0)
    with pytest.raises(DataError, match=r"no label map of the 4 in .* holds anything but background"):
        plan_of(take_fingerprint(tmp_path))
    found = fingerprint([facts(f"v{n}", (32, 32, 32)) for n in range(4)], classes=4)
    (why,) = (choice.why for choice in plan_of(found).choices if choice.key == "data.labels")
    assert why == "named in the data folder; beware, no training case holds organ 2, organ 3."


def test_a_split_file_is_kept_to(phantom, tmp_path):
    ids = [f"phantom-{n:04d}" for n in range(6)]
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ids[:4], "val": ids[4:5], "test": ids[5:]}))
    out = tmp_path / "x.yaml"
    plan = make_plan(take_fingerprint(phantom), out, OPTIONS, path)
    assert plan.splits == {}
    assert write_plan(plan, out) == [out]
    assert open_recipe_data(Recipe.from_file(out))[2].train == tuple(ids[:4])
    path.write_text(json.dumps({"train": ids[:1], "val": ids[4:5], "test": []}))
    with pytest.raises(DataError, match="leaves 1 case to train on"):
        make_plan(take_fingerprint(phantom), out, OPTIONS, path)


SIDE = st.integers(1, 400)
MM = st.floats(0.1, 12)
CASES = st.one_of(
    st.lists(st.tuples(SIDE, SIDE), min_size=3, max_size=9),
    st.lists(st.tuples(st.tuples(SIDE, SIDE, SIDE), st.tuples(MM, MM, MM)), min_size=3, max_size=9),
)


def plan_or_reason(found, memory):
    try:
        return make_plan(found, Path("x.yaml"), PlanOptions(int(memory * GIB)))
    except UsageError as error:
        return str(error)


@settings(max_examples=60)
@given(CASES, st.sampled_from(["RAS", "LPS", "SAR", "mixed"]), st.floats(0.4, 40))
def test_any_folder_gives_a_valid_recipe_that_fits_or_a_reason(rows, orientation, memory):
    """Costs are made up here, since what is tested is the search: 4 kB a pixel."""
    cases = []
    for index, row in enumerate(rows):
        code = ("RAS", "ASL")[index % 2] if orientation == "mixed" else orientation
        shape, spacing = row if isinstance(row[0], tuple) else (row, None)
        cases.append(facts(f"c{index}", shape, spacing, **({"orientation": code} if spacing else {})))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_memory, "_measured", lambda c: (3_000_000, 4_000 * math.prod(c.sides)))
        plan = plan_or_reason(fingerprint(cases), memory)
    if isinstance(plan, str):
        assert "--gpu-memory allows" in plan
        assert memory < 1
        return
    recipe = Recipe.from_mapping(plan.content)
    assert plan.fitted.memory.total <= memory * GIB
    assert recipe.training.batch_size >= 2
    if recipe.preprocessing.dimensions == 3:
        strides = URWKV3dConfig(
            widths=(8,) * 5, depths=(1,) * 4, strides=recipe.model.overrides["strides"]
        ).strides
        products = [math.prod(axis) for axis in zip(*strides, strict=True)]
        assert all(side % n == 0 for side, n in zip(recipe.preprocessing.patch, products, strict=True))


VALUES = st.one_of(
    st.integers(-3, 9),
    st.floats(-1e6, 1e6),
    st.none(),
    st.booleans(),
    st.text(max_size=12),
    st.lists(st.integers(), max_size=3),
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=4), VALUES, st.text(max_size=60))
def test_yaml_gives_back_what_was_chosen(labels, value, why):
    choices = [
        Choice("name", "x"),
        Choice("data.labels", labels, why),
        Choice("data.value", value),
        Choice("a.b", 1),
    ]
    text = recipe_text(choices, [why])
    assert yaml.safe_load(text) == nested(choices)


def test_the_run_is_named_after_the_file(phantom, tmp_path):
    found = take_fingerprint(phantom)
    renamed = replace(found, folder=replace(found.folder, root=found.folder.root))
    for name, expected in (("größe 1.yaml", "größe_1"), ("a+b.yml", "a_b"), ("--.yaml", "--")):
        assert make_plan(renamed, tmp_path / name, OPTIONS).content["name"] == expected
