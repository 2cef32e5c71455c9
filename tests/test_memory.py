"""Amounts of memory in words, and what a process may use."""

import os
import resource
import subprocess
import sys

import pytest

from rwkvseg import memory
from rwkvseg.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 * 2**30),
        ("512M", 2**29),
        ("1.5 GiB", 1610612736),
        ("64kb", 65536),
        ("1048576", 2**20),
        ("2t", 2**41),
    ],
)
def test_amounts(text, size):
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "eight", "8X", "-1G", "0", "1e9", "8G2", "nan"])
def test_what_is_no_amount(text):
    with pytest.raises(UsageError, match=r"is no amount of memory\. Give it as 8G or 512M"):
        memory.parse_size(text)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (3 * 2**29, "1.5 GiB"), (2**40 * 5000, "5000 TiB")],
)
def test_shown(size, shown):
    assert memory.show_size(size) == shown


def test_the_smallest_limit_counts(tmp_path, monkeypatch):
    machine = memory.available_memory()
    assert 2**28 < machine < 2**50
    group = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (tmp_path / "absent", group))
    group.write_text("max\n")
    assert memory.available_memory() >= machine
    group.write_text(f"{2**20}\n")
    assert memory.available_memory() == 2**20
    group.write_text(f"{2**50}\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**36, resource.RLIM_INFINITY))
    monkeypatch.setattr(memory, "_machine_memory", lambda: 2**50)
    assert 2**36 - 2**34 < memory.available_memory() < 2**36, "less the addresses where nothing lies yet"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**19, resource.RLIM_INFINITY))
    assert memory.available_memory() == 0


def test_a_number_without_a_unit_is_asked_about():
    with pytest.raises(UsageError, match=r"'8' is 8 B\. Give memory with its unit: 8G or 8M"):
        memory.parse_size("8")
    assert memory.parse_size(str(2**30)) == 2**30


def test_nothing_needs_what_windows_has_not(tmp_path):
    """Modules of POSIX alone are not there; everything is imported, and memory is asked for."""
    program = """
import sys
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
import pkgutil, importlib, os, rwkvseg
from rwkvseg import memory
for module in pkgutil.walk_packages(rwkvseg.__path__, "rwkvseg."):
    if ".triton_" not in module.name and "__main__" not in module.name:
        importlib.import_module(module.name)
assert memory.available_memory() > 0
"""
    environment = dict(os.environ, USERNAME="somebody")  # of Windows
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_package_is_a_program():
    command = [sys.executable, "-m", "rwkvseg", "--help"]
    assert "Usage" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
