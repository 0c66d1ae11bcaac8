"""Arrays with long rows, of which most values are counted by one for their neighbours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.errors import InputError
from deploykit.precision import histograms, observers
from deploykit.precision.histograms import BINS, LARGEST, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Values = NDArray[np.float32]

SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[np.generic]]] = {
    "normal": lambda random, size: random.standard_normal(size),
    "relu": lambda random, size: np.maximum(random.standard_normal(size), 0),
    "heavy tail": lambda random, size: random.standard_t(3, size),
    "uniform": lambda random, size: random.uniform(-1, 1, size),
    "few": lambda random, size: random.standard_normal(size) * (random.random(size) < 1e-4),
    "levels": lambda random, size: random.integers(-6, 7, size),
}


def maps(shape: str, seed: int = 0, rows: int = 4, length: int = 150_001) -> Values:
    """As many rows as given; the length is no multiple of any group, stride or block."""
    return SHAPES[shape](np.random.default_rng(seed), (rows, length)).astype(np.float32)


def every_one(values: Values) -> Histogram:
    """Each value in a row of its own, so that each is counted."""
    histogram = Histogram("x")
    histogram.observe(values.reshape(-1))
    return histogram


def by_places(values: Values) -> Histogram:
    histogram = Histogram("x")
    histogram.observe(values)
    return histogram


def error(values: Values, limit: float) -> float:
    x = values.astype(np.float64)
    step = limit / 127
    return float(np.mean((x - step * np.clip(np.rint(x / step), -127, 127)) ** 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [150_001, 20_003])
def test_the_largest_values_are_counted_one_by_one(shape: str, length: int) -> None:
    values = maps(shape, length=length)
    found, expected = by_places(values), every_one(values).counts
    beyond = np.flatnonzero(np.cumsum(expected[::-1])[::-1] < LARGEST)
    assert np.array_equal(found.counts[beyond], expected[beyond])
    assert found.largest == np.abs(values).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_others_are_counted_for_their_neighbours(shape: str) -> None:
    values = maps(shape)
    found, expected = by_places(values).counts, every_one(values).counts
    assert found.sum() == pytest.approx(values.size, rel=0.02)
    apart = np.abs(np.cumsum(found) / found.sum() - np.cumsum(expected) / expected.sum())
    assert apart.max() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_order_and_batches_and_merging_change_no_count(shape: str) -> None:
    values = maps(shape, rows=6) * np.array([[0.3], [5], [1], [0.01], [2], [1.7]], np.float32)
    once = by_places(values)
    streamed, left, right = Histogram("x"), Histogram("x"), Histogram("x")
    for row in values[[3, 5, 0, 2, 4, 1]]:
        streamed.observe(row[None])
    left.observe(values[4:])
    right.observe(values[:1])
    right.observe(values[1:4].reshape(3, 1, 1, -1))
    left.merge(right)
    for other in (streamed, left):
        assert np.array_equal(once.counts, other.counts)
        assert (once.minimum, once.maximum) == (other.minimum, other.maximum)


def test_a_larger_value_that_comes_late_leaves_what_was_counted_complete() -> None:
    small = np.zeros((1, 200_000), np.float32)
    small[0, ::2] = 1.0
    large = small.copy()
    large[0, 1] = 1000.0
    first, last = Histogram("x"), Histogram("x")
    for values in (large, small):
        first.observe(values)
    for values in (small, large):
        last.observe(values)
    assert np.array_equal(first.counts, last.counts)
    assert first.counts[-BINS // 2 :].sum() == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_mse_is_as_good_as_where_all_are_counted(shape: str, rows: int) -> None:
    values = maps(shape, seed=rows, rows=rows)
    chosen, best = (observers.mse(counted(values)) for counted in (by_places, every_one))
    assert error(values, chosen) <= 1.01 * error(values, best)


@pytest.mark.parametrize("shape", ["normal", "relu", "heavy tail", "uniform"])
def test_a_percentile_is_close_to_that_of_all_values(shape: str) -> None:
    values = maps(shape, rows=8)
    for percent in (90, 99, 99.9, 99.99):
        found = observers.percentile(by_places(values), percent)
        expected = observers.percentile(every_one(values), percent)
        assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("place", [0, 77_777, 131_072, 150_000])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_value_that_is_not_finite_is_passed_over(place: int, bad: float) -> None:
    values = maps("normal", rows=2)
    values[1, place] = bad
    with pytest.raises(InputError, match=r"'x' takes the value (nan|-?inf)"):
        by_places(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_of_values_above_0_none_that_is_not_finite_is_passed_over(bad: float) -> None:
    values, seen = np.maximum(maps("normal", rows=2), 0), Histogram("x")
    seen.positive = True
    seen.observe(values)
    values[1, 149_999] = bad
    with pytest.raises(InputError, match=f"'x' takes the value {bad}"):
        seen.observe(values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_extremes_are_exact_whichever_side_reaches_further(shape: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = maps(shape, seed, rows=12)
    rows *= random.uniform(0.5, 2, (12, 1)).astype(np.float32)
    rows += random.choice([-9, -1, 0, 1, 9], (12, 1)).astype(np.float32)
    seen = Histogram("x")
    for count, row in enumerate(rows, 1):
        seen.observe(row[None])
        assert (seen.minimum, seen.maximum) == (
            float(rows[:count].min()),
            float(rows[:count].max()),
        )
    expected = every_one(rows).counts
    beyond = np.flatnonzero(np.cumsum(expected[::-1])[::-1] < LARGEST)
    assert np.array_equal(seen.counts[beyond], expected[beyond])


def test_places_are_spread_evenly_and_in_no_rhythm() -> None:
    lines, stride = histograms._PLACES, histograms._STRIDE
    assert np.array_equal(lines // stride, np.arange(len(lines)))
    places = (lines[:, None] * histograms._LINE + np.arange(histograms._LINE)).reshape(-1)
    for width in (stride, 20, 40, 80, 112, 13 * stride):
        share = np.bincount(places % width, minlength=width) / len(places)
        assert share.max() < 2 / width


def test_a_tensor_known_as_positive_is_remembered_as_any_other() -> None:
    values = np.maximum(maps("normal", rows=3), 0)
    found = []
    for positive in (False, True):
        seen = Histogram("x")
        seen.positive = positive
        for row in values:
            seen.observe(row[None])
        found.append((seen.minimum, seen.maximum, seen.counts.tolist()))
    assert found[0] == found[1]
