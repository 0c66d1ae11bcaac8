"""The CUDA kernels of plugins/ on this GPU: right, and how fast beside what PyTorch has.

    python benchmarks/plugins_gpu.py                # check, then time; appends records
    python benchmarks/plugins_gpu.py --check        # only compare with references on the CPU
    python benchmarks/plugins_gpu.py --sanitize     # a smaller check under compute-sanitizer

Needs an NVIDIA GPU, nvcc, and PyTorch and torchvision built for CUDA. The sources are compiled for
this GPU, and their launchers run on PyTorch's tensors and stream. `gpu_checks` has the references,
`gpu_cases` what is timed. Times are CUDA events around single calls, the two sides in turns, each
queued behind an overwriting of the L2 cache, so that the host's part of a call is not in them
unless the call itself waits for the GPU. The share of the memory bandwidth is what an op must at
least read and write (`gpu_ops`) over its median time, against what copying a large tensor reaches
on the same GPU in the same run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpu_cases
import gpu_checks
import gpu_ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from deploykit.values import BenchRecord

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "plugins_gpu.jsonl"
OURS = "deploykit kernel"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FIRST_PORT, PORTS = 49152, 100
"""Of the sanitizer: its tools run side by side, each with ports of its own."""
THREADS = "2"
"""Of the references on the CPU, in each of several processes."""
UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING=1"
DIFFERS = 3
"""Exit status of comparisons that do not hold; Python's own is 1 after an error."""
CASES, FEW_CASES = 500, 24
"""Of each op; under the sanitizer, each kind of box thrice."""
TARGET = 2.0
"""Median of the other side's over ours."""
WARMUP, ITERATIONS = 10, 100
FLUSHED_BYTES = 1 << 30
"""More than any GPU's L2 cache, and a call is queued before they are written."""
COPIED_BYTES = 1 << 30


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


def compiled(folder: Path) -> None:
    """Compile every plugin source for this GPU into `folder`, a library each."""
    import torch  # noqa: PLC0415 - `--help` and `missing` come first

    major, minor = torch.cuda.get_device_capability()

    def compile_one(source: Path) -> subprocess.CompletedProcess[str]:
        command = compiler(f"sm_{major}{minor}", source, folder / f"{source.stem}.so")
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor() as pool:
        for done in pool.map(compile_one, sources()):
            if done.returncode:
                sys.exit(f"nvcc failed:\n{done.stderr}")


def sources() -> list[Path]:
    """Return the CUDA source of every op that has kernels."""
    return sorted((ROOT / "plugins").glob("*.cu"))


def compiler(target: str, source: Path, output: Path) -> list[str]:
    """Return nvcc's command line."""
    options = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", f"-arch={target}"]
    return ["nvcc", *options, f"-I{ROOT / 'plugins'}", str(source), "-o", str(output)]


# --- comparisons, in processes of their own -------------------------------------------------------


def compare(folder: Path, seconds: float) -> dict[str, int]:
    """Return op -> exit status of its comparisons: 0, `DIFFERS`, or that of a crash.

    Each op has a process, as one that reads where it must not takes the GPU from its process.
    """
    commands = {op: comparisons(folder, [op]) for op in gpu_checks.CHECKS}
    return side_by_side(commands, folder, seconds)


def sanitize(folder: Path, seconds: float) -> dict[str, int]:
    """Return tool of compute-sanitizer -> exit status, 0 where it found nothing.

    PyTorch allocates every tensor for itself there: what reads or writes beyond one is seen.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        sys.exit("compute-sanitizer is not on PATH: it comes with the CUDA toolkit")
    commands = {}
    for place, tool in enumerate(TOOLS):
        options = [f"--tool={tool}", "--error-exitcode=9", f"--port={FIRST_PORT + PORTS * place}"]
        check = comparisons(folder, [*gpu_checks.CHECKS])
        commands[tool] = ["env", UNCACHED, program, *options, *check, "--small"]
    return side_by_side(commands, folder, seconds)


def comparisons(folder: Path, ops: list[str]) -> list[str]:
    """Return the command that compares some ops, of kernels compiled in `folder`."""
    return [sys.executable, __file__, "--libraries", str(folder), "--only", *ops]


def side_by_side(commands: dict[str, list[str]], folder: Path, seconds: float) -> dict[str, int]:
    """Return name -> exit status; what each command says is printed when it has ended."""
    found = {}
    with ThreadPoolExecutor(len(commands)) as pool:
        running = {
            pool.submit(watched, command, folder / f"{name}.log", seconds): name
            for name, command in commands.items()
        }
        for done in as_completed(running):
            name = running[done]
            print((folder / f"{name}.log").read_text(errors="replace"), end="")
            found[name] = done.result()
            print(f"{name}: {'clean' if found[name] == 0 else 'FAILED'}", flush=True)
    return found


def watched(command: list[str], output: Path, seconds: float) -> int:
    """Return the exit status of a command whose output goes to a file; -1: it took too long."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": THREADS},
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            file.write(f"did not end in {seconds:g} s\n".encode())
            return -1


# --- times ----------------------------------------------------------------------------------------


def turns(ours: Callable[[], object], theirs: Callable[[], object]) -> list[list[float]]:
    """Return the seconds of our side and of the other, in turns, the L2 cache cold."""
    import torch  # noqa: PLC0415 - `--help` and `missing` come first

    make: Any = torch.cuda.Event  # torch leaves it untyped
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    seconds: list[list[float]] = [[], []]
    for turn in range(WARMUP + ITERATIONS):
        for side, call in enumerate((ours, theirs)):
            start, end = (make(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            flushed.fill_(turn % 2)
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
    return 2 * COPIED_BYTES / statistics.median(turns(lambda: target.copy_(source), int)[0])


def row(case: gpu_cases.Case, sides: list[list[float]], peak: float) -> str:
    """Return one line of the table."""
    ours, theirs = map(statistics.median, sides)
    share = case.bytes / ours / peak
    verdict = "reached" if theirs / ours >= TARGET else "missed"
    return (
        f"{case.name:42}{ours * 1e6:9.1f}{theirs * 1e6:9.1f}{theirs / ours:8.2f} x"
        f"{case.bytes / 1e6:9.1f}{share:11.1%}  {TARGET:g} x {verdict}, {case.beside}"
    )


def measure(library: gpu_ops.Library, ops: Iterable[str], output: Path) -> list[str]:
    """Time every case of the ops, print the table and append the records; return what is wrong."""
    from deploykit.measuring import environment, records  # noqa: PLC0415 - `--help` is instant

    peak, run = bandwidth(), uuid.uuid4().hex
    print(f"\ncopying reaches {peak / 1e9:.0f} GB/s")
    print(f"{'op':42}{'ours us':>9}{'theirs':>9}{'':>10}{'MB':>9}{'bandwidth':>11}")
    wrong = []
    for case in (case for op in ops for case in gpu_cases.CASES[op](library)):
        apart = case.apart()
        wrong += [apart] if apart else []
        before = environment.describe()
        sides = turns(case.ours, case.theirs)
        print(row(case, sides, peak), flush=True)
        shared = {
            "protocol": {
                "benchmark": "plugins_gpu",
                "run": run,
                "bytes": case.bytes,
                "copy_bytes_per_second": peak,
                "l2": "cold",
                "queued_behind_bytes": FLUSHED_BYTES,
                "warmup_iterations": WARMUP,
                "apart": apart,
            },
            "environment": {"before": before, "after": environment.describe()},
        }
        for backend, seconds in zip((OURS, case.beside), sides, strict=True):
            records.append(output, record(case, backend, seconds, shared))
    return wrong


def record(
    case: gpu_cases.Case, backend: str, seconds: list[float], shared: dict[str, Any]
) -> BenchRecord:
    """Return the record of one side."""
    from deploykit.measuring import conditions  # noqa: PLC0415 - `--help` is instant
    from deploykit.values import BenchRecord  # noqa: PLC0415 - likewise

    times = tuple(seconds)
    made = BenchRecord(case.name, "", backend, "device", 1, times, times, **shared)
    return conditions.with_warnings(made)


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only, time nothing")
    parser.add_argument("--sanitize", action="store_true", help="compare under compute-sanitizer")
    parser.add_argument(
        "--only", nargs="+", choices=gpu_checks.CHECKS, help="compare these ops, in this process"
    )
    parser.add_argument("--small", action="store_true", help="fewer and smaller comparisons")
    parser.add_argument("--seconds", type=float, default=600, help="that comparisons may take")
    parser.add_argument("--libraries", type=Path, help="folder of kernels that are compiled")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    """Do what the command line asks for; return 0 unless something is wrong."""
    options = arguments()
    if lacking := missing():
        print("the kernels cannot run here:", *lacking, sep="\n  ", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = options.libraries or Path(name)
        if options.libraries is None:
            compiled(folder)
        if options.sanitize:
            return int(any(sanitize(folder, options.seconds).values()))
        if options.only:
            library = gpu_ops.opened(folder)
            cases = FEW_CASES if options.small else CASES
            wrong = gpu_checks.check(library, options.only, cases, small=options.small)
            return DIFFERS if wrong else 0
        found = compare(folder, options.seconds)
        wrong = [f"{op}: exit status {status}" for op, status in found.items() if status]
        if not options.check:
            library = gpu_ops.opened(folder)
            alive = [op for op in gpu_checks.CHECKS if found[op] in (0, DIFFERS)]
            wrong += measure(library, alive, options.output)
    print(*wrong or ["every comparison holds"], sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
