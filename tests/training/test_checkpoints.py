import os
import pickle
import zipfile

import pytest
import torch

from rwkvseg.errors import ModelFileError, OutputError
from rwkvseg.training.checkpoints import SafeCheckpointIO
from small import files_below


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


CONTENT = {"state_dict": {"w": torch.arange(6.0).view(2, 3)}, "epoch": 3, "rows": [{"a": 1.5, "b": None}]}


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENT, path)
    loaded = SafeCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert (loaded["epoch"], loaded["rows"]) == (3, CONTENT["rows"])
    assert files_below(tmp_path) == ["deep/last.ckpt"]
    SafeCheckpointIO().remove_checkpoint(path)
    SafeCheckpointIO().remove_checkpoint(path)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("form", ["torch", "pickle"])
@pytest.mark.parametrize("weights_only", [True, False, None])
def test_a_malicious_checkpoint_runs_nothing(tmp_path, form, weights_only):
    trap = {"state_dict": Trap(tmp_path / "sprung")}
    path = tmp_path / "last.ckpt"
    if form == "torch":
        torch.save(trap, path)
    else:
        path.write_bytes(pickle.dumps(trap))
    with pytest.raises(ModelFileError, match=r"cannot resume from .*last\.ckpt") as caught:
        SafeCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(path.read_bytes()) if form == "pickle" else torch.load(path, weights_only=False)
    assert (tmp_path / "sprung").exists()  # so the trap works, and the test can fail


@pytest.mark.parametrize(
    "damage", ["absent", "empty", "truncated", "text", "foreign zip", "folder", "flipped"]
)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENT, path)
    content = path.read_bytes()
    if damage in ("absent", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    elif damage == "foreign zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    else:
        pickled = content.index(b"state_dict")
        damaged = {
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "text": b"hello",
            "flipped": content[: pickled - 8] + b"\xff" * 16 + content[pickled + 8 :],
        }
        path.write_bytes(damaged[damage])
    with pytest.raises(ModelFileError, match="Remove this file to start the run again"):
        SafeCheckpointIO().load_checkpoint(path)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, file_size_limit):
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENT, path)
    before = path.read_bytes()
    large = {"state_dict": {"w": torch.zeros(100_000)}}
    with file_size_limit(20_000), pytest.raises(OutputError, match="cannot write"):
        SafeCheckpointIO().save_checkpoint(large, path)
    assert path.read_bytes() == before
    assert files_below(tmp_path) == ["last.ckpt"]
