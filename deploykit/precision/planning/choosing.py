"""The cheapest choice of layers in float for a drop that is allowed: an integer programme.

With x = 1 for a layer in INT8, minimised is the predicted time: that of every layer in the form it
has, and of every tensor at which the two forms meet. The drop is the sum of what the layers lose.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.errors import OptionError, ProofError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.precision.planning.costs import Costs

    Row: TypeAlias = "tuple[NDArray[np.float64], float, float]"
    """Factors of the columns, and the least and the largest sum."""

_SLACK = 1e-9
"""Of the drop that is allowed: sums of floats are not exact."""


@dataclass(frozen=True)
class Choice:
    """Layers in float, and what the model of time and loss says of them."""

    kept: tuple[str, ...]
    """In the order of the costs."""
    seconds: float
    drop: float


def within(
    costs: Costs,
    drops: Mapping[str, float],
    allowed: float,
    *,
    refused: Sequence[tuple[str, ...]] = (),
) -> Choice:
    """Return the fastest choice whose predicted drop is at most `allowed`.

    drops: what each layer in INT8 loses, none below 0. refused: choices that are not to come again.

    Raises: OptionError without scipy; ProofError where nothing is left to choose.
    """
    return _solved(costs, drops, refused, allowed=allowed)


def keeping(costs: Costs, drops: Mapping[str, float], count: int) -> Choice:
    """Return the choice with the smallest drop that keeps at most `count` layers in float.

    Raises: OptionError without scipy.
    """
    return _solved(costs, drops, (), count=count)


def fastest(costs: Costs) -> tuple[str, ...]:
    """Return the layers that are float in the fastest choice of all, whatever INT8 loses."""
    return within(costs, dict.fromkeys(costs.layers, 0.0), 0.0).kept


def frontier(costs: Costs, drops: Mapping[str, float], points: int = 12) -> tuple[Choice, ...]:
    """Return choices of which each is the fastest for its drop, from the largest drop to none."""
    whole = sum(drops.values())
    allowed = [whole * (1 - i / points) for i in range(points)] + [0.0]
    found: dict[tuple[str, ...], Choice] = {}
    for limit in allowed:
        choice = within(costs, drops, limit)
        found.setdefault(choice.kept, choice)
    return tuple(found.values())


def choice(costs: Costs, drops: Mapping[str, float], kept: Sequence[str]) -> Choice:
    """Return what the model says of layers in float that somebody else chose."""
    half = set(kept)
    ordered = tuple(name for name in costs.layers if name in half)
    return Choice(ordered, costs.seconds(ordered), _drop(drops, half))


def _drop(drops: Mapping[str, float], kept: set[str]) -> float:
    return sum(value for name, value in drops.items() if name not in kept)


def _solved(
    costs: Costs,
    drops: Mapping[str, float],
    refused: Sequence[tuple[str, ...]],
    *,
    allowed: float | None = None,
    count: int | None = None,
) -> Choice:
    if importlib.util.find_spec("scipy") is None:
        raise OptionError("planning needs scipy", fix="pip install 'deploykit-vision[plan]'")
    from scipy import optimize  # noqa: PLC0415 - an extra

    names = list(costs.layers)
    column = {name: i for i, name in enumerate(names)}
    lost = np.array([drops.get(name, 0.0) for name in names])
    rows, time = _meetings(costs, column)
    if allowed is not None:
        row = np.zeros(len(time))
        row[: len(names)] = lost
        rows.append((row, -np.inf, allowed + _SLACK * max(1.0, abs(allowed))))
    objective = time
    if count is not None:
        row = np.zeros(len(time))
        row[: len(names)] = 1.0
        rows.append((row, len(names) - count, np.inf))
        scale = max(float(np.abs(time).sum()), 1e-30)
        objective = 1e-6 * max(float(lost.sum()), 1e-30) * time / scale
        objective[: len(names)] += lost
    for kept in refused:
        rows.append(_other(kept, names, len(time)))
    found = optimize.milp(
        objective / max(float(np.abs(objective).max()), 1e-30),
        integrality=np.r_[np.ones(len(names)), np.zeros(len(time) - len(names))],
        bounds=optimize.Bounds(0, 1),
        constraints=optimize.LinearConstraint(
            np.array([row for row, _, _ in rows]),
            [low for _, low, _ in rows],
            [high for _, _, high in rows],
        )
        if rows
        else (),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise ProofError("no choice of layers is left", fix="allow a larger drop")
    chosen = [name for name in names if found.x[column[name]] < 0.5]
    return choice(costs, drops, chosen)


def _meetings(costs: Costs, column: Mapping[str, int]) -> tuple[list[Row], NDArray[np.float64]]:
    """Return the rows that say when forms meet, and the time of each column.

    After the layers' columns each meeting has two: whether it converts, whether it widens.
    """
    layers = len(column)
    time = np.zeros(layers + 2 * len(costs.meetings))
    for name, seconds in costs.layers.items():
        time[column[name]] = seconds.int8 - seconds.half
    rows = []
    for i, meeting in enumerate(costs.meetings):
        converts, widens = layers + 2 * i, layers + 2 * i + 1
        time[converts], time[widens] = meeting.convert, meeting.widen
        for reader in meeting.readers:
            row = np.zeros(len(time))  # converts >= x(reader) - x(writer)
            row[converts], row[column[reader]] = 1.0, -1.0
            if meeting.writer is not None:
                row[column[meeting.writer]] += 1.0
            rows.append((row, 0.0, np.inf))
            if meeting.writer is not None:
                row = np.zeros(len(time))  # widens >= x(writer) - x(reader)
                row[widens], row[column[meeting.writer]] = 1.0, -1.0
                row[column[reader]] += 1.0
                rows.append((row, 0.0, np.inf))
    return rows, time


def _other(
    kept: tuple[str, ...], names: Sequence[str], width: int
) -> tuple[np.ndarray, float, float]:
    """Return the row that a choice other than `kept` fulfils."""
    half = set(kept)
    row = np.zeros(width)
    row[: len(names)] = [1.0 if name in half else -1.0 for name in names]
    return row, 1.0 - (len(names) - len(half)), np.inf
