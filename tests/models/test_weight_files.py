"""Weights from files: whatever is no weights is refused in words, and nothing in it runs."""

import argparse
import collections
import os

import pytest
import torch
from safetensors.torch import save_file

from rwkvseg.errors import ModelFileError
from rwkvseg.models.weight_files import read_state_dict


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor(3)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        collections.OrderedDict,
        lambda weights: {"state_dict": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda weights: {"model": weights, "optimizer": {"lr": 1.0}},
        lambda weights: {"model": {"state_dict": weights}},
    ],
)
def test_weights_and_checkpoints_are_read(tmp_path, wrap):
    torch.save(wrap(WEIGHTS), tmp_path / "file.pth")
    read = read_state_dict(tmp_path / "file.pth")
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)


def test_parameters_lose_their_gradient(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "file.pth")
    assert not read_state_dict(tmp_path / "file.pth")["w"].requires_grad


def test_safetensors_and_the_old_format_of_torch_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "file.safetensors")
    torch.save(WEIGHTS, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    for name in ("file.safetensors", "old.tar"):
        assert torch.equal(read_state_dict(tmp_path / name)["a.weight"], WEIGHTS["a.weight"])


def test_a_pickle_of_more_than_weights_is_not_run(tmp_path):
    torch.save({"w": torch.ones(1), "trap": Trap(tmp_path / "sprung")}, tmp_path / "file.pth")
    with pytest.raises(ModelFileError, match=r"more than weights.*not opened"):
        read_state_dict(tmp_path / "file.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, 0.97])
def test_a_truncated_file_is_refused(tmp_path, suffix, keep):
    path = tmp_path / f"file.{suffix}"
    weights = {"w": torch.randn(50, 50)}
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ModelFileError, match="truncated"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"not weights at all", b"\x80\x02.", b"PK\x03\x04"], ids=str)
def test_something_else_is_refused(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ModelFileError, match="truncated or no file"):
        read_state_dict(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.ones(2), "a Tensor"),
        ([1, 2], "a list"),
        ({}, "an empty mapping"),
        ({"state_dict": {}}, "an empty mapping"),
        ({"epoch": 3}, "entry epoch of .* is a int"),
        ({"w": torch.ones(1), "names": ["a"]}, "entry names of .* is a list"),
    ],
    ids=str,
)
def test_what_is_no_mapping_of_tensors_is_told(tmp_path, content, said):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ModelFileError, match=said):
        read_state_dict(tmp_path / "file.pth")


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(ModelFileError, match="there is no weights file"):
            read_state_dict(path)
