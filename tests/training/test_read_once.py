"""Before its first step a training reads every case once, for the network and for its fingerprint alike."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from data_folders import write_pictures, write_volumes
from rwkvseg.data import Case, open_data, reading
from rwkvseg.data.fingerprint_reader import Gatherer, take_fingerprint
from rwkvseg.data.splits import Split
from rwkvseg.training import run as run_module
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from rwkvseg.training.run_folder import TrainingFingerprint
from small import small_recipe
from small_volumes import small_volume_recipe


class Stopped(Exception):
    """The first step would come now."""


@pytest.fixture
def reads(monkeypatch):
    """How often the image of each path was read; trainings stop before their first step."""
    counts = Counter()
    read_image = reading.read_image

    def counting(path, **options):
        counts[path] += 1
        return read_image(path, **options)

    def stop(*_):
        raise Stopped

    monkeypatch.setattr(reading, "read_image", counting)
    monkeypatch.setattr(run_module._Run, "fit", stop)
    return counts


def prepare(recipe, out, *, resume=False):
    with pytest.raises(Stopped):
        train(recipe, out, device="cpu", resume=resume)
    return json.loads((out / "fingerprint.json").read_text())


def recipe_on(data, name):
    return Recipe.from_mapping(small_recipe(data) if name == "phantom" else small_volume_recipe(data))


@pytest.mark.parametrize("name", ["phantom", "phantom_3d"])
def test_one_pass_serves_both(name, request, tmp_path, reads):
    data = request.getfixturevalue(name)
    found = prepare(recipe_on(data, name), tmp_path / "run")
    files = open_data(data)
    assert reads == {case.images[0]: 1 for case in files.cases}
    train_part = json.loads((tmp_path / "run" / "split.json").read_text())["train"]
    assert [case["id"] for case in found["each"]] == train_part
    by_id = {case.id: case for case in files.cases}
    gatherer = Gatherer(replace(files, cases=tuple(by_id[case] for case in train_part)))
    for case in train_part:
        gatherer.take(by_id[case])
    assert found == json.loads(json.dumps(gatherer.fingerprint().as_object()))
    kept = {case["id"]: case["sha256"] for case in json.loads((tmp_path / "run" / "cases.json").read_text())}
    assert {case["id"]: case["sha256"] for case in found["each"]}.items() <= kept.items()
    assert kept.keys() == by_id.keys()


def test_a_run_that_goes_on_keeps_its_fingerprint(tmp_path, phantom, reads):
    prepare(recipe_on(phantom, "phantom"), tmp_path / "run")
    path = tmp_path / "run" / "fingerprint.json"
    path.write_text('{"not": "taken again"}')
    reads.clear()
    assert prepare(recipe_on(phantom, "phantom"), tmp_path / "run", resume=True) == {"not": "taken again"}
    assert set(reads.values()) == {1}


def test_pictures_among_volumes_are_said_not_to_be_summed_up(tmp_path):
    write_pictures(tmp_path / "2d", 2)
    write_volumes(tmp_path / "3d", [(8, 7, 6)] * 2)
    pictures, volumes = (open_data(tmp_path / kind).cases for kind in ("2d", "3d"))
    folder = replace(open_data(tmp_path / "2d"), cases=(*pictures, *volumes), labels=None)
    seen = TrainingFingerprint(folder, Split("file", 0, tuple(case.id for case in folder.cases), (), ()))
    for files in folder.cases:
        seen.take(files, reading.read_case(files))
    assert seen.as_object().keys() == {"refused"}
    assert "mixes pictures" in seen.as_object()["refused"]


def test_cases_that_are_given_count_like_those_that_are_read(tmp_path):
    write_pictures(tmp_path, 3)
    folder = open_data(tmp_path)
    gatherer = Gatherer(folder)
    for files in folder.cases:
        case = reading.read_case(files)
        gatherer.take(files, Case(case.id, case.image, case.label))
    assert gatherer.fingerprint().as_object() == take_fingerprint(tmp_path).as_object()
