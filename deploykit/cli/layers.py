"""What `sensitivity` and `plan` print of layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deploykit.cli.printing import table

if TYPE_CHECKING:
    from deploykit.pipeline.planning import Planned
    from deploykit.precision.sensitivity.scores import Sensitivities

_NAMED = 10
"""Layers that are named; the files have all."""


def sensitivities(found: Sensitivities) -> str:
    """Return the layers that lose most by the last measure, and what agrees with it."""
    known = found.measured()
    ranked = found.ranked(known[-1])
    rows = [(name, *(f"{found.layers[name][m]:.4g}" for m in known)) for name in ranked[:_NAMED]]
    lines = [table(("layer", *known), rows)]
    if len(ranked) > _NAMED:
        lines.append(f"{len(ranked) - _NAMED} more layers are in the file")
    told = [
        f"{metric} {'-' if rho is None else format(rho, '.2f')}"
        for metric, rho in found.correlations().items()
    ]
    if told:
        lines.append(f"rank correlation with {known[-1]}: {', '.join(told)}")
    lines += [
        f"{found.primary} of the model in which no layer differs: {value:.4f}"
        for value in found.base.values()
    ]
    return "\n".join(lines)


def planned(made: Planned) -> str:
    """Return the plan in a few lines, and the table of what was measured."""
    half, int8 = (made.costs.seconds(kept) for kept in (made.costs.layers, ()))
    times = f"{made.choice.seconds * 1e3:.3f} ms predicted ({half * 1e3:.3f} all FP16, "
    lines = [
        f"{len(made.choice.kept)} of {len(made.costs.layers)} layers stay in float: "
        + times
        + f"{int8 * 1e3:.3f} all INT8)"
    ]
    if made.tried:
        rows = [
            (
                len(each.choice.kept),
                f"{each.choice.seconds * 1e3:.3f}",
                f"{each.choice.drop:.4f}" if math.isfinite(each.choice.drop) else "-",
                f"{each.drop.real:.4f}",
                f"{each.drop.most:.4f}",
            )
            for each in made.tried
        ]
        lines.append(table(("in float", "ms", "predicted drop", "measured drop", "at most"), rows))
    if made.drop is not None:
        lines.append(
            f"{made.named} of the float model {made.reference:.4f}, the plan loses "
            f"{made.drop.real:.4f}, on other images at most {made.drop.most:.4f}"
        )
    lines += [f"  {name}" for name in made.choice.kept[:_NAMED]]
    if len(made.choice.kept) > _NAMED:
        lines.append(f"  and {len(made.choice.kept) - _NAMED} more, which are in the file")
    return "\n".join(lines)
