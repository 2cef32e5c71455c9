import json
import math
import os
import signal
import subprocess
import sys

import pytest

from rwkvseg import output
from rwkvseg.errors import OutputError, UsageError
from rwkvseg.output import write_atomically, write_bytes, write_json, write_text
from small import files_below


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "c.nii.gz"
    with write_atomically(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.endswith(".nii.gz")  # writers choose their format by the suffixes
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert files_below(tmp_path) == ["a/b/c.nii.gz"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_interruption_leaves_the_old_file_or_none(tmp_path, error, before):
    path = tmp_path / "result.bin"
    if before is not None:
        path.write_bytes(before)

    def write_half():
        with write_atomically(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert files_below(tmp_path) == ([] if before is None else ["result.bin"])
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("below", ["file/result.txt", "file/deep/result.txt"])
def test_a_path_below_a_regular_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*result\.txt: .*\. Free some space or choose"):
        write_text(tmp_path / below, "content")
    assert files_below(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "result.txt").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "result.txt", "content")
    assert files_below(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission"):
        write_text(tmp_path / "result.txt", "content")


def test_a_full_disk_leaves_the_old_file(tmp_path, file_size_limit):
    path = tmp_path / "result.bin"
    write_bytes(path, b"old")
    with file_size_limit(1000), pytest.raises(OutputError, match="File too large"):
        write_bytes(path, bytes(5000))
    assert path.read_bytes() == b"old"
    assert files_below(tmp_path) == ["result.bin"]


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(OutputError), write_atomically(tmp_path / "a"):
        pass
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_json_has_no_nan(tmp_path, number):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": [number]})
    assert files_below(tmp_path) == []


def test_text_is_utf8_and_json_reads_back(tmp_path):
    write_text(tmp_path / "a.txt", "Größe 3 µm\n")
    assert (tmp_path / "a.txt").read_bytes() == "Größe 3 µm\n".encode()
    write_json(tmp_path / "a.json", {"ä": [1, None, 0.1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"ä": [1, None, 0.1]}


KILLED = """
import os, signal, sys
from pathlib import Path
from rwkvseg.output import write_atomically

with write_atomically(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("name", ["result.bin", "other [1] ä.nii.gz"])
def test_what_a_killed_process_left_goes_with_the_next_output(tmp_path, name):
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    assert result.returncode == -signal.SIGKILL
    (left,) = files_below(tmp_path)
    assert left.endswith(f".partial.{name}")
    write_bytes(tmp_path / "result.bin", b"whole")
    assert files_below(tmp_path) == ["result.bin"]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_what_others_may_still_write_stays(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.bin")], check=False)
    (left,) = files_below(tmp_path)
    machine, process = left.split(".")[1:3]
    far = f"{(int(machine, 16) + 1) % 2**32:08x}"
    kept = {
        f".{machine}.{os.getppid()}.partial.a.bin",  # alive
        f".{far}.{process}.partial.a.bin",  # of another machine
        f".{machine}.{10**30}.partial.a.bin",  # no process id
        f".{machine}.0.partial.a.bin",
        f".{process}.partial.a.bin",
        f"{left[1:]}",
        f"below/{left}",
    }
    (tmp_path / "below").mkdir()
    for name in kept:
        (tmp_path / name).write_bytes(b"mine")
    write_bytes(tmp_path / "a.bin", b"whole")
    assert set(files_below(tmp_path)) == kept | {"a.bin"}


def test_one_process_at_a_time(tmp_path):
    with output.held_alone(tmp_path), output.held_alone(tmp_path):  # the same process
        (mine,) = tmp_path.iterdir()
    assert list(tmp_path.iterdir()) == []
    alive, dead = (
        mine.with_name(mine.name.replace(str(os.getpid()), str(n))) for n in (os.getppid(), 2**22 + 1)
    )
    dead.touch()
    with output.held_alone(tmp_path):
        assert not dead.exists()
    alive.touch()
    with pytest.raises(UsageError, match=rf"process {os.getppid()} is at work"), output.held_alone(tmp_path):
        raise AssertionError
    assert list(tmp_path.iterdir()) == [alive]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "deep" / "folder"
    for name in ("a", "b"):
        with output.write_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["b"]

    def stop(temporary):
        (temporary / "c").write_text("c")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), output.write_folder(folder) as temporary:
        stop(temporary)
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"), output.write_folder(tmp_path / "file" / "folder"):
        raise AssertionError
