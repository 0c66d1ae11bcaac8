"""Which layers a model keeps in float: the recipe's say, and the user's over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.errors import InputError, ModelError, OptionError, unknown_name
from deploykit.files import artifacts, jsonfile, patterns, schema
from deploykit.files.schema import mapping, one_of, record, text
from deploykit.values import SCHEMA_VERSION, Precision, PrecisionPlan

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.recipes.metadata import ModelCard
    from deploykit.values import Json

_WHAT = "a precision plan"
_PRECISION = one_of(*(precision.value for precision in Precision))
_KEYS = record(
    {},
    {
        "schema_version": schema.VERSION,
        "model_sha256": text(most=64),
        "default": _PRECISION,
        "layers": mapping(_PRECISION),
        "reasons": mapping(text()),
    },
)


def _plan(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for a plan: it says something of the layers."""
    _KEYS(value)
    if not value.keys() & {"layers", "default"}:
        raise schema.MisfitError("has neither 'layers' nor 'default'", '{"layers": {...}}')


def default_plan(model: ir.Model, card: ModelCard | None) -> PrecisionPlan:
    """Return INT8 for every node except those that a `keep_float` pattern finds in its name.

    Raises: ModelError for a pattern that is not a regular expression, or takes too long.
    """
    layers: dict[str, Precision] = {}
    reasons: dict[str, str] = {}
    kept = card.keep_float if card else ()
    for keep in kept:
        names = [node.name for node in model.graph if node.name and node.name not in layers]
        for name in _found(keep.pattern, names, patterns.EFFORT // len(kept)):
            layers[name], reasons[name] = keep.precision, keep.reason
    return PrecisionPlan(Precision.INT8, layers, reasons)


def _found(expression: str, names: Sequence[str], effort: int) -> list[str]:
    """Return the names that a pattern of a card finds, in `effort` steps. Raises: ModelError."""
    try:
        pattern = patterns.compiled(expression, effort=effort)
        return [name for name in names if pattern.search(name)]
    except patterns.PatternError as error:
        raise ModelError(
            f"keep_float pattern {schema.shown(expression)} in the model's card: {error}",
            expected="a regular expression that a file may hold",
            fix="name the layers in a plan: --plan",
        ) from error


def read_plan(
    path: Path, plan: PrecisionPlan, *, model_sha256: str = "", nodes: Collection[str] | None = None
) -> PrecisionPlan:
    """Return `plan` with the entries of a JSON file over its own.

    The file holds {"layers": {node: precision}, "reasons": {node: text}}, may hold "default", and
    "model_sha256" where it was made for one model alone. model_sha256, nodes: of the model that it
    is for; empty: not looked at.

    Raises: InputError where it is no plan, was made for another model, or gives a reason for a
    layer that it does not keep; OptionError for a node that the model lacks.
    """
    data = jsonfile.read(path, _plan, _WHAT)
    made_for = data.get("model_sha256", "")
    if made_for and model_sha256 and made_for != model_sha256:
        raise InputError(
            f"{path} was made for another model",
            expected=f"sha256 {made_for}, found {model_sha256}",
            fix="plan this model, or name the model that the plan was made for",
        )
    given = {name: Precision(value) for name, value in data.get("layers", {}).items()}
    said = dict(data.get("reasons", {}))
    layers = {**plan.layers, **given}
    for name in [*given, *said]:
        if nodes is not None and name not in nodes:
            raise unknown_name("node in the plan", name, nodes)
    unused = next((name for name in said if name not in layers), None)
    if unused is not None:
        raise OptionError(f"{path} gives a reason for {unused!r}, whose precision it does not say")
    kept = {name: why for name, why in plan.reasons.items() if name not in given}
    default = Precision(data["default"]) if "default" in data else plan.default
    return PrecisionPlan(default, layers, {**kept, **said})


def write_plan(path: Path, plan: PrecisionPlan, *, model_sha256: str) -> None:
    """Write `plan`, which is for the model of that sha256, as JSON. Raises: OutputError."""
    artifacts.write_json(path, to_json(plan, model_sha256=model_sha256))


def to_json(plan: PrecisionPlan, *, model_sha256: str) -> Json:
    """Return what `read_plan` reads as plain JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model_sha256": model_sha256,
        "default": plan.default.value,
        "layers": {name: precision.value for name, precision in plan.layers.items()},
        "reasons": dict(plan.reasons),
    }
