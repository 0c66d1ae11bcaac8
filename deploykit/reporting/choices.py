"""What INT8 costs in each layer, and which were left in float for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.reporting import drawing
from deploykit.reporting.axes import Axis, spanning
from deploykit.reporting.drawing import MARGIN, WIDTH
from deploykit.reporting.markup import Markup, element
from deploykit.reporting.section import Section, filled
from deploykit.reporting.tables import Cell, Table, milliseconds, number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from deploykit.measuring.layer_records import PlanRecord, SensitivityRecord
    from deploykit.reporting.rows import Joined

_BARS = 25
"""Layers that are drawn; the table has all."""
_BAR, _LABEL = 24, 350
_HIGH = 320


def sections(joined: Joined) -> Iterator[Section]:
    """Yield a section for each model whose layers were measured, and for each plan."""
    for record in joined.sensitivities:
        drawn = drawing.both(bars, record)
        caption = f"The layers that lose most, {record.measure}"
        yield Section(
            f"What INT8 costs in each layer of {record.model}",
            f"Each layer alone, on {record.images} images of {record.dataset}; "
            f"ranked by {record.measure}." + _agreement(record),
            charts=() if drawn is None else ((caption, drawn),),
            folded=((f"all {len(record.layers)} layers", _layers(record)),),
        )
    for plan in joined.plans:
        drawn = drawing.both(trade_off, plan)
        yield Section(
            f"Layers of {plan.model} in float",
            _said(plan),
            filled(_tried(plan)),
            () if drawn is None else (("Predicted time, and what the task loses", drawn),),
        )


def _agreement(record: SensitivityRecord) -> str:
    known = [f"{name} {rho:.2f}" for name, rho in record.correlations.items() if rho is not None]
    return f" Rank correlation with it: {', '.join(known)}." if known else ""


def bars(record: SensitivityRecord, width: int = WIDTH) -> Markup | None:
    """Return a bar for each of the layers that lose most; None where none loses anything."""
    ranked = sorted(record.losses.items(), key=lambda each: -each[1])[:_BARS]
    if not any(value > 0 for _, value in ranked):
        return None
    drawn = [
        drawing.Bar(name, value, f"{value:.3g}", f"{name}: {value:g}", "int8")
        for name, value in ranked
    ]
    title = f"What INT8 costs in each layer of {record.model}"
    return drawing.bars(title, drawn, width, tall=_BAR, column=_LABEL)


def trade_off(plan: PlanRecord, width: int = WIDTH) -> Markup | None:
    """Return predicted time against drop: the frontier, and what was measured beside predictions.

    None where nothing was measured.
    """
    if not plan.tried:
        return None
    choices = [*plan.frontier, *plan.tried]
    times = [each["seconds"] * 1e3 for each in choices]
    drops = [d for each in choices for d in (each.get("predicted_drop"), each.get("real_drop"))]
    across = spanning(times, 64, width - MARGIN, margin=0.1)
    up = _linear([each for each in drops if each is not None])
    marks = [
        drawing.horizontal(across, MARGIN, _HIGH, "predicted milliseconds"),
        drawing.vertical(up, across, f"drop of {plan.primary}"),
        *(_dot(each, "predicted_drop", (across, up), "fp32", 4) for each in plan.frontier),
        *(_predicted(each, (across, up)) for each in plan.tried),
        *(_dot(each, "real_drop", (across, up), "int8", 6) for each in plan.tried),
    ]
    title = f"Predicted time and drop of plans for {plan.model} on {plan.gpu}"
    return drawing.svg(title, (width, _HIGH + 44), marks)


def _linear(values: list[float]) -> Axis:
    low, high = min(values), max(values)
    room = (high - low) * 0.12 or 0.001
    return Axis(low - room, high + room, _HIGH, MARGIN)


def _dot(
    choice: Mapping[str, Any], key: str, axes: tuple[Axis, Axis], kind: str, radius: int
) -> Markup:
    if choice.get(key) is None:
        return Markup()
    across, up = axes
    said = "measured" if key == "real_drop" else "predicted"
    note = f"{choice['layers']} layers in float: {choice[key]:.4f} {said}"
    return element(
        "g",
        element("title", note),
        element(
            "circle",
            cx=f"{across(choice['seconds'] * 1e3):.1f}",
            cy=f"{up(choice[key]):.1f}",
            r=radius,
            class_=kind,
        ),
    )


def _predicted(choice: Mapping[str, Any], axes: tuple[Axis, Axis]) -> Markup:
    """Return the line from what was predicted of a choice to what was measured."""
    if choice.get("predicted_drop") is None:
        return Markup()
    across, up = axes
    x = across(choice["seconds"] * 1e3)
    return drawing.line(x, up(choice["predicted_drop"]), x, up(choice["real_drop"]), "tail")


def _layers(record: SensitivityRecord) -> Table:
    measures = list(dict.fromkeys(name for each in record.layers.values() for name in each))
    ranked = sorted(record.layers, key=lambda name: -record.losses.get(name, 0.0))
    rows = tuple(
        (Cell(name), *(number(record.layers[name].get(measure), ".4g") for measure in measures))
        for name in ranked
    )
    numeric = frozenset(range(1, len(measures) + 1))
    return Table(f"Layers of {record.model}", ("Layer", *measures), rows, numeric)


def _said(plan: PlanRecord) -> str:
    text = (
        f"{plan.chosen['layers']} layers stay in float for a {plan.gpu} at batch "
        f"{plan.batch_size}: {plan.chosen['seconds'] * 1e3:.3f} ms predicted, "
        f"{plan.seconds_fp16 * 1e3:.3f} all FP16, {plan.seconds_int8 * 1e3:.3f} all INT8. "
        f"Layers were weighed by {plan.measure}."
    )
    if plan.tried:
        text += (
            " Large points are measured drops, lines lead to what was predicted of them, small "
            "points are the fastest choice for each predicted drop. On other images a choice loses "
            "at most what the last column says, but for a chance."
        )
    return text


def _tried(plan: PlanRecord) -> Table:
    rows = tuple(
        (
            Cell(str(each["layers"])),
            milliseconds(each["seconds"]),
            number(each.get("predicted_drop"), ".4f"),
            number(each.get("real_drop"), ".4f"),
            number(each.get("most_drop"), ".4f"),
        )
        for each in plan.tried
    )
    header = ("Layers in float", "Predicted ms", "Predicted drop", "Measured drop", "At most")
    return Table(
        f"Choices that were measured, by {plan.primary}", header, rows, frozenset({1, 2, 3, 4})
    )
