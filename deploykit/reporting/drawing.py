"""What charts are made of: inline SVG, in two widths, with axes and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from deploykit.reporting.axes import Axis
from deploykit.reporting.markup import Markup, element, join, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


T = TypeVar("T")
WIDTH, NARROW = 1000, 350
"""Of every chart, in the units of its view box; the second for screens as narrow as a phone's."""
_LINE = 18
"""Height of a further line of text."""
_WIDEST = 7.7
"""Width of a letter that names of modules keep below."""
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
    """Return a drawing of that size, called `title`."""
    return element(
        "svg",
        element("title", title),
        *parts,
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
        role="img",
        aria_label=title,
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a straight line of a style."""
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", class_=kind, **{name: f"{at:.1f}" for name, at in places.items()})


def path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """Return lines from each point to the next, of a style."""
    return element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_=kind)


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


class Bar(NamedTuple):
    """A value as a bar."""

    name: str
    value: float
    text: str
    """Behind it."""
    hint: str
    kind: str
    """Style class."""


def bars(title: str, given: Sequence[Bar], width: int, *, tall: int, column: int) -> Markup:
    """Return bars under each other; tall: height of one, column: width of the names beside them.

    In a narrow drawing the names stand above.
    """
    wide = width > NARROW
    axis = Axis(0, max(bar.value for bar in given), column if wide else 0, width - 90)
    step = tall if wide else tall + _LINE
    drawn = [_bar(bar, axis, i * step, tall) for i, bar in enumerate(given)]
    return svg(title, (width, len(given) * step + 4), drawn)


def _bar(bar: Bar, axis: Axis, top: float, tall: int) -> Markup:
    middle = top + tall / 2 + 4
    if axis.start:
        name = short(bar.name, int((axis.start - 10) / _WIDEST))
        label = text(axis.start - 10, middle, name, "label", anchor="end")
    else:
        label = text(0, top + 13, short(bar.name, int(NARROW / _WIDEST)), "label")
        top, middle = top + 13, middle + 13
    length = f"{max(axis(bar.value) - axis.start, 1):.1f}"
    place = {"x": axis.start, "y": top + 5, "width": length, "height": tall - 10, "rx": 3}
    return element(
        "g",
        element("title", bar.hint),
        label,
        element("rect", class_=bar.kind, **place),
        text(axis(bar.value) + 8, middle, bar.text, "value"),
    )
