"""Data folders that a test may spoil."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def pictures(phantom, tmp_path):
    """Twenty pictures to be spoilt."""
    return Path(shutil.copytree(phantom, tmp_path / "pictures"))


@pytest.fixture
def volumes(phantom_3d, tmp_path):
    """Ten volumes to be spoilt."""
    return Path(shutil.copytree(phantom_3d, tmp_path / "volumes"))
