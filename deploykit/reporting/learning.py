"""How the loss of trainings for INT8 fell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.reporting import drawing
from deploykit.reporting.axes import Axis, spanning
from deploykit.reporting.drawing import MARGIN, WIDTH
from deploykit.reporting.markup import Markup, element
from deploykit.reporting.section import Section
from deploykit.reporting.tables import Cell, Table, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.measuring.layer_records import TrainingRecord
    from deploykit.reporting.rows import Joined

WHOLE = "loss"
"""Of a curve: the sum of its parts."""
_HIGH, _LEFT = 280, 64
_NAMES = 84
"""Width of the names behind the lines."""
_APART = 15
"""Least height from one of them to the next."""


def sections(joined: Joined) -> Iterator[Section]:
    """Yield a section for each training."""
    for record in joined.trainings:
        drawn = drawing.both(curve, record)
        prose = f"{record.steps} steps in {len(record.curve)} epochs"
        if record.dataset:
            prose += f", on images of {record.dataset}"
        yield Section(
            f"Training of {record.model} for INT8",
            f"{prose}. Means over each epoch.",
            charts=() if drawn is None else (("Loss", drawn),),
            folded=((f"all {len(record.curve)} epochs", _epochs(record)),),
        )


def curve(record: TrainingRecord, width: int = WIDTH) -> Markup | None:
    """Return the loss and its parts over the epochs, each named at its end.

    None where there are fewer than two epochs.
    """
    if len(record.curve) < 2:
        return None
    parts = _parts(record)
    shown = [*parts, WHOLE] if len(parts) > 1 else [WHOLE]
    values = {name: [each.get(name, 0.0) for each in record.curve] for name in shown}
    across = Axis(1, len(record.curve), _LEFT, width - _NAMES)
    up = spanning([value for some in values.values() for value in some], _HIGH, MARGIN)
    marks = [drawing.horizontal(across, MARGIN, _HIGH, "epochs"), drawing.vertical(up, across, "")]
    marks += [_line(name, values[name], (across, up)) for name in shown]
    ends = sorted((up(each[-1]), name) for name, each in values.items())
    return drawing.svg(
        f"Loss of {record.model}", (width, _HIGH + 44), [*marks, *_names(ends, across)]
    )


def _parts(record: TrainingRecord) -> list[str]:
    return [
        name for name in dict.fromkeys(n for each in record.curve for n in each) if name != WHOLE
    ]


def _line(name: str, values: list[float], axes: tuple[Axis, Axis]) -> Markup:
    across, up = axes
    points = [(across(epoch), up(value)) for epoch, value in enumerate(values, start=1)]
    hint = f"{name}: {values[0]:.4g} in the first epoch, {values[-1]:.4g} in the last"
    kind = "curve" if name == WHOLE else "part"
    return element("g", element("title", hint), drawing.path(points, kind))


def _names(ends: list[tuple[float, str]], across: Axis) -> Iterator[Markup]:
    """Yield the names of the lines, none over another."""
    last = -float(_APART)
    for height, name in ends:
        last = max(height + 4, last + _APART)
        yield drawing.text(across.end + 8, last, drawing.short(name, 12), "label")


def _epochs(record: TrainingRecord) -> Table:
    names = [WHOLE, *_parts(record)]
    rows = tuple(
        (Cell(str(epoch)), *(number(each.get(name), ".4g") for name in names))
        for epoch, each in enumerate(record.curve, start=1)
    )
    header = ("Epoch", *names)
    return Table(f"Loss of {record.model}", header, rows, frozenset(range(1, len(header))))
