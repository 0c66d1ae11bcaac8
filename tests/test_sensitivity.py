"""Sensitivities against torch, one layer at a time; and that who computes them is of no matter."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it

import deploykit
from deploykit import SensitivityOptions, sensitivity
from deploykit.backends import onnxruntime
from deploykit.cli import main
from deploykit.errors import BackendError, InputError, OptionError, StaleTableError
from deploykit.pipeline.quantizing import QuantizeOptions
from deploykit.precision import placement
from deploykit.precision.sensitivity import local, scores
from deploykit.precision.sensitivity.alone import Subject, Variants
from deploykit.precision.sensitivity.doubling import doubled
from deploykit.precision.sensitivity.outputs import Difference
from deploykit.recipes import opened
from deploykit.training import gradients
from deploykit.values import CalibrationTable, Precision, PrecisionPlan, Range

CALIBRATION = "shapes:split=train,seed=3,count=12,size=64"
TRUTH = "shapes:split=val,seed=4,count=6,size=64"
GRAPH = """<ir_version: 9, opset_import: ["": 19]>
g (float[N,3,12,12] x) => (float[N,20] y) {
  [first] a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  [relu] b = Relu(a)
  [second] c = Conv<kernel_shape=[3,3], strides=[2,2]>(b, w2)
  [gate] s = Sigmoid(c)
  [silu] d = Mul(c, s)
  [pool] e = GlobalAveragePool(d)
  [flat] f = Flatten(e)
  [third] h = Gemm<transB=1>(f, w3, b3)
  [softmax] y = Softmax(h)
}"""


@pytest.fixture
def small(tmp_path: Path) -> tuple[Subject, dict[str, Any]]:
    """Return a network with a ReLU, a SiLU and a linear layer, and its weights."""
    random = np.random.default_rng(0)
    shapes = {"w1": (24, 3, 3, 3), "b1": (24,), "w2": (32, 24, 3, 3), "w3": (20, 32), "b3": (20,)}
    weights = {k: random.standard_normal(v).astype(np.float32) for k, v in shapes.items()}
    weights["w2"] *= 0.1
    weights["w3"] *= 0.3
    graph = ir.from_onnx_text(
        GRAPH, initializers=[ir.tensor(v, name=k) for k, v in weights.items()]
    )
    model = opened.made(graph, tmp_path / "small.onnx")
    ranges = {"x": Range(2.0, -3.0, 3.0), "b": Range(9.0, 0.0, 12.0), "e": Range(3.0, -1.0, 4.0)}
    table = CalibrationTable(model.sha256, "minmax", (), "", ranges)
    plan = PrecisionPlan(Precision.INT8, {"third": Precision.INT8})
    return Subject(model, plan, table), weights


def _real(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return values.astype(np.float64)


jvp: Any = torch.autograd.functional.jvp
"""The derivative along a direction; torch leaves it without types."""


def rounded(x: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(
        x, float(np.float32(threshold / 127)), 0, -128, 127
    )


def weights_rounded(w: torch.Tensor) -> torch.Tensor:
    scale = w.abs().flatten(1).amax(1) / 127
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(w, scale, zero, 0, -127, 127)


def results(x: torch.Tensor, weights: dict[str, Any], alone: str) -> dict[str, torch.Tensor]:
    """Return what torch gives, with one layer computed from INT8: behind each activation."""
    w = {name: torch.from_numpy(value) for name, value in weights.items()}

    def read(layer: str, value: torch.Tensor, threshold: float) -> torch.Tensor:
        return rounded(value, threshold) if layer == alone else value

    def own(layer: str, name: str) -> torch.Tensor:
        return weights_rounded(w[name]) if layer == alone else w[name]

    first = F.relu(F.conv2d(read("first", x, 2.0), own("first", "w1"), w["b1"], padding=1))
    second = F.silu(F.conv2d(read("second", first, 9.0), own("second", "w2"), stride=2))
    pooled = second.mean((2, 3))
    third = F.linear(read("third", pooled, 3.0), own("third", "w3"), w["b3"])
    return {"first": first, "second": second, "third": third, "y": third.softmax(1)}


def test_each_layers_own_scores_are_those_of_torch(small: tuple[Subject, dict[str, Any]]) -> None:
    subject, weights = small
    made = doubled(subject.model, subject.placed, subject.table)
    session = onnxruntime.open_model(made.model)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 3, 12, 12), np.float32))
    parts = [
        local.sums(session.run, made.layers, {"x": x[i].numpy()}) for i in (slice(3), slice(3, 5))
    ]
    found = local.scores(local.added(local.added({}, parts[0]), parts[1]))
    exact = results(x, weights, "")
    assert list(found) == ["first", "second", "third"]
    for name, score in found.items():
        y, q = (each[name].double() for each in (exact, results(x, weights, name)))
        error = (q - y).square()
        assert score.mse == pytest.approx(float(error.mean()), rel=2e-3)
        assert score.snr == pytest.approx(
            10 * math.log10(float(y.square().sum() / error.sum())), abs=0.01
        )
        cosine = F.cosine_similarity(q.flatten(), y.flatten(), 0, 0)
        assert score.cosine == pytest.approx(1 - float(cosine), rel=0.02, abs=1e-7)
        axes = [i for i in range(y.ndim) if i != 1]
        signal = y.square().sum(axes)
        ratio = error.sum(axes)[signal > 0] / signal[signal > 0]
        assert score.channel == pytest.approx(float(ratio.mean()), rel=5e-3)


def test_one_layer_alone_changes_the_outputs_as_in_torch(
    small: tuple[Subject, dict[str, Any]],
) -> None:
    subject, weights = small
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((4, 3, 12, 12), np.float32))
    variants = Variants(subject, subject.layers(), "int8")
    base, others = variants.run({"x": x.numpy()})
    np.testing.assert_allclose(_real(base["y"]), results(x, weights, "")["y"], atol=1e-5)
    seen = dict(others)
    assert list(seen) == ["first", "second", "third"]
    for name, outputs in seen.items():
        np.testing.assert_allclose(_real(outputs["y"]), results(x, weights, name)["y"], atol=2e-5)


def test_a_variant_is_the_whole_model_with_that_layer_otherwise(
    model: Path, tmp_path: Path
) -> None:
    del tmp_path
    subject = opened.read(model)
    plan = placement.default_plan(subject.graph, subject.card)
    placed = placement.place(subject.graph, plan)
    ranges = dict.fromkeys(placement.activations(placed), Range(4.0, -5.0, 5.0))
    whole = Subject(subject, plan, CalibrationTable(subject.sha256, "minmax", (), "", ranges))
    x = {"images": np.random.default_rng(0).random((1, 3, *_size(subject)), np.float32)}
    layers = whole.layers()[:2] + whole.layers()[-2:]
    _, others = Variants(whole, layers, "int8").run(x)
    for name, outputs in others:
        graph = opened.made(whole.variant(name, "int8"), subject.path)
        expected = onnxruntime.open_model(graph, threads=1).run(x)
        assert all(np.array_equal(outputs[key], value) for key, value in expected.items())


def _size(subject: opened.Opened) -> tuple[int, int]:
    assert subject.card is not None
    return subject.card.preprocess.size


def test_gradients_foretell_what_each_layer_alone_does_to_the_outputs(
    small: tuple[Subject, dict[str, Any]],
) -> None:
    """Against torch's forward derivative along the change of the layer's result."""
    subject, arrays = small
    w = {name: torch.from_numpy(value) for name, value in arrays.items()}
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 3, 12, 12), np.float32))
    given = gradients.twins(subject)
    draws = [gradients.scores(given, {"x": x.numpy()}, seed) for seed in range(60)]

    def first(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, w["b1"], padding=1)

    def second(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, stride=2)

    def third(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight, w["b3"])

    def after_second(c: torch.Tensor) -> torch.Tensor:
        return after_third(third(F.silu(c).mean((2, 3)), w["w3"]))

    def after_first(a: torch.Tensor) -> torch.Tensor:
        return after_second(second(F.relu(a), w["w2"]))

    def after_third(h: torch.Tensor) -> torch.Tensor:
        return h.softmax(1)

    b = F.relu(first(x, w["w1"]))
    f = F.silu(second(b, w["w2"])).mean((2, 3))
    layers = {
        "first": (first, x, "w1", 2.0, after_first),
        "second": (second, b, "w2", 9.0, after_second),
        "third": (third, f, "w3", 3.0, after_third),
    }
    outputs = after_first(first(x, w["w1"])).double()
    spread = outputs.var(unbiased=False) * outputs.numel()
    for name, (layer, data, weight, threshold, after) in layers.items():
        result = layer(data, w[weight])
        change = layer(rounded(data, threshold), weights_rounded(w[weight])) - result
        moved = jvp(after, result, change)[1]
        found = np.mean([each[name].outputs for each in draws]) / gradients.DRAWS / len(x)
        assert found == pytest.approx(float(moved.double().square().sum() / spread), rel=0.15)
    again = gradients.scores(given, {"x": x.numpy()}, 0)
    assert again == draws[0]


def test_noise_of_outputs_is_over_each_columns_spread_or_the_share_of_wrong_classes() -> None:
    random = np.random.default_rng(0)
    boxes = random.standard_normal((2, 7, 3)) * [1.0, 100.0, 0.0] + [0.0, 500.0, 1.0]
    found = boxes + random.standard_normal((2, 7, 3)) * [0.1, 1.0, 0.0]
    labels = np.array([[1, 2], [3, 4]])
    seen = Difference()
    for i in range(2):
        seen.add(
            {"boxes": found[i : i + 1], "labels": labels[i : i + 1] * 0 + 1},
            {"boxes": boxes[i : i + 1], "labels": labels[i : i + 1]},
        )
    spread = np.square(boxes - boxes.mean((0, 1))).sum((0, 1))[:2]
    shares = np.square(found - boxes).sum((0, 1))[:2] / spread
    assert seen.noise() == pytest.approx(np.mean([*shares, 3 / 4]), rel=1e-6)


def options(**given: Any) -> SensitivityOptions:
    how = QuantizeOptions(source=CALIBRATION, table=given.pop("table", None))
    return SensitivityOptions(**{"calibrated": how, "images": 8, **given})


def test_the_file_binds_what_it_says_to_the_model(model: Path, tmp_path: Path) -> None:
    made = sensitivity(
        model,
        tmp_path / "s.json",
        options(metrics=("snr", "fisher", "gradient", "output", "task"), source=TRUTH),
    )
    found = scores.read(tmp_path / "s.json")
    assert found.layers == made.found.layers
    assert found.measured() == ("snr", "fisher", "gradient", "output", "task")
    assert found.ranked("output") == sorted(found.layers, key=lambda n: -found.layers[n]["output"])
    assert set(found.correlations()) == {"snr", "fisher", "gradient", "output"}
    assert not (tmp_path / "s.json.partial").exists()
    scores.check_fresh(found, opened.read(model))
    with pytest.raises(InputError, match="do not hold 'cosine'"):
        found.ranked("cosine")
    with pytest.raises(StaleTableError, match="another model"):
        scores.check_fresh(
            scores.from_json({**found.to_json(), "model_sha256": "0"}), opened.read(model)
        )


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_file(
    model: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.json"
    wanted = options(metrics=("snr", "channel", "gradient", "output"), table=table)
    sensitivity(model, tmp_path / "whole.json", wanted)
    program = (
        "import deploykit, sys; from pathlib import Path; "
        "from tests.test_sensitivity import options; "
        "deploykit.sensitivity(sys.argv[1], sys.argv[2], options("
        "metrics=('snr', 'channel', 'gradient', 'output'), table=Path(sys.argv[3])))"
    )
    target, partial = tmp_path / "killed.json", tmp_path / "killed.json.partial"
    words = [sys.executable, "-c", program, str(model), str(target), str(table)]
    running = subprocess.Popen(words, cwd=Path(__file__).parent.parent, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not partial.exists() and running.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert partial.exists()
    assert not target.exists()
    made = sensitivity(model, target, wanted)
    assert target.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert any("went on" in note for note in made.notes)
    assert not partial.exists()


def test_a_journal_of_other_work_or_of_nonsense_is_begun_anew(model: Path, tmp_path: Path) -> None:
    wanted = options(metrics=("mse",), images=1, table=tmp_path / "table.json")
    sensitivity(model, tmp_path / "a.json", wanted)
    for text in ("{", '{"question": "x"}', "[" * 100):
        (tmp_path / "b.json.partial").write_text(text, encoding="utf-8")
        made = sensitivity(model, tmp_path / "b.json", wanted)
        assert not any("went on" in note for note in made.notes)
        assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()


def test_workers_of_ray_give_the_same_file_even_where_one_is_killed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    table = tmp_path / "table.json"
    given = {"metrics": ("snr", "output"), "table": table}
    sensitivity(model, tmp_path / "one.json", options(**given))
    killed: list[int] = []

    def kill(items: Any, label: str, total: int) -> Any:  # noqa: ARG001 - as Progress
        for item in items:
            if not killed and label == "sensitivity":
                killed.extend(_kill_a_worker())
            yield item

    sensitivity(model, tmp_path / "two.json", options(**given, workers=2), progress=kill)
    assert killed
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


@pytest.mark.parametrize("address", ["localhost:1", "ray://localhost:1", "no.such.host:99999"])
def test_a_cluster_that_is_not_there_is_said_at_once(
    model: Path, tmp_path: Path, address: str
) -> None:
    pytest.importorskip("ray")
    with pytest.raises(BackendError, match=address):
        sensitivity(model, tmp_path / "s.json", options(metrics=("mse",), ray=address))


def _kill_a_worker() -> list[int]:
    """Kill a process of this cluster that computes; return its number."""
    own = os.getpid()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::_do") and _descends(int(folder.name), own):
            os.kill(int(folder.name), signal.SIGKILL)
            return [int(folder.name)]
    return []


def _descends(number: int, ancestor: int) -> bool:
    while number > 1:
        if number == ancestor:
            return True
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8")
        number = int(text.rpartition(")")[2].split()[1])
    return False


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"metrics": ("snrr",)}, "measure"),
        ({"metrics": ()}, "no measure"),
        ({"metrics": ("task",)}, "needs images with truth"),
        ({"metrics": ("snr",), "workers": 0}, "--workers 0"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    model: Path, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        sensitivity(model, tmp_path / "s.json", options(**wrong))


def test_the_command_prints_the_worst_layers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sensitivity", str(model), "-o", str(tmp_path / "s.json"), "--images", "4"]
    words += ["--calib-source", CALIBRATION, "--metric", "snr", "--metric", "output"]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        if more:
            assert set(json.loads(text)["correlations"]) == {"snr"}
        else:
            assert "rank correlation with output: snr" in text


def test_a_model_of_an_older_opset_is_measured_too(checkpoint: Path, tmp_path: Path) -> None:
    old = deploykit.ExportOptions(input_size=(64, 64), opset=17)
    deploykit.export(checkpoint, tmp_path / "old.onnx", old)
    made = sensitivity(
        tmp_path / "old.onnx", tmp_path / "s.json", options(metrics=("snr", "gradient"))
    )
    assert made.found.measured() == ("snr", "gradient")
