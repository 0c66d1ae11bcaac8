from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import InputError, OptionError
from deploykit.precision import observers
from deploykit.precision.histograms import BINS, Extremes, Histogram
from deploykit.precision.observers import DEAD_THRESHOLD, LEAST_THRESHOLD, OBSERVERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Values = NDArray[np.float32]


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = x / (1 + np.exp(-x))
    return result


HISTOGRAM_BASED = sorted(set(OBSERVERS) - {"minmax"})
SHAPES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "relu": lambda rng, n: np.maximum(rng.standard_normal(n), 0),
    "silu": lambda rng, n: silu(2 * rng.standard_normal(n)),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "heavy tail": lambda rng, n: rng.standard_t(3, n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "negative": lambda rng, n: -rng.exponential(size=n),
}


def drawn(shape: str, seed: int, size: int) -> Values:
    return SHAPES[shape](np.random.default_rng(seed), size).astype(np.float32)


def unit(values: Values) -> Values:
    """Scaled to max|x| = 1, where the edges of the coarse bins are edges of the fine ones."""
    return values / np.float32(np.abs(values).max())


def seen(values: Values) -> Histogram:
    histogram = Histogram("x")
    histogram.observe(values)
    return histogram


def threshold(name: str, values: Values) -> float:
    observer = observers.load(name)
    statistics = observer.remember("x")
    statistics.observe(values)
    return observers.chosen_range(observer, statistics).threshold


samples = st.builds(
    drawn,
    st.sampled_from(sorted(SHAPES)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 50, 3000, 70_000]),
)
quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.data_too_large])


def divergences(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(P || Q) for i = 128 ... 2048 as the published pseudocode has it, one bin after another."""
    counts = counts.copy()
    counts[0] = counts[1]
    found = []
    for i in range(128, 2049):
        p = counts[:i].copy()
        p[-1] += counts[i:].sum()
        q = np.zeros(i)
        group = np.digitize(np.arange(i), np.linspace(0, i, 129)) - 1
        filled = counts[:i] > 0
        sums = np.bincount(group[filled], counts[:i][filled], 128)
        sizes = np.bincount(group[filled], minlength=128)
        q[filled] = sums[group[filled]] / sizes[group[filled]]
        if q.sum() == 0 or np.any((q == 0) & (p > 0)):
            found.append(math.inf)
            continue
        p, q = p / p.sum(), q / q.sum()
        some = p > 0
        found.append(float(np.sum(p[some] * np.log(p[some] / q[some]))))
    return np.array(found)


def exact_counts(values: Values) -> NDArray[np.float64]:
    magnitudes = np.abs(values).astype(np.float64)
    counts, _ = np.histogram(magnitudes, 2048, (0, magnitudes.max()))
    return counts.astype(np.float64)


def squared_error(values: Values, limit: float) -> float:
    x = values.astype(np.float64)
    step = limit / 127
    return float(np.mean((x - step * np.clip(np.rint(x / step), -127, 127)) ** 2))


@pytest.mark.parametrize("shape", ["relu", "silu", "heavy tail", "uniform"])
def test_entropy_finds_the_minimum_of_the_published_divergence(shape: str) -> None:
    values = unit(drawn(shape, 1, 60_000))
    expected = divergences(exact_counts(values))
    last = len(expected) - 1 - int(np.argmin(expected[::-1]))
    assert observers.entropy(seen(values)) == pytest.approx((128 + last) / 2048, rel=1e-12)


def test_entropy_is_near_the_minimum_for_a_range_that_is_not_a_power_of_two() -> None:
    values = drawn("laplace", 2, 60_000) * np.float32(1.7)
    expected = divergences(exact_counts(values))
    chosen = round(observers.entropy(seen(values)) / float(np.abs(values).max()) * 2048)
    assert expected[chosen - 128] <= 1.05 * expected.min()


def test_a_range_that_is_not_a_power_of_two_shifts_no_count_on_average() -> None:
    values = np.linspace(0, 1.7, 500_000, dtype=np.float32)
    shift = np.cumsum(seen(values).rebinned()) - np.cumsum(exact_counts(values))
    assert abs(shift.mean()) < 0.005 * values.size / 2048


def test_entropy_is_not_moved_by_the_zeros_of_a_relu() -> None:
    positive = np.abs(drawn("laplace", 3, 50_000))
    many = np.concatenate([positive, np.zeros(1_000_000, np.float32)])
    assert threshold("entropy", many) == threshold("entropy", positive)


def test_entropy_clips_a_long_thin_tail() -> None:
    values = drawn("heavy tail", 4, 200_000)
    assert threshold("entropy", values) < 0.5 * float(np.abs(values).max())


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("percent", [50, 90, 99.9, 99.99, 100])
def test_percentile_equals_numpy_on_all_values(shape: str, percent: float) -> None:
    values = drawn(shape, 5, 100_000)
    magnitudes = np.abs(values).astype(np.float64)
    found = observers.percentile(seen(values), percent)
    low = np.percentile(magnitudes, percent, method="lower")
    high = np.percentile(magnitudes, percent, method="higher")
    bin_width = magnitudes.max() / 16384
    if high <= bin_width:  # half of a ReLU's values are zero
        assert found == magnitudes.max()
    else:
        assert low - bin_width <= found <= high + bin_width


def test_percentile_of_a_tensor_that_is_nearly_always_zero_is_its_maximum() -> None:
    values = np.zeros(1_000_000, np.float32)
    values[:3] = 7
    assert threshold("percentile", values) == 7


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_mse_is_as_good_as_the_best_of_all_thresholds_on_the_exact_values(shape: str) -> None:
    values = drawn(shape, 6, 4000)
    largest = float(np.abs(values).max())
    best = min(squared_error(values, largest * i / 2048) for i in range(1, 2049))
    assert squared_error(values, threshold("mse", values)) <= 1.001 * best


def test_minmax_is_the_largest_magnitude_and_keeps_both_ends() -> None:
    values = np.array([[-3.5, 1], [0.25, 2]], np.float32)
    observer = observers.load("minmax")
    statistics = observer.remember("x")
    statistics.observe(values)
    found = observers.chosen_range(observer, statistics)
    assert (found.threshold, found.minimum, found.maximum) == (3.5, -3.5, 2)


@given(samples, st.integers(-3, 25))
@quick
def test_the_counts_are_those_of_exact_arithmetic(values: Values, power: int) -> None:
    values = values * np.float32(2.0**power)
    histogram = seen(values)
    index = np.floor(np.abs(values).astype(np.float64) / histogram.width).astype(np.int64)
    assert np.array_equal(histogram.counts, np.bincount(index, minlength=BINS))
    assert not values.any() or histogram.counts[BINS // 2 :].any()


@given(samples, st.integers(0, 2**32 - 1))
@quick
def test_order_and_batches_and_merging_change_nothing(values: Values, seed: int) -> None:
    rng = np.random.default_rng(seed)
    once = seen(values)
    cuts = sorted(rng.integers(0, values.size + 1, 3))
    parts = np.split(rng.permutation(values), cuts)
    streamed, merged = Histogram("x"), Histogram("x")
    for part in parts:
        streamed.observe(part)
        merged.merge(seen(part))
    for other in (streamed, merged):
        assert np.array_equal(once.counts, other.counts)
        assert (once.minimum, once.maximum) == (other.minimum, other.maximum)
        assert once.width == other.width


def test_zeros_that_come_first_cost_small_values_no_resolution() -> None:
    small = drawn("laplace", 8, 1000) * np.float32(2.0**-60)
    histogram = seen(np.zeros(5, np.float32))
    histogram.observe(small)
    assert histogram.width == seen(small).width


def test_mse_may_clip_far_below_the_largest_value() -> None:
    bulk, outlier = drawn("normal", 9, 50_000), np.array([100], np.float32)
    histogram = seen(outlier)
    for _ in range(80):
        histogram.observe(bulk)

    def error(limit: float) -> float:
        return 80 * bulk.size * squared_error(bulk, limit) + squared_error(outlier, limit)

    found = observers.mse(histogram)
    assert found < 100 / 16
    assert error(found) <= 1.0001 * min(error(100 * i / 2048) for i in range(60, 180))


def test_percentile_is_linear_within_a_bin() -> None:
    values = np.full(1000, 1 + 0.5 / 16384, np.float32)  # all in one bin, [1, 1 + 1 / 16384)
    histogram = seen(values)
    assert observers.percentile(histogram, 25) == pytest.approx(1 + 0.25 / 16384, rel=1e-9)


@given(st.sampled_from(sorted(OBSERVERS)), samples)
@quick
def test_a_threshold_is_positive_and_at_most_the_largest_magnitude(
    name: str, values: Values
) -> None:
    largest = float(np.abs(values).max())
    most = max(largest, LEAST_THRESHOLD) if largest > LEAST_THRESHOLD else DEAD_THRESHOLD
    assert 0 < threshold(name, values) <= most * (1 + 1e-12)


@given(st.sampled_from(sorted(OBSERVERS)), samples, st.integers(0, 40))
@quick
def test_a_threshold_scales_with_the_values(name: str, values: Values, power: int) -> None:
    if np.abs(values).max() > 1e-3:
        scaled = threshold(name, values * np.float32(2.0**power))
        assert scaled == pytest.approx(threshold(name, values) * 2.0**power, rel=1e-12)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
@pytest.mark.parametrize("factor", [1.01, 1.3, 1.9, 3.7])
def test_a_threshold_scales_with_any_factor_within_the_bins(name: str, factor: float) -> None:
    values = drawn("silu", 7, 300_000)
    scaled = threshold(name, values * np.float32(factor)) / factor
    assert scaled == pytest.approx(threshold(name, values), rel=0.03)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
@pytest.mark.parametrize("value", [1.0, -2.5, 1e30, -1e-3, 1e-9, -1e-20])
def test_a_tensor_of_one_value_is_covered(name: str, value: float) -> None:
    found = threshold(name, np.full(10, value, np.float32))
    assert found == pytest.approx(abs(value), rel=1e-2)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40])
def test_a_dead_tensor_gets_a_threshold_that_half_precision_holds(name: str, value: float) -> None:
    found = threshold(name, np.full(10, value, np.float32))
    assert found == DEAD_THRESHOLD
    assert np.float16(found / 127) > 0


def test_a_choice_below_the_least_threshold_is_raised_to_it() -> None:
    values = np.full(100_000, LEAST_THRESHOLD / 8, np.float32)
    values[0] = 2 * LEAST_THRESHOLD
    assert threshold("percentile", values) == LEAST_THRESHOLD


@pytest.mark.parametrize("name", sorted(OBSERVERS))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_with_the_name_of_the_tensor(
    name: str, bad: float
) -> None:
    values = np.ones(100_000, np.float32)
    values[99_000] = bad
    statistics = OBSERVERS[name].remember("neck.conv")
    with pytest.raises(InputError, match=r"'neck\.conv' takes the value (nan|-?inf)"):
        statistics.observe(values)


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_a_tensor_without_values_is_refused(name: str) -> None:
    observer = observers.load(name)
    statistics = observer.remember("boxes")
    statistics.observe(np.empty((0, 4), np.float32))
    with pytest.raises(InputError, match="'boxes' had no values"):
        observers.chosen_range(observer, statistics)
    with pytest.raises(InputError, match="'boxes' had no values"):
        observer.threshold(statistics)


@pytest.mark.parametrize("name", HISTOGRAM_BASED)
def test_the_range_may_grow_by_any_factor(name: str) -> None:
    small, large = np.full(5, 1e-20, np.float32), np.full(5, 3e38, np.float32)
    both = np.concatenate([small, large])
    statistics = OBSERVERS[name].remember("x")
    statistics.observe(small)
    statistics.observe(large)
    assert OBSERVERS[name].threshold(statistics) == threshold(name, both)


def test_the_greatest_float_fits_and_a_power_of_two_opens_the_next_octave() -> None:
    histogram = seen(np.array([np.finfo(np.float32).max], np.float32))
    assert histogram.counts[-1] == 1
    assert seen(np.array([1.0], np.float32)).counts[BINS // 2] == 1


def test_a_histogram_takes_in_no_bare_extremes() -> None:
    with pytest.raises(TypeError, match="cannot take in Extremes"):
        Histogram("x").merge(Extremes("x"))


def test_extremes_merge() -> None:
    left, right = Extremes("x"), Extremes("x")
    left.observe(np.array([1, 2], np.float32))
    right.observe(np.array([-4], np.float32))
    left.merge(right)
    assert (left.minimum, left.maximum, left.largest) == (-4, 2, 4)


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"unknown calibration method 'entropie'") as caught:
        observers.load("entropie")
    assert "entropy, minmax, mse, percentile" in str(caught.value)
    assert "did you mean entropy" in str(caught.value)


@pytest.mark.parametrize("percent", [0, -1, 100.5, math.nan])
def test_an_impossible_percentile_is_refused(percent: float) -> None:
    with pytest.raises(OptionError, match="percentile"):
        observers.load("percentile", percent)


def test_the_percentage_reaches_the_percentile_observer() -> None:
    values = np.arange(1, 1001, dtype=np.float32)
    observer = observers.load("percentile", 50)
    statistics = observer.remember("x")
    statistics.observe(values)
    assert observers.chosen_range(observer, statistics).threshold == pytest.approx(500, abs=1)
