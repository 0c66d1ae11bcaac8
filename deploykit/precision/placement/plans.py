"""Which layers a model keeps in float: the recipe's say, and the user's over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import InputError, ModelError, OptionError, unknown_name
from deploykit.files import artifacts, jsonfile, patterns, schema
from deploykit.files.schema import mapping, one_of, record, text
from deploykit.precision.placement.rules import AMPERE, FLOAT_RULES, NAMES
from deploykit.precision.placement.weighted import weighted_layers
from deploykit.values import SCHEMA_VERSION, Precision, PrecisionPlan

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.precision.placement.rules import Rule
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
        "made_by": schema.anything,
    },
)


def _plan(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for a plan: it says something of the layers."""
    _KEYS(value)
    if not value.keys() & {"layers", "default"}:
        raise schema.MisfitError("has neither 'layers' nor 'default'", '{"layers": {...}}')


@dataclass(frozen=True)
class Kinds:
    """Kinds of layers, by the names of `rules.NAMES`, whose precision the user chooses."""

    int8: Collection[str] = ()
    """In INT8 though a rule says float; ALL: every kind that TensorRT has a kernel for."""
    float_: Collection[str] = ()
    """In float though no rule of the target's says so."""
    target_sm: int | None = None
    """Compute capability of the GPU, such as 75; None: any from SM80 on."""

    def __post_init__(self) -> None:
        """Check the names. Raises: OptionError."""
        for name in (*self.int8, *self.float_):
            if name not in NAMES and not (name == ALL and name in self.int8):
                raise unknown_name("kind of layer", name, (*NAMES, ALL))
        both = sorted({*self.int8} & {*self.float_})
        if both:
            raise OptionError(f"layers of the kind {both[0]!r} are asked for in INT8 and in float")


ALL = "all"
_NO_KERNEL = ("transposed",)
"""Kinds that ALL does not mean: no GPU runs them in INT8."""
DEFAULT = Kinds()


def default_plan(model: ir.Model, card: ModelCard | None, kinds: Kinds = DEFAULT) -> PrecisionPlan:
    """Return INT8 for every node, but for what the card's patterns and `kinds` say.

    A `keep_float` pattern of the card that finds a name goes first.

    Raises: ModelError for a pattern that is not a regular expression, or takes too long.
    """
    layers: dict[str, Precision] = {}
    reasons: dict[str, str] = {}
    kept = card.keep_float if card else ()
    for keep in kept:
        names = [node.name for node in model.graph if node.name and node.name not in layers]
        for name in _found(keep.pattern, names, patterns.EFFORT // len(kept)):
            layers[name], reasons[name] = keep.precision, keep.reason
    for layer in weighted_layers(model.graph):
        name = str(layer.node.name or "")
        if name in layers or (layer.weights is None and not layer.multiplies_activations):
            continue
        rules = [FLOAT_RULES[0]]
        if layer.weights is not None:
            rules = [rule for rule in FLOAT_RULES if rule.applies(layer)]
        held = [rule for rule in rules if rule.holds == "always" and not _asked(rule, kinds)]
        kept_by = next((rule for rule in rules if _keeps(rule, kinds)), None)
        if kept_by is not None:
            layers[name], reasons[name] = Precision.FP16, kept_by.text()
        elif any(rule.holds == "always" for rule in rules) and not held:
            layers[name] = Precision.INT8
    return PrecisionPlan(Precision.INT8, layers, reasons)


def _keeps(rule: Rule, kinds: Kinds) -> bool:
    """Return whether a rule that does not hold everywhere holds here."""
    turing = kinds.target_sm is not None and kinds.target_sm < AMPERE
    here = rule.holds == "turing" and turing and not _asked(rule, kinds)
    return here or rule.name in kinds.float_


def _asked(rule: Rule, kinds: Kinds) -> bool:
    """Return whether INT8 is asked for what a rule keeps in float."""
    return rule.name in kinds.int8 or (ALL in kinds.int8 and rule.name not in _NO_KERNEL)


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
