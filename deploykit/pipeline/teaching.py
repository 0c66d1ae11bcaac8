"""What one model finds, as the truth that another is judged by."""

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
    from deploykit.data.sources import Sample
    from deploykit.pipeline.opening import Model
    from deploykit.tasks import AnyTask


def told_by(model: Model, data: Dataset, task: str | AnyTask | None = None) -> Dataset:
    """Return a data set with the same images, and what `model` finds in each as the truth.

    It runs when the truth about an image is asked for. task: The model's; None: as its file says.
    """
    chosen = model.task(task)
    return Dataset(
        f"{data.name}, by what {model.path.name} finds",
        [
            replace(sample, truth=partial(_told, model, chosen, (i, sample)))
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
