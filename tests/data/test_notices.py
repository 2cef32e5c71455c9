"""Silence of several threads that overlap, and sentences that are said once."""

import logging
import threading
import warnings

import pytest

from rwkvseg.data import notices
from rwkvseg.data.notices import say_once, without_warnings


def test_blocks_that_overlap_end_with_the_filters_as_they_were():
    before = list(warnings.filters)
    first, second = without_warnings(), without_warnings()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    warnings.warn("the second block lasts", UserWarning, stacklevel=1)
    second.__exit__(None, None, None)
    assert warnings.filters == before
    with pytest.raises(UserWarning):
        warnings.warn("nobody silences this", UserWarning, stacklevel=1)


def test_threads_leave_the_filters_as_they_were():
    before = list(warnings.filters)
    start = threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(200):
            with without_warnings():
                warnings.warn("dropped", UserWarning, stacklevel=1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_an_error_within_ends_the_silence():
    before = list(warnings.filters)
    with pytest.raises(KeyError), without_warnings():
        raise KeyError
    assert warnings.filters == before


def test_what_many_threads_say_is_said_once(caplog):
    notices._say.cache_clear()
    start = threading.Barrier(8)

    def work():
        start.wait()
        say_once("the same sentence")

    with caplog.at_level(logging.WARNING, "rwkvseg"):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [record.getMessage() for record in caplog.records] == ["the same sentence"]
