"""The verbs joined: what one command writes, the next one reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import onnx
import pytest

import deploykit
from deploykit import backends, cli
from deploykit.data import sources
from deploykit.errors import InputError, OptionError
from deploykit.measuring import records
from deploykit.ops.plugin import OPS
from deploykit.pipeline import open_model
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]

TINY = "shapes:count=2,size=96"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command with --json in this process; returns what it printed."""

    def command(*words: object, status: int = 0) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main([*map(str, words), "--json"])
        assert stopped.value.code == status, capsys.readouterr().err
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return command


def test_a_table_is_written_once_and_then_read(
    run: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    table, first, second = (tmp_path / name for name in ("t.json", "a.onnx", "b.onnx"))
    made = run("quantize", model, "--calib-dir", photos, "--table", table, "-o", first)
    assert made["precision"]["int8"] > 0.9
    again = run("quantize", model, "--table", table, "-o", second)
    assert again["sha256"] == made["sha256"]


def test_a_plan_keeps_a_layer_in_float_with_its_reason(
    run: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    layer = "backbone.stem.rbr_reparam.Conv"
    plan = tmp_path / "plan.json"
    data = {"schema_version": 1, "default": "int8", "layers": {layer: "fp16"}}
    plan.write_text(json.dumps({**data, "reasons": {layer: "measured"}}))
    output = tmp_path / "q.onnx"
    words = ("quantize", model, "--calib-dir", photos, "--plan", plan, "-o", output)
    layers = {found["name"]: found["precision"] for found in run(*words)["layers"]}
    assert layers[layer] == "fp16"
    assert layers["backbone.ERBlock_2.0.rbr_reparam.Conv"] == "int8"


def test_inspect_shows_shares_and_no_errors_in_our_own_graph(run: Run, int8: Path) -> None:
    found = run("inspect", int8)
    assert found["shares"]["int8"] > 0.9
    assert not [f for f in found["findings"] if f["severity"] == "error"]


def test_an_engine_knows_its_parent_and_its_precision(run: Run, int8: Path, tmp_path: Path) -> None:
    if not backends.load("tensorrt_rtx").availability().builds:
        pytest.skip(backends.load("tensorrt_rtx").availability().reason)
    engine, lines = tmp_path / "pico.engine", tmp_path / "r.jsonl"
    made = run("build", int8, "--sm", "86", "-o", engine, "--record", lines)
    assert made["precision"]["int8"] > 0.9
    assert engine.with_name("pico.engine.log").read_text()
    (record,) = records.read([lines])
    assert isinstance(record, records.ArtifactRecord)
    assert record.target == "tensorrt_rtx SM86"
    assert list(record.parents) == [int8.name]
    assert run("inspect", engine)["shares"].keys() <= {"int8", "fp16", "unknown"}
    refused = run("eval", engine, "--source", TINY, status=2)
    assert refused["error"]["type"] == "BackendError"


def test_an_engine_that_changed_since_is_not_opened(tmp_path: Path, run: Run, model: Path) -> None:
    built = tmp_path / "pico.ort.engine"
    run("build", model, "--backend", "onnxruntime", "-o", built)
    assert open_model(built).backend == "onnxruntime"
    changed = onnx.load(built)
    changed.producer_name = "another"
    onnx.save(changed, built)
    with pytest.raises(InputError, match="is not the file"):
        open_model(built)


def test_measurements_become_one_report(run: Run, model: Path, int8: Path, tmp_path: Path) -> None:
    lines, page = tmp_path / "r.jsonl", tmp_path / "report.html"
    for path in (model, int8):
        scores = run("eval", path, "--source", TINY, "--record", lines)
        assert scores["images"] == 2
    words = ("--duration", 0.05, "--warmup", 0, "--iterations", 3, "--record", lines)
    found = run("bench", model, int8, "--batch-sizes", "1,2", *words)
    assert [r["batch_size"] for r in found["records"]] == [1, 2, 1, 2]
    assert all(len(r["seconds"]) >= 3 for r in found["records"])
    timed = run("bench", model, "--end-to-end", TINY, *words)["records"][0]
    assert timed["scope"] == "end-to-end"
    written = run("report", lines, "-o", page, "--title", "A & B")["written"]
    assert written == [str(page), str(page.with_suffix(".md"))]
    assert "A &amp; B" in page.read_text()


def test_a_checkpoint_agrees_with_its_export_and_not_with_int8(
    run: Run, checkpoint: Path, model: Path, int8: Path
) -> None:
    same = run("verify", model, "--against", model, "--source", TINY, "--count", 2)
    assert same["passed"]
    assert run("verify", int8, "--against", model, "--count", 2, status=1)["error"]
    assert run("verify", model, "--against", checkpoint, "--count", 1)["passed"]
    assert run("verify", checkpoint, "--against", model, "--count", 1)["passed"]


def test_every_result_is_readable_as_text(
    model: Path, int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = str(tmp_path / "r.jsonl")
    commands = {
        "AP50": ["eval", str(int8), "--source", TINY, "--record", lines],
        "FPS": ["bench", str(model), "--duration", "0.01", "--iterations", "3", "--record", lines],
        "of all MACs": ["inspect", str(int8)],
        "cosine": ["verify", str(model), "--against", str(model), "--count", "1"],
        "report.html": ["report", lines, "-o", str(tmp_path / "report.html")],
        "onnxruntime": ["doctor"],
        "MB": ["fuse", str(model), "-o", str(tmp_path / "fused.onnx")],
        "FP16": ["cast", str(model), "-o", str(tmp_path / "half.onnx")],
    }
    for expected, words in commands.items():
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        text = capsys.readouterr()
        assert stopped.value.code == 0, text.err
        assert expected in text.out


def test_a_file_without_a_card_says_what_is_missing(model: Path, tmp_path: Path) -> None:
    bare = onnx.load(model)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    opened = open_model(tmp_path / "bare.onnx")
    with pytest.raises(OptionError, match="how its images are prepared"):
        opened.contract()
    with pytest.raises(OptionError, match="runs engines"):
        open_model(model, backend="tensorrt_rtx")
    with pytest.raises(InputError, match="no such file"):
        open_model(tmp_path / "absent.engine")


def test_what_a_file_holds_counts_and_not_what_it_is_called(model: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "model.engine"
    renamed.write_bytes(model.read_bytes())
    assert open_model(renamed).backend == "onnxruntime"
    assert deploykit.inspect(str(renamed)).shares
    engine = tmp_path / "engine.onnx"
    engine.write_bytes(b"ptrt" + bytes(100))
    with pytest.raises(InputError, match="no sidecar"):
        open_model(engine)


def test_recipe_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    broken, other = tmp_path / "broken.py", tmp_path / "other.py"
    broken.write_text("raise RuntimeError('at import')")
    other.write_text("recipe = 3")
    with pytest.raises(OptionError, match="RuntimeError: at import"):
        RECIPES.load(str(broken))
    with pytest.raises(OptionError, match="defines no recipe"):
        RECIPES.load(str(other))
    with pytest.raises(OptionError, match="no such recipe file"):
        RECIPES.load(str(tmp_path / "absent.py"))
    with pytest.raises(OptionError, match="unknown plugin"):
        OPS.load("DKNothing")
    with pytest.raises(OptionError, match="SOURCE:LOCATION"):
        sources.dataset("photos")
