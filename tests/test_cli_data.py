"""`rwkvseg data ...` as users meet it: table, JSON, exit codes."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from rwkvseg.data.datasets import DATASETS
from rwkvseg.data.findings import KINDS


@pytest.fixture
def spoilt(phantom, tmp_path):
    """Data folder with an error, five warnings of one kind, and markup in a name."""
    folder = Path(shutil.copytree(phantom, tmp_path / "data"))
    (folder / "images" / "phantom-0000.png").write_bytes(b"")
    for index in range(1, 6):
        Image.new("L", (36, 40)).save(folder / "masks" / f"phantom-{index:04d}.png")
    for part in ("images", "masks"):
        (folder / part / "phantom-0001.png").rename(folder / part / "[bold]1[-].png")
    return folder


def test_verify_says_that_nothing_is_wrong(rwkvseg, phantom):
    code, out, err = rwkvseg("data", "verify", phantom)
    assert (code, err) == (0, "")
    assert out == f"{phantom}: layout images, 20 cases; nothing wrong found\n"
    assert rwkvseg("data", "verify", phantom, "--json") == (0, "[]\n", "")


def test_verify_prints_a_table_and_fails_on_errors(rwkvseg, spoilt):
    code, out, _ = rwkvseg("data", "verify", spoilt)
    assert code == 1
    assert out.splitlines()[-1] == f"{spoilt}: layout images, 20 cases; 1 error, 5 warnings, 0 notes"
    text = " ".join(out.split())
    for told in ("truncated", "the file is empty: 0 bytes", "fetch or export it again", "[bold]1[-].png"):
        assert told in text
    assert "and 2 more (--json lists all)" in text


def test_verify_lists_all_as_json(rwkvseg, spoilt):
    code, out, _ = rwkvseg("data", "verify", spoilt, "--json")
    listed = json.loads(out)
    assert code == 1
    assert [entry["kind"] for entry in listed] == ["truncated", *["empty_mask"] * 5]
    for entry in listed:
        assert list(entry) == ["severity", "kind", "cases", "file", "what", "cure"]
        assert entry["severity"] == KINDS[entry["kind"]]
        assert (spoilt / entry["file"]).is_file()
        assert entry["what"]
        assert entry["cure"]


def test_warnings_alone_are_no_failure(rwkvseg, spoilt, phantom):
    shutil.copy(phantom / "images" / "phantom-0000.png", spoilt / "images")
    assert rwkvseg("data", "verify", spoilt)[0] == 0


def test_verify_looks_for_leaks_in_a_split(rwkvseg, phantom, tmp_path):
    split = tmp_path / "split.json"
    names = [f"phantom-{index:04d}" for index in range(20)]
    split.write_text(json.dumps({"train": names, "val": names[:1], "test": []}))
    code, out, _ = rwkvseg("data", "verify", phantom, "--split", split, "--json")
    assert (code, [entry["kind"] for entry in json.loads(out)]) == (1, ["case_across"])
    code, out, err = rwkvseg("data", "verify", phantom, "--split", tmp_path / "none.json")
    assert (code, out) == (1, "")
    assert err.startswith("error: split file")
    assert rwkvseg("data", "verify", tmp_path / "none")[0] == 1
    assert rwkvseg("data", "verify")[0] == 2


def test_list_names_every_data_set(rwkvseg):
    code, out, _ = rwkvseg("data", "list")
    assert code == 0
    assert all(name in out for name in DATASETS)
    code, out, _ = rwkvseg("data", "list", "--json")
    assert [entry["name"] for entry in json.loads(out)] == list(DATASETS)


def test_info_tells_what_is_known_and_what_is_not(rwkvseg):
    code, out, _ = rwkvseg("data", "info", "acdc")
    assert code == 0
    assert "labels:      0 background, 1 right ventricle, 2 myocardium, 3 left ventricle\n" in out
    assert "licence:     CC BY-NC-SA 4.0: not for commercial use (not verified)\n" in out
    _, out, _ = rwkvseg("data", "info", "goals", "--json")
    entry = json.loads(out)
    assert (entry["parts"], entry["licence"], entry["labels"]) == ([100, 100, 100], None, None)
    code, out, _ = rwkvseg("data", "info", "Task04 Hippocampus")
    assert (code, out.splitlines()[0]) == (0, "name:        hippocampus")
    code, out, err = rwkvseg("data", "info", "nothing")
    assert (code, out) == (2, "")
    assert err.startswith("error: unknown data set 'nothing'. Choose one of synapse, acdc,")
