"""Statistics that come case by case equal those of all values at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rwkvseg.data import intensity_statistics
from rwkvseg.data.intensity_statistics import IntensityStatistics, values_per_case

VALUES = arrays.arrays(np.float32, st.integers(0, 40), elements=st.floats(-3e4, 3e4, width=32))


@given(st.lists(VALUES, min_size=1, max_size=6), st.integers(1, 7))
def test_moments_and_percentiles_against_numpy(parts, block):
    statistics = IntensityStatistics()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intensity_statistics, "BLOCK", block)
        for part in parts:
            statistics.add(part)
    values = np.concatenate(parts).astype(np.float64)
    found = statistics.summary()
    if len(values) == 0:
        assert found is None
        return
    assert (found.voxels, found.least, found.most) == (len(values), values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-7)
    assert found.deviation == pytest.approx(values.std(), rel=1e-7, abs=1e-4)
    expected = np.percentile(values.astype(np.float32), [0.5, 5, 25, 50, 75, 95, 99.5])
    assert list(found.percentiles) == ["0.5", "5", "25", "50", "75", "95", "99.5"]
    assert list(found.percentiles.values()) == pytest.approx(expected.tolist(), rel=1e-6)


def test_a_large_offset_does_not_swallow_the_deviation():
    """Sums of squares lose it: 1e8 squared has 16 digits before those of the deviation."""
    values = 1e8 + np.array([0.0, 1.0, 2.0, 3.0])
    statistics = IntensityStatistics()
    for value in values:
        statistics.add(np.array([value]))
    assert statistics.summary().deviation == pytest.approx(values.std(), rel=1e-9)


def test_what_is_kept_does_not_grow_with_the_cases():
    for cases in (1, 200, 201, 10_000, 3_000_000):
        each = values_per_case(cases)
        assert 1 <= each <= 10_000
        assert each * min(cases, intensity_statistics.SAMPLES) <= intensity_statistics.SAMPLES
    statistics = IntensityStatistics(per_case=100)
    for _ in range(5):
        statistics.add(np.arange(12_345, dtype=np.float32))
    assert sum(len(kept) for kept in statistics._taken) == 500
    # exact numbers of all, percentiles of the evenly taken
    found = statistics.summary()
    assert (found.voxels, found.most, found.mean) == (5 * 12_345, 12_344, 12_344 / 2)
    assert found.percentiles["50"] == pytest.approx(12_344 / 2, rel=0.01)
