"""ONNX rewrites to a fixed point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.errors import ModelError, ProofError
from deploykit.graph.passes import DEFAULT, Pass

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir


MAX_ROUNDS = 20


@dataclass(frozen=True)
class FusionReport:
    """What the rewrites did."""

    changed: dict[str, int]
    """Pass -> in how many rounds it changed the model; only those that did."""
    rounds: int
    """How often every pass ran; the last round changed nothing."""
    nodes_before: int
    nodes_after: int


def fuse(model: ir.Model, passes: Sequence[Pass] = DEFAULT) -> FusionReport:
    """Return what `passes` did to `model`, rewritten in place until nothing changes any more.

    Raises: ModelError where a pass cannot handle the model; ProofError where passes undo each
    other for ever.
    """
    before, changed = len(model.graph), dict[str, int]()
    for count in range(1, MAX_ROUNDS + 1):
        active = [each.name for each in passes if apply(each, model)]
        if not active:
            return FusionReport(changed, count, before, len(model.graph))
        for name in active:
            changed[name] = changed.get(name, 0) + 1
    raise ProofError(
        f"the model still changes after {MAX_ROUNDS} rounds of {', '.join(active)}",
        expected="passes that end",
        fix="leave one of these passes out, and report the model",
    )


def apply(each: Pass, model: ir.Model) -> bool:
    """Return whether one pass changed the model. Raises: ModelError where it cannot handle it."""
    try:
        return each.apply(model)
    except Exception as error:  # a foreign model can break a rewrite in any way
        raise ModelError(
            f"pass {each.name} cannot handle this model: {type(error).__name__}: {error}",
            fix="check the model with onnx.checker; leave the pass out if the model is sound",
        ) from error
