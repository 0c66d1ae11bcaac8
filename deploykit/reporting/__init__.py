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
    from deploykit.reporting.pictures import Picture

__all__ = ["Joined", "Machine", "Row", "join", "pages", "report", "summary"]
_FORMATS = (".html", ".md")


def summary(records: Sequence[Record]) -> str:
    """Return accuracy, size and speed of every model as a table for a terminal.

    Raises: InputError where there are no records.
    """
    return text.render(_joined(records))


def report(
    records: Sequence[Record],
    output: Path,
    *,
    title: str = sections.TITLE,
    pictures: Sequence[Picture] = (),
) -> tuple[Path, ...]:
    """Return the files written: `output` and the same report in the other format beside it.

    pictures: Shown on the page. Machines are never mixed in one table. The same records give the
    same bytes.

    Raises: InputError where there are no records; OptionError where `output` ends neither in
    .html nor in .md; OutputError.
    """
    joined = _joined(records)
    html, plain = found = pages(output)
    artifacts.write_text(html, page.render(joined, title, pictures))
    artifacts.write_text(plain, markdown.render(joined, title))
    return found


def pages(output: Path) -> tuple[Path, Path]:
    """Return every file that a report called `output` consists of. Raises: OptionError."""
    if output.suffix not in _FORMATS:
        raise OptionError(
            f"a report cannot be written as {output.name!r}",
            expected=f"a name that ends in {' or '.join(_FORMATS)}",
        )
    return output.with_suffix(".html"), output.with_suffix(".md")


def _joined(records: Sequence[Record]) -> Joined:
    if not records:
        raise InputError(
            "there is nothing to report: the files hold no records",
            expected="at least one line that bench, eval or build wrote",
        )
    return join(records)
