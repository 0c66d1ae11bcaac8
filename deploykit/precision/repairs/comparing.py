"""How much noise an INT8 model has in its outputs, beside the float one.

The noise of one image is the energy of the errors over that of the outputs about their mean, the
mean over all columns of all outputs, so that none hides another. That of several is the geometric
mean of theirs. Their pooled energy would be that of the few images with the largest outputs, which
alone would decide how far ranges reach; and a repair that doubles the noise of one and halves that
of the next should come out even. Columns of a few numbers, such as the two scores of a classifier
of two classes, vary from image to image alone: these are pooled. Outputs that vary nowhere have no
mean to be told from: there it is the energy of the errors over that of the outputs as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from deploykit.precision.sensitivity.outputs import Difference
from deploykit.proof import acceptance
from deploykit.tasks.agreement import PaddedRows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.backends import Arrays
    from deploykit.recipes.opened import Opened
    from deploykit.tasks.task import Pair

_SEVERAL = 16
"""Values of a column from which on one image says how much it varies."""
NONE = 1e-12
"""Noise that counts as none, 120 dB."""


class Noise:
    """The errors of a model's outputs, image by image."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._all = Difference()
        self._each: list[Difference] = []

    def add(self, pairs: Mapping[str, Pair]) -> None:
        """Take in what both models find in one image, rows of detections paired."""
        one = Difference()
        found = {name: pair.found for name, pair in pairs.items()}
        expected = {name: pair.expected for name, pair in pairs.items()}
        for difference in (self._all, one):
            difference.add(found, expected)
        self._each.append(one)

    @property
    def constant(self) -> bool:
        """Return whether no output varies, over places and images."""
        return not any(np.isfinite(each).any() for each in self._all.shares().values())

    def typical(self) -> float | None:
        """Return the noise of a typical image; None where there are no outputs, or only zeros."""
        pooled = self._all.shares()
        logarithms = []
        for each in self._each:
            own = each.shares(_SEVERAL)
            shares = [
                np.where(np.isfinite(own[name]), own[name], pooled[name])
                for name in own
                if own[name].shape == pooled[name].shape
            ]
            known = [share for those in shares for share in those[np.isfinite(those)]]
            if known:
                logarithms.append(math.log(max(float(np.mean(known)), NONE)))
        if logarithms:
            return math.exp(sum(logarithms) / len(logarithms))
        return self._all.plain() if self.constant else None


class Judge:
    """A float model on some inputs, and how far others of the same outputs are from it."""

    def __init__(self, model: Opened, feeds: Sequence[Arrays]) -> None:
        """Open the float model. Raises: ModelError, BackendError."""
        self._session, _ = acceptance.open_filled(model)
        self._selection = acceptance.selection(model.graph)
        self._feeds = feeds
        self._expected: list[Arrays] = []

    def noise(self, candidate: Opened, images: int | None = None) -> Noise:
        """Return what the outputs of another model are off by.

        images: the first ones; None: all. Raises: ModelError, BackendError.
        """
        feeds = self._feeds[:images]
        for feed in feeds[len(self._expected) :]:
            self._expected.append(self._session.run(feed))
        session, _ = acceptance.open_filled(candidate)
        pairing, noise = PaddedRows(self._selection), Noise()
        for feed, expected in zip(feeds, self._expected, strict=False):
            noise.add(pairing.pairs(session.run(feed), expected, math.inf, math.inf))
        return noise
