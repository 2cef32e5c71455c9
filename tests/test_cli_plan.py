"""`rwkvseg plan` and `rwkvseg data fingerprint` as they are called."""

import json
import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data_folders import write_pictures, write_volumes
from rwkvseg.training.recipe import Recipe


def test_fingerprint_prints_tables_and_writes_files(rwkvseg, phantom, tmp_path):
    code, out, err = rwkvseg("data", "fingerprint", phantom, "-o", tmp_path / "fp")
    assert (code, err) == (0, "")
    assert "40 x 36, all alike" in out
    assert "aorta" in out
    names = sorted(path.name for path in (tmp_path / "fp").iterdir())
    assert names == ["classes.png", "fingerprint.json", "intensities.png", "sizes.png"]
    code, out, _ = rwkvseg("data", "fingerprint", phantom, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "fp" / "fingerprint.json").read_text())


def test_fingerprint_names_what_it_could_not_read(rwkvseg, phantom, tmp_path):
    pictures = shutil.copytree(phantom, tmp_path / "pictures")
    (pictures / "images" / "phantom-0003.png").write_bytes(b"")
    code, out, err = rwkvseg("data", "fingerprint", pictures)
    assert code == 1
    assert "19" in out
    assert "phantom-0003.png" in err
    assert f"1 case could not be read; `rwkvseg data verify {pictures}` tells more." in err


def test_fingerprint_on_a_full_disk_leaves_nothing_half_written(rwkvseg, phantom, tmp_path, file_size_limit):
    with file_size_limit(3000):
        code, _, err = rwkvseg("data", "fingerprint", phantom, "-o", tmp_path / "fp")
    assert code == 1
    assert err.startswith("error: cannot write")
    assert list((tmp_path / "fp").iterdir()) == []


def test_plan_prints_reasons_and_the_command(rwkvseg, phantom, tmp_path):
    out_file = tmp_path / "p.yaml"
    code, out, err = rwkvseg("plan", phantom, "-o", out_file, "--gpu-memory", "2G")
    assert (code, err) == (0, "")
    assert "The data are pictures." in out
    assert f"now: rwkvseg train {out_file}" in out
    assert "memory on a GPU, bfloat16: takes about" in out
    assert "of 2 GiB" in out
    assert Recipe.from_file(out_file).model.name == "rwkv_unet_tiny"
    code, _, err = rwkvseg("plan", phantom, "-o", out_file)
    assert code == 2
    assert "is there already. Choose another -o, or add --overwrite." in err
    assert rwkvseg("plan", phantom, "-o", out_file, "--overwrite", "--variant", "nano")[0] == 0
    assert Recipe.from_file(out_file).model.name == "rwkv_unet_nano"


def test_plan_as_json(rwkvseg, phantom_3d, tmp_path):
    code, out, _ = rwkvseg("plan", phantom_3d, "-o", tmp_path / "p.yaml", "--json", "--seed", "4")
    assert code == 0
    content = json.loads(out)
    memory = content["memory_bytes"]
    assert memory["total"] == memory["context"] + memory["weights"] + memory["step"] <= memory["limit"]
    assert content["recipe"]["training"]["seed"] == 4
    assert content["files"][-1] == str(tmp_path / "p.yaml")
    values = {choice["key"]: choice["value"] for choice in content["choices"]}
    assert values["model.name"] == "urwkv3d_tiny"


def test_without_a_limit_the_gpu_here_is_the_limit(rwkvseg, phantom, tmp_path, monkeypatch):
    def limit(name):
        _, out, _ = rwkvseg("plan", phantom, "-o", tmp_path / name, "--json")
        return json.loads(out)["memory_bytes"]["limit"]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert limit("cpu.yaml") == 8 * 2**30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = SimpleNamespace(total_memory=12345 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    assert limit("gpu.yaml") == 12345 * 2**20


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--gpu-memory", "200M"), 2, "--gpu-memory allows 200 MiB; even rwkv_unet_nano"),
        (("--gpu-memory", "much"), 2, "'much' is no amount of memory"),
        (("--dimensions", "3"), 2, "the data are pictures"),
        (("--split", "nowhere.json"), 1, "split file nowhere.json does not exist"),
        (("--variant", "huge"), 2, "huge"),
    ],
)
def test_plan_refuses_in_words(rwkvseg, phantom, tmp_path, arguments, code, message):
    found, _, err = rwkvseg("plan", phantom, "-o", tmp_path / "p.yaml", *arguments)
    assert found == code
    assert message in err
    assert err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_plan_of_folders_that_cannot_be_trained_on(rwkvseg, tmp_path):
    unlabelled, one, mixed = (tmp_path / name for name in ("unlabelled", "one", "mixed"))
    (unlabelled / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(unlabelled / "images" / "a.png")
    write_volumes(one, [(9, 9, 9)])
    write_volumes(mixed, [(9, 9, 9)])
    for folder in ("imagesTr", "labelsTr"):
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(mixed / folder / "flat.png")
    for folder, message in (
        (unlabelled, "holds 1 image and no label"),
        (one, "1 labelled case: at least 3 are needed"),
        (mixed, "mixes pictures (flat) and volumes (case000)"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        code, _, err = rwkvseg("plan", folder, "-o", tmp_path / "p.yaml")
        assert code == 1
        assert message in err
    assert not (tmp_path / "p.yaml").exists()


def test_the_next_command_can_be_copied(rwkvseg, tmp_path):
    write_pictures(tmp_path / "my data", 4)
    recipe = tmp_path / "it's mine.yaml"
    code, out, err = rwkvseg("plan", tmp_path / "my data", "-o", recipe, "--variant", "nano")
    assert code == 0, err
    (command,) = [line for line in out.splitlines() if line.startswith("now: ")]
    assert shlex.split(command.removeprefix("now: ")) == ["rwkvseg", "train", str(recipe)]
