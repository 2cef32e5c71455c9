"""Descriptions of public data sets: against the committed splits, the recipes and the copies at hand."""

import json
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

from rwkvseg.data import datasets, open_data, read_case
from rwkvseg.data.datasets import DATASETS, NOT_VERIFIED, get_dataset
from rwkvseg.errors import UsageError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
COPIES = {
    "kvasir_seg": ("Kvasir-SEG-256", "images"),
    "cvc_clinicdb": ("CVC-ClinicDB-256", "images"),
    "busi": ("BUSI-subset-256", "beside"),
    "isic2017": ("ISIC2017-256", "images"),
    "glas": ("GlaS-256", "images"),
    "acdc_volumes": ("ACDC-nii", "msd"),
    "hippocampus": ("Task04_Hippocampus", "msd"),
}
CUT = {"acdc_ssl4mis.json", "isic2017_official.json", "synapse_transunet.json", "synapse_nnformer.json"}


def test_every_file_describes_one_set():
    modules = {module.name for module in pkgutil.iter_modules(datasets.__path__)} - {"description"}
    assert modules == set(DATASETS)
    assert len(DATASETS) == 13


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Kvasir-SEG", "kvasir_seg"),
        ("kvasir seg", "kvasir_seg"),
        ("KVASIR", "kvasir_seg"),
        ("ISIC 2017", "isic2017"),
        ("CVC-ClinicDB", "cvc_clinicdb"),
        ("ClinicDB", "cvc_clinicdb"),
        ("ACDC", "acdc"),
        ("acdc-volumes", "acdc_volumes"),
        ("Task04_Hippocampus", "hippocampus"),
        ("btcv", "synapse"),
    ],
)
def test_sets_are_known_by_their_usual_spellings(spelling, name):
    assert get_dataset(spelling) is DATASETS[name]


def test_no_spelling_is_of_two_sets():
    for dataset in DATASETS.values():
        for spelling in (dataset.name, dataset.name.replace("_", "-").upper(), *dataset.aliases):
            assert get_dataset(spelling) is dataset


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [
        ("kvasir-sge", "Did you mean kvasir_seg"),
        ("colon-db2", "Did you mean cvc_colondb"),
        ("hippocampous", "Did you mean hippocampus"),
        ("nothing", "unknown data set 'nothing'. Choose one of synapse, acdc, "),
        ("--", "unknown data set '--'. Choose one of"),
    ],
)
def test_an_unknown_set_is_answered_by_those_that_come_near(unknown, hint):
    with pytest.raises(UsageError, match=re.escape(hint)) as caught:
        get_dataset(unknown)
    assert str(caught.value).endswith("Choose one of " + ", ".join(DATASETS) + ".")


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=list(DATASETS))
def test_descriptions_are_consistent(dataset):
    if dataset.labels is not None:
        assert list(dataset.labels.values()) == list(range(len(dataset.labels)))
        assert dataset.labels["background"] == 0
    for field in ("labels", "layout", "parts", "citation", "licence", "source"):
        doubtful = getattr(dataset, field) is None or field in dataset.unverified
        assert (NOT_VERIFIED in dataset.told(field)) == doubtful
    assert all(getattr(dataset, field) is not None for field in dataset.unverified)
    for name in dataset.split_files:
        split = json.loads((RECIPES / "splits" / name).read_text())
        sizes = tuple(len(split[part]) for part in ("train", "val", "test"))
        if name not in CUT:
            assert sum(sizes) == sum(dataset.parts)
            assert "grouped" in name or sizes == dataset.parts


def test_every_committed_split_is_of_a_described_set():
    named = {name for dataset in DATASETS.values() for name in dataset.split_files}
    generated = {"landmark.json"}
    assert named | generated == {path.name for path in (RECIPES / "splits").glob("*.json")}


def test_the_papers_random_splits_are_tenths():
    totals = {"busi": 780, "cvc_clinicdb": 612, "cvc_colondb": 380, "kvasir_seg": 1000}
    for name, total in totals.items():
        assert DATASETS[name].parts == (total - 2 * (total // 10), total // 10, total // 10)
        assert str(total) in DATASETS[name].cases


def test_recipes_name_the_same_labels():
    seen = set()
    for path in RECIPES.glob("*.yaml"):
        labels = yaml.safe_load(path.read_text())["data"].get("labels")
        name = next((name for name in DATASETS if path.stem.startswith(name)), None)
        if labels is None or name is None or path.stem == "synapse_3d_nnformer":  # 13 organs
            continue
        assert labels == DATASETS[name].labels, path.name
        seen.add(name)
    assert seen == {"acdc", "cvc_clinicdb", "glas", "hippocampus", "isic2017", "kvasir_seg"}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", COPIES)
def test_copies_have_the_described_labels_and_layout(shared_data, name):
    folder, layout = COPIES[name]
    data = open_data(shared_data / folder)
    assert data.layout == layout
    labels = DATASETS[name].labels
    if data.labels is not None:
        assert {key.lower(): value for key, value in data.labels.items()} == labels
    for files in data.cases[:: len(data.cases) // 3]:
        assert read_case(files, labels).label.max() >= 1 or files.id.startswith("normal")
