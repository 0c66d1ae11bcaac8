from __future__ import annotations

import errno
import json
import os
import re
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import InputError, OutputError
from deploykit.measuring import records
from deploykit.measuring.records import AccuracyRecord, ArtifactRecord
from deploykit.tasks.task import Display
from deploykit.values import Artifact, BenchRecord, LayerPrecision

BENCH = BenchRecord(
    "m.onnx", "aa", "onnxruntime", "device", 2, (0.5, 0.25), (0.125, 0.25), {"threads": 2},
    {"before": {"cpu": "x"}}, ("hot",),
)  # fmt: skip
SCORES = AccuracyRecord(
    "m.onnx", "aa", {"ap": 0.5, "ap_small": None}, 500, "shapes:", "dd", per_class={"ring": 0.25}
)
FILE = ArtifactRecord(
    "m.engine", "bb", 1000, {"int8": 0.75, "fp16": 0.25}, "SM86", {"m.onnx": "aa"}
)
TEXT = st.text(max_size=20)


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_records_of_every_kind_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for record in (BENCH, SCORES, FILE):
        records.append(path, record)
    assert records.read([path, path]) == (BENCH, SCORES, FILE) * 2
    assert path.read_bytes().count(b"\n") == 3


@settings(max_examples=20)
@given(
    TEXT,
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=5),
    st.dictionaries(
        TEXT, TEXT | st.integers(-(2**62), 2**62) | st.none() | st.lists(st.booleans())
    ),
)
def test_any_name_and_any_time_survives_a_file(
    tmp_path: Path, name: str, seconds: list[float], protocol: dict[str, Any]
) -> None:
    path = tmp_path / "any.jsonl"
    path.unlink(missing_ok=True)
    record = BenchRecord(name, name, name, name, 1, tuple(seconds), protocol=protocol)
    records.append(path, record)
    assert records.read([path]) == (record,)


def test_shares_are_of_the_multiply_accumulates() -> None:
    layers = [
        LayerPrecision("a", "Conv", "int8", 300),
        LayerPrecision("b", "Conv", "unknown", 100),
        LayerPrecision("c", "Relu", "fp32", 0),
    ]
    assert records.shares(layers) == {"int8": 0.75, "unknown": 0.25}
    assert records.shares(layers[2:]) == {}


def test_an_artifact_becomes_a_record_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(b"12345")
    artifact = Artifact(path, "bb", parents={"m.onnx": "aa"})
    layer = LayerPrecision("a", "Conv", "fp16", 1)
    found = records.artifact_record(artifact, [layer], target="T4")
    parents = {"m.onnx": "aa"}
    assert found == ArtifactRecord(
        *("m.engine", "bb", 5, {"fp16": 1.0}, "T4", parents), read_back=(layer,)
    )
    records.append(tmp_path / "r.jsonl", found)
    (kept,) = records.read([tmp_path / "r.jsonl"])
    assert kept == found
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", kept.time)
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*m\.engine"):
        records.artifact_record(artifact, [])


def test_a_torn_last_line_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, BENCH)
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    with pytest.raises(InputError, match=r"(?s)line 2 is not JSON: its end is missing.*delete"):
        records.read([path])


def test_a_record_after_a_torn_line_starts_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"kind": "ben')
    records.append(path, SCORES)
    assert path.read_text().splitlines()[1].startswith("{")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        records.read([path])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json\n", "line 1 is not JSON: Expecting"),
        ("[1]\n", "line 1 is not a record: it has no kind"),
        ('\n\n{"kind": 3}\n', "line 3 is not a record: it has no kind"),
        (lines({"kind": "song", "schema_version": 1}), "kind or schema_version"),
        (lines({"kind": "bench", "schema_version": 99}), r"schema_version \(99\)"),
        (lines({"kind": "bench", "schema_version": 1}), "backend, batch_size, device_seconds"),
        ("[" * 100_000 + "\n", "is JSON nested too deep"),
        ('{"kind": "bench", "x": NaN}\n', "NaN is not a JSON number"),
    ],
)
def test_what_is_not_a_record_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        records.read([path])


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        (BENCH, "seconds", []),
        (BENCH, "seconds", [0.0]),
        (BENCH, "seconds", [-1.0, 2.0]),
        (BENCH, "seconds", ["1"]),
        (BENCH, "seconds", [1e300]),
        (BENCH, "seconds", 5),
        (BENCH, "device_seconds", [True]),
        (BENCH, "batch_size", 0),
        (BENCH, "batch_size", 10**30),
        (BENCH, "model", None),
        (BENCH, "environment", []),
        (BENCH, "warnings", "hot"),
        (BENCH, "surprise", 1),
        (SCORES, "metrics", {"ap": "high"}),
        (SCORES, "images", -1),
        (FILE, "bytes", 1.5),
        (FILE, "precision", {"int8": 1.5}),
        (FILE, "parents", {"m.onnx": 1}),
        (FILE, "read_back", [{"name": "a"}]),
        (FILE, "time", 5),
    ],
)
def test_a_field_of_the_wrong_form_is_named(
    tmp_path: Path, record: records.Record, name: str, value: Any
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(lines({**record.to_json(), name: value}))
    with pytest.raises(
        InputError, match=rf"line 1 is not a record: (it has the unknown key '{name}'|{name}\b)"
    ):
        records.read([path])


def test_a_file_that_is_absent_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*none\.jsonl"):
        records.read([tmp_path / "none.jsonl"])
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"b\.jsonl is not text"):
        records.read([tmp_path / "b.jsonl"])


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, SCORES)
    before, write, calls = path.read_bytes(), os.write, []

    def full(handle: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return write(handle, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match=r"cannot write .*r\.jsonl: No space left"):
        records.append(path, BENCH)
    assert path.read_bytes() == before


def test_a_device_or_a_pipe_is_no_place_for_records(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((Path(os.devnull), "a device"), (tmp_path / "pipe", "a pipe")):
        with pytest.raises(OutputError, match=f"it is {kind}"):
            records.append(path, BENCH)
        with pytest.raises(OutputError, match=f"it is {kind}"):
            records.check_appendable(path)


def test_a_file_that_holds_something_else_is_not_appended_to(tmp_path: Path) -> None:
    for content in (b"\x08\x09\x12\x07pytorch", b"# Notes\n", b'{\n "sha256": "0"\n}\n', b"[]\n"):
        path = tmp_path / "other"
        path.write_bytes(content)
        with pytest.raises(OutputError, match="other than records"):
            records.check_appendable(path)
        assert path.read_bytes() == content
    for content in (b"", b"\n", b'{"backend": "onnxr'):  # new, blank, and torn by a crash
        path.write_bytes(content)
        records.check_appendable(path)


WRITERS, LINES = 12, 40


def test_many_processes_lose_and_tear_no_record_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    children = []
    for number in range(WRITERS):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for line in range(LINES):
                    records.check_appendable(path)
                    name = f"{number}-{line}"
                    records.append(path, replace(BENCH, model=name, warnings=(name * 2000,)))
                status = 0
            except BaseException:  # noqa: BLE001 - nothing of a child may run the rest of the tests
                (tmp_path / f"{number}.txt").write_text(traceback.format_exc())
            finally:
                os._exit(status)
        children.append(child)
    ended = [os.waitpid(child, 0)[1] for child in children]
    assert not any(ended), [path.read_text() for path in tmp_path.glob("*.txt")]
    names = Counter(r.model for r in records.read([path]) if isinstance(r, BenchRecord))
    wanted = [f"{number}-{line}" for number in range(WRITERS) for line in range(LINES)]
    assert names == Counter(wanted)


def test_an_unwritable_place_is_found_before_the_slow_step(tmp_path: Path) -> None:
    for path in (tmp_path / "absent" / "r.jsonl", tmp_path):
        with pytest.raises(OutputError, match="cannot write"):
            records.check_appendable(path)
        with pytest.raises(OutputError, match="cannot write"):
            records.append(path, BENCH)
    records.check_appendable(tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()
    records.append(tmp_path / "r.jsonl", BENCH)
    records.check_appendable(tmp_path / "r.jsonl")
    assert records.read([tmp_path / "r.jsonl"]) == (BENCH,)


def test_a_record_may_lack_how_its_metrics_are_shown(tmp_path: Path) -> None:
    data = SCORES.to_json()
    data["metrics"] = {"mask_ap": 0.4, "ap": 0.5, "ap50": 0.7, "own_score": 1.0}
    for name in ("task", "primary", "display"):
        del data[name]
    path = tmp_path / "r.jsonl"
    path.write_text(lines(data))
    (found,) = records.read([path])
    assert isinstance(found, AccuracyRecord)
    shown = {name: (display.title, display.summary) for name, display in found.shown().items()}
    assert shown == {
        "ap": ("AP", True),
        "ap50": ("AP50", True),
        "mask_ap": ("Mask AP", True),
        "own_score": ("own score", False),
    }
    assert next(iter(shown)) == found.primary == "ap"


def test_how_metrics_are_shown_is_kept_with_the_record(tmp_path: Path) -> None:
    display = {"error": Display("Error", unit="px", digits=1, higher_is_better=False)}
    record = replace(SCORES, metrics={"error": 2.0}, primary="error", task="t", display=display)
    path = tmp_path / "r.jsonl"
    records.append(path, record)
    assert records.read([path]) == (record,)
    assert display["error"].text(2.04) == "2.0 px"
    assert display["error"].text(None) == "-"
