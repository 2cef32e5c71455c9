"""What is wrong with the real sets, and nothing else: known duplicates, shared sequences, empty masks."""

from collections import Counter
from pathlib import Path

import pytest

from rwkvseg.data.verify import verify_data

pytestmark = pytest.mark.shared_data

SPLITS = Path(__file__).resolve().parents[2] / "recipes" / "splits"


def kinds_of(result):
    return Counter(finding.kind for finding in result.findings)


def cases_of(result, kind):
    return {finding.cases for finding in result.findings if finding.kind == kind}


def test_random_split_of_cvc_shares_sequences(shared_data):
    result = verify_data(shared_data / "CVC-ClinicDB-256", SPLITS / "cvc_clinicdb_seed0.json")
    kinds = kinds_of(result)
    assert (result.groups, kinds["group_across"]) == (29, 28)
    assert kinds["near_duplicate_across"] > 0
    assert set(kinds) == {"group_across", "near_duplicate_across", "near_duplicate_within", "unnamed_labels"}
    assert result.has_errors


@pytest.mark.slow
def test_grouped_split_of_cvc_shares_none(shared_data):
    result = verify_data(shared_data / "CVC-ClinicDB-256", SPLITS / "cvc_clinicdb_grouped_seed0.json")
    assert set(kinds_of(result)) <= {"near_duplicate_across", "near_duplicate_within", "unnamed_labels"}
    assert not result.has_errors


def test_normals_of_busi_have_empty_masks(shared_data):
    result = verify_data(shared_data / "BUSI-subset-256")
    assert cases_of(result, "empty_mask") == {(f"normal ({index})",) for index in range(1, 51)}
    assert not result.has_errors


def test_two_patients_of_acdc_are_the_same(shared_data):
    result = verify_data(shared_data / "ACDC-nii", SPLITS / "acdc_ssl4mis.json")
    assert cases_of(result, "duplicate_within") == {
        (f"patient074_frame{frame}", f"patient076_frame{frame}") for frame in ("01", "12")
    }
    alike = cases_of(result, "near_duplicate_within")  # the two phases of a heart
    hearts = [{case.split("_")[0] for case in cases} for cases in alike]
    assert [patients for patients in hearts if len(patients) > 1] == [{"patient074", "patient076"}]
    assert set(kinds_of(result)) == {"duplicate_within", "near_duplicate_within", "unnamed_labels"}
    assert (result.groups, result.parts) == (80, {"train": 110, "val": 18, "test": 32})


def test_glas_has_no_fault_but_names_no_label(shared_data):
    result = verify_data(shared_data / "GlaS-256")
    assert kinds_of(result) == {"unnamed_labels": 1}
    assert result.parts == {"train": 85, "test": 80}


def test_hippocampus_is_clean(shared_data):
    result = verify_data(shared_data / "Task04_Hippocampus")
    assert (result.layout, sum(result.parts.values()), result.findings) == ("msd", 260, ())


@pytest.mark.slow
def test_an_image_of_isic_is_in_two_official_parts(shared_data):
    result = verify_data(shared_data / "ISIC2017-256")
    assert cases_of(result, "duplicate_across") == {("train_ISIC_0012970", "val_ISIC_0012127")}
    kinds = kinds_of(result)
    assert set(kinds) == {
        "duplicate_across",
        "near_duplicate_across",
        "near_duplicate_within",
        "unnamed_labels",
    }
    assert result.counts["error"] == 1
    assert result.parts == {"train": 2000, "val": 150}


@pytest.mark.slow
def test_kvasir_has_a_few_look_alikes(shared_data):
    result = verify_data(shared_data / "Kvasir-SEG-256", SPLITS / "kvasir_seg_seed0.json")
    assert set(kinds_of(result)) == {"near_duplicate_across", "near_duplicate_within", "unnamed_labels"}
    assert not result.has_errors
