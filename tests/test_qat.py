"""The verb qat: an ONNX file to one with weights that suit INT8, and the table for quantize."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploykit import pipeline, tasks
from deploykit.data import feeding, sources
from deploykit.errors import DataError, InputError, OptionError, StaleTableError
from deploykit.files import onnxfile
from deploykit.measuring import records
from deploykit.measuring.layer_records import TrainingRecord
from deploykit.pipeline import EvalOptions, ExportOptions, QatOptions, QuantizeOptions
from deploykit.precision import placement, tables
from deploykit.precision.calibration import CalibrationOptions
from deploykit.precision.placement import default_plan
from deploykit.recipes import opened
from deploykit.recipes.describing import Description
from deploykit.tasks import evaluation
from deploykit.tasks.evaluation import Contract
from deploykit.training.course import Course
from deploykit.training.fake_quant import FakeQuantized, Grid
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploykit.data.samples import Batch

EXAMPLE = Path(__file__).parent.parent / "examples" / "shapes" / "yolov6_pico.pth"
SIDE = 64
COURSE = Course(epochs=2, learning_rate=1e-4)


@pytest.fixture(scope="module")
def table(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranges of the test model."""
    path = tmp_path_factory.mktemp("table") / "ranges.json"
    options = QuantizeOptions(source=f"folder:{photos}", table=path)
    pipeline.quantize(model, path.with_name("m.onnx"), options)
    return path


def how(table: Path, photos: Path, **options: Any) -> QatOptions:
    """Return options to learn from the photographs, beginning from a table."""
    calibrated = QuantizeOptions(source=f"folder:{photos}", table=table, asked=())
    return replace(QatOptions(calibrated, batch_size=4, course=COURSE), **options)


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    graph = ir.load(path).graph
    return {str(n): v.const_value.numpy() for n, v in graph.initializers.items() if v.const_value}


def test_qat_writes_weights_a_table_that_quantize_takes_and_a_checkpoint_that_export_takes(
    model: Path, table: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "learnt.onnx"
    options = how(table, photos, state=tmp_path / "learnt.pth")
    made = pipeline.qat(model, out, options, record=tmp_path / "records")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "learnt.calibration.json",
        "learnt.onnx",
        "learnt.onnx.json",
        "learnt.pth",
        "records",
    ]
    kept = records.read([tmp_path / "records"])[-1]
    assert isinstance(kept, TrainingRecord)
    assert kept.curve == tuple(made.artifact.made_by["curve"])
    assert kept.model_sha256 == made.artifact.sha256
    before, after = weights(model), weights(out)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert "backbone.stem.rbr_reparam.weight" in changed
    assert not any("proj" in name for name in changed), "what was set by hand stays"
    first, last = (made.artifact.made_by["curve"][k]["loss"] for k in (0, -1))
    assert last < first
    learnt = tables.read(tmp_path / "learnt.calibration.json")
    assert learnt.model_sha256 == made.artifact.sha256
    assert learnt.observer == "mse, learnt"
    int8 = pipeline.quantize(
        out, tmp_path / "int8.onnx", QuantizeOptions(table=tmp_path / "learnt.calibration.json")
    )
    assert int8.artifact.parents == {"learnt.onnx": made.artifact.sha256}
    pipeline.export(
        tmp_path / "learnt.pth", tmp_path / "again.onnx", ExportOptions(input_size=(SIDE, SIDE))
    )
    again = weights(tmp_path / "again.onnx")
    for name in changed:
        np.testing.assert_array_equal(again[name], after[name])


ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}
"""One thread each: beside other tests, threads that wait for each other take minutes."""


def stopped(command: list[str], number: int, partial: Path) -> None:
    """Run a command and send it a signal as soon as it has a new snapshot."""
    before = partial.stat().st_mtime_ns if partial.exists() else 0
    known = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child takes over SIG_IGN
    process = subprocess.Popen(command, env=ALONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    signal.signal(signal.SIGINT, known)

    def waits() -> bool:
        return not partial.exists() or partial.stat().st_mtime_ns == before

    try:
        deadline = time.monotonic() + 100
        while waits() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=60)[0].decode()
    finally:
        process.kill()
    assert partial.exists(), said
    assert process.returncode in {-number, 128 + number}, said
    assert "Traceback" not in said


def test_a_run_that_is_ended_in_whatever_way_goes_on_and_ends_equal(
    model: Path, table: Path, photos: Path, tmp_path: Path
) -> None:
    words = [
        *(sys.executable, "-m", "deploykit", "qat", str(model), "--table", str(table)),
        *("--source", f"folder:{photos}", "--batch-size", "4", "--epochs", "40"),
        *("--learning-rate", "1e-4", "--json", "-o"),
    ]
    out = tmp_path / "ended.onnx"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        stopped([*words, str(out)], number, tmp_path / "ended.onnx.partial")
        assert not out.exists()
    other = [*words, str(out), "--epochs", "3"]
    refused = subprocess.run(other, env=ALONE, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "another training: epochs differs" in refused.stdout
    assert "epochs 40, asked for 3" in refused.stdout
    whole, ended = (
        json.loads(
            subprocess.run([*words, str(path)], env=ALONE, capture_output=True, check=True).stdout
        )
        for path in (tmp_path / "whole.onnx", out)
    )
    assert whole["sha256"] == ended["sha256"]
    assert any("went on from step" in note for note in ended["notes"])
    assert not list(tmp_path.glob("ended*.partial"))


def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(
    model: Path, table: Path, photos: Path, tmp_path: Path
) -> None:
    ended = tmp_path / "ended.onnx"
    start = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "deploykit", "qat")
    how = ("--source", f"folder:{photos}", "--batch-size", "4", "--epochs", "30", "-o")
    words = [sys.executable, *start, str(model), "--table", str(table), *how, str(ended)]
    partial = ended.with_name("ended.onnx.partial")
    process = subprocess.Popen(words, env=ALONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 100
        while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        said = process.communicate(timeout=60)[0].decode()
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not ended.exists()
    done = subprocess.run(words, env=ALONE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "went on from step" in done.stdout
    assert ended.exists()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained example detector at 160x160."""
    path = tmp_path_factory.mktemp("example") / "pico.onnx"
    pipeline.export(EXAMPLE, path, ExportOptions(input_size=(160, 160)))
    return path


def test_ap_of_the_fake_quant_network_is_that_of_the_file(example: Path, tmp_path: Path) -> None:
    images = "shapes:split=train,seed=11,count=16,size=160"
    options = QuantizeOptions(
        source=images, calibration=CalibrationOptions(size=16), float_type=Precision.FP32
    )
    out = tmp_path / "qat.onnx"
    pipeline.qat(example, out, QatOptions(options, course=Course(epochs=2)))
    stored = replace(options, source=None, table=tmp_path / "qat.calibration.json")
    pipeline.quantize(out, tmp_path / "int8.onnx", stored)
    held_out = "shapes:split=val,seed=1,count=24,size=160"
    expected = pipeline.evaluate(tmp_path / "int8.onnx", EvalOptions(held_out)).metrics
    found = scores(out, tables.read(tmp_path / "qat.calibration.json"), held_out)
    assert expected["ap"] is not None
    assert expected["ap"] > 0.2
    assert found["ap"] == pytest.approx(expected["ap"], abs=0.002)


def scores(path: Path, table: Any, images: str) -> Mapping[str, float | None]:
    """Return the metrics of the fake quantised network of a file."""
    model = opened.read(path)
    card = model.card
    assert card is not None
    placed = placement.place(model.graph, default_plan(model.graph, card))
    net = FakeQuantized(model.graph, placed, table, grid=Grid(Precision.FP32)).eval()
    inputs, _ = onnxfile.interface(model.graph)

    @torch.inference_mode()
    def forward(batch: Batch) -> dict[str, Any]:
        feeds = feeding.feeds(inputs, batch.images, batch.geometries)
        found = net({name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: value.numpy() for name, value in found.items()}

    contract = Contract(card.preprocess, card.class_names, tasks.find(card.task))
    data = sources.dataset(images)
    return evaluation.evaluate(forward, data, contract, batch_size=8).scores.metrics


LOSS = """
import deploykit

def compute(found, truth):
    boxes = sum(len(known.annotations) for known, _ in truth)
    return found["outputs"][..., 5:].square().sum(), boxes

loss = deploykit.Loss(("outputs",), compute)
"""


def test_a_loss_of_ones_own_is_a_file_that_the_user_names(
    example: Path, model: Path, table: Path, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "my_loss.py"
    file.write_text(LOSS)
    images = "shapes:count=8,size=160"
    how_ = QuantizeOptions(source=images, table=tmp_path / "ranges.json")
    options = QatOptions(how_, 4, course=COURSE, loss=file, distill=False, scales="fixed")
    made = pipeline.qat(example, tmp_path / "o.onnx", options)
    curve = made.artifact.made_by["curve"]
    assert curve[-1]["task"] == curve[-1]["loss"] < curve[0]["loss"]
    known = tables.read(tmp_path / "o.calibration.json").ranges
    assert {n: r.threshold for n, r in known.items()} == {
        n: r.threshold for n, r in tables.read(tmp_path / "ranges.json").ranges.items()
    }
    assert any(note.startswith("learnt in ") for note in made.notes)
    file.write_text(LOSS.replace("boxes =", "raise SystemExit(0)  #"))
    for body in (file.read_text(), "raise SystemExit(0)"):
        leaver = tmp_path / f"leaver{len(body)}.py"
        leaver.write_text(body)
        with pytest.raises(OptionError, match=r"leaver.*SystemExit: 0"):
            pipeline.qat(example, tmp_path / "o.onnx", replace(options, loss=leaver))
    with pytest.raises(OptionError, match=r"images without truth, which the loss needs"):
        pipeline.qat(example, tmp_path / "p.onnx", replace(options, images=f"folder:{photos}"))
    with pytest.raises(DataError, match=r"has the class 'circle', which the model does not know"):
        pipeline.qat(model, tmp_path / "p.onnx", how(table, photos, loss=file, images=images))


def test_what_does_not_belong_to_the_model_is_refused(
    model: Path, table: Path, photos: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.json"
    said = json.loads(table.read_text())
    foreign.write_text(json.dumps({**said, "model_sha256": "0" * 64}))
    with pytest.raises(StaleTableError, match="another model"):
        pipeline.qat(model, tmp_path / "o.onnx", how(foreign, photos))
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"layers": {}, "model_sha256": "0" * 64}))
    options = how(table, photos)
    planned = replace(options, calibrated=replace(options.calibrated, plan=plan))
    with pytest.raises(InputError, match="another model"):
        pipeline.qat(model, tmp_path / "o.onnx", planned)
    assert not (tmp_path / "o.onnx").exists()


def test_no_images_and_an_empty_folder_are_refused(
    model: Path, table: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError):
        pipeline.qat(
            model, tmp_path / "o.onnx", how(table, photos, images=f"folder:{tmp_path / 'none'}")
        )
    with pytest.raises(OptionError, match="no images to learn from"):
        pipeline.qat(model, tmp_path / "o.onnx", QatOptions(QuantizeOptions(table=table)))


def test_names_that_the_graph_lacks_are_refused(
    model: Path, table: Path, photos: Path, tmp_path: Path
) -> None:
    for course in (replace(COURSE, features=("nek",)), replace(COURSE, heads=("nek",))):
        with pytest.raises(OptionError, match="unknown tensor 'nek'"):
            pipeline.qat(model, tmp_path / "o.onnx", how(table, photos, course=course))


def test_a_model_of_another_maker_learns_from_what_its_heads_give(
    toy: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    path = toy().save(tmp_path / "toy.onnx")
    about = Description(preprocess="unit", task="classification")
    options = QuantizeOptions(
        source=f"folder:{photos}", about=about, calibration=CalibrationOptions(size=8)
    )
    made = pipeline.qat(path, tmp_path / "o.onnx", QatOptions(options, 4, course=COURSE))
    assert any("what the heads give alone" in note for note in made.notes)
    assert made.artifact.made_by["curve"][0]["loss"] == made.artifact.made_by["curve"][0]["heads"]
