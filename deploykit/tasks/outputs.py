"""What a network's outputs mean, which says how two models' are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

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
