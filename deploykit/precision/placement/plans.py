"""Which layers a model keeps in float: the recipe's say, and the user's over it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.errors import InputError, ModelError, unknown_name
from deploykit.files import artifacts
from deploykit.values import Precision, PrecisionPlan

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.recipes.metadata import ModelCard


def default_plan(model: ir.Model, card: ModelCard | None) -> PrecisionPlan:
    """Return INT8 for every node except those that a `keep_float` pattern finds in its name.

    Raises: ModelError for a pattern that is not a regular expression.
    """
    layers: dict[str, Precision] = {}
    reasons: dict[str, str] = {}
    for keep in card.keep_float if card else ():
        try:
            pattern = re.compile(keep.pattern)
        except re.error as error:
            raise ModelError(f"keep_float pattern {keep.pattern!r} is wrong: {error}") from error
        for node in model.graph:
            if node.name and node.name not in layers and pattern.search(node.name):
                layers[node.name], reasons[node.name] = keep.precision, keep.reason
    return PrecisionPlan(Precision.INT8, layers, reasons)


def read_plan(path: Path, plan: PrecisionPlan) -> PrecisionPlan:
    """Return `plan` with the entries of a JSON file over its own.

    The file holds {"layers": {node: precision}, "reasons": {node: text}}, and may hold "default".
    Raises: InputError where it does not.
    """
    data = artifacts.read_json(path)
    layers, reasons = data.get("layers", {}), data.get("reasons", {})
    if not isinstance(layers, dict) or not isinstance(reasons, dict):
        raise InputError(f"{path} is not a plan", expected='{"layers": {node: "fp16"}}')
    given = {str(name): _precision(value) for name, value in layers.items()}
    said = {str(name): str(value) for name, value in reasons.items()}
    kept = {name: why for name, why in plan.reasons.items() if name not in given}
    default = _precision(data["default"]) if "default" in data else plan.default
    return PrecisionPlan(default, {**plan.layers, **given}, {**kept, **said})


def _precision(value: object) -> Precision:
    try:
        return Precision(value)
    except ValueError as error:
        raise unknown_name("precision", str(value), map(str, Precision)) from error
