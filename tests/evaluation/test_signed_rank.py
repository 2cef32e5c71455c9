"""Signed-rank test against scipy and against enumeration; Holm's correction by its definition."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from rwkvseg.errors import ShapeError
from rwkvseg.evaluation.signed_rank import holm, signed_rank_test

NAN = math.nan


@pytest.mark.parametrize("number", [7, 40, 93])
def test_it_is_scipys(number):
    draw = np.random.default_rng(number)
    a, b = draw.random(number), draw.random(number) + 0.1
    assert signed_rank_test(a, b).p_value == wilcoxon(a, b).pvalue


def test_p_and_effect_by_enumeration():
    difference = np.array([0.1, -0.2, 0.3, 0.4, 0.5])
    found = signed_rank_test(difference, np.zeros(5))
    ranks = np.array([1, 2, 3, 4, 5])
    signs = np.array(list(itertools.product((-1, 1), repeat=5)))
    observed = (ranks * np.sign(difference)).sum()
    assert found.p_value == np.mean(np.abs(signs @ ranks) >= abs(observed))
    assert found.effect == pytest.approx(11 / 15)
    assert (found.higher, found.equal, found.lower, found.units) == (4, 0, 1, 5)


def test_ties_share_their_rank_and_equal_pairs_have_none():
    found = signed_rank_test([2.0, 0.0, 3.0, 5.0], [1.0, 1.0, 1.0, 5.0])
    # |differences| 1, 1, 2 have the ranks 1.5, 1.5, 3
    assert found.effect == pytest.approx((1.5 - 1.5 + 3) / 6)
    assert (found.higher, found.equal, found.lower) == (2, 1, 1)


def test_a_group_is_one_difference():
    a, b = [1.0, 1.0, 1.0, 0.0, 0.2], [0.0, 0.0, 0.0, 1.0, 0.0]
    assert signed_rank_test(a, b, groups=["p", "p", "p", "q", "r"]) == signed_rank_test(
        [1.0, 0.0, 0.2], [0.0, 1.0, 0.0]
    )
    mean = signed_rank_test([0.5, 0.0], [0.0, 0.1], groups=["p", "p"])
    assert (mean.higher, mean.units) == (1, 1)


def test_nan_leaves_a_pair_out():
    assert signed_rank_test([1.0, NAN, 3.0], [0.0, 0.0, NAN]) == signed_rank_test([1.0], [0.0])
    nothing = signed_rank_test([NAN], [1.0])
    assert math.isnan(nothing.p_value)
    assert math.isnan(nothing.effect)
    assert nothing.units == 0


def test_the_same_twice_is_no_difference():
    found = signed_rank_test([0.3, 0.4], [0.3, 0.4])
    assert (found.p_value, found.effect, found.equal) == (1.0, 0.0, 2)


@settings(max_examples=40)  # scipy takes its time over ties
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5))
def test_swapping_the_two_turns_the_effect(pairs):
    a, b = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    forth, back = signed_rank_test(a, b), signed_rank_test(b, a)
    assert forth.effect == pytest.approx(-back.effect)
    assert -1 <= forth.effect <= 1
    assert (forth.higher, forth.lower) == (back.lower, back.higher)
    assert forth.p_value == pytest.approx(back.p_value)


@pytest.mark.parametrize(
    ("a", "b", "groups"), [([1.0], [1.0, 2.0], None), ([[1.0]], [[1.0]], None), ([1.0], [2.0], ["p", "q"])]
)
def test_lengths_must_agree(a, b, groups):
    with pytest.raises(ShapeError, match="one number per case"):
        signed_rank_test(a, b, groups=groups)


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    corrected = holm([0.02, NAN, 0.5])
    assert corrected[0] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert holm([]) == []
