"""A model as a function: from an image to what is in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deploykit.data import images, samples
from deploykit.data.sources import Dataset, Sample
from deploykit.errors import DataError
from deploykit.pipeline.opening import open_model
from deploykit.recipes.describing import NOTHING
from deploykit.tasks.task import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Pixels
    from deploykit.pipeline.made import StrPath
    from deploykit.pipeline.opening import Model
    from deploykit.recipes.describing import Description
    from deploykit.tasks import AnyTask
    from deploykit.values import Json

    Proposals = NDArray[np.generic] | Callable[[Pixels], Floats]


@dataclass(frozen=True)
class Predictor:
    """A model as a function of an image."""

    model: Model
    task: AnyTask

    def __repr__(self) -> str:
        """Return what runs where, in one line."""
        card = self.model.contract()
        height, width = card.preprocess.size
        what = f"{card.task}, {len(card.class_names)} classes, {height}x{width}"
        return f"<Predictor {self.model.path.name}, {what}, {self.model.backend}>"

    def __call__(
        self, image: Pixels | Image.Image | StrPath, proposals: Proposals | None = None
    ) -> Any:  # noqa: ANN401 - each task finds its own
        """Return what the model finds in one image, in its own pixels, as the task has it.

        Args:
            image: uint8[H, W, 3], RGB; a picture of Pillow's; or a file.
            proposals: Regions where objects may be, for models that take such: float32[n, 4], x1,
                y1, x2, y2 in pixels of the image, or what gives them for its pixels.

        Raises: DataError for anything else; what the model and its task raise.
        """
        found = None if proposals is None else _regions(proposals)
        read = partial(_pixels, image)
        alone = Dataset("one image", [Sample("the image", read, proposals=found)])
        (batch,) = samples.batches(alone, self.model.contract().preprocess, 1)
        (found,) = self.task.decode(self.model.forward(batch), batch.geometries)
        return found

    def draw(self, image: Pixels | Image.Image | StrPath, found: Any) -> Pixels:  # noqa: ANN401 - as above
        """Return a picture, uint8[h, w, 3], of an image and what was found in it."""
        return self.task.draw(_pixels(image), found, self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the model's classes."""
        return self.model.contract().class_names

    def said(self, found: Any) -> str:  # noqa: ANN401 - as above
        """Return in a few words what was found."""
        return found.said(self.class_names) if isinstance(found, Result) else str(found)

    def to_json(self, found: Any, size: tuple[int, int]) -> Json:  # noqa: ANN401 - as above
        """Return what was found as plain JSON values; size: H and W of the image."""
        if isinstance(found, Result):
            return found.to_json(self.class_names, size)
        return {"value": np.asarray(found).tolist()}


def _pixels(image: Pixels | Image.Image | StrPath) -> Pixels:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, (str, os.PathLike)):
        return images.decode(Path(image))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        found = f"{image.dtype} array" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(
            f"the image is a {found}",
            expected="a uint8[H, W, 3] array of 0 to 255, RGB; a picture of Pillow's; or a path",
        )
    return image


def _regions(given: Proposals) -> Callable[[Pixels], Floats]:
    """Return what gives the regions of an image. Raises: DataError."""
    if callable(given):
        return given
    regions = np.asarray(given)
    fits = regions.ndim == 2 and regions.shape[1] == 4 and regions.dtype.kind in "fiu"
    if not fits or not np.isfinite(regions).all():
        raise DataError(
            f"the proposals are {regions.dtype}{list(regions.shape)}",
            expected="finite numbers [n, 4]: x1, y1, x2, y2 in pixels of the image",
        )
    return lambda _: regions.astype(np.float32)


@dataclass(frozen=True)
class PredictOptions:
    """How models are run, and what another one is compared with."""

    against: StrPath | None = None
    """Another model of the same task, drawn beside, with what differs."""
    recipe: str | None = None
    backend: str | None = None
    threads: int = 0
    about: Description = NOTHING
    """What the files do not say themselves."""
    predictions: StrPath | None = None
    """Folder for what the model finds, in the files that the makers of a data set take."""


def load(
    path: StrPath, options: PredictOptions | None = None, *, task: str | AnyTask | None = None
) -> Predictor:
    """Return the model in a checkpoint, an ONNX file or an engine as a function of an image.

    task: The model's, by name or as a value of your own; None: the one that its file names.

    Raises: InputError, BackendError.
    """
    wanted = options or PredictOptions()
    model = open_model(
        path,
        backend=wanted.backend,
        recipe=wanted.recipe,
        threads=wanted.threads,
        about=wanted.about,
    )
    model.check_images()
    return Predictor(model, model.task(task))
