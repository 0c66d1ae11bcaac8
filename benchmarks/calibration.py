"""Seconds and peak memory of calibration: ours beside ONNX Runtime's own and NVIDIA ModelOpt's.

    python benchmarks/calibration.py                       # 128 images, every method
    python benchmarks/calibration.py --images 64 --images 512 --method bare --method entropy
    python benchmarks/calibration.py --modelopt-venv DIR   # a venv with nvidia-modelopt[onnx]

Every method gets the same torchvision ResNet-50 (random weights, batch norms folded) and the same
JPEG files, cut from photographs that come with scikit-image, and runs in a process of its own,
one after another. Loading the model, decoding, preprocessing, running and choosing the ranges are
timed; starting Python and importing are not. `bare` is the yardstick: the float model run over
the images, nothing observed. ModelOpt takes arrays only, so its images are decoded beforehand.
The results file gets one line per method; only lines with the same `run` may be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCHEMA_VERSION = 1
SIZE = 224
SEED = 0
PACKAGES = ("deploykit", "onnxruntime", "onnxruntime-gpu", "nvidia-modelopt", "onnx", "numpy")
MEMORY_SHARE = 0.85
"""Of the memory that is free at the start: a method that wants more has failed."""
RESULTS = Path(__file__).parent / "results" / "calibration.jsonl"


@dataclass(frozen=True)
class Job:
    """What one process is to do, and where."""

    method: str
    folder: str
    images: int
    batch_size: int

    @property
    def model(self) -> str:
        """Return the path of the ONNX file that all methods share."""
        return f"{self.folder}/resnet50.onnx"

    @property
    def photographs(self) -> str:
        """Return the path of the folder with the JPEG files."""
        return f"{self.folder}/images{self.images}"

    @property
    def quantized(self) -> str:
        """Return where a method that also quantises may write."""
        return f"{self.folder}/{self.method}.onnx"


class Times(NamedTuple):
    """Moments on the clock of `time.time`, in seconds."""

    start: float
    calibrated: float | None
    """When the ranges were known; None where the tool does not tell."""
    end: float


# Each of these runs in its own process and imports what it needs: the memory is its own alone.
# ruff: noqa: PLC0415


def batches(job: Job) -> Iterator[Any]:
    """Yield float32[batch, 3, 224, 224], decoded and preprocessed."""
    from deploykit import files, samples

    data = files.dataset(f"folder:{job.photographs}")
    return (batch.images for batch in samples.batches(data, preprocess(), job.batch_size))


def preprocess() -> Any:  # noqa: ANN401 - its type is imported late
    """Return torchvision's preprocessing for ImageNet."""
    from deploykit.recipe import Preprocess

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Preprocess((SIZE, SIZE), resize="crop", mean=mean, std=std)


def bare(job: Job) -> Times:
    """Run the float model over the images."""
    import onnxruntime as ort

    stream = batches(job)
    start = time.time()
    session = ort.InferenceSession(job.model, providers=["CPUExecutionProvider"])
    for images in stream:
        session.run(None, {"images": images})
    return Times(start, None, time.time())


def ours(job: Job) -> Times:
    """Calibrate the tensors that deploykit quantises."""
    from deploykit import calibration, files, onnxfile, placement

    data, model = files.dataset(f"folder:{job.photographs}"), Path(job.model)
    options = calibration.CalibrationOptions(job.method, batch_size=job.batch_size)
    start = time.time()
    graph = onnxfile.read_model(model)
    tensors = placement.activations(placement.place(graph, placement.default_plan(graph, None)))
    del graph
    calibration.calibrate(model, data, preprocess(), tensors, options=options)
    end = time.time()
    return Times(start, end, end)


def ort_quantize(job: Job) -> Times:
    """Run quantize_static with symmetric INT8 and per-channel weights, else its defaults."""
    from onnxruntime import quantization

    stream = batches(job)
    ranges = Path(job.quantized).with_suffix(".ranges")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped package
        def get_next(self) -> dict[str, Any] | None:
            images = next(stream, None)
            return None if images is None else {"images": images}

    start = time.time()
    quantization.quantize_static(
        job.model,
        job.quantized,
        Reader(),
        per_channel=True,
        calibrate_method=quantization.CalibrationMethod[job.method.removeprefix("ort-")],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        calibration_cache_path=ranges,
    )
    return Times(start, ranges.stat().st_mtime, time.time())


def decode(job: Job) -> Times:
    """Write the preprocessed images as one array, for ModelOpt."""
    import numpy as np

    start = time.time()
    np.save(f"{job.photographs}.npy", np.concatenate(list(batches(job))))
    return Times(start, None, time.time())


def modelopt(job: Job) -> Times:
    """Run modelopt.onnx.quantization.quantize on the CPU."""
    import numpy as np
    from modelopt.onnx import quantization

    images = np.load(f"{job.photographs}.npy")
    start = time.time()
    quantization.quantize(
        job.model,
        quantize_mode="int8",
        calibration_data={"images": images},
        calibration_method=job.method.removeprefix("modelopt-"),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=job.quantized,
    )
    return Times(start, None, time.time())


def prepare(job: Job) -> Times:
    """Write the model and the photographs."""
    start = time.time()
    if not Path(job.model).exists():
        export(job.model)
    if not Path(job.photographs).exists():
        photograph(Path(job.photographs), job.images)
    return Times(start, None, time.time())


def export(path: str) -> None:
    """Write ResNet-50 with a dynamic batch; the exporter folds the batch norms."""
    import torch
    from torchvision.models import resnet50

    torch.manual_seed(SEED)
    program = torch.onnx.export(
        resnet50(weights=None).eval(),
        (torch.zeros(2, 3, SIZE, SIZE),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=19,
        dynamo=True,
    )
    assert program is not None
    program.save(path)


def photograph(folder: Path, count: int) -> None:
    """Write `count` JPEG files of 500x375 pixels: random crops of real photographs, by seed."""
    import numpy as np
    from PIL import Image
    from skimage import data

    originals = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    rng = np.random.default_rng(SEED)
    folder.mkdir()
    for index in range(count):
        original = Image.fromarray(originals[index % len(originals)])
        width = int(original.width * rng.uniform(0.4, 0.75))
        height = min(width * 3 // 4, original.height)
        x = int(rng.integers(original.width - width + 1))
        y = int(rng.integers(original.height - height + 1))
        crop = original.crop((x, y, x + width, y + height)).resize((500, 375))
        crop.save(folder / f"{index:05}.jpg", quality=90)


WORK: dict[str, Callable[[Job], Times]] = {
    "prepare": prepare,
    "decode": decode,
    "bare": bare,
    "minmax": ours,
    "percentile": ours,
    "mse": ours,
    "entropy": ours,
    "ort-MinMax": ort_quantize,
    "ort-Entropy": ort_quantize,
    "modelopt-entropy": modelopt,
    "modelopt-max": modelopt,
}
METHODS = tuple(WORK)[2:]


def work(job: Job) -> None:
    """Do the job in this process and print what it took as JSON, on the last line."""
    limit = int(free_memory() * MEMORY_SHARE)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        times = WORK[job.method](job)
    except MemoryError:
        sys.exit(f"more than {limit / 1e9:.1f} GB of memory wanted")
    found = {
        "seconds": times.end - times.start,
        "calibration_seconds": times.calibrated and times.calibrated - times.start,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": versions(),
        "python": platform.python_version(),
    }
    print("\n" + json.dumps(found))


def versions() -> dict[str, str]:
    """Return the versions of the packages that take part."""
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def free_memory() -> int:
    """Return the bytes that can be had without swapping."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        lines = dict(line.split(":") for line in file)
    return int(lines["MemAvailable"].split()[0]) * 1024


def processor() -> str:
    """Return the CPU's name."""
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measure(job: Job, python: str = sys.executable) -> dict[str, Any]:
    """Return what a process of its own measured for the job, or why it failed."""
    command = [python, __file__, "--work", json.dumps(asdict(job))]
    load = os.getloadavg()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1:]
    if done.returncode:
        return {"failed": last[0] if last else f"exit {done.returncode}", "load_before": load}
    return {**json.loads(last[0]), "load_before": load}


def main() -> None:
    """Measure what the command line asks for, print a table and append the records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, action="append", help="default: 128")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--modelopt-venv", type=Path, help="where nvidia-modelopt[onnx] is")
    parser.add_argument("--folder", type=Path, help="keep the model and the images here")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Job(**json.loads(options.work)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for images in options.images or [128]:
            side_by_side(options, str(folder.resolve()), images)


def side_by_side(options: argparse.Namespace, folder: str, images: int) -> None:
    """Measure every method on the same images; print and record one line for each."""
    methods = options.method or METHODS
    if options.modelopt_venv is None:
        methods = [name for name in methods if not name.startswith("modelopt")]
    helpers = ["prepare"] + ["decode"] * (options.modelopt_venv is not None)
    for name in helpers:
        if reason := measure(Job(name, folder, images, options.batch_size)).get("failed"):
            sys.exit(f"{name}: {reason}")
    shared = {
        "schema_version": SCHEMA_VERSION,
        "run": uuid.uuid4().hex,
        "model": "torchvision resnet50",
        "images": images,
        "batch_size": options.batch_size,
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
    }
    print(f"\n{images} images, batches of {options.batch_size}, {shared['cores']} cores of")
    print(
        f"{shared['cpu']}\n{'method':18}{'seconds':>9}{'x bare':>8}{'ranges s':>10}{'peak MB':>9}"
    )
    yardstick: float | None = None
    for name in methods:
        venv = options.modelopt_venv if name.startswith("modelopt") else None
        python = sys.executable if venv is None else str(venv.absolute() / "bin" / "python")
        found = measure(Job(name, folder, images, options.batch_size), python)
        if name == "bare":
            yardstick = found.get("seconds")
        print(row(name, found, yardstick), flush=True)
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**shared, "method": name, **found}, sort_keys=True) + "\n")


def row(name: str, found: dict[str, Any], yardstick: float | None) -> str:
    """Return one line of the table."""
    if "failed" in found:
        return f"{name:18}failed: {found['failed']}"
    seconds, part = found["seconds"], found["calibration_seconds"]
    ratio = f"{seconds / yardstick:.2f}" if yardstick else "-"
    ranges = f"{part:.1f}" if part else "-"
    return f"{name:18}{seconds:9.1f}{ratio:>8}{ranges:>10}{found['peak_rss_bytes'] / 1e6:9.0f}"


if __name__ == "__main__":
    main()
