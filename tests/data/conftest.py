"""Data folders that a test may spoil."""

import json
import shutil
from pathlib import Path

import pytest
from convert_cases import small, write_nnunet


@pytest.fixture
def pictures(phantom, tmp_path):
    """Twenty pictures to be spoilt."""
    return Path(shutil.copytree(phantom, tmp_path / "pictures"))


@pytest.fixture
def volumes(phantom_3d, tmp_path):
    """Ten volumes to be spoilt."""
    return Path(shutil.copytree(phantom_3d, tmp_path / "volumes"))


@pytest.fixture
def parted(tmp_path):
    """Five labelled cases, folds, an unlabelled test case and one whose truth is in labelsTs."""
    cases = {f"patient{number:03d}_frame01": small(number) for number in range(7)}
    root = write_nnunet(tmp_path / "Dataset001_x", cases)
    for folder in ("imagesTs", "labelsTs"):
        (root / folder).mkdir()
    for number in (5, 6):
        name = f"patient{number:03d}_frame01"
        (root / "imagesTr" / f"{name}_0000.nii.gz").rename(root / "imagesTs" / f"{name}_0000.nii.gz")
        (root / "labelsTr" / f"{name}.nii.gz").rename(root / "labelsTs" / f"{name}.nii.gz")
    names = [f"patient{number:03d}_frame01" for number in range(5)]
    folds = [{"train": names[1:], "val": names[:1]}, {"train": names[:3], "val": names[3:]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    return root
