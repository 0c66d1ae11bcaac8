from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.reporting import Row, charts
from deploykit.reporting.axes import Axis, spanning
from deploykit.reporting.rows import Figure
from deploykit.tasks.task import Display
from deploykit.values import BenchRecord

AP = Display("AP")
VALUES = st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=8)


def row(name: str, seconds: tuple[float, ...], scope: str = "device") -> Row:
    bench = BenchRecord(name, name, "onnxruntime", scope, 1, seconds)
    return Row(name, "int8 + fp16", (Figure("ap", AP, 0.5),), bytes=1000, bench=bench)


def numbers(drawing: str) -> list[float]:
    """Return every coordinate of the texts, lines, points and bars of a drawing."""
    found = re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy)="(-?[\d.]+)"', drawing)
    return [float(value) for value in found]


@given(VALUES)
def test_an_axis_shows_every_value_between_its_ends(values: list[float]) -> None:
    axis = spanning(values, 10, 500)
    assert all(10 <= axis(value) <= 500 for value in values)
    ordered = [axis(value) for value in sorted(values)]
    assert ordered == sorted(ordered)


@given(VALUES)
def test_ticks_are_few_round_and_on_the_axis(values: list[float]) -> None:
    axis = spanning(values, 0, 100)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(axis.low * (1 - 1e-9) <= tick <= axis.high * (1 + 1e-9) for tick in ticks)


@given(st.floats(0, 1))
def test_a_part_of_an_axis_and_its_pixel_are_inverse(part: float) -> None:
    for axis in (Axis(2, 50, 0, 100), Axis(2, 50, 0, 100, logarithmic=True)):
        assert axis(axis.value(part)) == pytest.approx(100 * part, abs=1e-6)


def test_values_far_apart_get_a_logarithmic_axis_and_values_below_zero_do_not() -> None:
    assert spanning([1, 100], 0, 1).logarithmic
    assert not spanning([50, 100], 0, 1).logarithmic
    assert not spanning([-1, 100], 0, 1).logarithmic
    assert Axis(1, 100, 0, 1, logarithmic=True).ticks() == [1, 2, 5, 10, 20, 50, 100]


@given(st.lists(st.lists(st.floats(1e-5, 10), min_size=1, max_size=30), min_size=1, max_size=4))
def test_a_latency_chart_is_well_formed_and_within_its_frame(series: list[list[float]]) -> None:
    rows = [row(f"m{i}", tuple(values)) for i, values in enumerate(series)]
    drawing = charts.latencies(rows)
    assert drawing is not None
    tree = ET.fromstring(drawing)
    _, _, width, height = map(float, tree.attrib["viewBox"].split())
    assert all(0 <= value <= max(width, height) for value in numbers(drawing))
    assert len(tree.findall("g")) == len(rows)


def test_the_slow_tail_beyond_the_axis_is_counted() -> None:
    drawing = charts.latencies([row("m", (0.001,) * 199 + (9.0,))])
    assert drawing is not None
    assert "1 slower, up to 9000.0 ms" in drawing


def test_the_histogram_counts_every_iteration_once() -> None:
    drawing = charts.latencies([row("m", (0.001,) * 30 + (0.002,) * 10)])
    assert drawing is not None
    base, outline = re.findall(r'd="M[\d.]+ ([\d.]+)(V[^"]*)V', drawing)[0]
    heights = [float(base) - float(top) for top in re.findall(r"V([\d.]+)h", outline)]
    assert sorted({round(h, 1) for h in heights if h > 0.05}) == [12.0, 36.0]


def test_a_trade_off_needs_two_points_and_shows_one_scope_only() -> None:
    fast, slow, whole = row("a", (0.1,)), row("b", (0.2,)), row("c", (0.3,), "end-to-end")
    assert charts.trade_off([fast]) is None
    assert charts.trade_off([]) is None
    drawing = charts.trade_off([fast, slow, whole])
    assert drawing is not None
    assert len(ET.fromstring(drawing).findall("g")) == 2


def test_labels_of_equal_points_do_not_cover_each_other() -> None:
    drawing = charts.trade_off([row(f"m{i}", (0.1,)) for i in range(4)])
    assert drawing is not None
    heights = [float(t.attrib["y"]) for t in ET.fromstring(drawing).findall("g/text")]
    gaps = [b - a for a, b in zip(sorted(heights), sorted(heights)[1:], strict=False)]
    assert min(gaps) >= 12


def test_bars_are_as_long_as_the_files_are_large() -> None:
    rows = [Row("a", "int8", bytes=1000), Row("b", "fp32", bytes=4000), Row("c", "")]
    drawing = charts.sizes([*rows, rows[0]])
    assert drawing is not None
    widths = [float(r.attrib["width"]) for r in ET.fromstring(drawing).iter("rect")]
    assert widths == [pytest.approx(widths[1] / 4, abs=0.1), widths[1]]
    assert charts.sizes(rows[:1]) is None


def test_nothing_timed_draws_nothing() -> None:
    assert charts.latencies([Row("a", "int8")]) is None


def test_a_long_name_is_cut_in_a_drawing_and_whole_in_its_title() -> None:
    drawing = charts.latencies([row("n" * 200, (0.1,))])
    assert drawing is not None
    assert "n" * 31 + "\u2026" in drawing
    assert "n" * 200 in drawing
