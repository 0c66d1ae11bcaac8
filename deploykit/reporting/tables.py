"""Rows and records as tables of cells, the same for every format of the report."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit.measuring import conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from deploykit.reporting.rows import Machine, Row
    from deploykit.tasks.task import Display
    from deploykit.values import BenchRecord

ABSENT = "-"
SCOPES = {"device": "model alone", "end-to-end": "image to result"}
_PER_RUN = ("iterations", "warmup_iterations", "batch_size")
"""Protocol entries that the table of latencies shows: no part of a protocol's identity."""


@dataclass(frozen=True)
class Cell:
    """A value as it is printed, and in full where it is a number."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of each row names it."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = field(default_factory=frozenset)
    """Columns of numbers, which stand right."""
    footnotes: tuple[str, ...] = ()


def number(value: float | None, form: str, *, scale: float = 1.0) -> Cell:
    """Return the cell of `value`, printed as `form` after scaling."""
    if value is None:
        return Cell(ABSENT)
    text = format(value * scale, form)
    if not set(text) & set("123456789"):
        text = format(0.0, form)  # not -0.0000
    return Cell(text, float(value))


def milliseconds(seconds: float) -> Cell:
    """Return the cell of a time, in milliseconds with four or more figures."""
    decimals = next((d for limit, d in ((1e-3, 4), (1e-2, 3), (1e-1, 2)) if seconds < limit), 1)
    return number(seconds, f".{decimals}f", scale=1e3)


def rate(fps: float | None) -> Cell:
    """Return the cell of a number of images per second."""
    return number(fps, ".1f" if fps is not None and fps < 1000 else ",.0f")


def size(count: int | None) -> Cell:
    """Return the cell of a file's size in megabytes (10^6 bytes)."""
    return number(count, ".2f" if count is not None and count < 10**8 else ".0f", scale=1e-6)


def share(value: float | None) -> Cell:
    """Return the cell of a share of 0 to 1, in per cent."""
    return number(value, ".1f", scale=100)


def score(value: float | None, display: Display, *, sign: str = "") -> Cell:
    """Return the cell of a metric, in the unit and with the digits that it asks for."""
    cell = number(value, f"{sign}.{display.digits}f", scale=display.scale)
    unit = f" {display.unit}" if display.unit and value is not None else ""
    return Cell(cell.text + unit, cell.value)


def _loss(display: Display) -> str:
    """Return the title of what a metric lost."""
    return f"{display.title} {'drop' if display.higher_is_better else 'rise'}"


def _marked(row: Row, name: str) -> Cell:
    figure = next((figure for figure in row.figures if figure.name == name), None)
    if figure is None:
        return Cell(ABSENT)
    cell = score(figure.value, figure.display)
    known = row.scores_of and figure.value is not None
    return Cell(f"{cell.text}*", cell.value) if known else cell


def _lost(row: Row, name: str) -> Cell:
    figure = next((figure for figure in row.figures if figure.name == name), None)
    return score(figure.drop, figure.display, sign="+") if figure else Cell(ABSENT)


def _scored(rows: Sequence[Row]) -> dict[str, list[Cell]]:
    """Return title -> cells of every metric that summaries show, and of what it lost."""
    columns = {}
    shown = {figure.name: figure.display for row in rows for figure in row.figures}
    for name, display in shown.items():
        columns[display.title] = [_marked(row, name) for row in rows]
        columns[_loss(display)] = [_lost(row, name) for row in rows]
    return columns


def measured(row: Row) -> Cell:
    """Return on which runtime, how much of the way, and in what batches a row was timed."""
    if row.bench is None:
        return Cell("not timed")
    scope = SCOPES.get(row.bench.scope, row.bench.scope)
    return Cell(f"{row.bench.backend}, {scope}, batch {row.bench.batch_size}")


_NAMED: Mapping[str, Callable[[Row], Cell]] = {
    "Model": lambda row: Cell(row.name),
    "Precision": lambda row: Cell(row.precision or ABSENT),
}
_NUMBERS: Mapping[str, Callable[[Row], Cell]] = {
    "Size, MB": lambda row: size(row.bytes),
    "INT8 MACs, %": lambda row: share(row.int8_share),
    "FPS": lambda row: rate(row.bench.fps_wall if row.bench else None),
    "p50, ms": lambda row: milliseconds(row.bench.wall.p50) if row.bench else Cell(ABSENT),
}
_WORDS: Mapping[str, Callable[[Row], Cell]] = {
    "Measured": measured,
    "Engine for": lambda row: Cell(row.target or ABSENT),
    "Notes": lambda row: Cell("; ".join(row.notes)),
}
"""Title -> cell, left and right of the scores."""


def summary(caption: str, rows: Sequence[Row]) -> Table:
    """Return accuracy, size, precision and speed of each row; empty columns are left out."""
    scores = _scored(rows)
    columns = {
        **_cells(_NAMED, rows),
        **scores,
        **_cells(_NUMBERS, rows),
        **_cells(_WORDS, rows),
    }
    marks = [
        f"{_loss(row.primary.display)} is against {row.baseline}"
        for row in rows
        if row.baseline and row.primary
    ]
    marks += [
        f"* scores of {row.scores_of}, which {row.name} was built from; not measured on it"
        for row in rows
        if row.scores_of and row.primary and row.primary.value is not None
    ]
    return _filled(caption, columns, {*scores, *_NUMBERS}, tuple(dict.fromkeys(marks)))


def _cells(
    columns: Mapping[str, Callable[[Row], Cell]], rows: Sequence[Row]
) -> dict[str, list[Cell]]:
    return {title: [cell(row) for row in rows] for title, cell in columns.items()}


def _filled(
    caption: str,
    columns: Mapping[str, Sequence[Cell]],
    numeric: Container[str],
    footnotes: tuple[str, ...],
) -> Table:
    """Return the table of the columns that say something."""
    kept = [t for t, cells in columns.items() if {cell.text for cell in cells} - {ABSENT, ""}]
    return Table(
        caption,
        tuple(kept),
        tuple(zip(*(columns[title] for title in kept), strict=True)),
        frozenset(i for i, title in enumerate(kept) if title in numeric),
        footnotes,
    )


_LATENCY: Mapping[str, Callable[[BenchRecord], Cell]] = {
    "Iterations": lambda record: number(record.wall.count, ",.0f"),
    "Mean, ms": lambda record: milliseconds(record.wall.mean),
    "p50": lambda record: milliseconds(record.wall.p50),
    "p90": lambda record: milliseconds(record.wall.p90),
    "p95": lambda record: milliseconds(record.wall.p95),
    "p99": lambda record: milliseconds(record.wall.p99),
    "Max": lambda record: milliseconds(record.wall.maximum),
    "p50, 95 % interval": lambda record: _interval(record.wall.median_interval),
    "CV, %": lambda record: share(record.wall.variation),
    "FPS, wall": lambda record: rate(record.fps_wall),
    "FPS, device": lambda record: rate(record.fps_device),
}


def _interval(bounds: tuple[float, float] | None) -> Cell:
    if bounds is None:
        return Cell(ABSENT)
    low, high = map(milliseconds, bounds)
    return Cell(f"{low.text} to {high.text}")


def latency(machine: Machine) -> Table:
    """Return the distribution of every measurement on one machine, in milliseconds."""
    timed = [(row, row.bench) for row in machine.rows if row.bench is not None]
    named = letters(machine)
    columns = {
        "Model": [Cell(row.name) for row, _ in timed],
        "Measured": [measured(row) for row, _ in timed],
        **{title: [cell(bench) for _, bench in timed] for title, cell in _LATENCY.items()},
        "Protocol": [Cell(named[_protocol(bench)]) for _, bench in timed],
    }
    few = any(bench.wall.count < conditions.FEW for _, bench in timed)
    notes = (f"With fewer than {conditions.FEW} iterations p99 is the slowest one.",) if few else ()
    caption = "Latency of one batch, in milliseconds of wall time"
    return _filled(caption, columns, set(_LATENCY), notes)


def _protocol(record: BenchRecord) -> tuple[tuple[str, str], ...]:
    facts = ((path, str(value)) for path, value in conditions.leaves(record.protocol))
    return tuple(sorted((path, value) for path, value in facts if path not in _PER_RUN))


def letters(machine: Machine) -> dict[tuple[tuple[str, str], ...], str]:
    """Return protocol -> its letter (A, B ... Z, then 27, 28 ...), in order of appearance."""
    found = dict.fromkeys(_protocol(row.bench) for row in machine.rows if row.bench)
    names = string.ascii_uppercase
    return {key: names[i] if i < len(names) else str(i + 1) for i, key in enumerate(found)}


def protocols(machine: Machine) -> Table:
    """Return every switch of every protocol that was used on one machine."""
    named = letters(machine)
    switches = sorted({name for protocol in named for name, _ in protocol})
    rows = [
        (Cell(switch), *(Cell(dict(protocol).get(switch, ABSENT)) for protocol in named))
        for switch in switches
    ]
    return Table("Protocols", ("Switch", *named.values()), tuple(rows))


def environment(machine: Machine) -> Table:
    """Return what identifies one machine and its software."""
    rows = tuple((Cell(path), Cell(text)) for path, text in machine.facts)
    return Table("What the machine is", ("Fact", "Value"), rows)


def fluctuations(machine: Machine) -> Table:
    """Return what changes from minute to minute, over all measurements on one machine."""
    lasting, seen = dict(machine.facts), dict[str, list[Any]]()
    for row in machine.rows:
        for moment in row.bench.environment.values() if row.bench else ():
            for path, value in conditions.leaves(moment):
                if path not in lasting:
                    seen.setdefault(path, []).append(value)
    rows = tuple((Cell(path), Cell(_extent(values))) for path, values in sorted(seen.items()))
    return Table("How it fared before and after each measurement", ("Reading", "Values"), rows)


def _extent(values: Iterable[Any]) -> str:
    """Return `lowest to highest` of numbers, else every distinct value."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known):
        low, high = min(known), max(known)
        return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
    return ", ".join(dict.fromkeys(map(str, known))) or "not readable"
