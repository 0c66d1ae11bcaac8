"""The tables of the report as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.reporting import sections
from deploykit.reporting.markup import plain

if TYPE_CHECKING:
    from deploykit.reporting.rows import Joined
    from deploykit.reporting.tables import Table


def render(joined: Joined) -> str:
    """Return the summary of each machine, and how many measurements `bench` warned of.

    What it warned of it has said in this terminal already; the pages tell it again.
    """
    parts = [_table(table) for table in sections.summaries(joined)]
    parts += [f"warning: {plain(text)}" for text in sections.mixed(joined)]
    count = sections.warned(joined)
    if count:
        parts.append(f"warning: bench warned of {count} of the measurements, as the report says")
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    rows = (table.header, *((cell.text for cell in row) for row in table.rows))
    lines = [list(map(plain, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        "  ".join(
            text.rjust(width) if i in table.numeric else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return "\n".join([plain(table.caption), *aligned, *map(plain, table.footnotes)])
