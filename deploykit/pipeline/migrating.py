"""Ranges that other tools measured: TensorRT's caches, and scales in checkpoints."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploykit.errors import OptionError, StaleTableError
from deploykit.precision import caches, tables
from deploykit.precision.placement import activations
from deploykit.precision.placement.weighted import weighted_layers
from deploykit.recipes.recipe import RECIPES
from deploykit.values import CalibrationTable, Precision

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from deploykit.networks.checkpoint import Checkpoint
    from deploykit.precision.placement import Placement
    from deploykit.precision.placement.weighted import Layer
    from deploykit.recipes.opened import Opened
    from deploykit.values import PrecisionPlan

_INPUT = re.compile(r"(.*)\._?input_quantizer\._amax")
_WEIGHT = "._weight_quantizer._amax", ".weight_quantizer._amax"
_SHOWN = 3


def read(path: Path, model: Opened, tensors: Sequence[str]) -> CalibrationTable:
    """Return the table in a file, which may be a cache of TensorRT. Raises: InputError."""
    return caches.read(path, model, tensors) if caches.is_cache(path) else tables.read(path)


def without_repairs(wanted: Collection[str], cache: Path | None) -> Collection[str]:
    """Return which repairs are tried: none where a cache is written of the file as it is.

    Raises: OptionError where the user named some.
    """
    if cache is None:
        return wanted
    if set(wanted) - {"auto", "none"}:
        raise OptionError(
            "a calibration cache is of the model as it is, and repairs change it",
            fix="leave --repair or --write-cache out",
        )
    return ("none",)


def write_cache(path: Path | None, placed: Placement, table: CalibrationTable) -> tuple[str, ...]:
    """Write a cache where one is asked for; return what is said of it. Raises: OutputError."""
    if path is None:
        return ()
    steps = caches.steps(placed, table)
    if table.factors:
        raise OptionError(
            "the table is of a model with scaled channels, and a cache of the model as it is",
            fix="calibrate anew with --repair none",
        )
    caches.write(path, steps)
    return (f"{len(steps)} steps written to {path}, for TensorRT 10 and before; no repairs tried",)


@dataclass(frozen=True)
class Measured:
    """What a checkpoint with fake quantisers says of a model's layers."""

    name: str
    """Of the file."""
    thresholds: dict[str, float]
    """Node -> magnitude of its input that INT8 should cover; only those that were seen."""
    plan: PrecisionPlan
    """The layers without one stay in float."""


def measured(path: Path, model: Opened, plan: PrecisionPlan) -> Measured:
    """Return the scales of the layers' inputs in a checkpoint of the model, trained for INT8.

    Those of pytorch-quantization and ModelOpt are read: `<module>._input_quantizer._amax`. Scales
    of weights are computed anew, for they are of weights before their norms were folded, and may
    be per input channel. Raises: CheckpointError; StaleTableError where it is of another model.
    """
    from deploykit.networks import checkpoint  # noqa: PLC0415 - imports torch

    loaded = next((c for c in checkpoint.candidates(path) if c.scales), None)
    if loaded is None:
        raise StaleTableError(
            f"{path} holds no scales of fake quantisers",
            expected="<module>._input_quantizer._amax, as pytorch-quantization and ModelOpt write",
        )
    layers, found, moved = _layers(model), {}, _moved(loaded, model)
    known = _matched(loaded, layers, moved, path)
    for node, (module, amax) in known.items():
        _check_weight(loaded, module, layers[node], path, whole=moved.get(module, module) == module)
        found[node] = amax
    seen = {node: amax for node, amax in found.items() if math.isfinite(amax) and amax > 0}
    reasons = {
        node: f"{path.name} {'saw nothing but 0' if found.get(node) == 0 else 'has no scale'} there"
        for node in layers
        if node not in seen and plan.layers.get(node, plan.default) is Precision.INT8
    }
    kept = {**plan.layers, **dict.fromkeys(reasons, Precision.FP16)}
    return Measured(
        path.name, seen, replace(plan, layers=kept, reasons={**plan.reasons, **reasons})
    )


def _layers(model: Opened) -> dict[str, Layer]:
    return {str(layer.node.name): layer for layer in weighted_layers(model.graph.graph)}


def _matched(
    loaded: Checkpoint, layers: dict[str, Layer], moved: dict[str, str], path: Path
) -> dict[str, tuple[str, float]]:
    """Return node -> module and magnitude, NaN for none, of those of the modules with weights."""
    nodes: dict[str, str] = {}
    for name, layer in layers.items():
        nodes[name.strip("/").replace("/", ".").rpartition(".")[0]] = name
        weight = layer.node.inputs[1]
        nodes.setdefault(str(weight.name if weight else "").removesuffix(".weight"), name)
    known, lost = {}, []
    for key, value in loaded.scales.items():
        module = _INPUT.fullmatch(key)
        if module is None or f"{module[1]}.weight" not in loaded.state:
            continue
        node = nodes.get(moved.get(module[1], module[1]))
        if node is None:
            lost.append(module[1])
        else:
            known[node] = (module[1], float(value.max()) if value.numel() else math.nan)
    if lost or not known:
        raise StaleTableError(
            f"{len(lost)} of {len(lost) + len(known)} modules with scales in {path} have no layer "
            f"in the model: {', '.join(lost[:_SHOWN])}",
            expected="a model that was exported from this checkpoint",
            fix="export it, or name the checkpoint that the model was exported from",
        )
    return known


def _moved(loaded: Checkpoint, model: Opened) -> dict[str, str]:
    """Return path in the file -> path in the network. Raises: StaleTableError."""
    from deploykit.networks import loading, pickled  # noqa: PLC0415 - imports torch

    card = model.card
    if card is None:
        return {}
    if card.checkpoint_sha256 and card.checkpoint_sha256 != loaded.sha256:
        raise StaleTableError(
            f"{model.path} was exported from another checkpoint than that with the scales",
            expected=f"sha256 {card.checkpoint_sha256}, found {loaded.sha256}",
            fix="export the checkpoint with the scales: its weights were trained for them",
        )
    if card.recipe not in RECIPES.shipped():
        return {}
    return pickled.paths(loaded.state, loading.adapted(RECIPES.load(card.recipe), loaded.state))


def _check_weight(
    loaded: Checkpoint, module: str, layer: Layer, path: Path, *, whole: bool
) -> None:
    """Check that a layer can be the module of its name. Raises: StaleTableError.

    whole: it is that module as it was trained, not one of the branches that became the layer.
    """
    if layer.weights is None:
        return
    own = list(loaded.state[f"{module}.weight"].shape)
    if whole and math.prod(own) != math.prod(layer.weights):
        raise StaleTableError(
            f"{module} has weights of {own} in {path}, its layer {layer.node.name} of "
            f"{list(layer.weights)}",
            expected="scales of this model",
        )
    for end in _WEIGHT:
        scales = loaded.scales.get(module + end)
        if scales is None or scales.numel() == 1:
            continue
        if scales.numel() not in (layer.weights[0], layer.weights[1] * layer.group):
            raise StaleTableError(
                f"{module} has scales for {scales.numel()} channels in {path}, its layer "
                f"{layer.node.name} weights of {list(layer.weights)}",
                expected="scales of this model",
            )


def tabled(found: Measured, model: Opened, placed: Placement) -> CalibrationTable:
    """Return the table of a model: the largest scale of a tensor's readers is that of all.

    Raises: StaleTableError where tensors are left that no layer with a scale reads.
    """
    ranges: dict[str, float] = {}
    for each in placed.activations:
        own = [found.thresholds[node] for node, _ in each.readers if node in found.thresholds]
        for name in each.ranges if own else ():
            ranges[name] = max(*own, ranges.get(name, 0.0))
    missing = [name for name in activations(placed) if name not in ranges]
    if missing:
        raise StaleTableError(
            f"{found.name} has no scale for {len(missing)} tensors that INT8 layers share: "
            + ", ".join(missing[:_SHOWN]),
            expected="a scale for a layer that reads it",
            fix="calibrate the model in place of --amax",
        )
    return caches.tabled(model, ranges, "amax", found.name)
