"""Two models of one task: what one finds is the truth that another is judged by."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from deploykit import tasks
from deploykit.data import samples
from deploykit.data.sources import Dataset
from deploykit.errors import OptionError
from deploykit.tasks.task import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.data.sources import Sample
    from deploykit.pipeline.opening import Model
    from deploykit.tasks import AnyTask


def check_alike(models: Sequence[Model], chosen: Sequence[AnyTask]) -> None:
    """Check that two models, each with its task, find the same kind of thing.

    A detector of masks or keypoints finds boxes too, and can be the truth for one of boxes alone.
    Raises: OptionError.
    """
    asked, told = chosen
    parts = [getattr(task, "parts", None) for task in chosen]
    if parts[0] and parts[1]:
        alike = set(parts[0]) <= set(parts[1])
    else:
        alike = isinstance(asked, type(told)) or isinstance(told, type(asked))
    if not alike:
        rows = zip(models, chosen, strict=True)
        raise OptionError(
            ", and ".join(f"{m.path.name} is for {tasks.name(task)}" for m, task in rows),
            expected="--against a model that finds what the first does",
            fix="give --against another model; or, where a file says what it is not for, --task",
        )


def told_by(models: Sequence[Model], chosen: Sequence[AnyTask], data: Dataset) -> Dataset:
    """Return a data set with the same images, and what the second model finds as their truth.

    It runs when the truth about an image is asked for. chosen: the task of each model.
    Raises: OptionError where these find different things.
    """
    check_alike(models, chosen)
    (_, model), (_, task) = models, chosen
    return Dataset(
        f"{data.name}, by what {model.path.name} finds",
        [
            replace(sample, truth=partial(_told, model, task, (i, sample)))
            for i, sample in enumerate(data.samples, start=1)
        ],
        dict(enumerate(model.contract().class_names)),
    )


def _told(model: Model, task: AnyTask, numbered: tuple[int, Sample]) -> object:
    """Return what the model finds in one image. Raises: OptionError where it cannot be truth."""
    number, sample = numbered
    alone = Dataset(sample.name, [sample])
    (batch,) = samples.batches(alone, model.contract().preprocess, 1)
    (result,) = task.decode(model.forward(batch), batch.geometries)
    if not isinstance(result, Result):
        raise OptionError(
            f"what the task {tasks.name(task)} finds cannot be the truth for another model",
            expected="results with the members of `deploykit.tasks.task.Result`",
        )
    place = batch.geometries[0]
    return result.as_truth(number, (place.height, place.width))
