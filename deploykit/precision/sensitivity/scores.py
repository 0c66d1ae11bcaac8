"""How much each layer suffers from INT8, as a value and as a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit import stats
from deploykit.errors import InputError, StaleTableError, unknown_name
from deploykit.files import artifacts, jsonfile, schema
from deploykit.files.schema import mapping, nothing_or, number, one_of, record, text, whole
from deploykit.values import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.recipes.opened import Opened
    from deploykit.values import Json

LOCAL = ("mse", "snr", "cosine", "channel")
"""Measures of a layer's own result."""
BY_GRADIENT = ("fisher", "gradient")
"""Measures of the effect on the outputs, to first order."""
METRICS = (*LOCAL, *BY_GRADIENT, "output", "task")
_ASCENDING = ("snr",)
"""Measures in which a larger number is a smaller loss."""
WHAT = "a file of sensitivities"
_NUMBER = nothing_or(number(-1e300, 1e300))
_SHAPE = record(
    {
        "schema_version": schema.VERSION,
        "kind": one_of("sensitivities"),
        "model_sha256": text(most=64),
        "table_sha256": text(most=64),
        "alone": one_of("int8", "float"),
        "images": whole(0),
        "source": text(),
        "layers": mapping(record({}, dict.fromkeys(METRICS, _NUMBER))),
        "macs": mapping(whole(0)),
        "base": mapping(_NUMBER),
        "correlations": mapping(_NUMBER),
    },
    {"task_images": whole(0), "task_source": text(), "primary": text()},
)


@dataclass(frozen=True)
class Sensitivities:
    """What INT8 costs in each layer, by several measures; bound to the model and its ranges."""

    model_sha256: str
    table_sha256: str
    layers: Mapping[str, Mapping[str, float]]
    """Node -> measure of `METRICS` -> its value, in the graph's order."""
    macs: Mapping[str, int] = field(default_factory=dict)
    """Node -> multiply-accumulates for one image, where they are known."""
    alone: str = "int8"
    """What a layer is while the others are the other: `int8` or `float`."""
    images: int = 0
    source: str = ""
    base: Mapping[str, float] = field(default_factory=dict)
    """The task's primary number of the model in which no layer differs, as `task`."""
    primary: str = ""
    """The task's name of that number."""
    task_images: int = 0
    task_source: str = ""

    def __repr__(self) -> str:
        """Return what was measured, without the layers one by one."""
        return f"<Sensitivities {len(self.layers)} layers, {', '.join(self.measured())}>"

    def measured(self) -> tuple[str, ...]:
        """Return the measures that every layer has."""
        return tuple(m for m in METRICS if all(m in each for each in self.layers.values()))

    def ranked(self, metric: str) -> list[str]:
        """Return the layers, the most sensitive by `metric` first. Raises: InputError."""
        if metric not in self.measured():
            raise InputError(
                f"the sensitivities do not hold {metric!r}",
                expected="one of " + ", ".join(self.measured()),
                fix=f"measure it: deploykit sensitivity --metric {metric}",
            )
        return sorted(self.layers, key=lambda name: -self._loss(name, metric))

    def losses(self, metric: str) -> dict[str, float]:
        """Return what each layer loses by a measure, in a number that adds up: none is below 0.

        Decibels become noise over signal. Raises: InputError where it was not measured.
        """
        found = {}
        for name in self.ranked(metric):
            value = self.layers[name][metric]
            noise = 10 ** (-value / 10) if metric in _ASCENDING else value
            found[name] = max(0.0, noise) if math.isfinite(noise) else 0.0
        return {name: found[name] for name in self.layers}

    def correlations(self) -> dict[str, float | None]:
        """Return how the ranks by each measure agree with those by `task`: Spearman's rho.

        Without `task` with those by `output`; None where all layers are alike. Empty without both.
        """
        known = self.measured()
        truth = next((name for name in ("task", "output") if name in known), None)
        if truth is None:
            return {}
        expected = [self._loss(name, truth) for name in self.layers]
        return {
            metric: stats.spearman([self._loss(name, metric) for name in self.layers], expected)
            for metric in known
            if METRICS.index(metric) < METRICS.index(truth)
        }

    def _loss(self, name: str, metric: str) -> float:
        value = self.layers[name][metric]
        return -value if metric in _ASCENDING else value

    def to_json(self) -> Json:
        """Return plain JSON values; null where a number is infinite or unknown."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "sensitivities",
            "model_sha256": self.model_sha256,
            "table_sha256": self.table_sha256,
            "alone": self.alone,
            "images": self.images,
            "source": self.source,
            "task_images": self.task_images,
            "task_source": self.task_source,
            "primary": self.primary,
            "base": {name: _finite(value) for name, value in self.base.items()},
            "layers": {
                name: {metric: _finite(value) for metric, value in each.items()}
                for name, each in self.layers.items()
            },
            "macs": dict(self.macs),
            "correlations": self.correlations(),
        }


def write(path: Path, found: Sensitivities) -> None:
    """Write sensitivities as JSON, atomically. Raises: OutputError."""
    artifacts.write_json(path, found.to_json())


def read(path: Path) -> Sensitivities:
    """Return the sensitivities in a file. Raises: InputError."""
    return from_json(jsonfile.read(path, _SHAPE, WHAT))


def from_json(data: Json) -> Sensitivities:
    """Return what `to_json` wrote."""
    kept: dict[str, Any] = {
        key: data[key]
        for key in ("model_sha256", "table_sha256", "alone", "images", "source", "macs", "base")
    }
    told = {key: data[key] for key in ("primary", "task_images", "task_source") if key in data}
    layers = {
        name: {metric: _number(metric, value) for metric, value in each.items()}
        for name, each in data["layers"].items()
    }
    return Sensitivities(layers=layers, **kept, **told)


def check_fresh(found: Sensitivities, model: Opened) -> None:
    """Check that sensitivities are of this model, and that something was measured.

    Raises: StaleTableError for another model; InputError.
    """
    if found.model_sha256 != model.sha256:
        raise StaleTableError(
            "the sensitivities were measured on another model",
            expected=f"sha256 {found.model_sha256}, found {model.sha256}",
            fix="measure this model, or name the model that they were measured on",
        )
    nodes = {str(node.name) for node in model.graph.graph}
    for name in found.layers:
        if name not in nodes:
            near = unknown_name("node in the sensitivities", name, nodes)
            raise InputError(near.found, expected=near.expected, fix=near.fix)
    if not found.measured() or not found.layers:
        raise InputError(
            "the sensitivities hold no measure that every layer has",
            expected="one of " + ", ".join(METRICS),
            fix="measure the model again",
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(metric: str, value: float | None) -> float:
    """Return a number from a file, where null stands for no noise at all."""
    if value is None:
        return math.inf if metric in _ASCENDING else math.nan
    return float(value)
