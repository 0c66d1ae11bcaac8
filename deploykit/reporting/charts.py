"""Rows as charts: inline SVG whose colours and fonts the page's style sheet sets."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deploykit.reporting import drawing
from deploykit.reporting.axes import Axis, spanning
from deploykit.reporting.drawing import LETTER, MARGIN, NARROW, WIDTH
from deploykit.reporting.markup import Markup, element
from deploykit.reporting.tables import measured, milliseconds, rate, size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deploykit.reporting.rows import Row
    from deploykit.values import BenchRecord

_ROW, _LINE = 64, 18
"""Height of one latency distribution, its label included, and of a further line of text."""
_BINS = 90
_LABEL = 260
"""Width of the column of names left of the bars."""
_BAR = 30
_SCATTER = 340

_LEAST_STEPS = 200
"""Height of the axis of scores, at least, in steps of the last digit that is shown: differences
below it must look small."""


def latencies(rows: Sequence[Row], width: int = WIDTH) -> Markup | None:
    """Return the distribution of the wall time of every timed row; None where there is none.

    All rows share one axis, which ends a little after the slowest 99th percentile; how many
    iterations lie beyond it is written at its end.
    """
    timed = [(row, row.bench) for row in rows if row.bench is not None]
    if not timed:
        return None
    figures = [bench.wall for _, bench in timed]
    ends = [wall.minimum for wall in figures] + [wall.p99 for wall in figures]
    axis = spanning([end * 1e3 for end in ends], MARGIN, width - MARGIN)
    tall = _ROW if width == WIDTH else _ROW + _LINE
    bottom = len(timed) * tall
    drawn = [_distribution(row, bench, axis, i * tall) for i, (row, bench) in enumerate(timed)]
    marks = drawing.horizontal(axis, 0, bottom, "milliseconds per batch")
    title = "Distribution of the latency of each model"
    return drawing.svg(title, (width, bottom + 44), [marks, *drawn])


def _distribution(row: Row, bench: BenchRecord, axis: Axis, top: float) -> Markup:
    is_wide = axis.end > NARROW
    base, wall = top + _ROW - 6 + (0 if is_wide else _LINE), bench.wall
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
    label = f"{drawing.short(row.name)}, {measured(row).text}"
    if beyond:
        note += f"; {beyond} slower, up to {milliseconds(wall.maximum).text} ms"
    return element(
        "g",
        element("title", f"{row.name}: {note}"),
        element("path", d=f"M{axis.start} {base}{outline}V{base}Z", class_=_colour(row)),
        drawing.line(axis.start, base, axis.end, base, "grid"),
        drawing.line(p50, base - _ROW + 28, p50, base + 4, "median"),
        drawing.line(p99, base - 12, p99, base + 4, "tail"),
        drawing.text(axis.start, top + 14, label if is_wide else drawing.cut(label, axis), "label"),
        drawing.text(axis.end, top + 14, note, "value", anchor="end")
        if is_wide
        else drawing.text(axis.start, top + 14 + _LINE, drawing.cut(note, axis), "value"),
    )


def trade_off(rows: Sequence[Row], width: int = WIDTH) -> Markup | None:
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
    across = spanning([fps for _, fps, _ in known], 64, width - MARGIN, margin=0.15)
    scores = [value for _, _, value in known]
    middle = (min(scores) + max(scores)) / 2
    room = _LEAST_STEPS * 10.0**-display.digits / 2
    ends = (_SCATTER, MARGIN) if display.higher_is_better else (MARGIN, _SCATTER)
    up = spanning([*scores, middle - room, middle + room], *ends, margin=0.25)
    title = f"{display.title}, {display.unit}" if display.unit else display.title
    marks = [
        drawing.horizontal(across, MARGIN, _SCATTER, "images per second"),
        drawing.vertical(up, across, title),
    ]
    taken: list[tuple[float, float]] = []
    for row, fps, value in sorted(known, key=lambda point: up(point[2])):
        note = f"{display.title} {value:.{display.digits}f}, {rate(fps).text} FPS"
        marks.append(_point(row, (across(fps), up(value), width), note, taken))
    said = "Accuracy against speed: up and to the right is better"
    return drawing.svg(said, (width, _SCATTER + 44), marks)


def _point(
    row: Row, place: tuple[float, float, int], note: str, taken: list[tuple[float, float]]
) -> Markup:
    """Return a labelled point; the label moves down until it covers none that is `taken`.

    place: The point, and the width of the chart.
    """
    x, y, width = place
    left = x > width * 0.6  # else the label would leave the chart
    at = y + 4
    while any(abs(at - other) < 15 and abs(x - column) < width / 2 for column, other in taken):
        at += 15
    taken.append((x, at))
    batch = f"batch {row.bench.batch_size}" if row.bench else ""
    room = int(((x if left else width - x) - 20) / LETTER)
    name = drawing.short(
        ", ".join(filter(None, (drawing.short(row.name), row.precision, batch))), room
    )
    return element(
        "g",
        element("title", f"{row.name}, {measured(row).text}: {note}"),
        element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=6, class_=_colour(row)),
        drawing.text(
            x - 11 if left else x + 11, at, name, "label", anchor="end" if left else "start"
        ),
    )


def sizes(rows: Sequence[Row], width: int = WIDTH) -> Markup | None:
    """Return a bar per file whose size is known, each file once; None for fewer than two."""
    files = {(row.name, row.bytes): row for row in rows if row.bytes}
    if len(files) < 2:
        return None
    bars = [
        drawing.Bar(
            row.name,
            row.bytes or 0,
            f"{size(row.bytes).text} MB",
            f"{row.name}: {row.bytes} bytes",
            _colour(row),
        )
        for row in files.values()
    ]
    return drawing.bars("File size of each model", bars, width, tall=_BAR, column=_LABEL)


def _colour(row: Row) -> str:
    """Return the style class of the row's main precision."""
    main = row.precision.split(" ")[0]
    return main if main in {"int8", "fp16", "fp32"} else "other"


CHARTS: dict[str, Callable[[Sequence[Row], int], Markup | None]] = {
    "Accuracy against speed": trade_off,
    "Latency distribution": latencies,
}
"""Caption -> chart of the rows of one machine, in a width."""
