"""Several cases at a time: the same results in the same order, the same first error, bounded work ahead."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvseg.parallel import available_cores, map_in_order


@given(st.lists(st.integers(), max_size=30), st.integers(0, 5), st.integers(1, 40))
def test_results_are_those_of_a_loop(items, threads, room):
    found = map_in_order(lambda item: item * 3, items, threads=threads, cost=abs, room=room)
    assert list(found) == [item * 3 for item in items]


def test_later_items_may_be_done_first_and_wait_their_turn():
    first_may_end = threading.Event()

    def work(item):
        if item == 0:
            assert first_may_end.wait(20)
        else:
            first_may_end.set()
        return item

    assert list(map_in_order(work, [0, 1], threads=2)) == [0, 1]  # a loop would wait for ever


@pytest.mark.parametrize("threads", [0, 3])
def test_an_error_comes_at_its_turn_and_ends_the_work(threads):
    begun = []

    def work(item):
        begun.append(item)
        if item in (2, 3):
            raise ValueError(item)
        return item

    found = map_in_order(work, range(1000), threads=threads)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(found)
    assert len(begun) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]


@pytest.mark.parametrize(("room", "most"), [(10, 2), (7, 1), (0, 1), (100, 8)])
def test_no_more_is_begun_than_there_is_room_for(room, most):
    lock, at_once, seen = threading.Lock(), set(), []

    def work(item):
        with lock:
            at_once.add(item)
            seen.append(len(at_once))
        time.sleep(0.002)
        with lock:
            at_once.discard(item)
        return item

    assert list(map_in_order(work, range(20), threads=4, cost=lambda _: 5, room=room)) == list(range(20))
    assert max(seen) <= min(most, 4)


def test_items_are_taken_no_further_ahead_than_needed():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    found = map_in_order(str, items(), threads=2)
    assert next(found) == "0"
    assert len(taken) <= 6
    found.close()
    serial = map_in_order(str, items(), threads=1)
    taken.clear()
    assert next(serial) == "0"
    assert taken == [0]


def test_there_is_a_core():
    assert available_cores() >= 1
