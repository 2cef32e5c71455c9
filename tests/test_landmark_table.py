"""The script of the landmark table: its rows are valid recipes, and what it writes says what was found."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, as if it were run from its folder, with few cases and without training."""
    monkeypatch.syspath_prepend(SCRIPTS)
    for name in ("report", "landmark_table"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("landmark_table")
    monkeypatch.setattr(module, "NUMBER_OF_CASES", 2)
    monkeypatch.setattr(module, "reach_of", lambda recipe, size: len(size))
    return module


def trained(seen: list[Any]) -> Any:
    def train(recipe: Any, out: Path, **_: Any) -> SimpleNamespace:
        seen.append((recipe, out))
        found = {"dsc": {"mean": 0.5, "low": 0.25, "high": 0.75}}
        test = {"classes": [{"dsc": {"mean": 0.375}}, {"dsc": {"mean": 0.625}}], "mean": found}
        figures = {"parameters": 1234, "training_seconds": 9.6, "images_per_second": 70.5}
        return SimpleNamespace(summary=figures | {"results": {"test": test}})

    return train


def test_every_row_is_trained_and_told(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(script, "train", trained(seen))
    work, out = tmp_path / "work", tmp_path / "table.md"
    assert script.main(["--work", str(work), "--device", "cpu", "--seeds", "0", "3", "-o", str(out)]) == 0
    rows = [line for line in out.read_text().splitlines() if line.startswith("| ") and "network" not in line]
    assert len(rows) == len(seen) == 2 * (3 + 4)
    assert rows[1] == "| RWKV-UNet | 3 | 1,234 | 2 | 37.5 | 62.5 | 50.0 (25.0 to 75.0) | 10 | 70.5 |"
    assert len({run for _, run in seen}) == len(seen)
    assert {recipe.training.seed for recipe, _ in seen} == {0, 3}
    assert {recipe.data.path for recipe, _ in seen} == {work / "2d", work / "3d"}
    assert str(tmp_path) not in out.read_text()
    dimensions = {recipe.preprocessing.dimensions for recipe, run in seen if run.name.startswith("3d")}
    assert dimensions == {3}


def test_data_alone(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "train", lambda *_: pytest.fail("trained"))
    assert script.main(["--work", str(tmp_path), "--write-data"]) == 0
    assert len(list((tmp_path / "2d" / "images").iterdir())) == 2
    assert len(list((tmp_path / "3d" / "imagesTr").iterdir())) == 2
