"""What `quantize` and `build` take beside what they cannot do without, measured in one run.

    python benchmarks/overhead.py                      # all, three rounds
    python benchmarks/overhead.py quantize --rounds 5 --images 64

Every line is a process of its own, and the lines of a round follow each other, so that a machine
that gets slower does so for all; printed are the medians over the rounds. `wall` is the clock's,
`cpu` the computing of the whole process tree: it is what to look at where others use the machine.

quantize: YOLOv6-S at 640x640 (random weights). `bare` is the float model run over the images by
ONNX Runtime, nothing observed: loading, decoding, preprocessing and running are timed, starting
Python and importing are not. `observed` is our calibration of the same, timed alike. `command` is
the whole of `deploykit quantize`, from the start of Python to its end.

resnet50: torchvision's ResNet-50 at 224x224 (random weights) as PyTorch's exporter writes it, twice
as many images, calibrated by `mse` and by `entropy`. `pass` is that calibration alone, `command`
the whole of `deploykit quantize`.

build: the example Mask R-CNN, FP32 for SM86. `builder` is TensorRT-RTX alone, on the very file
that the command hands it: reading it, building, writing the engine. `builder script` is a program
that does this and nothing else, and `command` the whole of `deploykit build`, both from the start
of Python to its end.
"""
# ruff: noqa: PLC0415 - each job imports what it needs itself, before its time begins

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "shapes_masks" / "mask_rcnn_light.pth"
SM = "86"
TARGETS = {"quantize": 1.4, "resnet50": 1.3, "build": 1.15}
"""Of the whole command (of ResNet-50: of the passes), times what cannot be done without."""


@dataclass(frozen=True)
class Took:
    """Seconds."""

    wall: float
    cpu: float


def main() -> int:
    """Measure what the command line asks for and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("verbs", nargs="*", metavar="|".join(TARGETS), default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print("\n" + json.dumps(vars(JOBS[given.job]())))
        return 0
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        os.chdir(name)
        for verb in given.verbs:
            prepare(verb, given.images)
            table(verb, [one_round(verb) for _ in range(given.rounds)])
    return 0


def table(verb: str, rounds: list[dict[str, Took]]) -> None:
    """Print the medians, and the command's share of the first line's."""
    print(f"\n{verb}, medians of {len(rounds)} rounds; load {os.getloadavg()[0]:.1f}")
    print(f"{'':16}{'wall s':>8}{'cpu s':>8}{'wall x':>8}{'cpu x':>8}")
    base = next(iter(rounds[0]))
    for name in rounds[0]:
        wall, cpu, *ratios = (
            statistics.median(values)
            for values in (
                [found[name].wall for found in rounds],
                [found[name].cpu for found in rounds],
                [found[name].wall / found[base].wall for found in rounds],
                [found[name].cpu / found[base].cpu for found in rounds],
            )
        )
        print(f"{name:16}{wall:8.2f}{cpu:8.2f}{ratios[0]:8.2f}{ratios[1]:8.2f}")
    what = "the pass" if verb == "resnet50" else "the command"
    print(f"target: {what} at most {TARGETS[verb]:g} x {base}", flush=True)


def one_round(verb: str) -> dict[str, Took]:
    """Return what each line took."""
    found = {job: timed_inside(job) for job in LINES[verb]}
    found |= {f"{job} script": timed(functools.partial(answer, job)) for job in SCRIPTS[verb]}
    whole = COMMANDS[verb].items()
    return found | {name: timed(functools.partial(run, words)) for name, words in whole}


def timed(process: Callable[[], object]) -> Took:
    """Return what a whole process took, with those that it started."""
    began, before = time.perf_counter(), _computed(resource.RUSAGE_CHILDREN)
    process()
    return Took(time.perf_counter() - began, _computed(resource.RUSAGE_CHILDREN) - before)


def run(words: tuple[str, ...]) -> None:
    """Run a command of deploykit. Ends this program where it fails."""
    command = [sys.executable, "-m", "deploykit", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)


def timed_inside(job: str) -> Took:
    """Return what a job timed of itself."""
    return Took(**json.loads(answer(job)))


def answer(job: str) -> str:
    """Return the last line that a job prints. Ends this program where it fails."""
    command = [sys.executable, str(Path(__file__).resolve()), "--job", job]
    libraries = {**os.environ, "LD_LIBRARY_PATH": str(Path("libraries").resolve())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=libraries)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.splitlines()[-1]


@contextlib.contextmanager
def timing() -> Iterator[Callable[[], Took]]:
    """Yield what returns the time since it was made."""
    began, before = time.perf_counter(), _computed(resource.RUSAGE_SELF)
    yield lambda: Took(time.perf_counter() - began, _computed(resource.RUSAGE_SELF) - before)


def _computed(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def bare() -> Took:
    """Run the float model over the images."""
    import onnxruntime as ort

    from deploykit.data import samples, sources
    from deploykit.recipes import opened

    card = opened.read("model.onnx").card
    assert card is not None
    with timing() as took:
        session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for batch in samples.batches(sources.dataset("folder:photos"), card.preprocess, 1):
            session.run(None, {name: batch.images})
        return took()


def observed(method: str = "mse") -> Took:
    """Calibrate on the images."""
    from deploykit.data import sources
    from deploykit.precision import calibration, placement
    from deploykit.recipes import opened

    with timing() as took:
        model = opened.read("model.onnx")
        assert model.card is not None
        placed = placement.place(model.graph, placement.default_plan(model.graph, model.card))
        calibration.calibrate(
            model,
            sources.dataset("folder:photos"),
            model.card.preprocess,
            placement.activations(placed),
            options=calibration.CalibrationOptions(method),
        )
        return took()


def builder() -> Took:
    """Build with TensorRT-RTX what the command would hand it, and nothing else."""
    import tensorrt_rtx as trt

    from deploykit.backends import _trt

    fields = json.loads(Path("request.json").read_text(encoding="utf-8"))
    request = _trt.Request.from_json(fields)
    with timing() as took:
        _trt.build(trt, request, lambda _: None)
        return took()


def prepare(verb: str, images: int) -> None:
    """Write what a verb's lines read, where it is not there yet."""
    if verb == "build":
        run(("export", str(EXAMPLE), "-o", "masks.onnx"))
        profile()
    elif verb == "resnet50":
        resnet50()
        photographs(2 * images)
    else:
        network()
        photographs(images)


def network() -> None:
    """Write YOLOv6-S with random weights as model.onnx."""
    import torch

    from deploykit.recipes.recipe import RECIPES

    torch.manual_seed(0)
    torch.save({"model": RECIPES.load("yolov6").network("v3s", 80).state_dict()}, "model.pth")
    run(("export", "model.pth", "-o", "model.onnx"))


def resnet50() -> None:
    """Write torchvision's ResNet-50 with random weights as model.onnx."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet50().eval()
    sizes = ({0: torch.export.Dim("batch")},)
    images = torch.zeros(2, 3, 224, 224)
    torch.onnx.export(
        network,
        (images,),
        "resnet50.onnx",
        dynamo=True,
        dynamic_shapes=sizes,
        external_data=False,
        verbose=False,
    )
    told = ("--task", "classification", "--preprocess", "imagenet")
    run(("describe", "resnet50.onnx", "-o", "model.onnx", *told))


def photographs(count: int) -> None:
    """Write as many JPEG files of 640x480 pixels: patches under noise."""
    import numpy as np
    from PIL import Image

    random, folder = np.random.default_rng(0), Path("photos")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in range(count):
        patches = random.integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(patches).resize((640, 480)).save(folder / f"{number:05}.jpg", quality=90)


def profile() -> None:
    """Write what the command hands to the builder, and name the parser's library."""
    from deploykit.backends import _builder_process, _plugins, _preparing, _profiles
    from deploykit.files import onnxfile
    from deploykit.recipes import opened

    model = opened.read("masks.onnx")
    inputs, _ = onnxfile.interface(model.graph)
    with _preparing.prepared(model.copy(), model.path, "auto") as made:
        shutil.copy(made.path, "prepared.onnx")
        request = {
            "module": "tensorrt_rtx",
            "model": str(Path("prepared.onnx").resolve()),
            "output": str(Path("bare.engine").resolve()),
            "sms": [SM],
            "plugins": _plugins.to_json(made.use),
            "ops": _plugins.files(made.use),
            "shapes": _profiles.profiles(inputs, {})[0],
        }
    Path("request.json").write_text(json.dumps(request), encoding="utf-8")
    library = _builder_process.runtime_library("tensorrt_rtx")
    if library is not None:
        Path("libraries").mkdir(exist_ok=True)
        Path("libraries", "libtensorrt_rtx.so").symlink_to(library)


QUANTIZE = ("quantize", "model.onnx", "--calib-dir", "photos", "-o", "int8.onnx")
JOBS: Mapping[str, Callable[[], Took]] = {
    "bare": bare,
    "observed": observed,
    "mse pass": observed,
    "entropy pass": functools.partial(observed, "entropy"),
    "builder": builder,
}
LINES = {
    "quantize": ("bare", "observed"),
    "resnet50": ("bare", "mse pass", "entropy pass"),
    "build": ("builder",),
}
SCRIPTS = {"quantize": (), "resnet50": (), "build": ("builder",)}
"""Jobs that are programs of their own too."""
COMMANDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "quantize": {"command": QUANTIZE},
    "resnet50": {
        "mse command": QUANTIZE,
        "entropy command": (*QUANTIZE, "--calib-method", "entropy"),
    },
    "build": {"command": ("build", "masks.onnx", "--sm", SM, "-o", "masks.engine")},
}

if __name__ == "__main__":
    sys.exit(main())
