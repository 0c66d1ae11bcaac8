"""Records of measurements -> one Markdown file and one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import InputError, OptionError
from deploykit.files import artifacts
from deploykit.reporting import markdown, page, sections, text
from deploykit.reporting.rows import Joined, Machine, Row, join

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploykit.measuring.records import Record

__all__ = ["Joined", "Machine", "Row", "join", "pages", "report", "summary"]
_FORMATS = {".html": page.render, ".md": markdown.render}


def summary(records: Sequence[Record]) -> str:
    """Return accuracy, size and speed of every model as a table for a terminal.

    Raises: InputError where there are no records.
    """
    return text.render(_joined(records))


def report(
    records: Sequence[Record], output: Path, *, title: str = sections.TITLE
) -> tuple[Path, ...]:
    """Return the files written: `output` and the same report in the other format beside it.

    Machines are never mixed in one table. The same records give the same bytes.

    Raises: InputError where there are no records; OptionError where `output` ends neither in
    .html nor in .md; OutputError.
    """
    joined = _joined(records)
    found = pages(output)
    for path in found:
        artifacts.write_text(path, _FORMATS[path.suffix](joined, title))
    return found


def pages(output: Path) -> tuple[Path, ...]:
    """Return every file that a report called `output` consists of. Raises: OptionError."""
    if output.suffix not in _FORMATS:
        raise OptionError(
            f"a report cannot be written as {output.name!r}",
            expected=f"a name that ends in {' or '.join(_FORMATS)}",
        )
    return tuple(output.with_suffix(suffix) for suffix in _FORMATS)


def _joined(records: Sequence[Record]) -> Joined:
    if not records:
        raise InputError(
            "there is nothing to report: the files hold no records",
            expected="at least one line that bench, eval or build wrote",
        )
    return join(records)
