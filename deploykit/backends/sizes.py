"""One session for a model of several sizes: each batch runs where its height and width do."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from deploykit.errors import ModelError
from deploykit.graph import canvases
from deploykit.recipes import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.backends.contract import Arrays, Session
    from deploykit.recipes.opened import Opened

    Size = tuple[int, int]
    """Height and width of the images, in pixels."""


def of(model: Opened, open_one: Callable[[Opened], Session]) -> Session:
    """Return a session of a model, which `open_one` opens for one size of image."""
    sizes = canvases.sizes(model.graph)
    if len(sizes) < 2:
        return open_one(model)
    parts = functools.cache(lambda: canvases.split(model.graph))

    def opener(size: Size) -> Callable[[], Session]:
        return lambda: open_one(opened.made(parts()[size], model.path))

    return Sizes({sizes[0]: lambda: open_one(model), **{size: opener(size) for size in sizes[1:]}})


class Sizes:
    """Sessions of one model, one for each size of image; all but the first open when needed."""

    def __init__(self, openers: Mapping[Size, Callable[[], Session]]) -> None:
        """Open the first one, whose inputs and outputs stand for all."""
        self._openers = dict(openers)
        self.sizes = tuple(self._openers)
        first = self._openers[self.sizes[0]]()
        self._open: dict[Size, Session] = {self.sizes[0]: first}
        self.inputs, self.outputs = first.inputs, first.outputs

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return output name -> array for one batch. Raises: ModelError for another size."""
        return self._of(feeds).run(feeds)

    def stepper(
        self, feeds: Arrays, *, transfers: bool, cuda_graph: bool
    ) -> Callable[[], float | None]:
        """Return a function that runs this batch. Raises: ModelError for another size."""
        return self._of(feeds).stepper(feeds, transfers=transfers, cuda_graph=cuda_graph)

    def _of(self, feeds: Arrays) -> Session:
        images = feeds.get(self.inputs[0].name)
        shape = () if images is None else images.shape
        size = (int(shape[2]), int(shape[3])) if len(shape) == 4 else self.sizes[0]
        if size not in self._openers:
            raise ModelError(
                f"images of {size[0]}x{size[1]} pixels",
                expected="one of " + ", ".join(f"{height}x{width}" for height, width in self.sizes),
                fix="export the model for this size too: --input-size takes several",
            )
        if size not in self._open:
            self._open[size] = self._openers[size]()
        return self._open[size]
