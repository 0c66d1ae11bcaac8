"""Choices measured for real, and the model of loss corrected by what was measured.

Losses of layers do not add up: errors of neighbours correlate, and a metric saturates. So few
choices are measured, and after each the losses of the layers are moved, as little as possible, to
where they explain what was measured (ridge regression towards a common factor).

The least choice that holds is taken, so it tends to be one that looked better on the images of the
measurement than it is. Therefore the drop that is allowed bounds what a choice may lose on others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from deploykit import stats
from deploykit.errors import OptionError, ProofError
from deploykit.precision.planning import choosing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.precision.planning.choosing import Choice
    from deploykit.precision.planning.costs import Costs

    Measure: TypeAlias = Callable[[Sequence[str]], "Drop"]
    """Layers in float -> what the task loses against the float model."""

EVALUATIONS = 8
CONFIDENCE = 0.95
"""That a choice loses no more on other images than is said."""
_RIDGE = 1e-2
"""Squared error that a measured drop may keep, over the squared drop of all layers."""
_LEAST = 0.05
"""Of the common factor: a layer that once seemed to lose nothing still may."""
_LEAST_AIM = 0.25
"""Of what is allowed: what is aimed at, at least, so that it is held on other images too."""


class Drop(NamedTuple):
    """What the task loses."""

    real: float
    """On the images that were run."""
    most: float
    """On any others like them, but for a chance."""


def drop(real: float, parts: Sequence[float], confidence: float = CONFIDENCE) -> Drop:
    """Return what is lost, and what at most by Student's t, for what parts of the images lose.

    Less than two parts say nothing of other images.
    """
    from scipy import special  # noqa: PLC0415 - an extra, which `choosing` has asked for

    if len(parts) < 2:
        return Drop(real, real)
    error = stats.std(parts) / math.sqrt(len(parts))
    return Drop(real, real + float(special.stdtrit(len(parts) - 1, confidence)) * error)


def check_confidence(value: float) -> None:
    """Raise OptionError for what is no confidence."""
    if not 0.5 <= value < 1:
        raise OptionError(f"a confidence of {value}", expected="0.5 to below 1, such as 0.95")


@dataclass(frozen=True)
class Tried:
    """A choice that was measured."""

    choice: Choice
    """With the drop that was predicted when it was chosen."""
    drop: Drop


@dataclass(frozen=True)
class Confirmed:
    """The best choice that holds what is allowed, and what was measured on the way."""

    best: Tried | None
    """None: no choice that was measured does."""
    tried: tuple[Tried, ...]
    drops: Mapping[str, float]
    """What each layer loses, as corrected: in the task's number."""

    @property
    def nearest(self) -> Tried:
        """Return the best choice, or else the one that loses least."""
        return self.best or min(self.tried, key=lambda each: each.drop.most)


def confirmed(  # noqa: PLR0913 - the problem, and two independent options
    costs: Costs,
    losses: Mapping[str, float],
    allowed: float,
    measure: Measure,
    *,
    most: int = EVALUATIONS,
    scaled: bool = True,
) -> Confirmed:
    """Return the fastest choice that loses `allowed` at most, with at most `most` measured.

    losses: of each layer by any measure that adds up about; only ratios matter. scaled: whether
    they are in the task's number; else the first choice is measured without a prediction.

    Raises: OptionError without scipy; what `measure` raises.
    """
    names = list(costs.layers)
    weights = np.array([max(0.0, losses.get(name, 0.0)) for name in names])
    if not weights.any():
        weights[:] = 1.0
    tried: list[Tried] = []
    drops = dict(zip(names, weights, strict=True))
    first = choosing.choice(costs, drops, choosing.fastest(costs))
    first = first if scaled else replace(first, drop=math.nan)
    for choice in _choices(costs, drops, allowed, tried, first, most):
        tried.append(Tried(choice, measure(choice.kept)))
        drops.update(zip(names, _corrected(names, weights, tried), strict=True))
    return Confirmed(_best(tried, allowed), tuple(tried), dict(drops))


def _choices(  # noqa: PLR0913, PLR0917 - the state of one search
    costs: Costs,
    drops: Mapping[str, float],
    allowed: float,
    tried: list[Tried],
    first: Choice,
    most: int,
) -> Iterator[Choice]:
    """Yield what to measure next; `drops` and `tried` change in between."""
    yield first
    while len(tried) < most:
        best = _best(tried, allowed)
        # Where only few are left and none holds, less is dared.
        late = 0 if best is not None else max(0, len(tried) - most // 2)
        try:
            refused = [each.choice.kept for each in tried]
            aim = allowed * 0.5**late * _held(tried, allowed)
            choice = choosing.within(costs, drops, aim, refused=refused)
        except ProofError:
            return
        if best is not None and choice.seconds >= best.choice.seconds:
            return
        yield choice


def _best(tried: Sequence[Tried], allowed: float) -> Tried | None:
    """Return the fastest choice that loses no more than is allowed, None where there is none."""
    fitting = (each for each in tried if each.drop.most <= allowed)
    return min(fitting, key=lambda each: each.choice.seconds, default=None)


def _held(tried: Sequence[Tried], allowed: float) -> float:
    """Return how much less is to be aimed at: as the choice nearest to what is allowed says."""
    real, most = min((each.drop for each in tried), key=lambda drop: abs(drop.real - allowed))
    return min(1.0, max(_LEAST_AIM, real / most)) if most > 0 else 1.0


def _corrected(
    names: Sequence[str], weights: NDArray[np.float64], tried: Sequence[Tried]
) -> NDArray[np.float64]:
    """Return what each layer loses, so that what was measured is about what is predicted."""
    lost = np.array([[name not in set(each.choice.kept) for name in names] for each in tried])
    parts = lost * weights
    real = np.array([max(0.0, each.drop.real) for each in tried])
    sums = parts.sum(axis=1)
    factor = float(real @ sums / (sums @ sums)) if sums.any() else 0.0
    if factor <= 0:
        return np.zeros(len(names))
    error = real - factor * sums
    kernel = parts @ parts.T
    kernel += _RIDGE * np.eye(len(tried)) * max(float(kernel.max()), 1e-30)
    factors = factor + parts.T @ np.linalg.solve(kernel, error)
    corrected: NDArray[np.float64] = weights * np.maximum(factors, _LEAST * factor)
    return corrected
