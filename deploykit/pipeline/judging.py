"""What `quantize` says of the quality of its own result, and what it is judged on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.data import arrays, feeding, samples, sources
from deploykit.files import onnxfile
from deploykit.measuring import records
from deploykit.precision import finiteness, probing, quality
from deploykit.precision.quality import decibels
from deploykit.proof import acceptance
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx_ir as ir

    from deploykit.backends import Arrays
    from deploykit.precision.placement import Placement
    from deploykit.precision.probing import Probed
    from deploykit.recipes.opened import Opened
    from deploykit.values import Agreement, CalibrationTable, Json, LayerPrecision

IMAGES = 2
"""Calibration images that the float model and the quantised one are compared on."""
ENOUGH = 100
"""Calibration images from which on nothing is said about their number."""
_GROWN = 0.25
"""Share of the tensors that may still reach further in the last quarter of the images."""
_APART = 10
"""Decibels below its output that a column is named from."""
_ROWS = 3
"""Dimensions of an output of rows: the images, the rows, what a row says."""
_NAMED = 3
"""Layers that a note names."""


def probed(
    model: Opened,
    placed: Placement,
    table: CalibrationTable,
    calibrated_on: str | Path | None,
    *,
    half: bool,
) -> tuple[Probed, str, str]:
    """Return what the float model gives on a few images and what its tensors do there.

    The second value says in words what images these are: of each size that none of them has there
    is one of random pixels. The third says where the model is not finite by itself, if it is not.

    calibrated_on: the source of images, or a folder of arrays. half: whether the magnitudes are
    asked for that FP16 must hold. Raises: DataError, ModelError.
    """
    inputs, _ = onnxfile.interface(model.graph)
    if isinstance(calibrated_on, Path):
        few = arrays.opened(calibrated_on, inputs).feeds(limit=IMAGES)
        images = tuple((", ".join(fed.names), fed.arrays) for fed in few)
    else:
        images = tuple(_images(model, calibrated_on))
    given, names = [feed for _, feed in images], [name for name, _ in images]
    seen = {feed[inputs[0].name].shape[2:] for feed in given}
    for each in acceptance.interfaces(model):
        if not given or each[0].shape[2:] not in seen:
            given.append(acceptance.feeds(model, each))
            names.append("random pixels")
    random = len(given) - len(images)
    words = [_calibration_images(len(images))] if images else []
    words += [f"{random} of random pixels"] if random else []
    found = probing.probe(
        acceptance.opened_filled(model),
        given,
        known=table.ranges if half else None,
        stored=quality.stored(placed, table),
    )
    own = "" if found.ran is None else finiteness.of_outputs(model, found.ran, names)
    return found, " and ".join(words), own


def _images(model: Opened, source: str | None) -> Iterator[tuple[str, Arrays]]:
    """Yield names of a few of the images, and them as the model's inputs, where there are any."""
    inputs, _ = onnxfile.interface(model.graph)
    batch = feeding.batch(inputs[0])
    if source is None or model.card is None or (isinstance(batch, int) and batch != 1):
        return
    images = samples.batches(
        sources.dataset(source), model.card.preprocess, 1, limit=IMAGES, skipped=[]
    )
    for each in images:
        yield each.names[0], feeding.feeds(inputs, each.images, each.geometries)


@dataclass(frozen=True)
class Quality:
    """How far an INT8 model is from the float one that it was made from."""

    inputs: str
    """What the two were compared on, in words."""
    outputs: Mapping[str, float]
    """Output, or the worst column of one -> signal to noise in dB; inf where both are the same."""
    layers: Mapping[str, float]
    """Layer -> signal to noise in dB of its result, by its own rounding; the worst first."""

    def to_json(self) -> Json:
        """Return plain JSON values; null where there is no noise."""
        return {
            "inputs": self.inputs,
            "outputs": {name: _finite(value) for name, value in self.outputs.items()},
            "layers": {name: _finite(value) for name, value in self.layers.items()},
        }

    def notes(self) -> Iterator[str]:
        """Yield what a user reads."""
        if self.outputs:
            parts = ", ".join(f"{name} {_text(value)}" for name, value in self.outputs.items())
            yield f"signal to noise of INT8 on {self.inputs}: {parts}"
        worst = [f"{name} {_text(value)}" for name, value in list(self.layers.items())[:_NAMED]]
        if worst:
            yield f"layers that add most noise: {', '.join(worst)}"


def judged(
    inputs: str, noise: Mapping[str, float], agreements: Sequence[Agreement], outputs: Sequence[str]
) -> Quality:
    """Return the quality of a quantised model with such outputs.

    noise: of its layers, see `quality.layer_noise`; agreements: with the float model on `inputs`.
    The worst column of an output is named where it is far below the whole: boxes in pixels hide
    the scores beside them.
    """
    worst = sorted(noise.items(), key=lambda each: -each[1])
    known = {a.output: decibels(a.noise) for a in agreements if a.noise is not None}
    found: dict[str, float] = {}
    for name in (name for name in outputs if name in known):
        found[name] = known[name]
        columns = [each for each in known if each.startswith(f"{name}[..., ")]
        lowest = min(columns, key=known.__getitem__, default=name)
        if known[lowest] < known[name] - _APART:
            found[lowest] = known[lowest]
    return Quality(inputs, found, {name: decibels(value) for name, value in worst})


def doubts(table: CalibrationTable) -> Iterator[str]:
    """Yield why the ranges of a table may not hold for other images."""
    count = len(table.samples)
    if 0 < count < ENOUGH:  # none: the ranges come from elsewhere
        are = "is" if count == 1 else "are"
        yield (
            f"{_calibration_images(count)} {are} few: ranges hold for others from about {ENOUGH} on"
        )
    grown = len(table.growing)
    if grown > _GROWN * len(table.ranges):
        yield (
            f"{grown} of {len(table.ranges)} tensors still reached further in the last quarter of "
            "the calibration images: more of them, or more varied ones, cover more"
        )


def _calibration_images(count: int) -> str:
    return f"{count} calibration image{'' if count == 1 else 's'}"


def _finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None


def _text(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "without noise"


def wide(beyond: Mapping[str, str]) -> tuple[str, ...]:
    """Return what is said of the nodes whose tensors FP16 does not hold."""
    named = [f"{name} ({reason})" for name, reason in list(beyond.items())[:_NAMED]]
    more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
    return (f"float parts in FP32 at {', '.join(named)}{more}",) if beyond else ()


def notes(layers: Sequence[LayerPrecision], table: CalibrationTable) -> tuple[str, ...]:
    """Return what is said of the share in INT8 and of the calibration."""
    share = records.shares(layers).get(Precision.INT8.value, 0.0)
    notes = [
        f"{share:.1%} of the multiply-accumulates in INT8",
        *records.remarks(layers),
        f"calibrated on {len(table.samples)} {_kind(table)} ({table.observer})"
        if table.samples
        else f"steps as in {table.source} ({table.observer})",
    ]
    if table.skipped:
        notes.append(f"{len(table.skipped)} unreadable images left out: {table.skipped[0]}, ...")
    return tuple(notes)


def _kind(table: CalibrationTable) -> str:
    """Return what a table was made on."""
    return "samples" if table.source.startswith(arrays.PREFIX) else "images"


def has_rows(graph: ir.Model) -> bool:
    """Return whether an output has rows of several quantities, such as boxes beside scores."""
    shapes = (value.shape for value in graph.graph.outputs)
    return any(shape is not None and len(shape) == _ROWS for shape in shapes)
