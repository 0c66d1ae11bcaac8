"""The report as one HTML page that loads nothing: no script, no font; pictures are inside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.reporting import sections, verdict
from deploykit.reporting.markup import Markup, element, join

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.reporting.pictures import Picture
    from deploykit.reporting.rows import Joined
    from deploykit.reporting.section import Section
    from deploykit.reporting.tables import Cell, Table

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
"""Even markup that got in by mistake could neither run nor load anything."""
_COLOURS = {"int8": "int8", "fp16": "fp16", "fp32": "fp32", "other": "not read back"}


def render(joined: Joined, title: str, pictures: Sequence[Picture] = ()) -> str:
    """Return the whole page under the heading `title`."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(style)),
    )
    found = map(_section, sections.sections(joined))
    body = element(
        "body",
        element(
            "header",
            element("h1", title),
            *(element("p", line, class_="verdict") for line in verdict.verdict(joined)),
            element("p", f"{sections.lead(joined)} {verdict.dated(joined)}", class_="lead"),
        ),
        element("main", _warnings(joined), _seen(pictures), *found),
        element("footer", "Made by deploykit from records of measurements."),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _warnings(joined: Joined) -> Markup:
    found = sections.warnings(joined)
    if not found:
        return Markup()
    items = join(element("li", text) for text in found)
    heading = element("h2", "Before you compare", id="warnings")
    return element(
        "section", heading, element("ul", items), class_="warnings", aria_labelledby="warnings"
    )


def _seen(pictures: Sequence[Picture]) -> Markup:
    """Return a few pictures of what models find."""
    if not pictures:
        return Markup()
    shown = (
        element(
            "figure",
            element("img", src=picture.data, alt=picture.alt),
            element("figcaption", picture.caption),
        )
        for picture in pictures
    )
    return element(
        "section", element("h2", "What the models find"), element("div", *shown, class_="seen")
    )


def _section(section: Section) -> Markup:
    first, rest = section.tables[:1], section.tables[1:]
    prose = element("p", section.prose) if section.prose else Markup()
    return element(
        "section",
        element(f"h{section.level}", section.title),
        prose,
        *map(_table, first),
        *(_figure(caption, drawing) for caption, drawing in section.charts),
        *map(_table, rest),
        *(
            element("details", element("summary", line), _table(table))
            for line, table in section.folded
        ),
    )


def _figure(caption: str, drawing: Markup) -> Markup:
    key = join(
        element("li", text, class_=kind)
        for kind, text in _COLOURS.items()
        if f'class="{kind}"' in drawing
    )
    return element(
        "figure", element("figcaption", caption), drawing, element("ul", key, class_="key")
    )


def _table(table: Table) -> Markup:
    kinds = ["number" if i in table.numeric else None for i in range(len(table.header))]
    header = join(
        element("th", title, scope="col", class_=kind)
        for title, kind in zip(table.header, kinds, strict=True)
    )
    body = (
        element(
            "tr",
            element("th", row[0].text, scope="row"),
            *(
                element("td", _cell(c), class_=kind, data_title=title)
                for c, kind, title in zip(row[1:], kinds[1:], table.header[1:], strict=True)
            ),
        )
        for row in table.rows
    )
    drawn = element(
        "table",
        element("caption", table.caption),
        element("thead", element("tr", header)),
        element("tbody", *body),
        class_=None if table.numeric else "facts",
    )
    notes = join(element("p", note, class_="footnote") for note in table.footnotes)
    # A table wider than the screen scrolls; tabindex lets the keyboard scroll it.
    return join([element("div", drawn, class_="scroll", tabindex=0), notes])


def _cell(cell: Cell) -> Markup:
    """Return the text of a cell, with the number in full beside the printed one."""
    if cell.value is None:
        return element("span", cell.text)
    return element("data", cell.text, value=repr(cell.value))
