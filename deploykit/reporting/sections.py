"""What a report says and in which order, before it takes a format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.reporting import charts, choices, drawing, layers, learning, scores, tables
from deploykit.reporting.rows import data_key
from deploykit.reporting.section import Section, filled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from deploykit.reporting.markup import Markup
    from deploykit.reporting.rows import Joined, Machine
    from deploykit.reporting.tables import Table

TITLE = "Deployment report"


def lead(joined: Joined) -> str:
    """Return one sentence on what was measured."""
    files = len({(row.name, row.bytes) for row in joined.rows})
    machines = len(joined.machines)
    timed = f"timed on {_count(machines, 'machine')}" if machines else "none of them timed"
    text = f"{_count(files, 'model')}, {timed}."
    if joined.compared_on:
        name, sha256, images, *_ = joined.compared_on
        text += f" Scores are those on {name} ({_count(images, 'image')}, {sha256[:12]})."
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def warnings(joined: Joined) -> tuple[str, ...]:
    """Return everything that a reader must know before comparing the figures."""
    found = [text for machine in joined.machines for text in _warnings(machine)]
    found += [f"{row.model}: {text}" for row in joined.accuracies for text in row.warnings]
    return (*found, *mixed(joined))


def mixed(joined: Joined) -> tuple[str, ...]:
    """Return what must be known where scores come from more than one set of images."""
    if len({data_key(record) for record in joined.accuracies}) <= 1 or not joined.compared_on:
        return ()
    text = (
        "scores come from several data sets or protocols: the tables show those on "
        f"{joined.compared_on[0]} only, all of them are under Accuracy"
    )
    return (text,)


def warned(joined: Joined) -> int:
    """Return how many measurements `bench` gave a warning with."""
    benches = (row.bench for machine in joined.machines for row in machine.rows)
    return sum(bool(bench and bench.warnings) for bench in benches)


def _warnings(machine: Machine) -> Iterator[str]:
    """Yield each distinct warning once, with the measurements that it concerns."""
    timed = [row for row in machine.rows if row.bench is not None]
    concerned: dict[str, list[str]] = {}
    for row in timed:
        for warning in dict.fromkeys(row.bench.warnings if row.bench else ()):
            concerned.setdefault(warning, []).append(f"{row.name} ({tables.measured(row).text})")
    for warning, names in sorted(concerned.items(), key=lambda item: -len(item[1])):
        everyone = len(names) == len(timed) > 1
        yield f"{f'All on {machine.name}' if everyone else ', '.join(names)}: {warning}"


def sections(joined: Joined) -> tuple[Section, ...]:
    """Return the whole report."""
    return tuple(_sections(joined))


def _sections(joined: Joined) -> Iterator[Section]:
    found = summaries(joined)
    for machine, table in zip(joined.machines, found, strict=False):
        yield _results(machine, table)
    for table in found[len(joined.machines) :]:
        yield Section("Not timed", tables=(table,))
    drawn = drawing.both(charts.sizes, joined.rows)
    if drawn is not None:
        yield Section("File size", charts=(("Size on disk, in megabytes (10^6 bytes)", drawn),))
    if joined.accuracies:
        yield _accuracy(joined)
    yield from choices.sections(joined)
    yield from learning.sections(joined)
    folded = tuple(layers.layers(joined))
    if folded:
        prose = "As read back from each file. Engines join layers."
        yield Section("Precision of every layer", prose, folded=folded)
    for machine in joined.machines:
        yield Section(f"How it was measured on {machine.name}", _METHOD, _conditions(machine))


def _accuracy(joined: Joined) -> Section:
    """Return every score; the classes under a line that opens them, where they are many."""
    whole, classes = scores.accuracy(joined), scores.per_class(joined)
    prose = "Every score as it was measured."
    if len(classes.rows) <= _MOST_CLASSES:
        return Section("Accuracy", prose, filled(*whole, classes))
    folded = ((f"{classes.caption}: {len(classes.rows)}", classes),)
    return Section("Accuracy", prose, whole, folded=folded)


_MOST_CLASSES = 40
_METHOD = (
    "FPS is batch size times iterations over the sum of their times. A percentile is always a "
    "measured value; its index is max(n - 1 - floor(n (100 - p) / 100), 0)."
)


def summaries(joined: Joined) -> tuple[Table, ...]:
    """Return the tables of accuracy, size and speed: one per machine, and one of untimed files.

    Where there is one machine only, its table holds the untimed files too.
    """
    groups = [(f"Accuracy, size and speed on {m.name}", m.rows) for m in joined.machines]
    if len(groups) == 1:
        groups = [(groups[0][0], groups[0][1] + joined.untimed)]
    elif joined.untimed:
        groups.append(("Files that no record of a measurement speaks of", joined.untimed))
    return tuple(
        tables.summary(caption, sorted(rows, key=lambda row: row.ancestors))
        for caption, rows in groups
    )


def _results(machine: Machine, table: Table) -> Section:
    drawn = ((caption, drawing.both(draw, machine.rows)) for caption, draw in charts.CHARTS.items())
    return Section(
        f"Results on {machine.name}",
        tables=(table, tables.latency(machine)),
        charts=_drawn(drawn),
    )


def _drawn(drawings: Iterable[tuple[str, Markup | None]]) -> tuple[tuple[str, Markup], ...]:
    return tuple((caption, each) for caption, each in drawings if each is not None)


def _conditions(machine: Machine) -> tuple[Table, ...]:
    return filled(
        tables.protocols(machine), tables.environment(machine), tables.fluctuations(machine)
    )
