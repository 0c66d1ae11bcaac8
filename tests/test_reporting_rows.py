from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.measuring.records import AccuracyRecord, ArtifactRecord
from deploykit.reporting import Row, join, tables
from deploykit.reporting import scores as scores_tables
from deploykit.tasks.task import Display
from deploykit.values import BenchRecord

CHECKPOINT, FLOAT, INT8, ENGINE = "c" * 64, "f" * 64, "8" * 64, "e" * 64
FILES = [
    ArtifactRecord("m.onnx", FLOAT, 4_000_000, {"fp32": 1.0}, parents={"m.pth": CHECKPOINT}),
    ArtifactRecord(
        "m.int8.onnx", INT8, 1_000_000, {"int8": 0.9, "fp32": 0.099, "fp16": 0.001},
        parents={"m.onnx": FLOAT, "table.json": "1" * 64},
    ),
    ArtifactRecord(
        "m.engine", ENGINE, 1_500_000, {"int8": 1.0}, "RTX SM86", parents={"m.int8.onnx": INT8}
    ),
]  # fmt: skip


def scores(model: str, sha256: str, ap: float, **changes: Any) -> AccuracyRecord:
    record = AccuracyRecord(model, sha256, {"ap": ap, "ap50": ap + 0.1}, 500, "shapes:", "d" * 64)
    return replace(record, **changes)


def bench(model: str, sha256: str, cpu: str = "A", **changes: Any) -> BenchRecord:
    environment = {"before": {"cpu": {"model": cpu}}, "after": {"cpu": {"model": cpu}}}
    record = BenchRecord(
        model, sha256, "onnxruntime", "device", 1, (0.5, 0.5), environment=environment
    )
    return replace(record, **changes)


def by_name(*records: Any) -> dict[str, Row]:
    return {row.name: row for row in join(records).rows}


def ap(row: Row) -> float | None:
    return row.primary.value if row.primary else None


def drop(row: Row) -> float | None:
    return row.primary.drop if row.primary else None


SCORED = [scores("m.onnx", FLOAT, 0.5), scores("m.int8.onnx", INT8, 0.47)]


def test_the_drop_is_against_the_first_ancestor_that_was_evaluated() -> None:
    rows = by_name(*FILES, *SCORED)
    assert drop(rows["m.int8.onnx"]) == pytest.approx(0.03)
    assert rows["m.int8.onnx"].baseline == "m.onnx"
    assert drop(rows["m.onnx"]) is None
    rows = by_name(*FILES, *SCORED, scores("m.pth", CHECKPOINT, 0.51))
    assert drop(rows["m.int8.onnx"]) == pytest.approx(0.04)
    assert drop(rows["m.onnx"]) == pytest.approx(0.01)
    assert rows["m.onnx"].baseline == "m.pth"


def test_an_engine_shows_the_scores_of_the_file_it_was_built_from_as_such() -> None:
    row = by_name(*FILES, *SCORED)["m.engine"]
    assert (ap(row), row.scores_of, row.target) == (0.47, "m.int8.onnx", "RTX SM86")
    assert drop(row) == pytest.approx(0.03)
    table = tables.summary("", [row])
    assert table.rows[0][table.header.index("AP")] == tables.Cell("0.4700*", 0.47)
    assert "which m.engine was built from; not measured on it" in table.footnotes[1]


def test_an_engine_that_was_evaluated_shows_its_own_scores() -> None:
    row = by_name(*FILES, *SCORED, scores("m.engine", ENGINE, 0.46))["m.engine"]
    assert (ap(row), row.scores_of) == (0.46, "")
    assert drop(row) == pytest.approx(0.04)


def test_a_quantised_file_never_borrows_the_scores_of_its_float_parent() -> None:
    row = by_name(*FILES, SCORED[0])["m.int8.onnx"]
    assert (ap(row), drop(row), row.scores_of) == (None, None, "")
    engine = by_name(*FILES, SCORED[0])["m.engine"]
    assert ap(engine) is None


def test_scores_on_other_data_are_not_compared() -> None:
    other = scores("m.engine", ENGINE, 0.9, dataset="coco:")
    joined = join([*FILES, *SCORED, other])
    assert joined.compared_on is not None
    assert joined.compared_on[0] == "shapes:"
    assert {row.name: ap(row) for row in joined.rows}["m.engine"] == 0.47
    assert other in joined.accuracies


def test_the_batch_size_of_an_evaluation_does_not_part_the_scores() -> None:
    scored = [
        replace(record, protocol={"batch_size": size})
        for record, size in zip(SCORED, (1, 8), strict=True)
    ]
    assert drop(by_name(*FILES, *scored)["m.int8.onnx"]) == pytest.approx(0.03)


def test_the_later_of_two_records_of_one_file_counts() -> None:
    rows = by_name(*FILES, replace(FILES[0], bytes=5), *SCORED, scores("m.onnx", FLOAT, 0.6))
    assert (rows["m.onnx"].bytes, ap(rows["m.onnx"])) == (5, 0.6)


def test_records_are_joined_by_hash_and_not_by_name() -> None:
    row = by_name(*FILES, *SCORED, bench("m.onnx", "0" * 64))
    assert row["m.onnx"].bench is None or ap(row["m.onnx"]) is None
    renamed = join([*FILES, *SCORED, bench("copy.onnx", INT8)]).machines[0].rows[0]
    assert (renamed.name, ap(renamed), renamed.bytes) == ("copy.onnx", 0.47, 1_000_000)


def test_the_share_of_int8_and_the_name_of_the_precision_come_from_the_layers() -> None:
    rows = by_name(*FILES)
    assert (rows["m.int8.onnx"].precision, rows["m.int8.onnx"].int8_share) == ("int8 + fp32", 0.9)
    assert rows["m.onnx"].int8_share == 0.0
    unread = by_name(ArtifactRecord("x", "0", 1))["x"]
    assert (unread.precision, unread.int8_share) == ("", None)


def test_machines_are_kept_apart_even_for_one_model() -> None:
    joined = join([bench("m", FLOAT, "A"), bench("m", FLOAT, "B"), bench("n", INT8, "A")])
    assert [(m.name, [row.name for row in m.rows]) for m in joined.machines] == [
        ("A", ["m", "n"]),
        ("B", ["m"]),
    ]


def test_the_graphics_card_names_a_machine_first() -> None:
    before = {"gpu": [{"name": "Tesla T4"}], "cpu": {"model": "Xeon"}}
    joined = join([bench("m", FLOAT, environment={"before": before, "after": before})])
    assert joined.machines[0].name == "Tesla T4, Xeon"
    nameless = join([bench("m", FLOAT, environment={})])
    assert nameless.machines[0].name == "machine 1"


def test_a_file_that_descends_from_itself_does_not_hang() -> None:
    loop = [
        ArtifactRecord("a", "a", 1, parents={"b": "b"}),
        ArtifactRecord("b", "b", 1, parents={"a": "a"}),
    ]
    rows = by_name(*loop, scores("a", "a", 0.5), scores("b", "b", 0.25))
    assert drop(rows["a"]) == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (tables.number(-0.00001, "+.4f"), "+0.0000"),
        (tables.number(-0.01, "+.4f"), "-0.0100"),
        (tables.number(None, ".1f"), "-"),
        (tables.milliseconds(0.0001234), "0.1234"),
        (tables.milliseconds(0.0056789), "5.679"),
        (tables.milliseconds(0.056789), "56.79"),
        (tables.milliseconds(1.5), "1500.0"),
        (tables.rate(12.345), "12.3"),
        (tables.rate(12345.6), "12,346"),
        (tables.size(840_300), "0.84"),
        (tables.size(123_456_789), "123"),
        (tables.share(0.978), "97.8"),
    ],
)
def test_numbers_are_printed_with_the_figures_they_deserve(cell: tables.Cell, text: str) -> None:
    assert cell.text == text


@given(st.floats(1e-6, 1e3))
def test_a_printed_time_is_within_a_thousandth_of_the_measured_one(seconds: float) -> None:
    shown = float(tables.milliseconds(seconds).text)
    assert shown == pytest.approx(seconds * 1e3, rel=1e-3, abs=5e-5)


def test_differing_protocols_get_letters_and_a_column_each() -> None:
    records = [
        bench("m", FLOAT, protocol={"threads": 1, "iterations": 10}),
        bench("m", FLOAT, protocol={"threads": 2, "iterations": 11}),
        bench("m", FLOAT, protocol={"threads": 1, "iterations": 12, "batch_size": 8}),
    ]
    (machine,) = join(records).machines
    assert [row[-1].text for row in tables.latency(machine).rows] == ["A", "B", "A"]
    table = tables.protocols(machine)
    assert table.header == ("Switch", "A", "B")
    assert [[cell.text for cell in row] for row in table.rows] == [["threads", "1", "2"]]


def test_readings_that_change_are_shown_from_lowest_to_highest() -> None:
    moments = [{"load_average": 0.5, "throttled": "no"}, {"load_average": 1.5, "throttled": None}]
    environment = dict(zip(("before", "after"), moments, strict=True))
    (machine,) = join([bench("m", FLOAT, environment=environment)]).machines
    found = {row[0].text: row[1].text for row in tables.fluctuations(machine).rows}
    assert found == {"load_average": "0.5 to 1.5", "throttled": "no"}


def test_the_classes_are_a_table_with_a_column_per_model() -> None:
    records = [
        replace(SCORED[0], per_class={"ring": 0.5, "star": None}),
        replace(SCORED[1], per_class={"ring": 0.25}),
    ]
    table = scores_tables.per_class(join([*FILES, *records]))
    assert table.header == ("Class", "m.onnx", "m.int8.onnx")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["ring", "0.5000", "0.2500"],
        ["star", "-", "-"],
    ]


def test_a_metric_of_which_less_is_better_rises_where_it_gets_worse() -> None:
    error = Display("Error", unit="px", digits=1, higher_is_better=False)
    share = Display("Right", unit="%", digits=0, scale=100, summary=True)
    measured = [
        replace(
            record,
            metrics={"error": value, "right": 1 - value / 4, "other": 1.0},
            primary="error",
            display={"error": error, "right": share},
        )
        for record, value in zip(SCORED, (1.0, 3.0), strict=True)
    ]
    joined = join([*FILES, *measured])
    row = {row.name: row for row in joined.rows}["m.int8.onnx"]
    assert (ap(row), drop(row)) == (3.0, 2.0)
    table = tables.summary("", [row])
    cells = dict(zip(table.header, (cell.text for cell in table.rows[0]), strict=True))
    assert (cells["Error"], cells["Error rise"], cells["Right"]) == ("3.0 px", "+2.0 px", "25 %")
    assert "other" not in cells
    assert "Error rise is against m.onnx" in table.footnotes


def test_scores_of_another_primary_metric_are_not_compared() -> None:
    other = replace(SCORED[1], metrics={"ap": 0.47, "mask_ap": 0.4}, primary="mask_ap")
    joined = join([*FILES, SCORED[0], other])
    assert {row.name: drop(row) for row in joined.rows}["m.int8.onnx"] is None
