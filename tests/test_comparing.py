"""The noise of a typical image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.precision.repairs.comparing import Noise
from deploykit.tasks.task import Pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANDOM = np.random.default_rng(0)


def judged(*images: dict[str, tuple[NDArray[Any], NDArray[Any]]]) -> float | None:
    noise = Noise()
    for image in images:
        noise.add({name: Pair(*pair) for name, pair in image.items()})
    return noise.typical()


def share(found: NDArray[Any], expected: NDArray[Any]) -> float:
    spread = np.square(expected - expected.mean()).sum()
    return float(np.square(found - expected).sum() / spread)


def test_an_image_of_small_outputs_counts_like_one_of_large_ones() -> None:
    expected = [RANDOM.normal(3, scale, (1, 50)) for scale in (1.0, 100.0)]
    pairs = [(one + RANDOM.normal(0, 0.5, one.shape), one) for one in expected]
    shares = [share(*pair) for pair in pairs]
    assert shares[0] > 100 * shares[1]
    assert judged(*({"y": pair} for pair in pairs)) == pytest.approx(np.sqrt(np.prod(shares)))


def test_two_scores_are_pooled_over_the_images() -> None:
    expected = RANDOM.normal(0, 1, (6, 1, 2))
    found = expected + RANDOM.normal(0, 0.1, expected.shape)
    images = ({"y": pair} for pair in zip(found, expected, strict=True))
    assert judged(*images) == pytest.approx(share(found, expected))


def test_columns_of_rows_count_alike_and_one_that_is_constant_does_not() -> None:
    expected = RANDOM.normal(0, 1, (1, 40, 3)) * [1, 1000, 0]
    found = expected + RANDOM.normal(0, 0.1, expected.shape)
    columns = [share(found[..., i], expected[..., i]) for i in (0, 1)]
    assert judged({"y": (found, expected)}) == pytest.approx(np.mean(columns))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_outputs_that_are_nothing_say_nothing(value: float) -> None:
    constant = np.full((1, 40), value)
    assert judged({"y": (constant + 1, constant)}, {"y": (constant, constant)}) is None
    assert judged() is None


def test_outputs_that_never_vary_are_compared_as_they_are() -> None:
    constant = np.full((1, 40), 5.0)
    both = judged({"y": (constant + 1, constant)}, {"y": (constant, constant)})
    assert both == pytest.approx(1 / (2 * 5**2))


def test_numbers_that_are_not_finite_are_left_out() -> None:
    expected = RANDOM.normal(0, 1, (1, 40))
    found = expected + RANDOM.normal(0, 0.1, expected.shape)
    spoilt = found.copy()
    spoilt[0, :3] = np.nan, np.inf, -np.inf
    known = share(found[0, 3:], expected[0, 3:])
    assert judged({"y": (spoilt, expected)}) == pytest.approx(known)


def test_no_noise_is_a_small_number() -> None:
    expected = RANDOM.normal(0, 1, (1, 40))
    found = judged({"y": (expected, expected)})
    assert found is not None
    assert 0 < found < 1e-9
