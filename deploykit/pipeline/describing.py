"""The verb describe: a copy of any ONNX file that says what it is for and how it is fed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit import tasks
from deploykit.backends import onnxruntime
from deploykit.data import images, samples
from deploykit.data.sources import Dataset, Sample
from deploykit.errors import ModelError, OptionError
from deploykit.pipeline import intake, places
from deploykit.pipeline.made import Made, described, path_or_none, written
from deploykit.pipeline.opening import ONNXRUNTIME, Model
from deploykit.recipes import opened
from deploykit.recipes.describing import NOTHING, UNKNOWN, unsaid
from deploykit.tasks import heads
from deploykit.tasks.detections import Detections
from deploykit.tasks.task import Result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.data.preprocess import Floats, Pixels
    from deploykit.pipeline.made import StrPath
    from deploykit.recipes.describing import Description
    from deploykit.recipes.metadata import ModelCard
    from deploykit.recipes.opened import Opened

_CORNER = 4
"""Part of the image in which no detector has all of its cells."""
_NEAR = "its boxes all lie at one corner: --decode yolox reads them relative to a grid"
_HEIGHT, _WIDTH, _PATCH = 480, 640, 40
"""Of the image that is tried where none is given, in pixels."""


def describe(
    model: StrPath,
    output: StrPath,
    about: Description = NOTHING,
    *,
    image: StrPath | None = None,
    record: StrPath | None = None,
) -> Made:
    """Return a copy of an ONNX file with a card, written after a trial run on an image.

    image: None: one of coloured patches.

    Raises: InputError, OutputError; OptionError where nobody says how images are prepared or what
    the model is for; ModelError where its outputs are not what the task reads.
    """
    model, output, record = Path(model), Path(output), path_or_none(record)
    tried = path_or_none(image)
    places.check({"the model": model, "--image": tried}, output=output, record=record)
    subject = intake.read(model, about)
    places.check_weights(subject.graph, output)
    if subject.card is None:
        raise unsaid(f"{model} does not say how its images are prepared")
    if subject.card.task == UNKNOWN:
        raise OptionError(
            f"{model} does not say what it is for", expected="--task " + ", ".join(tasks.SHIPPED)
        )
    notes = (*subject.notes, _trial(subject, tried))
    candidate = opened.made(subject.graph, output)
    made_by = {"verb": "describe", "notes": list(notes)}
    artifact = written(candidate, subject.origin(), made_by)
    return described(artifact, candidate, (repr(subject.card)[1:-1], *notes), record)


def _trial(subject: Opened, image: Path | None) -> str:
    """Return what a model finds in one image. Raises: ModelError, and what its task raises."""
    assert subject.card is not None  # the caller has looked
    session = onnxruntime.open_model(subject)
    model = Model(subject.path, subject.sha256, ONNXRUNTIME, session, subject.card)
    name = "an image of patches" if image is None else image.name
    shown = _patches if image is None else partial(images.decode, image)
    data = Dataset(name, [Sample(name, shown)])
    (batch,) = samples.batches(data, subject.card.preprocess, 1)
    outputs = model.forward(batch)
    for output, values in outputs.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ModelError(
                f"output {output!r} holds NaN or infinity for {name}",
                expected="numbers",
                fix="check the weights, and how images are prepared",
            )
    (found,) = model.task().decode(outputs, batch.geometries)
    said = f"trial run on {name}: {_shown(found, subject.card.class_names)}"
    return f"{said}; {_NEAR}" if _relative(outputs, subject.card) else said


def _relative(outputs: Mapping[str, Floats], card: ModelCard) -> bool:
    """Return whether rows that count as decoded have every box at one corner of the image."""
    shapes = {name: values.shape for name, values in outputs.items()}
    size = card.preprocess.size
    if heads.SETTING in card.settings or "yolox" not in heads.fitting(shapes, size):
        return False
    (rows,) = outputs.values()
    return bool(np.abs(rows[..., :2]).max() < max(size) / _CORNER)


def _shown(found: object, names: tuple[str, ...]) -> str:
    """Return what was found in words."""
    if not isinstance(found, Detections):
        return found.said(names) if isinstance(found, Result) else type(found).__name__
    if not len(found.boxes):
        return "no objects"
    first = int(found.classes[0])
    name = names[first] if first < len(names) else f"class {first}"
    return f"{len(found.boxes)} objects, the best {name} with {found.scores[0]:.2f}"


def _patches() -> Pixels:
    """Return an image uint8[480, 640, 3] of even patches."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (_HEIGHT // _PATCH, _WIDTH // _PATCH, 3), dtype=np.uint8)
    return coarse.repeat(_PATCH, axis=0).repeat(_PATCH, axis=1)
