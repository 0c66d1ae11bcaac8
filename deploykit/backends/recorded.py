"""A session of what a model gave on inputs that it ran on before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.backends.contract import Arrays
    from deploykit.values import TensorSpec


@dataclass(frozen=True)
class Recorded:
    """What a model gave on some inputs, to be compared with another that runs on the same."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feeds: Sequence[Arrays]
    results: Sequence[Mapping[str, NDArray[np.generic]]]
    """Of each of `feeds`."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return what the model gave on one of `self.feeds`. Raises: ValueError for others."""
        for known, result in zip(self.feeds, self.results, strict=True):
            if known is feeds:
                return dict(result)
        raise ValueError("the model was not run on this input")

    def stepper(
        self, feeds: Arrays, *, transfers: bool, cuda_graph: bool
    ) -> Callable[[], float | None]:
        """Return nothing: there is no model to run. Raises: NotImplementedError."""
        raise NotImplementedError
