"""What a report comes to: each model beside the one that it was made from, in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.reporting import tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.reporting.rows import Figure, Joined, Row

_MOST = 3
"""Sentences: of more models those that are smallest beside their own."""


def verdict(joined: Joined) -> tuple[str, ...]:
    """Return a sentence on each model that was compared with the one it was made from."""
    found: dict[str, tuple[float, str]] = {}
    for row in joined.rows:
        if row.primary is None or row.primary.drop is None or row.name in found:
            continue
        base = next((other for other in joined.rows if other.name == row.baseline), None)
        said = _sentence(row, row.primary, base, joined)
        found[row.name] = (_ratio(row, base) or 1.0, said)
    if not found:
        return ("No model here was scored beside the one that it was made from.",)
    return tuple(said for _, said in sorted(found.values())[:_MOST])


def _sentence(row: Row, figure: Figure, base: Row | None, joined: Joined) -> str:
    value, before = figure.value, (figure.value or 0.0) + _sign(figure) * (figure.drop or 0.0)
    shown = tables.score(value, figure.display).text
    original = tables.score(before, figure.display).text
    whose = f" by {row.scores_of}" if row.scores_of else ""
    parts = [f"{figure.display.title} {shown}{whose}, where {row.baseline} has {original}"]
    parts += [text for text in _costs(row, base, joined) if text]
    return f"{row.name}: " + "; ".join(parts) + "."


def _sign(figure: Figure) -> int:
    return 1 if figure.display.higher_is_better else -1


def _costs(row: Row, base: Row | None, joined: Joined) -> Iterator[str]:
    """Yield what the model gains: speed beside the same measurement of the other, size, INT8."""
    speed = _speed(row.name, row.baseline, joined)
    yield f"{speed:.2f} x its speed" if speed else ""
    ratio = _ratio(row, base)
    yield f"{ratio:.2f} x its size" if ratio else ""
    yield f"{row.int8_share:.1%} of its work in INT8" if row.int8_share else ""


def _speed(name: str, baseline: str, joined: Joined) -> float | None:
    """Return how many times as many images per second, measured alike on one machine."""
    for machine in joined.machines:
        rates = {
            (row.name, row.bench.backend, row.bench.scope, row.bench.batch_size): row.bench.fps_wall
            for row in machine.rows
            if row.bench
        }
        for (model, *how), fps in rates.items():
            before = rates.get((baseline, how[0], how[1], how[2]))  # type: ignore[arg-type]  # as above
            if model == name and before:
                return fps / before
    return None


def _ratio(row: Row, base: Row | None) -> float | None:
    return row.bytes / base.bytes if base and base.bytes and row.bytes else None


def dated(joined: Joined) -> str:
    """Return from when the records are; that nobody says it, where nobody does."""
    days = sorted({time[:10] for time in joined.times if len(time) >= len("2026-01-01")})
    if not days:
        return "The records have no date."
    return f"Measured {days[0]}." if len(days) == 1 else f"Measured {days[0]} to {days[-1]}."
