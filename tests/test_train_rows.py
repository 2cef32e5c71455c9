"""benchmarks/train_rows.py: one training after another, what is kept of each, and what a failure stops."""

import importlib
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
STAND_IN = """#!{python}
# what `rwkvseg train` leaves; rows whose changes say so fail
import pathlib, sys, tarfile, time
arguments = sys.argv[1:]
assert arguments[:4] == ["-m", "rwkvseg.cli", "train", "a_recipe"], arguments
run = pathlib.Path(arguments[arguments.index("-o") + 1])
if "model.name=broken" in arguments:
    sys.exit("error: broken")
if "model.name=slow" in arguments:  # learns until the row before is packed
    latest = time.monotonic() + 10
    while "tiny0/summary.json" not in tarfile.open(run.parent / "rows.tar.gz").getnames():
        assert time.monotonic() < latest
        time.sleep(0.02)
for name in ("recipe.yaml", "weights.bin", "model/model.json", "evaluation/test/scores.csv"):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(" ".join(arguments))
time.sleep(0.2)  # its test
(run / "summary.json").write_text("{{}}")
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("train_rows")
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(stand_in))
    monkeypatch.setattr(module, "LOOK", 0.02)
    return module


def command(out: Path, *rows: str, options: tuple[str, ...] = ()) -> list[str]:
    told = ["a_recipe", "--data", "somewhere", "-o", str(out), "--pack", str(out / "rows.tar.gz"), *options]
    return told + [word for row in rows for word in ("--row", *row.split())]


def packed(out: Path) -> set[str]:
    with tarfile.open(out / "rows.tar.gz") as archive:
        return set(archive.getnames())


def test_rows_are_trained_in_turn_and_their_small_files_packed(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("tiny0", "unet0 model.name=monai_basic_unet split.seed=1")
    assert script.main(command(tmp_path / "runs", *rows, options=("--set", "training.epochs=2"))) == 0
    names = {"recipe.yaml", "summary.json", "evaluation/test/scores.csv"}
    assert packed(tmp_path / "runs") == {f"{run}/{name}" for run in ("tiny0", "unet0") for name in names}
    told = (tmp_path / "runs" / "unet0" / "recipe.yaml").read_text()
    assert told.endswith("--set training.epochs=2 --set model.name=monai_basic_unet --set split.seed=1")
    assert "--resume" in told
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["tiny0", "unet0"]
    assert script.main(command(tmp_path / "runs", *rows)) == 0  # nothing is trained again
    assert (tmp_path / "runs" / "unet0" / "recipe.yaml").read_text() == told


def test_a_row_that_fails_stops_the_others_and_shows_why(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("tiny0", "broken model.name=broken", "late")
    assert script.main(command(tmp_path / "runs", *rows, options=("--keep", "weights.bin"))) == 1
    said = capsys.readouterr().out
    assert "broken: FAILED" in said
    assert "error: broken" in said
    assert "tiny0: done" in said  # its test was waited for
    assert not (tmp_path / "runs" / "late").exists()
    assert "tiny0/weights.bin" in packed(tmp_path / "runs")


def test_a_row_is_packed_while_the_next_one_learns(script: Any, tmp_path: Path) -> None:
    assert script.main(command(tmp_path / "runs", "tiny0", "slow0 model.name=slow")) == 0
    assert "slow0/summary.json" in packed(tmp_path / "runs")


def test_no_row_begins_too_late(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(command(tmp_path / "runs", "tiny0", options=("--last-start", "0"))) == 1
    assert capsys.readouterr().out == "tiny0: not begun\n"
    assert packed(tmp_path / "runs") == set()
