"""A part of a report, before it takes a format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.reporting.markup import Markup
    from deploykit.reporting.tables import Table


@dataclass(frozen=True)
class Section:
    """A heading with tables and charts under it."""

    title: str
    prose: str = ""
    tables: tuple[Table, ...] = ()
    charts: tuple[tuple[str, Markup], ...] = ()
    """Caption and drawing; formats without drawings leave them out."""
    level: int = 2
    folded: tuple[tuple[str, Table], ...] = ()
    """A line each, and the table that it opens."""


def filled(*found: Table) -> tuple[Table, ...]:
    """Return the tables that have rows."""
    return tuple(table for table in found if table.rows)
