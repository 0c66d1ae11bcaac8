from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deploykit.errors import InputError, ModelError
from deploykit.proof import verification
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from deploykit.values import Agreement

IMAGES = TensorSpec("images", "float32", ("batch", 3, 40, 24))
FINITE = arrays.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


class Fake:
    """A session that answers run after run from a list."""

    inputs = (IMAGES,)
    outputs = ()

    def __init__(self, *answers: Mapping[str, Any]) -> None:
        self._answers = iter(answers)

    def run(self, _feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        return dict(next(self._answers))

    def stepper(
        self, feeds: Mapping[str, Any], *, transfers: bool, cuda_graph: bool
    ) -> Callable[[], float | None]:
        raise NotImplementedError


def compare(found: Any, expected: Any, *, atol: float = 0.0, rtol: float = 0.0) -> Agreement:
    candidate, reference = Fake({"y": np.asarray(found)}), Fake({"y": np.asarray(expected)})
    (agreement,) = verification.verify(candidate, reference, [{}], atol=atol, rtol=rtol)
    return agreement


@given(FINITE)
def test_a_model_agrees_with_itself_without_any_tolerance(values: NDArray[np.float32]) -> None:
    agreement = compare(values, values)
    assert agreement.passed
    assert (agreement.max_abs, agreement.mean_abs, agreement.relative) == (0, 0, 0)
    assert agreement.cosine == pytest.approx(1)


@given(FINITE, st.integers(0, 2**32 - 1))
def test_every_figure_equals_numpys(values: NDArray[np.float32], seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=values.shape).astype(np.float32)
    found = values + noise
    a, b = found.astype(np.float64), values.astype(np.float64)
    agreement = compare(found, values)
    assert agreement.max_abs == pytest.approx(np.max(np.abs(a - b)))
    assert agreement.mean_abs == pytest.approx(np.mean(np.abs(a - b)))
    span = np.ptp(b) or abs(b[0])
    if span:
        assert agreement.relative == pytest.approx(np.max(np.abs(a - b)) / span)
    if np.linalg.norm(b):
        cosine = (a / np.linalg.norm(a)) @ (b / np.linalg.norm(b))
        assert agreement.cosine == pytest.approx(cosine, abs=1e-9)


def test_several_inputs_give_the_worst_error_and_the_mean_over_all_elements() -> None:
    candidate = Fake({"y": np.array([1.0, 2.0])}, {"y": np.array([1.0, 5.0, 4.0, 4.0])})
    reference = Fake({"y": np.array([0.0, 2.0])}, {"y": np.array([1.0, 2.0, 3.0, 4.0])})
    (agreement,) = verification.verify(candidate, reference, [{}, {}], atol=0, rtol=0)
    assert agreement.max_abs == 3
    assert agreement.mean_abs == pytest.approx((1 + 0 + 0 + 3 + 1 + 0) / 6)
    assert agreement.relative == 1


@pytest.mark.parametrize(
    ("atol", "rtol", "passed"),
    [(0.5, 0, True), (0.49, 0, False), (0, 0.05, True), (0, 0.04, False)],
)
def test_an_error_may_be_atol_plus_rtol_of_the_range(
    atol: float, rtol: float, *, passed: bool
) -> None:
    assert compare([-5.0, 5.5], [-5.0, 5.0], atol=atol, rtol=rtol).passed is passed


def test_one_bad_input_among_good_ones_fails() -> None:
    good = {"y": np.array([0.0, 1.0])}
    candidate, reference = Fake(good, {"y": np.array([0.0, 2.0])}, good), Fake(good, good, good)
    (agreement,) = verification.verify(candidate, reference, [{}] * 3, atol=0, rtol=0.5)
    assert not agreement.passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_special_value_passes_only_where_the_reference_has_the_same(value: float) -> None:
    assert compare([value, 1.0], [value, 1.0]).passed
    for other in {0.0, math.inf, math.nan} - {value} if value == value else {0.0, math.inf}:  # noqa: PLR0124 - NaN differs from itself
        agreement = compare([value, 1.0], [other, 1.0], atol=1e30, rtol=1e30)
        assert not agreement.passed
        assert agreement.max_abs == math.inf
        assert not compare([other, 1.0], [value, 1.0], atol=1e30, rtol=1e30).passed


def test_nan_at_another_place_fails() -> None:
    assert not compare([math.nan, 1.0], [1.0, math.nan], atol=10, rtol=10).passed


def test_an_output_that_is_all_nan_on_both_sides_passes() -> None:
    assert compare([math.nan, math.nan], [math.nan, math.nan]).passed


def test_the_range_of_a_constant_output_is_its_magnitude() -> None:
    assert compare([10.5], [10.0]).relative == pytest.approx(0.05)
    assert compare([0.5], [0.0]).relative == math.inf
    assert compare([0.0], [0.0]).relative == 0


def test_a_zero_vector_has_no_direction() -> None:
    assert compare([0.0, 0.0], [1.0, 0.0]).cosine == 0
    assert compare([0.0, 0.0], [0.0, 0.0]).cosine == 1


def test_the_cosine_of_huge_values_does_not_overflow() -> None:
    assert compare([1e200, 1e200], [1e200, 1e200]).cosine == pytest.approx(1)


def test_an_empty_output_agrees() -> None:
    assert compare(np.zeros((0, 4)), np.zeros((0, 4))).passed


def test_class_indices_are_compared_as_numbers() -> None:
    assert compare(np.array([1, 2]), np.array([1, 2])).passed
    assert not compare(np.array([1, 3]), np.array([1, 2]), rtol=1e-3).passed
    assert not compare(np.array([True]), np.array([False])).passed


def test_outputs_come_in_the_order_of_the_reference_and_extra_ones_are_ignored() -> None:
    zero = np.zeros(1)
    candidate = Fake({"c": zero, "b": zero, "a": zero})
    found = verification.verify(candidate, Fake({"a": zero, "b": zero}), [{}], atol=0, rtol=0)
    assert [agreement.output for agreement in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"z": np.zeros(2, np.float32)}, "no output 'y'.*reference's outputs y.*outputs are z"),
        ({}, "its outputs are none"),
        ({"y": np.zeros(3, np.float32)}, r"is float32\[3\].*float32\[2\]"),
        ({"y": np.zeros(2, np.float16)}, r"is float16\[2\].*float32\[2\]"),
    ],
)
def test_another_interface_is_an_error_that_shows_both(
    found: dict[str, NDArray[np.generic]], message: str
) -> None:
    reference = Fake({"y": np.zeros(2, np.float32)})
    with pytest.raises(ModelError, match=f"(?s){message}"):
        verification.verify(Fake(found), reference, [{}], atol=0, rtol=0)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        verification.verify(Fake(), Fake(), [], atol=0, rtol=0)
    with pytest.raises(InputError, match="nothing to compare"):
        verification.verify(Fake({}), Fake({}), [{}], atol=0, rtol=0)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_a_tolerance_below_zero_is_refused(tolerance: float) -> None:
    with pytest.raises(InputError, match="rtol is"):
        compare([0.0], [0.0], rtol=tolerance)


def test_columns_show_an_error_that_the_range_of_a_neighbour_hides() -> None:
    expected = np.array([[[10.0, 0.2], [600.0, 0.9]]])  # a box side in pixels, and a score
    found = expected + np.array([0.0, 0.02])
    sessions = Fake({"y": found}), Fake({"y": expected})
    whole, box, score = verification.verify(*sessions, [{}], atol=0, rtol=1e-4, columns=True)
    assert [whole.output, box.output, score.output] == ["y", "y[..., 0]", "y[..., 1]"]
    assert [whole.passed, box.passed, score.passed] == [True, True, False]
