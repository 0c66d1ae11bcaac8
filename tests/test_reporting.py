from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deploykit import reporting
from deploykit.errors import InputError, OptionError, OutputError
from deploykit.measuring import conditions
from deploykit.measuring.records import AccuracyRecord, ArtifactRecord, Record
from deploykit.reporting import markdown, page, pictures
from deploykit.tasks.task import Display
from deploykit.values import BenchRecord, LayerPrecision

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(1)</script>\"' onload=x |a|\n# b `c` [d](http://evil) ![e](x) \u202e\ud800"
MOMENT = {"cpu": {"model": "Xeon", "governor": "powersave"}, "load_average": [0.5], "cores": 2}
BENCH = BenchRecord(
    "m.onnx", "f" * 64, "onnxruntime", "device", 4,
    tuple(0.01 + 0.001 * (i % 7) for i in range(120)), tuple(0.005 for _ in range(120)),
    {"threads": 2}, {"before": MOMENT, "after": MOMENT},
)  # fmt: skip
RECORDS: list[Record] = [
    ArtifactRecord("m.onnx", "f" * 64, 4_123_456, {"fp32": 0.97, "fp16": 0.03}),
    ArtifactRecord("m.int8.onnx", "8" * 64, 1_050_000, {"int8": 0.9731}, "", {"m.onnx": "f" * 64}),
    AccuracyRecord("m.onnx", "f" * 64, {"ap": 0.61234567, "ap50": 0.8}, 500, "shapes:", "d" * 64),
    AccuracyRecord("m.int8.onnx", "8" * 64, {"ap": 0.6, "ap50": 0.79}, 500, "shapes:", "d" * 64),
    conditions.with_warnings(BENCH),
    replace(BENCH, model="m.int8.onnx", model_sha256="8" * 64, scope="end-to-end"),
]


class Page(HTMLParser):
    """The tags, attributes, tables and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[tuple[str, float | None]]] = []
        self._value: float | None = None
        self.feed(html)
        self.close()
        assert not self.open, "unclosed tags"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append(("", None))
        if tag == "data":
            self._value = float(dict(attrs)["value"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            text, _ = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, self._value)
            self._value = None


def write(records: list[Record], path: Path, **options: Any) -> tuple[str, str]:
    html, md = reporting.report(records, path / "report.html", **options)
    return html.read_text(encoding="utf-8"), md.read_text(encoding="utf-8")


def test_every_number_on_the_page_is_the_recorded_one_in_full(tmp_path: Path) -> None:
    html, _ = write(RECORDS, tmp_path)
    row = next(r for r in Page(html).rows if r[0][0] == "m.int8.onnx" and r[1][0] == "int8")
    record = RECORDS[-1]
    assert isinstance(record, BenchRecord)
    assert [value for _, value in row if value is not None] == [
        0.6, 0.61234567 - 0.6, 0.79, 1_050_000, 0.9731, record.fps_wall, record.wall.p50,
    ]  # fmt: skip
    timed = next(r for r in Page(html).rows if len(r) > 10 and r[2][0] == "120")
    wall = record.wall
    assert [value for _, value in timed if value is not None] == [
        120, wall.mean, wall.p50, wall.p90, wall.p95, wall.p99, wall.maximum, wall.variation,
        record.fps_wall, record.fps_device,
    ]  # fmt: skip


def test_every_printed_number_is_its_full_value_rounded(tmp_path: Path) -> None:
    html, _ = write(RECORDS, tmp_path)
    for text, value in (cell for row in Page(html).rows for cell in row):
        if value is not None:
            shown = float(text.replace(",", "").rstrip("*"))
            factors = (1, 100, 1e3, 1e-6)
            assert any(shown == pytest.approx(value * f, rel=0.01, abs=6e-5) for f in factors), text


def test_markdown_page_and_terminal_say_the_same(tmp_path: Path) -> None:
    html, md = write(RECORDS, tmp_path)
    plain = re.sub(r"\\(.)", r"\1", md)
    shown = {text for row in Page(html).rows for text, _ in row if text}
    assert all(text in plain for text in shown)
    summary = reporting.summary(RECORDS)
    for text in ("m.int8.onnx", "+0.0123", "97.3", "AP drop is against m.onnx", "warning: "):
        assert text in summary


def test_the_page_loads_and_runs_nothing(tmp_path: Path) -> None:
    html, _ = write(RECORDS, tmp_path)
    for word in ("http:", "https:", "url(", "@import", "src=", "href=", "javascript:", "<script"):
        assert word not in html
    policies = [a for _, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in str(policies[0]["content"])


def hostile() -> list[Record]:
    moment = {"cpu": {"model": HOSTILE, "governor": HOSTILE}, HOSTILE: HOSTILE}
    bench = BenchRecord(
        HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1, (1.0, 2.0), (), {HOSTILE: HOSTILE},
        {"before": moment, "after": moment}, (HOSTILE,),
    )  # fmt: skip
    file = ArtifactRecord(HOSTILE, HOSTILE, 1, {HOSTILE: 1.0}, HOSTILE, {HOSTILE: "p"}, (HOSTILE,))
    scores = AccuracyRecord(
        HOSTILE, "p", {HOSTILE: 0.5, "ap": 0.5}, 1, HOSTILE, HOSTILE, HOSTILE,
        {HOSTILE: HOSTILE}, {HOSTILE: 0.5},
    )  # fmt: skip
    return [bench, replace(bench, model_sha256="2"), file, replace(file, sha256="2"), scores]


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    clean, _ = write(RECORDS, tmp_path)
    html, _ = write(hostile(), tmp_path, title=HOSTILE)
    known = {tag for tag, _ in Page(clean).tags} | {"circle", "rect"}
    found = Page(html)
    assert {tag for tag, _ in found.tags} <= known
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert any("<script>alert(1)</script>" in text for text in found.texts)
    assert "\u202e" not in html


def test_hostile_names_cannot_break_a_markdown_table(tmp_path: Path) -> None:
    _, md = write(hostile(), tmp_path)
    for block in re.findall(r"(?:^\|.*\n)+", md, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1
    assert not re.search(r"<script|(?<!\\)\]\(|(?<!\\)`|http:/", md)
    assert len(re.findall(r"^#", md, re.MULTILINE)) == len(re.findall(r"^#+ \w", md, re.MULTILINE))


@given(st.text(max_size=60))
def test_any_name_makes_a_page_that_parses_and_can_be_written(name: str) -> None:
    joined = reporting.join([replace(BENCH, model=name, environment={name: name})])
    html = page.render(joined, name)
    assert Page(html).rows
    html.encode()
    markdown.render(joined, name).encode()


def test_machines_get_tables_of_their_own_and_a_file_that_was_not_timed_too(
    tmp_path: Path,
) -> None:
    other = {"cpu": {"model": "Epyc"}}
    records = [
        *RECORDS,
        replace(BENCH, environment={"before": other, "after": other}),
        ArtifactRecord("lonely.engine", "1" * 64, 5, {"int8": 1.0}, "RTX SM86"),
    ]
    _, md = write(records, tmp_path)
    headings = re.findall(r"^## (.*)$", md, re.MULTILINE)
    assert headings[:3] == ["Results on Xeon", "Results on Epyc", "Not timed"]
    epyc = md.split("## Results on Epyc")[1].split("\n## ")[0]
    assert "m.onnx" in epyc
    assert "m.int8.onnx" not in epyc
    assert "lonely.engine" not in epyc


def test_with_one_machine_its_table_shows_the_untimed_files_too(tmp_path: Path) -> None:
    lonely = ArtifactRecord("lonely.engine", "1" * 64, 5, {"int8": 1.0}, "RTX SM86")
    _, md = write([*RECORDS, lonely], tmp_path)
    assert "## Not timed" not in md
    assert "| lonely.engine | int8 |" in md


def test_a_report_without_any_timing_is_a_report(tmp_path: Path) -> None:
    html, md = write(RECORDS[:4], tmp_path)
    assert "2 models, none of them timed." in html
    assert "Results on" not in md


def test_a_warning_of_an_evaluation_names_its_model(tmp_path: Path) -> None:
    warned = [
        replace(r, warnings=("shrunk",)) if isinstance(r, AccuracyRecord) else r for r in RECORDS
    ]
    for text in write(warned, tmp_path):
        assert "m.onnx: shrunk" in text


def test_warnings_stand_first_and_once(tmp_path: Path) -> None:
    warned = [replace(r, warnings=("hot",)) if isinstance(r, BenchRecord) else r for r in RECORDS]
    html, md = write(warned, tmp_path)
    assert html.index("All on Xeon: hot") < html.index("Results on")
    assert md.count("hot") == 1
    summary = reporting.summary(warned)
    assert "hot" not in summary  # bench has said it
    assert summary.count("warning: bench warned of 2 of the measurements") == 1
    other = AccuracyRecord("m.onnx", "f" * 64, {"ap": 0.1}, 9, "other:", "e" * 64)
    html, _ = write([*RECORDS, other], tmp_path)
    assert "several data sets or protocols" in html


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    assert write(RECORDS, tmp_path) == write(RECORDS, tmp_path / "2")


def test_markdown_may_be_asked_for_first(tmp_path: Path) -> None:
    written = reporting.report(RECORDS, tmp_path / "REPORT.md", title="Results")
    assert {path.name for path in written} == {"REPORT.html", "REPORT.md"}
    assert (tmp_path / "REPORT.md").read_text().startswith("# Results\n")


def test_no_records_and_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to report"):
        reporting.report([], tmp_path / "r.html")
    with pytest.raises(InputError, match="nothing to report"):
        reporting.summary([])
    with pytest.raises(OptionError, match=r"(?s)'r\.pdf'.*\.html or \.md"):
        reporting.report(RECORDS, tmp_path / "r.pdf")
    with pytest.raises(OutputError, match="cannot write"):
        reporting.report(RECORDS, tmp_path / "absent" / "r.html")
    assert list(tmp_path.iterdir()) == []


LAYERS = (
    LayerPrecision("stem.Conv", "Conv", "int8", 300),
    LayerPrecision("head.Conv", "Conv", "fp16", 100, "not counted"),
)


def test_a_verdict_says_each_model_beside_the_one_it_was_made_from(tmp_path: Path) -> None:
    whole = replace(BENCH, model="m.int8.onnx", model_sha256="8" * 64)
    fast = replace(whole, seconds=tuple(value / 2 for value in BENCH.seconds))
    html, md = write([*RECORDS, fast], tmp_path)
    said = "m.int8.onnx: AP 0.6000, where m.onnx has 0.6123; 2.00 x its speed; 0.25 x its size; "
    assert said + "97.3% of its work in INT8." in " ".join(Page(html).texts)
    assert "97.3% of its work in INT8." in md
    alone, _ = write(RECORDS[:1], tmp_path)
    assert "No model here was scored beside" in alone


def test_a_page_says_when_its_records_were_kept(tmp_path: Path) -> None:
    html, md = write(RECORDS, tmp_path)
    assert "The records have no date." in html
    assert "The records have no date." in md
    dated = [
        replace(RECORDS[0], time="2026-03-04T05:06:07+00:00"),
        replace(RECORDS[4], time="2026-03-06T05:06:07+00:00"),
    ]
    html, _ = write(dated, tmp_path)
    assert "Measured 2026-03-04 to 2026-03-06." in html


def test_the_precision_of_every_layer_is_folded_under_a_line(tmp_path: Path) -> None:
    made = ArtifactRecord("m.int8.onnx", "8" * 64, 9, {"int8": 1.0}, read_back=LAYERS)
    html, md = write([made, *RECORDS], tmp_path)
    found = Page(html)
    assert [tag for tag, _ in found.tags].count("details") == 0, "the later record counts"
    html, md = write([*RECORDS, made], tmp_path)
    found = Page(html)
    assert "m.int8.onnx: 1 int8, 1 fp16" in found.texts
    assert [("stem.Conv", None), ("Conv", None), ("int8", None), ("75.0", 0.75), ("-", None)] in (
        found.rows
    )
    assert "<summary>m.int8.onnx: 1 int8, 1 fp16</summary>" in md


def test_a_page_shows_a_few_of_the_pictures_that_predict_wrote(tmp_path: Path) -> None:
    for i in range(9):
        Image.new("RGB", (2000, 500), (i, 0, 0)).save(tmp_path / f"{i}.png")
        said = [{"model": f"{name}.onnx", "said": "1 <cat>"} for name in "ab"]
        if i == 1:
            said[1]["said"] = ""
        data = {"image": f"{i}.jpg", "models": said, "schema_version": 1}
        (tmp_path / f"{i}.json").write_text(json.dumps(data))
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    seen = pictures.read(tmp_path)
    assert len(seen) == pictures.MOST
    assert seen[0].caption == "0.jpg. all models: 1 <cat>"
    assert seen[1].caption == "1.jpg. a.onnx: 1 <cat>; b.onnx: nothing"
    html, md = write(RECORDS, tmp_path, pictures=seen)
    sources = [str(attrs["src"]) for tag, attrs in Page(html).tags if tag == "img"]
    assert len(sources) == pictures.MOST
    first = base64.b64decode(sources[0].removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (1000, 250)
    assert "img-src data:" in html
    assert "base64" not in md
    with pytest.raises(InputError, match="holds no predictions"):
        pictures.read(tmp_path / "absent")
    (tmp_path / "0.json").write_text('{"image": 3}')
    with pytest.raises(InputError, match="not a prediction"):
        pictures.read(tmp_path)


def test_charts_come_for_wide_and_for_narrow_screens_with_no_text_beyond_either(
    tmp_path: Path,
) -> None:
    html, _ = write(RECORDS, tmp_path)
    boxes = re.findall(r'viewBox="0 0 (\d+) \d+"', html)
    assert set(boxes) == {"1000", "350"}
    assert boxes.count("1000") == boxes.count("350")
    for drawing in re.findall(r'<svg [^>]*viewBox="0 0 350 .*?</svg>', html, re.DOTALL):
        for said, text in re.findall(r"<text ([^>]*)>([^<]*)<", drawing):
            x, width = float(said.split('"')[1]), 6.4 * len(text)
            shares = {"end": 1.0, "middle": 0.5}
            start = x - width * next((s for name, s in shares.items() if f'"{name}"' in said), 0.0)
            assert start >= -6, text
            assert start + width <= 356, text


def test_the_scores_of_each_task_are_a_table_of_their_own(tmp_path: Path) -> None:
    maps = AccuracyRecord(
        "maps.onnx",
        "a" * 64,
        {"miou": 0.5},
        9,
        "maps:",
        "e" * 64,
        primary="miou",
        display={"miou": Display("mIoU")},
    )
    caption = "and what else was measured with it"
    assert caption not in write(RECORDS, tmp_path)[1]
    _, several = write([*RECORDS, maps], tmp_path)
    assert re.findall(rf"(\S+) {caption}", several) == ["AP", "mIoU"]
    table = several.partition(f"mIoU {caption}")[2].partition("\n\n")[2].partition("\n\n")[0]
    header, _, row = table.splitlines()
    assert [each.strip() for each in header.strip("|").split("|")] == [
        *("Model", "Data set", "Images", "mIoU", "Backend", "Protocol")
    ]
    assert "0.5000" in row
