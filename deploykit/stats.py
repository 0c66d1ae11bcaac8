"""What a series of timings says: percentiles, spread, and how sure the median is. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95
"""Of the interval of the median that a `Summary` holds."""


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` per cent of `values` do not exceed: always a measured one.

    Index in ascending order: max(n - 1 - floor(n * (100 - percent) / 100), 0), so the 50th of an
    even count is the lower of the two middle values, and the 99th of fewer than 100 values is
    the largest. `percent` is a whole number, for then the index is exact.

    Source: trtexec's rule, `max(n - 1 - int((1 - percent / 100) * n), 0)`; the same values as
    numpy's `inverted_cdf`.
    Raises: ValueError for no values, or a percent outside 0 to 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values")
    count = len(values)
    return sorted(values)[max(count - 1 - count * (100 - percent) // 100, 0)]


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean, summed without rounding error. Raises: ValueError for none."""
    if not values:
        raise ValueError("mean of no values")
    return math.fsum(values) / len(values)


def std(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n - 1); 0 for a single value."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Return the standard deviation over the mean; 0 where the mean is 0."""
    centre = mean(values)
    return std(values) / centre if centre else 0.0


def median_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Return two measured values that enclose the true median with at least `confidence`.

    None where the values are too few (95 % takes six). No distribution is assumed: with
    X ~ Binomial(n, 1/2), the k-th smallest and the k-th largest value enclose the median with
    probability 1 - 2 P(X < k); the largest such k is taken. The values are taken for independent:
    a machine that slows down over the run makes the interval too narrow.

    Source: Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2.
    """
    count, tail, rank = len(values), 0.0, 0
    while 2 * rank < count:
        tail += _binomial_half(count, rank)
        if 2 * tail > 1 - confidence:
            break
        rank += 1
    if rank == 0:
        return None
    ordered = sorted(values)
    return ordered[rank - 1], ordered[count - rank]


def _binomial_half(count: int, hits: int) -> float:
    """Return P(X = hits) for X ~ Binomial(count, 1/2), in logarithms lest it underflow."""
    chosen = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return math.exp(chosen - count * math.log(2))


@dataclass(frozen=True)
class Summary:
    """A series of timings in figures; all but `count` and `variation` in seconds."""

    count: int
    mean: float
    std: float
    variation: float
    """Coefficient of variation: std / mean."""
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float
    median_interval: tuple[float, float] | None
    """Encloses the true median with 95 % confidence; None where the values are too few."""


def summarise(values: Sequence[float]) -> Summary:
    """Return the figures of `values`. Raises: ValueError for no values."""
    ordered = sorted(values)
    p50, p90, p95, p99 = (percentile(ordered, percent) for percent in (50, 90, 95, 99))
    return Summary(
        count=len(ordered),
        mean=mean(ordered),
        std=std(ordered),
        variation=coefficient_of_variation(ordered),
        minimum=ordered[0],
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        maximum=ordered[-1],
        median_interval=median_interval(ordered),
    )


def spearman(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation: Pearson's of the ranks, ties at the mean of theirs.

    None where one side has fewer than two different values. Raises: ValueError for lengths that
    differ.
    """
    if len(values) != len(others):
        raise ValueError(f"{len(values)} and {len(others)} values")
    first, second = _centred_ranks(values), _centred_ranks(others)
    energy = math.sqrt(math.fsum(x * x for x in first) * math.fsum(y * y for y in second))
    if not energy:
        return None
    return math.fsum(x * y for x, y in zip(first, second, strict=True)) / energy


def _centred_ranks(values: Sequence[float]) -> list[float]:
    """Return the ranks less their mean; of equal values the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + end - len(values)) / 2
        start = end
    return ranks
