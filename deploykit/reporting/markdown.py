"""The report as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.reporting import sections, verdict
from deploykit.reporting.markup import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from deploykit.reporting.rows import Joined
    from deploykit.reporting.section import Section
    from deploykit.reporting.tables import Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#&~!@]|://|www\.)")
"""What Markdown would not print as it stands: also addresses and names that turn into links."""


def escape(text: object) -> str:
    """Return `text` so that Markdown prints it as it is, on one line."""
    return _SPECIAL.sub(_escaped, plain(text))


def _escaped(match: re.Match[str]) -> str:
    found = match[0]
    if found == "www.":
        return "www\\."
    return f"&#{ord(found)};" if found in "<>&@" else f"\\{found}"


def render(joined: Joined, title: str) -> str:
    """Return the whole report under the heading `title`."""
    lines = [f"# {escape(title)}", ""]
    lines += [f"**{escape(line)}**\n" for line in verdict.verdict(joined)]
    lines += [escape(f"{sections.lead(joined)} {verdict.dated(joined)}"), ""]
    found = sections.warnings(joined)
    if found:
        lines += ["> [!WARNING]", *(f"> - {escape(text)}" for text in found), ""]
    for section in sections.sections(joined):
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> Iterator[str]:
    if not section.tables and not section.folded:
        return
    yield from (f"{'#' * section.level} {escape(section.title)}", "")
    if section.prose:
        yield from (escape(section.prose), "")
    for table in section.tables:
        yield from _table(table)
    for line, table in section.folded:
        yield from ("<details>", f"<summary>{escape(line)}</summary>", "")
        yield from (*_table(table), "</details>", "")


def _table(table: Table) -> Iterator[str]:
    yield from (escape(table.caption), "")
    yield _row(map(escape, table.header))
    yield _row("--:" if i in table.numeric else "---" for i in range(len(table.header)))
    for row in table.rows:
        yield _row(escape(cell.text) for cell in row)
    yield ""
    for note in table.footnotes:
        yield from (escape(note), "")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
