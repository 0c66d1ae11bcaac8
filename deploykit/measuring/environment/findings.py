"""What can be done here, and what to install?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deploykit import backends
from deploykit.backends import targets
from deploykit.measuring.environment.describing import describe
from deploykit.measuring.environment.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.backends import Availability
    from deploykit.values import Json

Status = Literal["ok", "warn", "absent"]


@dataclass(frozen=True)
class Row:
    """One finding of `doctor`."""

    topic: str
    status: Status
    detail: str
    fix: str = ""


_PACKAGES = (
    (
        "PyTorch",
        "torch",
        "reads checkpoints and exports them",
        "`pip install torch torchvision safetensors`",
    ),
    ("COCO AP", "faster-coco-eval", "evaluates detectors", "`pip install faster-coco-eval`"),
    (
        "shapes data",
        "scikit-image",
        "generates images to train on",
        "`pip install scikit-image`",
    ),
    ("timm models", "timm", "loads timm checkpoints' models", "`pip install timm`"),
)


def doctor(machine: Machine | None = None) -> list[Row]:
    """Return what is here, which precisions are possible for which GPU, and what to install."""
    machine = machine or Machine()
    return [
        *_hardware(machine),
        *(_backend(name, machine.availability(name)) for name in backends.NAMES),
        *(_package(machine, row) for row in _PACKAGES),
        _compiler(machine),
        *map(_target, targets.TARGETS.values()),
    ]


def _hardware(machine: Machine) -> Iterator[Row]:
    facts = describe(machine)
    cpu = facts["cpu"]
    yield Row("CPU", "ok", f"{cpu['model'] or 'unknown'}, {cpu['cores']} cores")
    if not facts["gpus"]:
        reasons = [text for text in facts["unreadable_reasons"] if text.startswith("gpus")]
        yield Row(
            "GPU",
            "absent",
            "; ".join(reasons) or "nvidia-smi lists none",
            "engines can be built here and run on another machine; ONNX Runtime runs here",
        )
    for gpu in facts["gpus"]:
        yield _gpu_row(gpu)


def _gpu_row(gpu: Json) -> Row:
    sm = str(gpu["compute_capability"] or "").replace(".", "")
    detail = f"{gpu['name']}, SM{sm or '?'}, driver {gpu['driver']}"
    known = targets.TARGETS.get(sm)
    if known is None:
        return Row("GPU", "warn", f"{detail}: not among the known targets")
    if known.int8:
        return Row("GPU", "warn", f"{detail}: {known.int8}", "build FP16 for it")
    if gpu["throttle_reasons"]:
        slowed = ", ".join(gpu["throttle_reasons"])
        return Row("GPU", "warn", f"{detail}: throttled ({slowed})", "cool it, or raise its limits")
    return Row("GPU", "ok", detail)


def _backend(name: str, here: Availability) -> Row:
    does = [verb for verb, can in (("builds", here.builds), ("runs", here.runs)) if can]
    detail = " ".join(filter(None, [here.version, " and ".join(does)]))
    detail = "; ".join(filter(None, [detail, here.reason]))
    status: Status = "absent" if not does else "warn" if here.reason else "ok"
    return Row(name, status, detail, here.fix)


def _package(machine: Machine, row: tuple[str, str, str, str]) -> Row:
    topic, package, purpose, fix = row
    version = machine.version(package)
    if version is None:
        return Row(topic, "absent", f"{package} is not installed: it {purpose}", fix)
    return Row(topic, "ok", f"{package} {version}")


def _compiler(machine: Machine) -> Row:
    path = machine.find("nvcc")
    if path is None:
        return Row(
            "nvcc",
            "absent",
            "no CUDA compiler: it makes the plugin library, and the kernels of plugins from Python",
            "install the CUDA toolkit where such engines run; building them needs none",
        )
    return Row("nvcc", "ok", path)


def _target(row: targets.Target) -> Row:
    precisions = f"FP32, FP16; {row.int8}" if row.int8 else "FP32, FP16, INT8"
    full = f"TensorRT {row.tensorrt} ({precisions})" if row.tensorrt else "full TensorRT: not known"
    if row.rtx:
        rtx = f"TensorRT-RTX ({row.rtx_limits or 'FP32, FP16, INT8'})"
    else:
        rtx = f"no TensorRT-RTX: {row.not_rtx}"
    return Row(
        f"SM{row.sm} {row.gpus}",
        "ok" if row.rtx else "warn",
        f"{full}; {rtx}",
        "" if row.rtx else f"build on the GPU itself: {row.install}",
    )
