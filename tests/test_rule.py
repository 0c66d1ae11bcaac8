"""The rule by which errors are judged, on numbers whose rounding is known."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.proof import rule
from deploykit.proof.rule import DOUBLE, HALF, SINGLE, Rule, Stats

ULP = 2.0**-23


def test_the_limit_is_a_multiple_of_the_rounding_and_some_ulps_of_the_magnitude() -> None:
    limits = SINGLE.limits(Stats(np.array([1e-3]), np.array([4000.0])))
    assert limits[0] == pytest.approx(8 * 1e-3 + 4 * ULP * 4000)


def test_ulps_of_small_outputs_are_those_of_one() -> None:
    assert SINGLE.limits(Stats(np.zeros(1), np.array([1e-8])))[0] == 4 * ULP
    assert DOUBLE.limits(Stats(np.zeros(1), np.array([1e-8])))[0] < 2e-21


def test_in_float64_a_little_of_the_rounding_is_too_much() -> None:
    limit = DOUBLE.limits(Stats(np.array([1e-3]), np.array([1.0])))[0]
    assert 1e-8 < limit < 1.001e-8


def test_units_are_those_of_numpy() -> None:
    for each, kind in ((SINGLE, np.float32), (DOUBLE, np.float64), (HALF, np.float16)):
        assert each.unit == np.finfo(kind).eps
    assert HALF.least == np.finfo(np.float16).smallest_normal


def test_columns_of_like_magnitude_share_their_rounding_and_others_do_not() -> None:
    found = Stats(np.array([1e-9, 3e-7, 1e-4]), np.array([0.9, 0.2, 640.0])).pooled()
    np.testing.assert_array_equal(found.error, [3e-7, 3e-7, 1e-4])


def test_errors_are_taken_per_column_where_there_are_enough_rows() -> None:
    truth = np.zeros((1, 100, 3))
    found = truth + np.array([0.0, 1.0, 2.0])
    assert rule.has_columns(truth.shape)
    np.testing.assert_array_equal(rule.stats(found, truth, columns=True).error, [0, 1, 2])
    assert rule.stats(found, truth).error.tolist() == [2]


@pytest.mark.parametrize("shape", [(1, 1000), (2, 10, 5), (1, 3, 64, 64), (8,), (100, 5000)])
def test_few_rows_or_a_map_make_one_group(shape: tuple[int, ...]) -> None:
    assert not rule.has_columns(shape)


def test_nan_and_infinities_must_meet_their_like() -> None:
    truth = np.array([np.nan, np.inf, 1.0, 1.0])
    assert rule.stats(truth.copy(), truth).error[0] == 0
    for i, wrong in enumerate((0.0, -np.inf, np.nan, np.inf)):
        found = truth.copy()
        found[i] = wrong
        assert rule.stats(found, truth).error[0] == np.inf
        assert rule.stats(found, truth, lenient=True).error[0] == 0


def test_integers_are_judged_by_how_many_differ() -> None:
    truth = np.arange(100_000)
    found = truth.copy()
    found[:5] += 1
    stats = rule.stats(found, truth)
    assert stats.error[0] == 5e-5
    assert (stats.error <= rule.allowed(SINGLE, Stats(np.zeros(1), np.zeros(1)), truth)).all()
    found[:50] += 1
    limit = rule.allowed(SINGLE, Stats(np.zeros(1), np.zeros(1)), truth)
    assert (rule.stats(found, truth).error > limit).all()


def test_an_output_without_numbers_has_no_error() -> None:
    empty = np.zeros((0, 4))
    assert rule.stats(empty, empty).error.tolist() == [0]
    assert rule.stats(empty.astype(int), empty.astype(int)).error.tolist() == [0]


def test_a_rule_is_a_value() -> None:
    assert Rule(1.0, 2.0, 3.0) == Rule(1.0, 2.0, 3.0)
