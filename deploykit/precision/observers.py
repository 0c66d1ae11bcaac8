"""From what was remembered of a tensor's values to the magnitude that INT8 should cover."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.errors import OptionError, unknown_name
from deploykit.precision.histograms import BINS, SEARCH_BINS, Extremes, Histogram
from deploykit.values import DEAD_STEP, INT8_LEVELS, LEAST_STEP, Range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    Real: TypeAlias = "NDArray[np.float64]"

PERCENTILE = 99.99
"""Default of the percentile observer; Wu et al. compare 99.9, 99.99 and 99.999."""
_PERCENTS = (99.9, 99.99, 99.999)
LEAST_THRESHOLD = INT8_LEVELS * LEAST_STEP
"""A tensor that reaches no further is dead."""
DEAD_THRESHOLD = INT8_LEVELS * DEAD_STEP
_LEVELS = 128
"""Magnitudes of the INT8 grid, zero included, onto which entropy projects."""


def minmax(seen: Extremes) -> float:
    """Return max|x|: nothing is clipped.

    Source: Wu et al., Integer Quantization for Deep Learning Inference, arXiv 2004.09602,
    section 5.2 ("max").
    """
    return seen.largest


def percentile(seen: Histogram, percent: float = PERCENTILE) -> float:
    """Return the magnitude that `percent` % of all values, zeros included, do not exceed.

    Linear within a bin. Where that falls into the first bin (a tensor that is nearly always 0) it
    says nothing about the values that matter, and max|x| is returned.

    Source: Wu et al., arXiv 2004.09602, section 5.2 ("percentile").
    """
    total = np.cumsum(seen.counts)
    rank = percent / 100 * float(total[-1])
    k = int(np.searchsorted(total, rank))
    if k == 0:
        return seen.largest
    within = (rank - float(total[k - 1])) / float(seen.counts[k])
    return min((k + within) * seen.width, seen.largest)


def entropy(seen: Histogram) -> float:
    """Return the threshold whose INT8 distribution keeps most of the information.

    With p the counts of |x| in 2048 bins over [0, max|x|], for each i = 128 ... 2048: P is p[:i]
    with all counts beyond i added to its last bin; Q is p[:i] in 128 groups, each group's sum
    spread evenly over those of its bins that are not empty. The i that minimises
    KL(P || Q) = sum P log(P / Q), both normalised, gives the threshold i * max|x| / 2048; of equal
    ones the largest. Where Q is 0 and P is not (an empty last bin that receives the clipped
    counts) the divergence is infinite.

    The first bin takes the count of the second: exact zeros (ReLU) and near zeros (SiLU, GELU)
    are the same at every threshold, but their number would drown the rest.

    All candidates are computed at once from cumulative sums:
    A KL = sum p log p - sum_g S_g log(S_g / n_g) + terms of the last bin, with S_g and n_g the sum
    and the number of non-empty bins of group g, and A the sum of all counts. The 245,888 groups of
    all candidates are 32,648 different runs of at most 16 bins.

    Source: Migacz, 8-bit Inference with TensorRT, GTC 2017, pseudocode "entropy calibration";
    the first bin: NVIDIA pytorch-quantization, calib/histogram.py.
    """
    p = seen.rebinned()
    p[0] = p[1]
    i = np.arange(_LEVELS, SEARCH_BINS + 1)
    inside, groups = _cumulative(p), _groups()
    total, kept = inside[-1], inside[i]
    clipped, last = total - kept, p[i - 1]
    terms, logs = _runs(inside, _cumulative(p > 0))
    log_q = np.where(last > 0, logs.take(groups[:, -1]), np.where(clipped > 0, -np.inf, 0.0))
    p_log_p = _cumulative(_x_log_x(p))[i - 1] + _x_log_x(last + clipped)
    q_terms = terms.take(groups).sum(axis=1) + _product(clipped, log_q)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = (p_log_p - q_terms) / total - np.log(total) + np.log(kept)
    divergence[~np.isfinite(divergence)] = np.inf
    best = len(i) - 1 - int(np.argmin(divergence[::-1]))
    return float(i[best]) * seen.largest / SEARCH_BINS


@functools.cache
def _groups() -> NDArray[np.intp]:
    """Return intp[candidates, 128]: which of the `_runs` each group of a candidate is."""
    i = np.arange(_LEVELS, SEARCH_BINS + 1)
    edges = -(-i[:, None] * np.arange(_LEVELS + 1) // _LEVELS)  # group g: bins edges[g]:edges[g+1]
    runs: NDArray[np.intp] = (np.diff(edges) - 1) * SEARCH_BINS + edges[:, :-1]
    return runs


def _runs(inside: Real, filled: Real) -> tuple[Real, Real]:
    """Return S log(S / n) and log(S / n) of all runs of neighbouring bins, 0 where S is 0.

    The run of k bins from bin b on is in row k - 1, column b. inside, filled: how much, and how
    many bins that are not empty, lie before each bin.
    """
    terms, logs = np.zeros((2, SEARCH_BINS // _LEVELS, SEARCH_BINS))
    for k, (term, log) in enumerate(zip(terms, logs, strict=True), 1):
        sums, used = inside[k:] - inside[:-k], filled[k:] - filled[:-k]
        some = sums > 0
        np.divide(sums, used, out=log[: sums.size], where=some)
        np.log(log[: sums.size], out=log[: sums.size], where=some)
        np.multiply(sums, log[: sums.size], out=term[: sums.size])
    return terms, logs


def mse(seen: Histogram) -> float:
    """Return the threshold with the least mean squared error between |x| and its INT8 value.

    Tried are t = i * max|x| / 2048, i = 1 ... 2048. With step d = t / 127, the values whose
    nearest level is q (all beyond t: q = 127) are c_q in number, with sum s_q:
    error(t) = sum x^2 - 2 d sum_q q s_q + d^2 sum_q q^2 c_q. Of N_q values and their sum S_q below
    the first one of level q: sum_q q^2 c_q = 127^2 N - sum_q (2 q - 1) N_q, sum_q q s_q = 127 S -
    sum_q S_q, over q = 1 ... 127, in whole and half numbers that a double holds.

    Source: Choukroun et al., Low-bit Quantization of Neural Networks for Efficient Inference,
    arXiv 1902.06822, section 4.1 (the error minimised per tensor).
    """
    counts = seen.counts
    centres = np.arange(BINS) + 0.5  # in bins
    numbers, moments = _cumulative(counts), _cumulative(counts * centres)
    i = np.arange(1, SEARCH_BINS + 1)
    step = i * (seen.largest / seen.width / SEARCH_BINS / INT8_LEVELS)
    q = np.arange(1, INT8_LEVELS + 1)
    edges = np.ceil(step[:, None] * (q - 0.5) - 0.5).clip(0, BINS).astype(np.int64)
    squares = INT8_LEVELS**2 * numbers[-1] - numbers[edges] @ (2.0 * q - 1.0)
    products = INT8_LEVELS * moments[-1] - moments[edges].sum(axis=1)
    error = step**2 * squares - 2 * step * products
    return float(i[int(np.argmin(error))]) * seen.largest / SEARCH_BINS


def _cumulative(values: NDArray[Any]) -> Real:
    """Return c with c[k] = sum(values[:k])."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _x_log_x(x: Real) -> Real:
    return np.where(x > 0, x * np.log(np.where(x > 0, x, 1.0)), 0.0)


def _product(x: Real, y: Real) -> Real:
    """Return x * y, 0 where x is 0 even if y is infinite."""
    return np.where(x > 0, x * y, 0.0)


@dataclass(frozen=True)
class Observer:
    """A calibration method: what it remembers of a tensor, and how it then chooses."""

    remember: Callable[[str], Extremes]
    """Tensor name -> the empty statistics."""
    threshold: Callable[..., float]
    """(statistics) -> magnitude; percentile also takes the percentage."""


OBSERVERS = {
    "minmax": Observer(Extremes, minmax),
    "percentile": Observer(Histogram, percentile),
    "entropy": Observer(Histogram, entropy),
    "mse": Observer(Histogram, mse),
}


def load(name: str, percent: float = PERCENTILE) -> Observer:
    """Return the observer called `name`; `percent` is for the percentile one.

    Raises: OptionError for an unknown name or a percentage outside (0, 100].
    """
    if name not in OBSERVERS:
        raise unknown_name("calibration method", name, OBSERVERS)
    if not 0 < percent <= 100:
        raise OptionError(f"a percentile of {percent}", expected="above 0 and at most 100")
    found = OBSERVERS[name]
    if found.threshold is not percentile:
        return found
    return Observer(found.remember, lambda seen: percentile(seen, percent))


def candidates(seen: Extremes) -> dict[str, float]:
    """Return method -> threshold, of the methods that compete for a tensor; {} for a dead one.

    Raises: InputError where nothing was observed.
    """
    if not isinstance(seen, Histogram) or seen.largest <= LEAST_THRESHOLD:
        return {}
    percents = {f"percentile {percent:g}": percentile(seen, percent) for percent in _PERCENTS}
    found = {"minmax": seen.largest, "mse": mse(seen), "entropy": entropy(seen), **percents}
    return {name: max(threshold, LEAST_THRESHOLD) for name, threshold in found.items()}


class Candidates(Mapping[str, Mapping[str, float]]):
    """Tensor -> its `candidates`, found when they are asked for the first time."""

    def __init__(self, seen: Mapping[str, Extremes]) -> None:
        """Keep what was seen of each tensor."""
        self._seen = seen
        self._found: dict[str, dict[str, float]] = {}

    def __getitem__(self, tensor: str) -> dict[str, float]:
        """Return method -> threshold."""
        if tensor not in self._found:
            self._found[tensor] = candidates(self._seen[tensor])
        return self._found[tensor]

    def __iter__(self) -> Iterator[str]:
        """Go through the tensors."""
        return iter(self._seen)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._seen)


def chosen_range(observer: Observer, seen: Extremes) -> Range:
    """Return the range of what was `seen`; the threshold is at least LEAST_THRESHOLD.

    Raises: InputError where nothing was observed.
    """
    largest = seen.largest
    threshold = observer.threshold(seen) if largest > LEAST_THRESHOLD else DEAD_THRESHOLD
    return Range(max(threshold, LEAST_THRESHOLD), seen.minimum, seen.maximum)
