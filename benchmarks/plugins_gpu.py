"""The CUDA kernels of plugins/ on this GPU: right, and how fast beside torchvision's.

    python benchmarks/plugins_gpu.py                # check, then time; appends records
    python benchmarks/plugins_gpu.py --check        # only compare with torchvision on the CPU
    python benchmarks/plugins_gpu.py --sanitize     # the check under compute-sanitizer, each tool

Needs an NVIDIA GPU, nvcc, and PyTorch and torchvision built for CUDA. The sources are compiled for
this GPU into one shared library, whose launchers run on PyTorch's tensors and stream. Times are
CUDA events around single calls, the two sides in turns, each after the L2 cache was overwritten.
The share of the memory bandwidth is what an op must at least read and write (`gpu_ops`) over its
median time, against what copying a large tensor reaches on the same GPU in the same run.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpu_ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploykit.values import BenchRecord

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "plugins_gpu.jsonl"
OURS, THEIRS = "deploykit kernel", "torchvision.ops"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TARGET = 2.0
"""Median of torchvision's over ours."""
WARMUP, ITERATIONS = 10, 100
FLUSHED_BYTES = 256 << 20
"""More than any GPU's L2 cache."""
COPIED_BYTES = 1 << 30


@dataclass(frozen=True)
class Case:
    """One op on inputs of one size, done by both sides."""

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    bytes: int
    """That the op must at least read and write."""


def missing() -> list[str]:
    """Return what this machine lacks, each in one sentence."""
    found = []
    if shutil.which("nvcc") is None:
        found.append("nvcc is not on PATH: install the CUDA toolkit")
    try:
        import torch  # noqa: PLC0415 - the message names what is absent
        import torchvision  # noqa: F401, PLC0415 - likewise
    except ImportError as error:
        return [*found, f"{error.name} cannot be imported"]
    if torch.version.cuda is None:
        found.append(f"PyTorch {torch.__version__} is built without CUDA")
    elif not torch.cuda.is_available():
        found.append("PyTorch finds no CUDA device")
    return found


def compiled(folder: Path) -> gpu_ops.Library:
    """Return the launchers of every plugin source, compiled for this GPU."""
    import torch  # noqa: PLC0415 - `--help` and `missing` come first

    major, minor = torch.cuda.get_device_capability()
    path = folder / "plugins.so"
    command = compiler(f"sm_{major}{minor}", path)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"nvcc failed:\n{done.stderr}")
    return gpu_ops.Library(path)


def compiler(target: str, output: Path) -> list[str]:
    """Return nvcc's command line."""
    sources = sorted(str(path) for path in (ROOT / "plugins").glob("*.cu"))
    options = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", f"-arch={target}"]
    return ["nvcc", *options, f"-I{ROOT / 'plugins'}", *sources, "-o", str(output)]


def sanitize() -> int:
    """Return the number of compute-sanitizer's tools that found something in the check."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        sys.exit("compute-sanitizer is not on PATH: it comes with the CUDA toolkit")
    failed = 0
    for tool in TOOLS:
        command = [program, f"--tool={tool}", "--error-exitcode=9", sys.executable, __file__]
        done = subprocess.run([*command, "--check", "--small"], check=False)
        print(f"{tool}: {'clean' if done.returncode == 0 else 'FAILED'}", flush=True)
        failed += done.returncode != 0
    return failed


def cases(library: gpu_ops.Library) -> Iterator[Case]:
    """Yield what is timed."""
    for half in (False, True):
        yield align_case(library, boxes=1000, channels=256, half=half)
    for count in (1000, 4000, 20000):
        yield nms_case(library, count)


def align_case(library: gpu_ops.Library, *, boxes: int, channels: int, half: bool) -> Case:
    """Return MultiScaleRoIAlign over the pyramid of an 800x1344 image."""
    import torch  # noqa: PLC0415 - `--help` and `missing` come first
    from torchvision.ops import MultiScaleRoIAlign  # noqa: PLC0415 - likewise

    dtype = torch.float16 if half else torch.float32
    scene = gpu_ops.scene(boxes, (800, 1344))
    features = [torch.randn(1, channels, *size, device="cuda", dtype=dtype) for size in scene.sizes]
    rois = torch.from_numpy(scene.boxes).cuda()
    pool = MultiScaleRoIAlign([str(k) for k in range(len(features))], 7, 2)
    named = {str(k): level for k, level in enumerate(features)}
    typed = rois.to(dtype)
    count = torch.tensor([boxes], dtype=torch.int32, device="cuda")
    return Case(
        name=f"multiscale_roi_align {boxes}x{len(features)}x{channels} {str(dtype)[6:]}",
        ours=lambda: library.multiscale_roi_align(rois[None], count, features),
        theirs=lambda: pool(named, [typed], [(800, 1344)]),
        bytes=gpu_ops.align_bytes(scene, channels, 2 if half else 4),
    )


def nms_case(library: gpu_ops.Library, count: int) -> Case:
    """Return batched NMS that keeps everything that survives, 90 classes."""
    import torch  # noqa: PLC0415 - `--help` and `missing` come first
    from torchvision.ops import batched_nms  # noqa: PLC0415 - likewise

    boxes, scores, classes = (torch.from_numpy(a).cuda() for a in gpu_ops.objects(count, 90))
    numbers = classes.long()
    return Case(
        name=f"batched_nms {count}",
        ours=lambda: library.batched_nms(boxes[None], scores[None], classes[None], kept=count),
        theirs=lambda: batched_nms(boxes, scores, numbers, 0.5),
        bytes=gpu_ops.nms_bytes(count, count),
    )


def turns(case: Case) -> tuple[list[float], list[float]]:
    """Return the seconds of our side and of torchvision's, in turns, the L2 cache cold."""
    import torch  # noqa: PLC0415 - `--help` and `missing` come first

    make: Any = torch.cuda.Event  # torch leaves it untyped
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARMUP + ITERATIONS):
        for side, call in enumerate((case.ours, case.theirs)):
            flushed.fill_(turn % 2)
            start, end = (make(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            end.synchronize()
            if turn >= WARMUP:
                seconds[side].append(start.elapsed_time(end) / 1e3)
    return seconds


def bandwidth() -> float:
    """Return the bytes per second, read and written, of copying a large tensor."""
    import torch  # noqa: PLC0415 - `--help` and `missing` come first

    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = Case("copy", lambda: target.copy_(source), lambda: None, 2 * COPIED_BYTES)
    return copy.bytes / statistics.median(turns(copy)[0])


def row(case: Case, sides: tuple[list[float], list[float]], peak: float) -> str:
    """Return one line of the table."""
    ours, theirs = map(statistics.median, sides)
    share = case.bytes / ours / peak
    verdict = "reached" if theirs / ours >= TARGET else "missed"
    return (
        f"{case.name:36}{ours * 1e6:9.1f}{theirs * 1e6:13.1f}{theirs / ours:8.2f} x"
        f"{case.bytes / 1e6:9.1f}{share:11.1%}  {TARGET:g} x {verdict}"
    )


def measure(library: gpu_ops.Library, output: Path) -> None:
    """Time every case, print the table and append the records."""
    from deploykit.measuring import environment, records  # noqa: PLC0415 - `--help` is instant

    peak, run = bandwidth(), uuid.uuid4().hex
    print(f"\ncopying reaches {peak / 1e9:.0f} GB/s")
    print(f"{'op':36}{'ours us':>9}{'torchvision':>13}{'':>10}{'MB':>9}{'bandwidth':>11}")
    for case in cases(library):
        before = environment.describe()
        sides = turns(case)
        print(row(case, sides, peak), flush=True)
        shared = {
            "protocol": {
                "benchmark": "plugins_gpu",
                "run": run,
                "bytes": case.bytes,
                "copy_bytes_per_second": peak,
                "l2": "cold",
                "warmup_iterations": WARMUP,
            },
            "environment": {"before": before, "after": environment.describe()},
        }
        for backend, seconds in zip((OURS, THEIRS), sides, strict=True):
            records.append(output, record(case, backend, seconds, shared))


def record(case: Case, backend: str, seconds: list[float], shared: dict[str, Any]) -> BenchRecord:
    """Return the record of one side."""
    from deploykit.measuring import conditions  # noqa: PLC0415 - `--help` is instant
    from deploykit.values import BenchRecord  # noqa: PLC0415 - likewise

    times = tuple(seconds)
    made = BenchRecord(case.name, "", backend, "device", 1, times, times, **shared)
    return conditions.with_warnings(made)


def main() -> int:
    """Do what the command line asks for; return 0 unless something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only, time nothing")
    parser.add_argument("--small", action="store_true", help="fewer and smaller comparisons")
    parser.add_argument("--sanitize", action="store_true", help="check under compute-sanitizer")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if lacking := missing():
        print("the kernels cannot run here:", *lacking, sep="\n  ", file=sys.stderr)
        return 2
    if options.sanitize:
        return int(sanitize() > 0)
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        wrong = gpu_ops.check(library, rounds=3 if options.small else 40)
        print(*wrong or ["every comparison with torchvision holds"], sep="\n")
        if wrong or options.check:
            return int(bool(wrong))
        measure(library, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
