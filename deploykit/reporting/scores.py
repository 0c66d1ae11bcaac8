"""Records of accuracy as tables of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.measuring import conditions
from deploykit.reporting.rows import data_key
from deploykit.reporting.tables import ABSENT, Cell, Table, number, score
from deploykit.tasks.task import Display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.measuring.records import AccuracyRecord
    from deploykit.reporting.rows import Joined


def accuracy(joined: Joined) -> Table:
    """Return every score that was measured."""
    shown = {n: display for r in reversed(joined.accuracies) for n, display in r.shown().items()}
    rows = tuple(_scores(record, list(shown)) for record in joined.accuracies)
    titles = (display.title for display in shown.values())
    return Table(
        "Scores",
        ("Model", "Data set", "Images", *titles, "Backend", "Protocol"),
        rows,
        frozenset(range(2, 3 + len(shown))),
    )


def per_class(joined: Joined) -> Table:
    """Return the primary metric of each class, a column per model.

    Of models evaluated on the data set compared on.
    """
    records = [
        record
        for record in joined.accuracies
        if record.per_class and data_key(record) == joined.compared_on
    ]
    shown = [record.shown().get(record.primary, Display(record.primary)) for record in records]
    names = dict.fromkeys(name for record in records for name in record.per_class)
    rows = (
        (Cell(n), *(score(r.per_class.get(n), d) for r, d in zip(records, shown, strict=True)))
        for n in names
    )
    return Table(
        f"{shown[0].title if shown else 'Score'} of each class",
        ("Class", *(record.model for record in records)),
        tuple(rows),
        frozenset(range(1, 1 + len(records))),
    )


def _scores(record: AccuracyRecord, names: Sequence[str]) -> tuple[Cell, ...]:
    settings = (f"{path}={value}" for path, value in conditions.leaves(record.protocol))
    shown = record.shown()
    return (
        Cell(record.model),
        Cell(f"{record.dataset} ({record.dataset_sha256[:12]})"),
        number(record.images, ",.0f"),
        *(score(record.metrics[n], shown[n]) if n in shown else Cell(ABSENT) for n in names),
        Cell(record.backend or ABSENT),
        Cell(", ".join(settings)),
    )
