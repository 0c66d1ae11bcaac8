from __future__ import annotations

import itertools
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit import stats

TIMES = st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=60)


@given(TIMES, st.integers(0, 100))
def test_a_percentile_is_a_measured_value_with_enough_values_at_or_below_it(
    values: list[float], percent: int
) -> None:
    found = stats.percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= Fraction(percent, 100) * len(values)


@given(TIMES, st.sampled_from([50, 90, 95, 99]))
def test_a_percentile_follows_the_rule_of_trtexec(values: list[float], percent: int) -> None:
    excluded = math.floor((1 - Fraction(percent, 100)) * len(values))
    assert stats.percentile(values, percent) == sorted(values)[max(len(values) - 1 - excluded, 0)]


@pytest.mark.parametrize("count", [1, 2, 7, 10, 99, 100, 101, 1000])
@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_a_percentile_equals_numpys_inverted_cdf(count: int, percent: int) -> None:
    values = np.random.default_rng(count).random(count)
    expected = np.quantile(values, percent / 100, method="inverted_cdf")
    assert stats.percentile(values.tolist(), percent) == expected


@given(TIMES)
def test_the_middle_percentile_is_the_lower_median(values: list[float]) -> None:
    assert stats.percentile(values, 50) == statistics.median_low(values)


@given(TIMES)
def test_mean_and_spread_equal_the_standard_library(values: list[float]) -> None:
    assert stats.mean(values) == pytest.approx(statistics.mean(values), rel=1e-12)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    assert stats.std(values) == pytest.approx(spread, rel=1e-9, abs=1e-12)
    assert stats.coefficient_of_variation(values) == pytest.approx(
        spread / statistics.mean(values), rel=1e-9, abs=1e-9
    )


@given(TIMES)
def test_the_order_of_the_samples_does_not_matter(values: list[float]) -> None:
    assert stats.summarise(values) == stats.summarise(values[::-1])


@pytest.mark.parametrize("count", range(6, 14))
def test_the_interval_of_the_median_is_the_narrowest_with_the_confidence(count: int) -> None:
    interval = stats.median_interval(list(map(float, range(count))))
    assert interval is not None
    # Every sample falls below or above the median with equal chance: count the 2^n ways.
    rank = int(interval[0]) + 1
    ways = [sum(side) for side in itertools.product((0, 1), repeat=count)]

    def coverage(k: int) -> Fraction:
        return Fraction(sum(k <= below <= count - k for below in ways), 2**count)

    assert coverage(rank) >= stats.CONFIDENCE > coverage(rank + 1)
    assert interval[1] == count - rank


def test_the_interval_encloses_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        interval = stats.median_interval(rng.exponential(1.0, 41).tolist())
        assert interval is not None
        hits += interval[0] <= math.log(2) <= interval[1]
    assert 0.92 <= hits / 400 <= 0.99


def test_five_values_are_too_few_for_an_interval() -> None:
    assert stats.median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


def test_many_values_do_not_underflow() -> None:
    interval = stats.median_interval([float(i) for i in range(20_000)])
    assert interval is not None
    half = 1.96 * math.sqrt(20_000) / 2
    assert interval[0] == pytest.approx(10_000 - half, abs=2)
    assert interval[1] == pytest.approx(10_000 + half, abs=2)


def test_no_values_and_an_impossible_percentile_are_refused() -> None:
    with pytest.raises(ValueError, match="of 0 values"):
        stats.percentile([], 50)
    with pytest.raises(ValueError, match="percentile 101"):
        stats.percentile([1.0], 101)
    with pytest.raises(ValueError, match="no values"):
        stats.mean([])


def test_zeros_have_no_variation() -> None:
    assert stats.coefficient_of_variation([0.0, 0.0]) == 0.0
