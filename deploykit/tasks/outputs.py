"""What a network's outputs mean, which says how two models' are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from deploykit.errors import ProofError

if TYPE_CHECKING:
    from numpy.typing import NDArray

OutputKind: TypeAlias = Literal[
    "logits",
    "scores",
    "boxes",
    "classes",
    "count",
    "rows",
    "label_map",
    "mask",
    "heatmap",
    "values",
]
"""What the numbers of an output mean, which says how two models' are compared: logits and scores
by the order of classes, boxes in pixels, classes, counts and label maps exactly, masks by overlap,
heatmaps by their peaks; rows are boxes and scores side by side; values are only numbers."""


@dataclass(frozen=True)
class Output:
    """One result of a network: its name in the ONNX file, and what its numbers mean."""

    name: str
    kind: OutputKind

    @property
    def has_columns(self) -> bool:
        """Return whether its last axis may hold quantities of different units."""
        return self.kind in _COLUMNS


_COLUMNS = ("boxes", "rows", "values")


def check_finite(values: NDArray[Any], what: str) -> None:
    """Raise ProofError where `what`, e.g. "a class score", is NaN or infinity."""
    if not np.isfinite(values).all():
        raise ProofError(
            f"{what} is NaN or infinity",
            expected="finite numbers",
            fix="check the weights; in FP16, keep the layers that overflow in FP32",
        )
