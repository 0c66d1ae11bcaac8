"""The report on sensitivities and plans: bars in order, points where the numbers are."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from deploykit import reporting
from deploykit.errors import InputError
from deploykit.measuring import records
from deploykit.measuring.layer_records import PlanRecord, SensitivityRecord
from deploykit.reporting import choices

if TYPE_CHECKING:
    from pathlib import Path

LOSSES = {f"layer{i}": float(i * i) for i in range(40)}
SENSED = SensitivityRecord(
    model="net<script>.onnx",
    model_sha256="a" * 64,
    measure="output",
    layers={name: {"snr": loss or None, "output": loss} for name, loss in LOSSES.items()},
    losses=LOSSES,
    correlations={"snr": 0.5},
    images=32,
    dataset="folder:photos",
)
PLANNED = PlanRecord(
    model="net.onnx",
    model_sha256="a" * 64,
    gpu="T4",
    batch_size=8,
    measure="output",
    primary="ap",
    tried=(
        {"layers": 0, "seconds": 0.001, "predicted_drop": None, "real_drop": 0.3},
        {"layers": 5, "seconds": 0.002, "predicted_drop": 0.004, "real_drop": 0.003},
    ),
    frontier=({"layers": 3, "seconds": 0.0015, "predicted_drop": 0.1, "real_drop": None},),
    chosen={"layers": 5, "seconds": 0.002, "predicted_drop": 0.004, "real_drop": 0.003},
    seconds_int8=0.001,
    seconds_fp16=0.003,
)


def test_records_are_read_as_they_were_kept(tmp_path: Path) -> None:
    for record in (SENSED, PLANNED):
        records.append(tmp_path / "r.jsonl", record)
    assert records.read([tmp_path / "r.jsonl"]) == (SENSED, PLANNED)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("losses", {"a": -1}), ("layers", {"a": {"snr": "x"}}), ("measure", 3), ("extra", 1)],
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, key: str, wrong: object) -> None:
    data = {**SENSED.to_json(), key: wrong}
    (tmp_path / "r.jsonl").write_text(json.dumps(data) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1"):
        records.read([tmp_path / "r.jsonl"])


def test_the_bars_are_those_that_lose_most_in_order() -> None:
    drawn = str(choices.bars(SENSED))
    widths = [float(width) for width in re.findall(r'<rect[^>]*width="([0-9.]+)"', drawn)]
    assert len(widths) == 25
    assert widths == sorted(widths, reverse=True)
    assert widths[1] / widths[0] == pytest.approx((38 / 39) ** 2, rel=0.01)
    assert "layer39" in drawn
    assert "layer3:" not in drawn


def test_a_model_that_loses_nothing_and_a_plan_without_measurements_have_no_chart() -> None:
    assert choices.bars(SensitivityRecord("m", "a", "output", {}, {"a": 0.0})) is None
    unmeasured = PlanRecord("m", "a", "T4", 1, "snr", "", (), (), PLANNED.chosen, 1.0, 1.0)
    assert choices.trade_off(unmeasured) is None


def test_points_lie_where_the_numbers_say() -> None:
    drawn = str(choices.trade_off(PLANNED))
    points = {
        kind: [(float(x), float(y)) for x, y in re.findall(pattern, drawn)]
        for kind, pattern in {
            "measured": r'<circle cx="([0-9.]+)" cy="([0-9.]+)" r="6"',
            "predicted": r'<circle cx="([0-9.]+)" cy="([0-9.]+)" r="4"',
        }.items()
    }
    (slow, fast), (between,) = sorted(points["measured"], reverse=True), points["predicted"]
    assert fast[0] < between[0] < slow[0]
    assert fast[1] < between[1] < slow[1]  # more drop is higher up


def test_the_page_and_the_text_say_it_all(tmp_path: Path) -> None:
    html, text = reporting.report([SENSED, PLANNED], tmp_path / "report.html")
    page, plain = html.read_text(encoding="utf-8"), text.read_text(encoding="utf-8")
    for word in ("layer39", "Rank correlation", "5 layers stay in float for a T4", "0.0030"):
        assert word in page
        assert word in plain
    assert "<script>" not in page
    assert "all 40 layers" in page
