"""Rows as charts: inline SVG whose colours and fonts the page's style sheet sets."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deploykit.reporting.axes import Axis, spanning
from deploykit.reporting.markup import Markup, element, join, plain
from deploykit.reporting.tables import measured, milliseconds, rate, size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deploykit.reporting.rows import Row
    from deploykit.values import BenchRecord

WIDTH = 1000
"""Of every chart, in the units of its view box."""
_MARGIN = 14
_ROW = 64
"""Height of one latency distribution, its label included."""
_BINS = 90
_LABEL = 260
"""Width of the column of names left of the bars."""
_BAR = 30
_SCATTER = 340

_LEAST_STEPS = 200
"""Height of the axis of scores, at least, in steps of the last digit that is shown: differences
below it must look small."""


def latencies(rows: Sequence[Row]) -> Markup | None:
    """Return the distribution of the wall time of every timed row; None where there is none.

    All rows share one axis, which ends a little after the slowest 99th percentile; how many
    iterations lie beyond it is written at its end.
    """
    timed = [(row, row.bench) for row in rows if row.bench is not None]
    if not timed:
        return None
    figures = [bench.wall for _, bench in timed]
    ends = [wall.minimum for wall in figures] + [wall.p99 for wall in figures]
    axis = spanning([end * 1e3 for end in ends], _MARGIN, WIDTH - _MARGIN)
    bottom = len(timed) * _ROW
    drawn = [_distribution(row, bench, axis, i * _ROW) for i, (row, bench) in enumerate(timed)]
    marks = _horizontal(axis, 0, bottom, "milliseconds per batch")
    return _svg("Distribution of the latency of each model", bottom + 44, [marks, *drawn])


def _distribution(row: Row, bench: BenchRecord, axis: Axis, top: float) -> Markup:
    base, wall = top + _ROW - 6, bench.wall
    counts = [0] * _BINS
    inside = [s * 1e3 for s in bench.seconds if s * 1e3 <= axis.high]
    for value in inside:
        part = (axis(value) - axis.start) / (axis.end - axis.start)
        counts[min(int(part * _BINS), _BINS - 1)] += 1
    step, tall = (axis.end - axis.start) / _BINS, (_ROW - 28) / max(1, *counts)
    outline = "".join(f"V{base - n * tall:.1f}h{step:.2f}" for n in counts)
    beyond = len(bench.seconds) - len(inside)
    p50, p99 = (axis(value * 1e3) for value in (wall.p50, wall.p99))
    note = f"p50 {milliseconds(wall.p50).text} ms, p99 {milliseconds(wall.p99).text} ms"
    if beyond:
        note += f"; {beyond} slower, up to {milliseconds(wall.maximum).text} ms"
    return element(
        "g",
        element("title", f"{row.name}: {note}"),
        element("path", d=f"M{axis.start} {base}{outline}V{base}Z", class_=_colour(row)),
        _line(axis.start, base, axis.end, base, "grid"),
        _line(p50, base - _ROW + 28, p50, base + 4, "median"),
        _line(p99, base - 12, p99, base + 4, "tail"),
        _text(axis.start, top + 14, f"{_short(row.name)}, {measured(row).text}", "label"),
        _text(axis.end, top + 14, note, "value", anchor="end"),
    )


def trade_off(rows: Sequence[Row]) -> Markup | None:
    """Return the primary metric against FPS, a point per row that has both; None for fewer than 2.

    Of the scopes `device` and `end-to-end` only the one that most rows have is drawn.
    """
    timed = [(row, row.bench) for row in rows if row.bench is not None]
    scope = Counter(bench.scope for _, bench in timed).most_common(1)
    known = [
        (row, bench.fps_wall, row.primary.value * row.primary.display.scale)
        for row, bench in timed
        if row.primary and row.primary.value is not None and bench.scope == scope[0][0]
    ]
    if len(known) < 2:
        return None
    display = next(row.primary.display for row, _, _ in known if row.primary)
    across = spanning([fps for _, fps, _ in known], 64, WIDTH - _MARGIN, margin=0.15)
    scores = [value for _, _, value in known]
    middle = (min(scores) + max(scores)) / 2
    room = _LEAST_STEPS * 10.0**-display.digits / 2
    ends = (_SCATTER, _MARGIN) if display.higher_is_better else (_MARGIN, _SCATTER)
    up = spanning([*scores, middle - room, middle + room], *ends, margin=0.25)
    title = f"{display.title}, {display.unit}" if display.unit else display.title
    marks = [
        _horizontal(across, _MARGIN, _SCATTER, "images per second"),
        _vertical(up, across, title),
    ]
    taken: list[tuple[float, float]] = []
    for row, fps, value in sorted(known, key=lambda point: up(point[2])):
        note = f"{display.title} {value:.{display.digits}f}, {rate(fps).text} FPS"
        marks.append(_point(row, across(fps), up(value), note, taken))
    return _svg("Accuracy against speed: up and to the right is better", _SCATTER + 44, marks)


def _point(row: Row, x: float, y: float, note: str, taken: list[tuple[float, float]]) -> Markup:
    """Return a labelled point; the label moves down until it covers none that is `taken`."""
    left = x > WIDTH * 0.6  # else the label would leave the chart
    at = y + 4
    while any(abs(at - other) < 15 and abs(x - column) < WIDTH / 2 for column, other in taken):
        at += 15
    taken.append((x, at))
    batch = f"batch {row.bench.batch_size}" if row.bench else ""
    name = ", ".join(filter(None, (_short(row.name), row.precision, batch)))
    return element(
        "g",
        element("title", f"{row.name}, {measured(row).text}: {note}"),
        element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=6, class_=_colour(row)),
        _text(x - 11 if left else x + 11, at, name, "label", anchor="end" if left else "start"),
    )


def sizes(rows: Sequence[Row]) -> Markup | None:
    """Return a bar per file whose size is known, each file once; None for fewer than two."""
    files = {(row.name, row.bytes): row for row in rows if row.bytes}
    if len(files) < 2:
        return None
    largest = max(row.bytes or 0 for row in files.values())
    axis = Axis(0, largest, _LABEL, WIDTH - 90)
    bars = [_size_bar(row, axis, i * _BAR) for i, row in enumerate(files.values())]
    return _svg("File size of each model", len(files) * _BAR + 4, bars)


def _size_bar(row: Row, axis: Axis, top: float) -> Markup:
    end = axis(row.bytes or 0)
    return element(
        "g",
        element("title", f"{row.name}: {row.bytes} bytes"),
        _text(_LABEL - 10, top + 19, _short(row.name), "label", anchor="end"),
        element(
            "rect",
            x=axis.start,
            y=top + 5,
            width=f"{max(end - axis.start, 1):.1f}",
            height=_BAR - 10,
            rx=3,
            class_=_colour(row),
        ),
        _text(end + 8, top + 19, f"{size(row.bytes).text} MB", "value"),
    )


def _horizontal(axis: Axis, top: float, bottom: float, unit: str) -> Markup:
    """Return the grid lines and figures of an axis from left to right."""
    parts: list[Markup] = []
    for tick in axis.ticks():
        x = axis(tick)
        parts += [
            _line(x, top, x, bottom, "grid"),
            _text(x, bottom + 16, f"{tick:g}", "tick", anchor="middle"),
        ]
    return join([*parts, _text(axis.end, bottom + 34, unit, "tick", anchor="end")])


def _vertical(axis: Axis, across: Axis, title: str) -> Markup:
    parts: list[Markup] = []
    for tick in axis.ticks():
        y = axis(tick)
        parts += [
            _line(across.start, y, across.end, y, "grid"),
            _text(across.start - 8, y + 4, f"{tick:g}", "tick", anchor="end"),
        ]
    return join([*parts, _text(across.start + 6, _MARGIN + 4, title, "tick")])


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    return element(
        "svg",
        element("title", title),
        *parts,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_label=title,
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", class_=kind, **{name: f"{at:.1f}" for name, at in places.items()})


def _text(x: float, y: float, text: str, kind: str, *, anchor: str | None = None) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind, text_anchor=anchor)


def _short(name: str, most: int = 32) -> str:
    text = plain(name)
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _colour(row: Row) -> str:
    """Return the style class of the row's main precision."""
    main = row.precision.split(" ")[0]
    return main if main in {"int8", "fp16", "fp32"} else "other"


CHARTS: dict[str, Callable[[Sequence[Row]], Markup | None]] = {
    "Accuracy against speed": trade_off,
    "Latency distribution": latencies,
}
"""Caption -> chart of the rows of one machine."""
