"""The precision of every layer of every file, as tables of cells."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deploykit.reporting.tables import ABSENT, Cell, Table, share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.measuring.records import ArtifactRecord
    from deploykit.reporting.rows import Joined


def layers(joined: Joined) -> Iterator[tuple[str, Table]]:
    """Yield a line on each file whose layers were read back, and a table of them."""
    for artifact in joined.artifacts:
        if artifact.read_back:
            counts = Counter(layer.precision for layer in artifact.read_back).most_common()
            said = ", ".join(f"{count} {precision}" for precision, count in counts)
            yield f"{artifact.path}: {said}", _table(artifact)


def _table(artifact: ArtifactRecord) -> Table:
    total = sum(layer.macs for layer in artifact.read_back)
    noted = any(layer.note for layer in artifact.read_back)
    rows = tuple(
        (
            Cell(layer.name),
            Cell(layer.op),
            Cell(layer.precision),
            share(layer.macs / total if total else None),
            *([Cell(layer.note or ABSENT)] if noted else []),
        )
        for layer in artifact.read_back
    )
    header = ("Layer", "Op", "Precision", "MACs, %", *(["Note"] if noted else []))
    return Table(f"Layers of {artifact.path}", header, rows, frozenset({3}))
