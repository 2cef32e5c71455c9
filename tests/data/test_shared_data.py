import os
import re
from collections import Counter

import numpy as np
import pytest

from rwkvseg.data.datasets import DATASETS
from rwkvseg.data.layouts import find_inputs, open_data, read_case
from rwkvseg.data.listing import list_folder
from rwkvseg.data.preprocessing import Preprocessing, preprocess
from rwkvseg.data.splits import make_split, read_split

pytestmark = pytest.mark.shared_data

BINARY = {"background": 0, "structure": 1}
ACDC = {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3}
HIPPOCAMPUS = {"background": 0, "Anterior": 1, "Posterior": 2}
SETS = [
    ("Kvasir-SEG-256", "images", 1000, BINARY, {None: 1000}),
    ("CVC-ClinicDB-256", "images", 612, BINARY, {None: 612}),
    ("ISIC2017-256", "images", 2150, BINARY, {"train": 2000, "val": 150}),
    ("BUSI-subset-256", "beside", 135, BINARY, {None: 135}),
    ("GlaS-256", "images", 165, BINARY, {"train": 85, "test": 80}),
    ("ACDC-nii", "msd", 160, ACDC, {None: 160}),
    ("Task04_Hippocampus", "msd", 260, HIPPOCAMPUS, {None: 260}),
]


@pytest.mark.parametrize(
    ("folder", "layout", "number", "labels", "parts"), SETS, ids=[row[0] for row in SETS]
)
def test_every_set_opens_and_some_of_its_cases_read(shared_data, folder, layout, number, labels, parts):
    data = open_data(shared_data / folder)
    assert (data.layout, len(data.cases), Counter(case.part for case in data.cases)) == (
        layout,
        number,
        parts,
    )
    assert [case.id for case in data.cases] == sorted(case.id for case in data.cases)
    assert len(find_inputs(shared_data / folder)) == number
    assert data.labels in (None, labels)
    for files in data.cases[:: number // 12]:
        case = read_case(files, labels)
        assert case.label.max() >= 1 or case.id.startswith("normal")
        items = preprocess(case, Preprocessing(size=(64, 48)))
        assert all(item.image.shape == (3, 64, 48) and np.isfinite(item.image).all() for item in items)
        assert len(items) == (1 if case.label.ndim == 2 else case.label.shape[2])


STATED = {  # numbers in SOURCE.md that the readers must find; patients or videos; name under `data info`
    "Kvasir-SEG-256": ((1000,), 0, "kvasir_seg"),
    "CVC-ClinicDB-256": ((612,), 29, "cvc_clinicdb"),
    "ISIC2017-256": ((2000, 150), 0, "isic2017"),
    "BUSI-subset-256": ((35, 50, 50), 0, "busi"),
    "GlaS-256": ((85, 80), 0, "glas"),
    "ACDC-nii": ((160,), 80, "acdc_volumes"),
    "Task04_Hippocampus": ((260,), 0, "hippocampus"),
}


def test_every_folder_there_is_has_its_test(shared_data):
    there = {path.name for path in shared_data.iterdir() if path.is_dir()}
    assert there <= set(STATED) == {row[0] for row in SETS}


@pytest.mark.parametrize("folder", STATED)
def test_numbers_are_those_of_the_source_and_of_data_info(shared_data, folder):
    stated, groups, name = STATED[folder]
    text = (shared_data / folder / "SOURCE.md").read_text()
    assert all(re.search(rf"\b{number}\b", text) for number in stated)
    data, listing = open_data(shared_data / folder), list_folder(shared_data / folder)
    assert len(data.cases) == sum(stated)
    assert listing.findings == []
    assert [case.id for case in listing.cases] == [case.id for case in data.cases]
    assert len({case.group for case in listing.cases} - {None}) == groups
    described = DATASETS[name]
    kinds = {tuple(sorted(labels.values())) for labels in (data.labels, described.labels) if labels}
    assert len(kinds) == 1
    parts = Counter(case.part for case in data.cases)
    if name == "isic2017":
        assert (parts["train"], parts["val"]) == described.parts[:2]
    elif name == "glas":
        assert (parts["train"], parts["test"]) == (sum(described.parts[:2]), described.parts[2])
    elif name in ("kvasir_seg", "cvc_clinicdb", "hippocampus"):
        assert sum(described.parts) == sum(stated)


def test_cvc_has_its_29_sequences(shared_data):
    cases = open_data(shared_data / "CVC-ClinicDB-256").cases
    assert len({case.group for case in cases}) == 29


def test_acdc_keeps_its_anisotropic_spacing(shared_data):
    data = open_data(shared_data / "ACDC-nii")
    for files in data.cases[::40]:
        case = read_case(files, ACDC)
        assert case.spacing[0] == case.spacing[1] < 2 < case.spacing[2]
        np.testing.assert_allclose(np.linalg.norm(case.affine[:3, :3], axis=0), case.spacing, rtol=1e-6)


COMMITTED = [
    *[("Kvasir-SEG-256", "paper", f"kvasir_seg_seed{seed}", seed) for seed in range(3)],
    *[("CVC-ClinicDB-256", "paper", f"cvc_clinicdb_seed{seed}", seed) for seed in range(3)],
    *[("CVC-ClinicDB-256", "grouped", f"cvc_clinicdb_grouped_seed{seed}", seed) for seed in range(3)],
    *[("GlaS-256", "official", f"glas_seed{seed}", seed) for seed in range(3)],
    ("ISIC2017-256", "official", "isic2017_official", 0),
]


@pytest.mark.parametrize(("folder", "rule", "name", "seed"), COMMITTED, ids=[row[2] for row in COMMITTED])
def test_committed_splits_are_what_the_rule_gives(shared_data, repository, folder, rule, name, seed):
    cases = open_data(shared_data / folder).cases
    committed = read_split(repository / "recipes" / "splits" / f"{name}.json", cases)
    assert committed == make_split(cases, rule, seed)


def test_acdc_split_is_the_published_list_and_patients_do_not_cross(shared_data, repository):
    root = shared_data / "ACDC-nii"
    split = read_split(repository / "recipes" / "splits" / "acdc_ssl4mis.json", open_data(root).cases)
    assert split.rule == "ssl4mis"
    patients = []
    for part in ("train", "val", "test"):
        ids = getattr(split, part)
        assert sorted(ids) == sorted((root / f"ssl4mis_{part}.list").read_text().split())
        patients.append({case.split("_")[0] for case in ids})
    assert not (patients[0] & patients[1])
    assert not (patients[0] & patients[2])
    assert not (patients[1] & patients[2])


@pytest.fixture
def repository(request):
    return request.config.rootpath


@pytest.mark.slow
@pytest.mark.skipif("RWKVSEG_READ_ALL" not in os.environ, reason="reads every file; set RWKVSEG_READ_ALL=1")
@pytest.mark.parametrize(
    ("folder", "layout", "number", "labels", "parts"), SETS, ids=[row[0] for row in SETS]
)
def test_every_case_of_every_set_reads(shared_data, folder, layout, number, labels, parts):
    assert (
        sum(read_case(files, labels).label is not None for files in open_data(shared_data / folder).cases)
        == number
    )
