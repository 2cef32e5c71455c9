"""Interval and paired test against scipy, by enumeration, and at the edges."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, permutation_test

from rwkvseg.errors import ShapeError, UsageError
from rwkvseg.evaluation.statistics import EXACT_UP_TO, bootstrap_interval, paired_permutation_test

NAN = math.nan


def scores(number, seed=0):
    return np.random.default_rng(seed).beta(8, 2, number)


@pytest.mark.parametrize("number", [3, 20, 137])
def test_interval_agrees_with_scipy(number):
    values = scores(number)
    ours = bootstrap_interval(values, resamples=20_000)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)


def test_interval_of_two_values_by_enumeration():
    # the four resamples have means 0, 0.5, 0.5, 1: the 30 % quantile is 0.5, the 2.5 % quantile 0
    assert bootstrap_interval([0.0, 1.0], confidence=0.4).low == 0.5
    interval = bootstrap_interval([0.0, 1.0], confidence=0.95)
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_interval_is_reproducible_and_depends_on_the_seed():
    values = scores(30)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_memory_steps_do_not_change_what_is_drawn(monkeypatch):
    values = scores(50)
    whole = bootstrap_interval(values, resamples=2000)
    monkeypatch.setattr("rwkvseg.evaluation.statistics._CELLS_AT_ONCE", 1000)
    assert bootstrap_interval(values, resamples=2000) == whole


def test_nan_is_left_out_and_counted():
    values = scores(10)
    with_nan = np.insert(values, [2, 7], NAN)
    interval = bootstrap_interval(with_nan)
    assert (interval.cases, interval.excluded) == (10, 2)
    plain = bootstrap_interval(values)
    assert (interval.mean, interval.low, interval.high) == (plain.mean, plain.low, plain.high)


@pytest.mark.parametrize("values", [[0.7], [0.7, NAN]])
def test_one_case_has_no_interval_and_says_so(values):
    interval = bootstrap_interval(values)
    assert interval.mean == 0.7
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert not interval.defined
    assert "no interval, n = 1" in str(interval)


@pytest.mark.parametrize("values", [[], [NAN, NAN]])
def test_no_case_has_no_mean(values):
    interval = bootstrap_interval(values)
    assert math.isnan(interval.mean)
    assert (interval.cases, interval.excluded) == (0, len(values))


def test_groups_of_copies_are_as_sure_as_their_number():
    """Ten frames of each of 12 videos, all alike: the interval is that of 12 cases, not of 120."""
    values = scores(12)
    repeated, groups = np.repeat(values, 10), np.repeat(np.arange(12), 10).tolist()
    grouped = bootstrap_interval(repeated, groups=groups)
    single = bootstrap_interval(values)
    assert (grouped.low, grouped.high) == pytest.approx((single.low, single.high))
    naive = bootstrap_interval(repeated)
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)


def test_groups_keep_the_mean_over_cases():
    interval = bootstrap_interval([1.0, 1.0, 1.0, 0.0], groups=["a", "a", "a", "b"])
    assert interval.mean == 0.75
    assert (interval.low, interval.high) == (0.0, 1.0)
    assert not bootstrap_interval([1.0, 0.0], groups=["a", "a"]).defined


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_interval_lies_within_the_values(values):
    interval = bootstrap_interval(values, resamples=200)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


@pytest.mark.parametrize("number", [1, 2, 5, EXACT_UP_TO])
def test_exact_test_agrees_with_scipy_and_enumeration(number):
    a, b = scores(number), scores(number, 1)
    result = paired_permutation_test(a, b)
    difference = a - b
    means = [np.mean(np.array(signs) * difference) for signs in itertools.product((1, -1), repeat=number)]
    assert result.exact
    assert result.difference == pytest.approx(difference.mean())
    assert result.p_value == pytest.approx(np.mean(np.abs(means) >= abs(difference.mean()) - 1e-12))
    if number > 1:
        theirs = permutation_test(
            (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
        )
        assert result.p_value == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("gain", [0.0, 0.02, 0.2])
def test_sampled_test_agrees_with_scipy(gain):
    a, b = scores(60) + gain, scores(60, 1)
    result = paired_permutation_test(a, b)
    theirs = permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=20_000,
        vectorized=True, rng=2,
    )  # fmt: skip
    assert not result.exact
    assert result.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    assert 0 < result.p_value <= 1
    assert result.low <= result.difference <= result.high


def test_the_two_methods_may_change_places():
    a, b = scores(40), scores(40, 1)
    forward, backward = paired_permutation_test(a, b), paired_permutation_test(b, a)
    assert forward.p_value == backward.p_value
    assert forward.difference == pytest.approx(-backward.difference)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low), abs=2e-3)


def test_rarely_significant_where_nothing_differs():
    generator = np.random.default_rng(0)
    p_values = [
        paired_permutation_test(*generator.normal(size=(2, 16)), resamples=500, seed=seed).p_value
        for seed in range(300)
    ]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def test_the_same_scores_do_not_differ():
    for number in (4, 30):
        result = paired_permutation_test(scores(number), scores(number))
        assert (result.difference, result.p_value) == (0, 1)


def test_pairs_with_nan_are_left_out():
    result = paired_permutation_test([1.0, NAN, 3.0, 4.0], [0.0, 1.0, NAN, 2.0])
    assert (result.cases, result.excluded, result.difference) == (2, 2, 1.5)
    nothing = paired_permutation_test([NAN], [1.0])
    assert (nothing.cases, nothing.excluded) == (0, 1)
    assert math.isnan(nothing.p_value)


def test_one_pair_decides_nothing():
    result = paired_permutation_test([1.0], [0.0])
    assert result.p_value == 1
    assert math.isnan(result.low)


def test_groups_flip_together():
    a, b = np.full(20, 1.0), np.zeros(20)
    assert paired_permutation_test(a, b).p_value < 1e-3
    assert paired_permutation_test(a, b, groups=[case // 10 for case in range(20)]).p_value == 0.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="3 and b has 2"):
        paired_permutation_test([1, 2, 3], [1, 2])
    with pytest.raises(ShapeError, match="one number per case"):
        bootstrap_interval([[1.0, 2.0]])
    with pytest.raises(ShapeError, match="1 group for 2 cases"):
        bootstrap_interval([1.0, 2.0], groups=["a"])
    with pytest.raises(UsageError, match="confidence 95"):
        bootstrap_interval([1.0, 2.0], confidence=95)
    with pytest.raises(UsageError, match="0 resamples"):
        bootstrap_interval([1.0, 2.0], resamples=0)
