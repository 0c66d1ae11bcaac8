"""The comparisons and times of kernels on a GPU, played on a machine without one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import host_build
import numpy as np
import pytest
import torch

from deploykit import ops as shipped_ops

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
WITH_KERNELS = {plugin.op for plugin in shipped_ops.shipped().values() if plugin.source}


@pytest.fixture
def gpu() -> Any:
    import plugins_gpu

    return plugins_gpu


@pytest.fixture
def ops() -> Any:
    import gpu_ops

    return gpu_ops


@pytest.fixture
def checks() -> Any:
    import gpu_checks

    return gpu_checks


@pytest.fixture
def cases() -> Any:
    import gpu_cases

    return gpu_cases


@pytest.fixture(scope="module")
def library() -> Any:
    """Return the kernels as the host's compiler makes them."""
    import gpu_ops

    found = []
    for plugin in shipped_ops.shipped().values():
        if plugin.source:
            found.append(host_build.compiled(plugin.source))
            host_build.arrange(found[-1], order="shuffled", threads=7)
    return gpu_ops.Library(found, device="cpu")


# --- the command --------------------------------------------------------------------------------


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
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run("--output", str(tmp_path / "records.jsonl"))
    assert done.returncode == 2
    assert done.stderr.startswith("the kernels cannot run here:\n  ")
    assert "CUDA" in done.stderr
    assert not (tmp_path / "records.jsonl").exists()


def test_every_lack_is_named(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert len(gpu.missing()) == 2
    assert "nvcc is not on PATH" in gpu.missing()[0]
    assert "built without CUDA" in gpu.missing()[1]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert gpu.missing()[1] == "torchvision cannot be imported"


def test_an_absent_sanitizer_is_named(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="compute-sanitizer is not on PATH"):
        gpu.sanitize(tmp_path, 1)


def test_every_tool_of_the_sanitizer_sees_every_op(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: dict[str, list[str]] = {}
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(gpu, "side_by_side", lambda commands, *_: taken.update(commands))
    gpu.sanitize(tmp_path, 1)
    assert len(taken) == 4
    ports = set()
    for tool, command in taken.items():
        assert f"--tool={tool}" in command
        assert set(command) >= WITH_KERNELS
        assert {"--small", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"} <= set(command)
        ports |= {word for word in command if word.startswith("--port=")}
    assert len(ports) == 4


def test_a_command_that_fails_or_hangs_is_told_and_stops_no_other(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"good": "print('fine')", "bad": "exit(9)", "slow": "import time; time.sleep(60)"}
    commands = {name: [sys.executable, "-c", code] for name, code in codes.items()}
    found = gpu.side_by_side(commands, tmp_path, 2)
    assert found == {"good": 0, "bad": 9, "slow": -1}
    printed = capsys.readouterr().out
    assert "fine\ngood: clean\n" in printed
    assert "bad: FAILED\n" in printed
    assert "did not end in 2 s\nslow: FAILED\n" in printed


def test_the_compiler_gets_a_source_and_this_gpus_target(gpu: Any) -> None:
    names = [plugin.source for plugin in shipped_ops.shipped().values() if plugin.source]
    assert [path.name for path in gpu.sources()] == sorted(names)
    command = gpu.compiler("sm_90", gpu.sources()[0], Path("x.so"))
    assert "-arch=sm_90" in command
    assert str(gpu.sources()[0]) in command


class Clock:
    """A CUDA event that is always a millisecond after the one before."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _: Clock) -> float:
        return 1.0


def test_what_differs_or_ends_in_a_crash_is_told_and_the_rest_is_timed(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The whole command, on the CPU, with one op that crashes and one that differs."""
    from deploykit.measuring import records
    from deploykit.values import BenchRecord

    out = tmp_path / "records.jsonl"
    ends = dict.fromkeys(gpu.gpu_checks.CHECKS, 0) | {"roi_pool": -11, "assemble": gpu.DIFFERS}
    small = {
        op: lambda _, op=op: [gpu.gpu_cases.Case(op, "other", one, one, 8, one)]
        for op in gpu.gpu_checks.CHECKS
    }
    empty = torch.empty
    for where, name, value in (
        *((gpu, "missing", list), (gpu, "compiled", lambda _: None), (gpu, "ITERATIONS", 2)),
        *((gpu, "compare", lambda *_: ends), (gpu.gpu_cases, "CASES", small)),
        *((gpu, "FLUSHED_BYTES", 8), (gpu, "COPIED_BYTES", 8)),
        *((torch.cuda, "Event", Clock), (torch.cuda, "synchronize", lambda: None)),
        (
            torch,
            "empty",
            lambda size, dtype, device: empty(size, dtype=dtype, device=device[:0] or "cpu"),
        ),
        (sys, "argv", ["plugins_gpu.py", "--output", str(out)]),
    ):
        monkeypatch.setattr(where, name, value)
    assert gpu.main() == 1
    printed = capsys.readouterr().out
    assert "roi_pool: exit status -11\nassemble: exit status 3\n" in printed
    read = records.read([out])
    timed = [record.model for record in read if isinstance(record, BenchRecord)]
    assert timed == [op for op in gpu.gpu_checks.CHECKS if op != "roi_pool" for _ in range(2)]


def one() -> torch.Tensor:
    return torch.ones(1)


# --- tables, records, bytes ---------------------------------------------------------------------


def nothing(size: int) -> Any:
    import gpu_cases

    return gpu_cases.Case("op", "other", torch.Tensor, torch.Tensor, size, torch.Tensor)


def test_the_table_states_ratio_and_share_of_the_bandwidth(gpu: Any) -> None:
    case = nothing(10**9)
    line = gpu.row(case, [[1e-3, 2e-3, 3e-3], [5e-3, 5e-3, 9e-3]], 1e12)
    assert line.split() == [
        *("op", "2000.0", "5000.0", "2.50", "x", "1000.0", "50.0%", "2", "x", "reached,", "other")
    ]
    assert "missed" in gpu.row(case, [[3e-3], [5e-3]], 1e12)


def test_records_keep_every_time(gpu: Any, tmp_path: Path) -> None:
    from deploykit.measuring import records

    case = nothing(8)
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
    from torchvision.ops.poolers import LevelMapper

    boxes = ops.scene(300, (800, 1344), seed=3).boxes
    wanted = LevelMapper(2, 5)([torch.from_numpy(boxes)])
    assert ops.levels(boxes, 3).tolist() == wanted.tolist()


def test_nms_moves_its_inputs_outputs_and_half_a_square_of_bits(ops: Any) -> None:
    assert ops.nms_bytes(64, 10) == 64 * (16 + 4 + 4) + 2 * 64 * 64 // 16 + 10 * (16 + 4 + 4 + 4)


def test_a_pooled_map_is_read_where_boxes_lie(ops: Any) -> None:
    cells = np.array([[0.4, 1.6, 2.4, 2.4], [1, 2, 1, 2]])
    assert ops.pool_bytes(cells, (5, 6), 8, 4) == 8 * 4 * (3 + 2 * 49) + 2 * 16


def test_a_crop_reads_the_level_of_its_box(ops: Any) -> None:
    given = ops.Scene(np.array([[0, 0, 64, 64], [0, 0, 512, 512]], np.float32), ((33, 33), (9, 9)))
    assert ops.levels(given.boxes, 1, rounded=True).tolist() == [0, 1]
    cells = 5 * 5 + 9 * 9  # of 512 pixels, 64 are 4 of 32 steps
    assert ops.crop_bytes(given, (512, 512), 3, 2, 4) == 2 * 4 * (cells + 2 * 9) + 2 * 16


def test_cells_that_windows_share_are_read_once(ops: Any) -> None:
    maps = torch.arange(4 * 5 * 6, dtype=torch.float32).reshape(1, 4, 5, 6) + 1
    places = np.array([0, 1, 14, 29], np.int32)
    import gpu_checks

    read = gpu_checks.assembled(maps.numpy(), places[None], 2, 4)
    cells = len(np.unique(read[read > 0]))
    assert ops.assemble_bytes(places, (5, 6), 4, 2, 2) == 2 * (cells + 4 * 16) + 4 * 4


# --- the comparisons ----------------------------------------------------------------------------


def test_every_op_with_a_kernel_is_compared_and_timed(checks: Any, cases: Any) -> None:
    assert set(checks.CHECKS) == WITH_KERNELS
    assert set(cases.CASES) == WITH_KERNELS


@pytest.mark.parametrize("op", sorted(WITH_KERNELS))
def test_the_kernels_hold_on_the_host(checks: Any, library: Any, op: str) -> None:
    assert checks.check(library, [op], 18) == []


@pytest.mark.parametrize("op", sorted(WITH_KERNELS))
def test_a_value_that_is_off_is_told(checks: Any, library: Any, op: str) -> None:
    def spoilt(*given: Any, **options: Any) -> Any:
        outputs = library(*given, **options)
        for each in outputs:
            each.view(-1)[-1:] += 1
        return outputs

    spoilt.device = "cpu"  # type: ignore[attr-defined]  # it stands for a library
    found = checks.check(spoilt, [op], 12)
    assert found
    assert all(line.startswith(op) for line in found)


def test_a_write_beyond_an_output_is_told(checks: Any, library: Any) -> None:
    def careless(*given: Any, **options: Any) -> Any:
        outputs = library(*given, **options)
        whole = outputs[0].as_strided((outputs[0].numel() + 1,), (1,))
        whole[-1] = 0
        return outputs

    careless.device = "cpu"  # type: ignore[attr-defined]  # it stands for a library
    found = checks.check(careless, ["roi_pool"], 2)
    assert len(found) == 4
    assert all(line.endswith("writes beyond an output") for line in found)


def test_cases_are_of_every_kind(checks: Any) -> None:
    import gpu_regions

    seen = np.zeros(4, bool)
    for seed in range(24):
        found = gpu_regions.regions(np.random.default_rng(seed), seed, (64, 80))
        boxes = found.boxes.reshape(-1, 4)
        seen |= [
            len(boxes) == 0,
            bool(np.isnan(boxes).any()),
            bool(np.isinf(boxes).any()),
            bool((boxes > 80 * 5).any()),
        ]
    assert seen.all()
    assert len({kind(np.random.default_rng(0), 9)[0].shape for kind in checks.CROWDS}) == 1


@pytest.mark.parametrize("half", [False, True])
def test_both_sides_of_a_timed_case_do_the_same(cases: Any, library: Any, half: Any) -> None:
    made = [
        cases.align_case(library, boxes=20, channels=3, half=half),
        cases.pool_case(library, boxes=20, channels=3, half=half),
        cases.crop_case(library, boxes=20, bins=7, channels=3, half=half),
        cases.assemble_case(library, windows=30, half=half),
        cases.nms_case(library, 200),
    ]
    for case in made:
        assert case.apart() == ""
        assert case.bytes > 0
        if not half and "nms" not in case.name:
            torch.testing.assert_close(case.ours(), case.theirs(), atol=1e-4, rtol=0)


def test_a_timed_case_that_differs_is_told(cases: Any) -> None:
    case = cases.Case("op", "other", one, one, 8, lambda: one() + 0.5)
    assert case.apart() == "op: 5e-01 off on average"
    case = cases.Case("op", "other", one, one, 8, lambda: torch.ones(2))
    assert case.apart() == "op: (1,), not (2,)"
