"""What the benchmarks compute besides times: bytes, tables, agreement, and what they refuse."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _path() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture
def gpu() -> Any:
    import plugins_gpu

    return plugins_gpu


@pytest.fixture
def ops() -> Any:
    import gpu_ops

    return gpu_ops


@pytest.fixture
def two_stage() -> Any:
    import two_stage

    return two_stage


# --- plugins_gpu --------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "plugins_gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_says_what_is_needed_and_imports_no_torch() -> None:
    code = "import sys, plugins_gpu; assert 'torch' not in sys.modules; print(plugins_gpu.__doc__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    assert "nvcc" in done.stdout


def test_a_machine_without_a_gpu_is_told_what_is_missing(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run("--output", str(tmp_path / "records.jsonl"))
    assert done.returncode == 2
    assert done.stderr.startswith("the kernels cannot run here:\n  ")
    assert "CUDA" in done.stderr
    assert not (tmp_path / "records.jsonl").exists()


def test_every_lack_is_named(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert len(gpu.missing()) == 2
    assert "nvcc is not on PATH" in gpu.missing()[0]
    assert "built without CUDA" in gpu.missing()[1]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert gpu.missing()[1] == "torchvision cannot be imported"


def test_an_absent_sanitizer_is_named(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="compute-sanitizer is not on PATH"):
        gpu.sanitize()


def test_a_tool_of_the_sanitizer_that_fails_is_counted(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def fake(command: list[str], **_: object) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 9 if "--tool=racecheck" in command else 0)

    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", fake)
    assert gpu.sanitize() == 1
    assert len(commands) == 4
    assert all("--check" in command for command in commands)


def test_the_compiler_gets_every_source_and_this_gpus_target(gpu: Any) -> None:
    command = gpu.compiler("sm_90", Path("x.so"))
    assert "-arch=sm_90" in command
    sources = {Path(word).name for word in command if word.endswith(".cu")}
    assert sources == {path.name for path in (ROOT / "plugins").glob("*.cu")}


def test_the_table_states_ratio_and_share_of_the_bandwidth(gpu: Any) -> None:
    case = gpu.Case("op", lambda: None, lambda: None, 10**9)
    line = gpu.row(case, ([1e-3, 2e-3, 3e-3], [5e-3, 5e-3, 9e-3]), 1e12)
    assert line.split() == [
        *("op", "2000.0", "5000.0", "2.50", "x", "1000.0", "50.0%", "2", "x", "reached")
    ]
    assert "missed" in gpu.row(case, ([3e-3], [5e-3]), 1e12)


def test_records_keep_every_time(gpu: Any, tmp_path: Path) -> None:
    from deploykit.measuring import records

    case = gpu.Case("op", lambda: None, lambda: None, 8)
    shared: dict[str, Any] = {"protocol": {"run": "r"}, "environment": {}}
    records.append(tmp_path / "r.jsonl", gpu.record(case, gpu.OURS, [1e-3, 2e-3], shared))
    (read,) = records.read([tmp_path / "r.jsonl"])
    assert read == gpu.record(case, gpu.OURS, [1e-3, 2e-3], shared)


def test_features_that_boxes_share_are_read_once(ops: Any) -> None:
    sizes = ((40, 50), (20, 25))
    boxes = np.array([[8, 8, 31.5, 23], [8, 8, 31.5, 23], [0, 0, 190, 150]], np.float32)
    assert ops.levels(boxes, 1).tolist() == [0, 0, 1]
    touched = [np.zeros(size, bool) for size in sizes]
    for (x1, y1, x2, y2), level in zip(boxes, (0, 0, 1), strict=True):
        scale = (4, 8)[level]
        for y in range(sizes[level][0]):
            for x in range(sizes[level][1]):
                inside_x = int(x1 / scale) <= x <= np.ceil(x2 / scale)
                inside_y = int(y1 / scale) <= y <= np.ceil(y2 / scale)
                touched[level][y, x] |= inside_x and inside_y
    cells = sum(int(t.sum()) for t in touched)
    assert ops.align_bytes(ops.Scene(boxes, sizes), 8, 2) == 16 * (cells + 3 * 49) + 3 * 16


def test_the_scene_lies_in_its_image_and_uses_every_level(ops: Any) -> None:
    found = ops.scene(500, (800, 1344))
    assert found.sizes == ((200, 336), (100, 168), (50, 84), (25, 42))
    assert found.boxes.min() >= 0
    assert (found.boxes.max(0) <= (1344, 800, 1344, 800)).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert set(ops.levels(found.boxes, 3)) == {0, 1, 2, 3}


def test_levels_are_torchvisions(ops: Any) -> None:
    import torch
    from torchvision.ops.poolers import LevelMapper

    boxes = ops.scene(300, (800, 1344), seed=3).boxes
    wanted = LevelMapper(2, 5)([torch.from_numpy(boxes)])
    assert ops.levels(boxes, 3).tolist() == wanted.tolist()


def test_nms_moves_its_inputs_outputs_and_half_a_square_of_bits(ops: Any) -> None:
    assert ops.nms_bytes(64, 10) == 64 * (16 + 4 + 4) + 2 * 64 * 64 // 16 + 10 * (16 + 4 + 4 + 4)


@pytest.fixture(scope="module")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import gpu_ops

    if shutil.which("g++") is None:
        pytest.skip("g++ is not on PATH")
    path = tmp_path_factory.mktemp("host") / "plugins.so"
    include = ["-include", str(ROOT / "plugins" / "host" / "cuda_on_host.h")]
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
    sources = [str(source) for source in sorted((ROOT / "plugins").glob("*.cu"))]
    objects = [path.with_name(Path(source).stem + ".so") for source in sources]
    for source, made in zip(sources, objects, strict=True):
        command = ["g++", *options, f"-I{ROOT / 'plugins'}", *include, "-x", "c++", source]
        subprocess.run([*command, "-o", str(made)], check=True)
    return gpu_ops.Library(*objects, device="cpu")


def test_the_launchers_are_called_as_they_are_declared(ops: Any, host_library: Any) -> None:
    assert ops.check(host_library, rounds=4) == []


def test_a_comparison_that_fails_is_told(
    ops: Any, host_library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def spoilt(*_: object, **__: object) -> tuple[Any, ...]:
        return (*(torch.zeros(1, 8, dtype=torch.int32) for _ in range(4)), torch.ones(1))

    monkeypatch.setattr(host_library, "batched_nms", spoilt)
    found = ops.check(host_library, rounds=2)
    assert any(line.startswith("batched_nms of ") for line in found)


# --- two_stage ----------------------------------------------------------------------------------


def result(two_stage: Any, *, move: float = 0.0, lower: float = 0.0, drop: int = 0) -> Any:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 80, 90], [5, 5, 9, 9]], np.float32) + move
    scores = np.array([0.9, 0.8, 0.051], np.float32) - lower
    masks = np.zeros((3, 4, 4), bool)
    keep = slice(0, 3 - drop)
    return two_stage.Result(boxes[keep], scores[keep], np.arange(3)[keep], masks[keep])


def test_objects_agree_within_half_a_pixel_and_a_thousandth(two_stage: Any) -> None:
    truth = result(two_stage)
    assert two_stage.agreement(result(two_stage, move=0.4, lower=0.0005), truth) == 1
    assert two_stage.agreement(result(two_stage, move=0.6), truth) == 0
    assert two_stage.agreement(result(two_stage, lower=0.01), truth) == 0
    assert two_stage.agreement(result(two_stage, drop=2), truth) == 0.5


def test_an_object_at_the_threshold_may_be_missing(two_stage: Any) -> None:
    assert two_stage.agreement(result(two_stage, drop=1), result(two_stage)) == 1


def test_nothing_agrees_with_nothing_only(two_stage: Any) -> None:
    nothing = result(two_stage, drop=3)
    assert two_stage.agreement(nothing, nothing) == 1
    assert two_stage.agreement(nothing, result(two_stage)) == 0


def test_ours_is_compared_with_the_faster_of_the_others(two_stage: Any) -> None:
    seconds = {two_stage.EAGER: [3.0], two_stage.THEIRS: [2.0, 2.0], two_stage.OURS: [1.0, 2.0]}
    text = two_stage.table(seconds)
    assert "against the faster: 1.33 x; 1.2 x reached" in text
    assert "missed" in two_stage.table({**seconds, two_stage.THEIRS: [1.6]})


@pytest.mark.parametrize("text", ["800", "800x", "801x1344", "0x32", "axb", "800x1344x3"])
def test_a_size_that_is_none_is_refused(two_stage: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected HxW"):
        two_stage.size(text)


def test_ways_take_turns_and_the_first_round_is_not_kept(two_stage: Any) -> None:
    order: list[str] = []
    ways = {name: lambda _, name=name: order.append(name) for name in ("a", "b")}
    seconds = two_stage.rounds(ways, np.zeros((2, 2, 3), np.uint8), 3)
    assert order == ["a", "b"] * 4
    assert [len(values) for values in seconds.values()] == [3, 3]


# --- proofs -------------------------------------------------------------------------------------


def test_no_proof_of_a_small_share_is_wrong() -> None:
    import proofs

    watch = proofs.Watch()
    for case in proofs.CASES:
        if case[0] in {proofs.fold, proofs.fuse, proofs.cast, proofs.quantize}:
            row = proofs.measured(case, 0.17, watch)
            assert (row.refused, row.missed) == (0, 0), row
            assert row.right >= 4
            assert row.faults >= 3
    watch.end()


def test_a_fault_without_effect_is_planted_elsewhere() -> None:
    import proofs

    seeds: list[int] = []

    def trial(seed: int, _: object) -> None:
        seeds.append(seed)
        if len(seeds) < 3:
            raise proofs.NoFaultError

    assert proofs.effective(trial, lambda *_: None, 5) == (False, 2)
    assert seeds == [5, 1005, 2005]


# --- foreign -------------------------------------------------------------------------------------


def classifier(path: Path, weights: Any, *, softmax: bool, noise: float = 0.0) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    if softmax:
        nodes[1].output[0] = "c"
        nodes.append(helper.make_node("Softmax", ["c"], ["y"], axis=-1))
    shifted = np.linspace(-noise, noise, weights.shape[1], dtype=np.float32) + np.float32(noise)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(shifted, "b")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_a_softmax_is_compared_by_the_numbers_before_it_less_their_mean(tmp_path: Path) -> None:
    import foreign_noise

    rng = np.random.default_rng(0)
    weights = rng.normal(0, 3, (8, 10)).astype(np.float32)
    images = rng.normal(0, 1, (400, 8)).astype(np.float32)
    float_ = foreign_noise.wanted(classifier(tmp_path / "a.onnx", weights, softmax=True), images)
    noisy = classifier(tmp_path / "b.onnx", weights, softmax=True, noise=0.1)
    (found,) = foreign_noise.ratios(noisy, float_)
    logits = float_.images.astype(np.float64) @ weights
    signal = np.square(logits - logits.mean(1, keepdims=True)).sum(1)
    noise = np.square(np.linspace(-0.1, 0.1, 10)).sum()
    assert found == pytest.approx(float(10 * np.log10(signal / noise).mean()), abs=0.01)
    assert not float_.same
    assert len(float_.images) == foreign_noise.MOST


def test_classes_that_are_all_alike_say_nothing(tmp_path: Path) -> None:
    import foreign_noise

    images = np.random.default_rng(0).normal(0, 1, (9, 8)).astype(np.float32)
    path = classifier(tmp_path / "a.onnx", np.full((8, 1000), 0.02, np.float32), softmax=True)
    float_ = foreign_noise.wanted(path, images)
    assert float_.same
    assert len(float_.images) == foreign_noise.FEWEST
    assert foreign_noise.ratios(path, float_) == [120.0]


@pytest.mark.parametrize(
    ("ours", "more", "peer", "behind"),
    [
        ((20.0, 1.0), None, (20.4, 1.0), 0.4),
        ((20.0, 0.9), None, (20.4, 1.0), np.inf),
        ((20.0, 0.9), (19.0, 1.0), (18.0, 1.0), -1.0),
        ((20.0, 1.0), None, (23.0, 0.5), 3.0),
    ],
    ids=["as much INT8", "less INT8", "more INT8 where asked", "a peer with less INT8"],
)
def test_ours_stands_beside_a_peer_with_as_much_in_int8(
    ours: Any, more: Any, peer: Any, behind: float
) -> None:
    import foreign_table

    tools = {"ours": ours, "more": more, "ort": peer}
    record = {
        name: {"snr": [each[0]], "runs": each[1]}
        for name, each in tools.items()
        if each is not None
    }
    assert foreign_table.behind_by(record) == pytest.approx(behind)
    assert foreign_table.behind_by({**record, "same": True}) is None
