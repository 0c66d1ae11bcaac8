"""What charts are made of: inline SVG, in two widths, with axes and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from deploykit.reporting.markup import Markup, element, join, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deploykit.reporting.axes import Axis

T = TypeVar("T")
WIDTH, NARROW = 1000, 350
"""Of every chart, in the units of its view box; the second for screens as narrow as a phone's."""
LETTER = 6.4
"""Width of a letter, about."""
MARGIN = 14


def horizontal(axis: Axis, top: float, bottom: float, unit: str) -> Markup:
    """Return the grid lines and figures of an axis from left to right."""
    parts: list[Markup] = []
    for tick in axis.ticks(8 if axis.end > NARROW else 5):
        x = axis(tick)
        parts += [
            line(x, top, x, bottom, "grid"),
            text(x, bottom + 16, f"{tick:g}", "tick", anchor="middle"),
        ]
    return join([*parts, text(axis.end, bottom + 34, unit, "tick", anchor="end")])


def vertical(axis: Axis, across: Axis, title: str) -> Markup:
    """Return the grid lines and figures of an axis from bottom to top."""
    parts: list[Markup] = []
    for tick in axis.ticks():
        y = axis(tick)
        parts += [
            line(across.start, y, across.end, y, "grid"),
            text(across.start - 8, y + 4, f"{tick:g}", "tick", anchor="end"),
        ]
    return join([*parts, text(across.start + 6, MARGIN + 4, title, "tick")])


def svg(title: str, size: tuple[float, float], parts: Sequence[Markup]) -> Markup:
    """Return the grid lines and figures of an axis from bottom to top."""
    return element(
        "svg",
        element("title", title),
        *parts,
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
        role="img",
        aria_label=title,
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a drawing of that size, called `title`."""
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", class_=kind, **{name: f"{at:.1f}" for name, at in places.items()})


def text(x: float, y: float, text: str, kind: str, *, anchor: str | None = None) -> Markup:
    """Return a line of a style."""
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind, text_anchor=anchor)


def cut(text: str, axis: Axis) -> str:
    """Return as much of a text as an axis is wide."""
    return short(text, int((axis.end - axis.start) / LETTER))


def short(name: str, most: int = 32) -> str:
    """Return a name of at most so many letters."""
    text = plain(name)
    return text if len(text) <= most else text[: max(most - 1, 1)] + "\u2026"


def both(draw: Callable[[T, int], Markup | None], given: T) -> Markup | None:
    """Return a chart for wide screens and for narrow ones, of which the style sheet shows one."""
    wide, narrow = draw(given, WIDTH), draw(given, NARROW)
    if wide is None or narrow is None:
        return None
    return join([element("div", wide, class_="wide"), element("div", narrow, class_="narrow")])
