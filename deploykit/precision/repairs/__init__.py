"""What makes an INT8 model of a trained network better without training it.

Each repair is a module of functions on values in memory; `pipeline.repairing` decides on held-out
images which ones a model gets. `restored` gives the float model that a calibration table is for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.precision import tables
from deploykit.precision.repairs import equalisation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable

NAMES = ("equalise", "observer", "round", "bias")
"""Of the repairs that a user can ask for, in the order in which they are made."""
AUTOMATIC = frozenset(NAMES) - {"round"}
"""Those that are tried where nobody asks: learning takes longer than a calibration."""


def equalised(model: Opened, factors: Mapping[str, tuple[int, ...]]) -> Opened:
    """Return a float model whose channels are divided by `factors`; it computes the same.

    Raises: InputError for factors that do not fit it.
    """
    if not factors:
        return model
    graph = model.copy()
    equalisation.apply(graph, factors)
    return replace(model.altered(graph, ()), factors=dict(factors))


def restored(model: Opened, table: CalibrationTable) -> Opened:
    """Return the float model that `table` holds ranges of: `model`, its channels scaled.

    Raises: StaleTableError for a table of another file; InputError where its factors do not fit.
    """
    tables.check_file(table, model)
    return equalised(model, table.factors)
