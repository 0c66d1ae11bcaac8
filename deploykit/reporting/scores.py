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


def accuracy(joined: Joined) -> tuple[Table, ...]:
    """Return every score that was measured, a table for each task: their columns differ."""
    groups: dict[str, list[AccuracyRecord]] = {}
    for record in joined.accuracies:
        groups.setdefault(record.primary, []).append(record)
    return tuple(_of_task(records, alone=len(groups) == 1) for records in groups.values())


def _of_task(records: Sequence[AccuracyRecord], *, alone: bool) -> Table:
    """Return the scores of one task; alone: there is no other to tell it from."""
    shown = {n: display for r in reversed(records) for n, display in r.shown().items()}
    titles = [display.title for display in shown.values()]
    first = shown.get(records[0].primary, Display(records[0].primary))
    return Table(
        "Scores" if alone else f"{first.title} and what else was measured with it",
        ("Model", "Data set", "Images", *titles, "Backend", "Protocol"),
        tuple(_scores(record, list(shown)) for record in records),
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
