"""Damaged files end in a sound result or in an error of ours that names the file: no crash, hang or flood."""

import os

import pytest
from harness import damaged, outcome
from hypothesis import HealthCheck, given, settings
from readers import READERS

LONGER = int(os.environ.get("RWKVSEG_FUZZ", "1"))  # times as many examples, others every time


@pytest.fixture(params=READERS, ids=lambda reader: reader.name)
def prepared(request, tmp_path):
    reader = request.param
    (tmp_path / reader.file).parent.mkdir(exist_ok=True)
    reader.write(tmp_path / reader.file)
    return reader, tmp_path, (tmp_path / reader.file).read_bytes()


def test_whole_files_are_read(prepared):
    reader, folder, _ = prepared
    assert outcome(reader, folder) == "read"


def test_damaged_files_are_read_or_refused(prepared):
    reader, folder, whole = prepared
    seen = set()

    @settings(
        max_examples=LONGER * reader.examples,
        derandomize=LONGER == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(reader, whole))
    def check(content):
        (folder / reader.file).write_bytes(content)
        seen.add(outcome(reader, folder))

    check()
    assert "refused" in seen


def test_files_that_end_early_are_read_or_refused(prepared):
    reader, folder, whole = prepared
    for end in sorted({0, 1, *(len(whole) * part // 12 for part in range(1, 12)), len(whole) - 1}):
        (folder / reader.file).write_bytes(whole[:end])
        outcome(reader, folder)
