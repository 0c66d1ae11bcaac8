"""One job of the calibration benchmark, in a process of its own; `calibration.py` starts it.

    python benchmarks/calibration_job.py METHOD FOLDER IMAGES BATCH_SIZE

Prints what the job took as JSON on the last line. Each method imports what it needs, late, so
that the memory measured is its own alone; ModelOpt's runs where deploykit is not installed.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 224
SEED = 0
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
PACKAGES = ("deploykit", "onnxruntime", "onnxruntime-gpu", "nvidia-modelopt", "onnx", "numpy")
MEMORY_SHARE = 0.85
"""Of the memory that is free at the start: a method that wants more has failed."""


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


def batches(job: Job) -> Iterator[Any]:
    """Yield float32[batch, 3, 224, 224], decoded and preprocessed."""
    from deploykit.data import samples, sources

    data = sources.dataset(f"folder:{job.photographs}")
    return (batch.images for batch in samples.batches(data, preprocess(), job.batch_size))


def preprocess() -> Any:  # noqa: ANN401 - its type is imported late
    """Return torchvision's preprocessing for ImageNet."""
    from deploykit.data.preprocess import Preprocess

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
    from deploykit.data import sources
    from deploykit.precision import calibration, placement
    from deploykit.recipes import opened

    data, model = sources.dataset(f"folder:{job.photographs}"), Path(job.model)
    options = calibration.CalibrationOptions(job.method, batch_size=job.batch_size)
    start = time.time()
    subject = opened.read(model)
    plan = placement.default_plan(subject.graph, None)
    tensors = placement.activations(placement.place(subject.graph, plan))
    calibration.calibrate(subject, data, preprocess(), tensors, options=options)
    end = time.time()
    return Times(start, end, end)


def ort_quantize(job: Job) -> Times:
    """Run quantize_static with symmetric INT8 and per-channel weights, else its defaults."""
    from onnxruntime import quantization

    stream = batches(job)
    ranges = Path(job.quantized).with_suffix(".ranges")
    ranges.unlink(missing_ok=True)  # ranges that are there would be used in place of the images

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

    originals = [getattr(data, name)() for name in PHOTOGRAPHS]
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


def versions() -> dict[str, str]:
    """Return the versions of the packages that take part."""
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def free_memory() -> int:
    """Return the bytes that can be had without swapping."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        lines = dict(line.split(":") for line in file)
    return int(lines["MemAvailable"].split()[0]) * 1024


def main() -> None:
    """Do the job and print what it took."""
    method, folder, images, batch_size = sys.argv[1:]
    job = Job(method, folder, int(images), int(batch_size))
    limit = int(free_memory() * MEMORY_SHARE)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        times = WORK[job.method](job)
    except MemoryError:
        sys.exit(f"more than {limit / 1e9:.1f} GB of memory wanted")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "seconds": times.end - times.start,
        "process_cpu_seconds": usage.ru_utime + usage.ru_stime,
        "calibration_seconds": times.calibrated and times.calibrated - times.start,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "versions": versions(),
        "python": platform.python_version(),
    }
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
