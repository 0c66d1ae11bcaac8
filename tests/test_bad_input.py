"""A user's mistake is one clear message, exit status 2, no traceback, and no output file."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from deploykit import cli


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


class Runner:
    """Runs commands in this process, in a folder that must stay free of output."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.output = folder / "output.bin"

    def __call__(self, *words: object) -> Outcome:
        before = {p: p.stat().st_mtime_ns for p in self.folder.rglob("*") if p.is_file()}
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in words])
        text = self._capsys.readouterr()
        after = {p: p.stat().st_mtime_ns for p in self.folder.rglob("*") if p.is_file()}
        assert after == before, "a failed command left files"
        return Outcome(int(stopped.value.code or 0), text.out, text.err)

    def refuses(self, *words: object, message: str) -> Outcome:
        """Check exit status 2 and one message, on stderr, that `message` (a pattern) finds."""
        outcome = self(*words)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        said = re.sub(r"^\w+: .*\d+ s( left)?\n", "", outcome.err, flags=re.MULTILINE)
        assert said.startswith("deploykit: "), outcome.err
        assert "Traceback" not in outcome.err
        assert re.search(message, outcome.err), outcome.err
        return outcome


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, capsys)


def saved(folder: Path, value: object, name: str = "x.pth") -> Path:
    import torch

    torch.save(value, folder / name)
    return folder / name


# Checkpoints.


def test_a_missing_checkpoint(run: Runner) -> None:
    run.refuses("export", run.folder / "no.pth", "-o", run.output, message=r"no\.pth")


def test_an_empty_checkpoint(run: Runner) -> None:
    path = run.folder / "empty.pth"
    path.touch()
    run.refuses("export", path, "-o", run.output, message="empty")


def test_a_truncated_checkpoint(run: Runner, checkpoint: Path) -> None:
    path = run.folder / "cut.pth"
    path.write_bytes(checkpoint.read_bytes()[:20_000])
    run.refuses("export", path, "-o", run.output, message=r"cut\.pth.*(truncated|damaged)")


def test_an_archive_that_unpacks_to_many_gigabytes(run: Runner) -> None:
    path = run.folder / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("bomb/data/0", bytes(1 << 26))
        archive.infolist()[0].file_size = 8 << 30  # as 8 GiB of zeros would be listed
        archive.writestr("bomb/data.pkl", pickle.dumps({}))
    assert path.stat().st_size < 1_000_000
    run.refuses("export", path, "-o", run.output, message="(GB|GiB)")


class Harmful:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch harmed",)


def test_a_pickle_that_runs_code_is_refused_with_the_name_it_wanted(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.folder)
    path = saved(run.folder, {"model": Harmful()})
    run.refuses("export", path, "-o", run.output, message=r"(posix|os)\.system")
    assert not (run.folder / "harmed").exists()


def test_the_state_dict_of_another_model(run: Runner) -> None:
    import torch

    path = saved(run.folder, torch.nn.Linear(3, 4).state_dict())
    run.refuses("export", path, "-o", run.output, message="not a checkpoint of")
    words = ("export", path, "--recipe", "yolov6", "-o", run.output)
    run.refuses(*words, message="not a checkpoint of yolov6")


def test_weights_of_another_variant_name_what_does_not_fit(run: Runner, checkpoint: Path) -> None:
    words = ("export", checkpoint, "--variant", "v3n", "-o", run.output)
    run.refuses(*words, message=r"unknown variant for these weights 'v3n'\nexpected: one of pico")


def test_weights_with_nan(run: Runner, checkpoint: Path) -> None:
    import torch

    state = torch.load(checkpoint, weights_only=True)["model"]
    state["backbone.stem.rbr_dense.conv.weight"][0, 0, 0, 0] = float("nan")
    path = saved(run.folder, state)
    message = r"backbone\.stem\.rbr_dense\.conv\.weight"
    run.refuses("export", path, "-o", run.output, message=message)


def test_unknown_recipe_variant_and_opset(run: Runner, checkpoint: Path) -> None:
    words = ("export", checkpoint, "-o", run.output)
    run.refuses(*words, "--recipe", "yolov", message="did you mean yolov6")
    run.refuses(*words, "--variant", "picoo", message="did you mean pico")
    run.refuses(*words, "--opset", 3, message="17 to")
    run.refuses(*words, "--input-size", "65", message="multiples of 32")
    run.refuses(*words, "--input-size", "big", message="HxW")
    run.refuses(*words, "--class-names", "a,b", message="2 class names for a model of 6")


# ONNX files.


def wrong_inputs(folder: Path) -> Path:
    x = helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.save(made, folder / "other.onnx")
    return folder / "other.onnx"


@pytest.mark.parametrize("command", ["fuse", "quantize", "cast", "build"])
def test_a_text_file_as_onnx(run: Runner, photos: Path, command: str) -> None:
    path = run.folder / "notes.onnx"
    path.write_text("these are my notes\n" * 10)
    extra = ("--calib-dir", photos) if command == "quantize" else ()
    run.refuses(command, path, *extra, "-o", run.output, message=r"notes\.onnx")


@pytest.mark.parametrize("command", ["inspect", "describe"])
def test_a_checkpoint_where_an_onnx_file_is_wanted(
    run: Runner, checkpoint: Path, command: str
) -> None:
    rest = ("-o", run.output) if command == "describe" else ()
    run.refuses(command, checkpoint, *rest, message="to fix: export it first")


@pytest.mark.parametrize("content", ["a\nb\n", '["a", "b"]', "names: [a, b]\n"])
def test_class_names_of_a_file_are_counted_as_others(
    run: Runner, checkpoint: Path, content: str
) -> None:
    (run.folder / "names.txt").write_text(content)
    words = ("export", checkpoint, "-o", run.output, "--class-names")
    run.refuses(*words, run.folder / "names.txt", message="2 class names for a model of 6")
    run.refuses(*words, run.folder / "other.txt", message="there is no such file")


def test_a_model_with_the_wrong_inputs(run: Runner, photos: Path) -> None:
    path = wrong_inputs(run.folder)
    words = ("quantize", path, "--calib-dir", photos, "-o", run.output)
    run.refuses(*words, message="deploykit export|expected")
    run.refuses("eval", path, "--source", "shapes:count=2", message="does not take images alone")


# Calibration images.


def quantize(run: Runner, model: Path, folder: object, *extra: object) -> tuple[object, ...]:
    return ("quantize", model, "--calib-dir", folder, "-o", run.output, *extra)


def test_an_empty_calibration_folder(run: Runner, model: Path) -> None:
    folder = run.folder / "none"
    folder.mkdir()
    run.refuses(*quantize(run, model, folder), message="holds no images")
    (folder / "readme.txt").write_text("no images here")
    run.refuses(*quantize(run, model, folder), message="holds no images: 1 other file")
    run.refuses(*quantize(run, model, run.folder / "absent"), message="absent")


def test_one_truncated_image_among_many_is_named(run: Runner, model: Path, photos: Path) -> None:
    folder = run.folder / "photos"
    shutil.copytree(photos, folder)
    cut = folder / "3.jpg"
    cut.write_bytes(cut.read_bytes()[:900])
    run.refuses(*quantize(run, model, folder), message=r"3\.jpg")
    words = (*quantize(run, model, folder, "--skip-unreadable"), "--json")
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    assert stopped.value.code == 0
    assert run.output.exists()


def test_an_image_without_pixels(run: Runner, model: Path) -> None:
    folder = run.folder / "photos"
    folder.mkdir()
    # A GIF may say that it is 0 pixels wide and high.
    (folder / "zero.gif").write_bytes(b"GIF89a" + bytes(4) + b"\x00\x00\x00" + b";")
    run.refuses(*quantize(run, model, folder), message=r"zero\.gif")


def test_unknown_method_and_float_type(run: Runner, model: Path, photos: Path) -> None:
    words = quantize(run, model, photos)
    run.refuses(*words, "--calib-method", "entropi", message="did you mean entropy")
    run.refuses(*words, "--float-type", "fp61", message="did you mean fp16")
    run.refuses(*words, "--calib-size", 0, message="at least 1")
    words = ("quantize", model, "-o", run.output)
    run.refuses(*words, message="no images to calibrate on")
    run.refuses(*words, "--calib-source", "cocoo:x", message="did you mean coco")


def test_a_table_of_another_model(run: Runner, model: Path) -> None:
    table = run.folder / "table.json"
    data = {"schema_version": 1, "model_sha256": "0" * 64, "observer": "minmax"}
    data |= {"samples": [], "samples_sha256": "", "ranges": {}}
    table.write_text(json.dumps(data))
    words = ("quantize", model, "--table", table, "-o", run.output)
    run.refuses(*words, message="another model|other model|stale")
    table.write_text("{}")
    run.refuses(*words, message="not a calibration table")


# Engines.


def test_unknown_target_and_backend(run: Runner, model: Path) -> None:
    words = ("build", model, "-o", run.output)
    run.refuses(*words, "--sm", "87", message="87")
    run.refuses(*words, "--sm", "70", message="10.4")
    run.refuses(*words, "--backend", "tensorrrt", message="did you mean tensorrt")
    run.refuses(*words, "--sm", "86", "--workspace", "4", message="4G")
    run.refuses(*words, "--sm", "86", "--min-shapes", "images", message="name:1x3")


# Outputs.


def test_an_output_that_cannot_be_written(run: Runner, checkpoint: Path) -> None:
    absent = run.folder / "absent" / "x.onnx"
    run.refuses("export", checkpoint, "-o", absent, message="cannot write")
    run.refuses("export", checkpoint, "-o", run.folder, message="cannot write")


@pytest.mark.parametrize("command", ["export", "fuse", "cast"])
def test_a_disk_that_fills_up_leaves_nothing(
    run: Runner, checkpoint: Path, model: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def full(path: Path, data: bytes) -> None:
        path.write_text(str(data[:4]))
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    words = (checkpoint, "--input-size", "64") if command == "export" else (model,)
    run.refuses(command, *words, "-o", run.output, message="No space left")


@pytest.mark.parametrize("command", ["export", "cast", "build"])
def test_records_that_cannot_be_written_stop_a_command_first(
    run: Runner, checkpoint: Path, model: Path, command: str
) -> None:
    source = checkpoint if command == "export" else model
    words = (command, source, "-o", run.output, "--record", run.folder / "absent" / "r.jsonl")
    run.refuses(*words, message="cannot write")


def test_json_errors_are_one_object_on_stdout(run: Runner) -> None:
    outcome = run("export", run.folder / "no.pth", "-o", run.output, "--json")
    assert outcome.code == 2
    assert "no.pth" in json.loads(outcome.out)["error"]["message"]


# Ctrl-C.

LONG = {
    "export": ("export", "{checkpoint}", "--input-size", "640", "-o", "{output}"),
    "quantize": ("quantize", "{model}", "--calib-source", "shapes:count=90000", "-o", "{output}"),
    "eval": ("eval", "{model}", "--source", "shapes:count=3000", "--record", "{output}"),
    "bench": ("bench", "{model}", "--duration", "60", "--record", "{output}"),
}


@pytest.mark.parametrize("command", LONG)
def test_interrupting_a_long_step_leaves_nothing(
    tmp_path: Path, checkpoint: Path, model: Path, command: str
) -> None:
    output = tmp_path / "output.bin"
    places = {"checkpoint": checkpoint, "model": model, "output": output}
    words = [word.format(**places) for word in LONG[command]]
    with subprocess.Popen(
        [sys.executable, "-m", "deploykit", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if re.search(r" \d+ s( left)?$", line))  # at work
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    # `python -m` ends by the signal itself, which shells call 130 too, where it came within `exec`
    # of a text, as dataclasses are made, however well it was caught.
    assert process.returncode in (cli.INTERRUPTED, -signal.SIGINT), err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
