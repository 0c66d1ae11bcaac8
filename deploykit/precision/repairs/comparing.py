"""How much noise an INT8 model has in its outputs, beside the float one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deploykit.precision.sensitivity.outputs import Difference
from deploykit.proof import acceptance
from deploykit.tasks.agreement import PaddedRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.backends import Arrays
    from deploykit.recipes.opened import Opened


class Judge:
    """A float model on some inputs, and how far others of the same outputs are from it."""

    def __init__(self, model: Opened, feeds: Sequence[Arrays]) -> None:
        """Run the float model. Raises: ModelError, BackendError."""
        session, _ = acceptance.open_filled(model)
        self._selection = acceptance.selection(model.graph)
        self._feeds = feeds
        self._expected = [session.run(feed) for feed in feeds]

    def noise(self, candidate: Opened) -> float:
        """Return the energy of the errors over that of the outputs about their means.

        The mean over all columns of all outputs, so that none hides another. Rows of detections
        are paired first. Raises: ModelError, BackendError.
        """
        session, _ = acceptance.open_filled(candidate)
        pairing, difference = PaddedRows(self._selection), Difference()
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            pairs = pairing.pairs(session.run(feed), expected, math.inf, math.inf)
            found = {name: pair.found for name, pair in pairs.items()}
            difference.add(found, {name: pair.expected for name, pair in pairs.items()})
        return difference.noise()
