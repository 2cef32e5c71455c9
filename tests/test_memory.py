"""Amounts of memory in words, and what a process may use."""

import resource

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
        ("100", 100),
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
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**19, resource.RLIM_INFINITY))
    assert memory.available_memory() == 2**19
