"""The report on trainings: lines that fall as the loss did."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from deploykit import reporting
from deploykit.errors import InputError
from deploykit.measuring import records
from deploykit.measuring.layer_records import TrainingRecord
from deploykit.reporting import learning

if TYPE_CHECKING:
    from pathlib import Path

CURVE = (
    {"features": 3.0, "heads": 1.0, "loss": 4.0},
    {"features": 2.0, "heads": 1.0, "loss": 3.0},
    {"features": 0.5, "heads": 0.5, "loss": 1.0},
)
RECORD = TrainingRecord("net.qat.onnx", "a" * 64, CURVE, 300, "coco:train")


def lines(drawn: str, kind: str) -> list[list[tuple[float, float]]]:
    """Return the points of the lines of a style."""
    paths = re.findall(rf'<path d="M([^"]*)" class="{kind}"', drawn)
    return [[tuple(map(float, at.split())) for at in path.split("L")] for path in paths]  # type: ignore[misc]


def test_a_record_is_read_as_it_was_kept_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, RECORD)
    assert records.read([path]) == (RECORD,)
    for wrong in ({"curve": [{"loss": "x"}]}, {"steps": 0}, {"extra": 1}):
        path.write_text(json.dumps({**RECORD.to_json(), **wrong}) + "\n", encoding="utf-8")
        with pytest.raises(InputError, match="line 1"):
            records.read([path])


@pytest.mark.parametrize("width", [1000, 350])
def test_the_lines_pass_where_the_numbers_say_and_stay_in_the_frame(width: int) -> None:
    drawn = str(learning.curve(RECORD, width))
    (whole,), parts = lines(drawn, "curve"), lines(drawn, "part")
    steps = [b[0] - a[0] for a, b in itertools.pairwise(whole)]
    assert steps[0] == pytest.approx(steps[1], abs=0.11)
    assert len(parts) == 2
    heights = {3.0: parts[0][0][1], 2.0: parts[0][1][1], 4.0: whole[0][1], 1.0: whole[2][1]}
    assert heights[4.0] < heights[3.0] < heights[2.0] < heights[1.0], "more loss is higher up"
    assert parts[0][2] == parts[1][2]
    _, _, right, bottom = map(float, ET.fromstring(drawn).attrib["viewBox"].split())
    assert all(0 <= x <= right and 0 <= y <= bottom for each in [whole, *parts] for x, y in each)
    named = {name: float(y) for y, name in re.findall(r' y="([\d.]+)" class="label">(\w+)<', drawn)}
    assert named.keys() == {"loss", "features", "heads"}
    places = sorted(named.values())
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(places)), "none over another"


def test_one_part_is_the_whole_and_one_epoch_is_no_line() -> None:
    alone = TrainingRecord("m", "a", ({"heads": 2.0, "loss": 2.0}, {"heads": 1.0, "loss": 1.0}), 2)
    drawn = str(learning.curve(alone))
    assert len(lines(drawn, "curve")) == 1
    assert not lines(drawn, "part")
    assert learning.curve(TrainingRecord("m", "a", CURVE[:1], 2)) is None


def test_the_page_and_the_text_say_every_epoch(tmp_path: Path) -> None:
    html, text = reporting.report([RECORD], tmp_path / "report.html")
    page, plain = html.read_text(encoding="utf-8"), text.read_text(encoding="utf-8")
    for word in ("Training of net.qat.onnx for INT8", "300 steps in 3 epochs", "coco:train"):
        assert word.replace(".", "") in page.replace(".", "")
        assert word in plain
    assert page.count('class="curve"') == 2, "for wide screens and for narrow ones"
