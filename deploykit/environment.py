"""What machine is this, how does it fare, and what can be done here?"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from deploykit import artifacts, backends
from deploykit.backends import Availability, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from deploykit.values import Json

T = TypeVar("T")
_CPU = "/sys/devices/system/cpu/cpu0/cpufreq/"
_MEGA, _KIBI, _MEBI, _MILLI = 10**6, 1 << 10, 1 << 20, 1e-3
_SECONDS = 10
"""After which a program that was asked is given up."""


def _run(command: Sequence[str]) -> str:
    """Return what a program prints. Raises: OSError where it is absent or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands, no shell
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except FileNotFoundError as error:
        raise OSError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} did not answer in {_SECONDS} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(said[-1] if said else f"{command[0]} failed with status {done.returncode}")
    return done.stdout


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Machine:
    """How facts about a machine are read: another one can be put in its place."""

    read: Callable[[str], str] = _read
    """(path) -> the file's text. Raises: OSError."""
    run: Callable[[Sequence[str]], str] = _run
    """(command) -> what it prints. Raises: OSError."""
    version: Callable[[str], str | None] = _version
    """(package) -> its version, None where it is not installed."""
    find: Callable[[str], str | None] = shutil.which
    """(program) -> its path."""
    availability: Callable[[str], Availability] = field(
        default=lambda name: backends.load(name).availability()
    )
    load_average: Callable[[], Sequence[float]] = os.getloadavg
    cores: Callable[[], int] = _usable_cores


@dataclass
class _Reader:
    """Collects facts; one that cannot be read becomes None, with a reason."""

    machine: Machine
    reasons: list[str] = field(default_factory=list)

    def get(self, what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (OSError, ValueError, IndexError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.reasons.append(f"{what}: {reason}")
            return None

    def number(self, what: str, path: str, scale: float) -> float | None:
        return self.get(what, lambda: float(self.machine.read(path)) * scale)


def describe(machine: Machine | None = None) -> Json:
    """Return what the machine is and how it fares; what cannot be read is None.

    The reasons are listed under `unreadable_reasons`. Units: Hz, bytes, degrees Celsius, watts.
    """
    machine = machine or Machine()
    reader = _Reader(machine)
    described: Json = {
        "cpu": _cpu(reader),
        "load_average": reader.get("load_average", lambda: list(machine.load_average())),
        "memory_total_bytes": _memory(reader, "MemTotal"),
        "memory_available_bytes": _memory(reader, "MemAvailable"),
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": artifacts.versions(),
        "gpus": reader.get("gpus", lambda: _gpus(reader)) or [],
    }
    return {**described, "unreadable_reasons": reader.reasons}


def _cpu(reader: _Reader) -> Json:
    read = reader.machine.read
    return {
        "model": reader.get("cpu.model", lambda: _line(read("/proc/cpuinfo"), "model name")),
        "cores": reader.machine.cores(),
        "governor": reader.get("cpu.governor", lambda: read(_CPU + "scaling_governor").strip()),
        "frequency_hz": reader.number("cpu.frequency_hz", _CPU + "scaling_cur_freq", 1e3),
        "temperature_celsius": reader.number(
            "cpu.temperature_celsius", "/sys/class/thermal/thermal_zone0/temp", _MILLI
        ),
    }


def _memory(reader: _Reader, key: str) -> int | None:
    def read() -> int:
        return int(_line(reader.machine.read("/proc/meminfo"), key).split()[0]) * _KIBI

    return reader.get(key, read)


def _line(text: str, key: str) -> str:
    """Return what follows `key:` in a file of /proc. Raises: ValueError."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    raise ValueError(f"no {key!r} in it")


# Our name -> nvidia-smi's, and the factor to our unit; None for text.
_GPU_FIELDS: dict[str, tuple[str, float | None]] = {
    "name": ("name", None),
    "compute_capability": ("compute_cap", None),
    "driver": ("driver_version", None),
    "clock_hz": ("clocks.sm", _MEGA),
    "max_clock_hz": ("clocks.max.sm", _MEGA),
    "memory_clock_hz": ("clocks.mem", _MEGA),
    "temperature_celsius": ("temperature.gpu", 1),
    "throttle_reasons": ("clocks_throttle_reasons.active", None),
    "persistence_mode": ("persistence_mode", None),
    "power_watts": ("power.draw", 1),
    "power_limit_watts": ("power.limit", 1),
    "memory_total_bytes": ("memory.total", _MEBI),
    "memory_used_bytes": ("memory.used", _MEBI),
}
_THROTTLING = {
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""Bits of NVML's clocks event reasons; 0x1, an idle GPU, is none."""


def _gpus(reader: _Reader) -> list[Json]:
    query = ",".join(name for name, _ in _GPU_FIELDS.values())
    text = reader.machine.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    )
    rows = [line.split(", ") for line in text.splitlines() if line.strip()]
    return [_gpu(reader, index, row) for index, row in enumerate(rows)]


def _gpu(reader: _Reader, index: int, row: Sequence[str]) -> Json:
    if len(row) != len(_GPU_FIELDS):
        raise ValueError(f"nvidia-smi gave {len(row)} of {len(_GPU_FIELDS)} fields")
    found: dict[str, Any] = {}
    for (name, (_, scale)), text in zip(_GPU_FIELDS.items(), row, strict=True):
        parse = partial(_gpu_value, name, text.strip(), scale)
        found[name] = reader.get(f"gpus.{index}.{name}", parse)
    return found


def _gpu_value(name: str, text: str, scale: float | None) -> str | float | list[str]:
    if not text or text.startswith("["):
        raise ValueError(text.strip("[]") or "empty")
    if name == "throttle_reasons":
        active = int(text, 16)
        return [reason for bit, reason in _THROTTLING.items() if active & bit]
    return text if scale is None else float(text) * scale


Status = Literal["ok", "warn", "absent"]


@dataclass(frozen=True)
class Row:
    """One finding of `doctor`."""

    topic: str
    status: Status
    detail: str
    fix: str = ""


_PACKAGES = (
    ("torch exporter", "onnxscript", "exports PyTorch models to ONNX", "pip install onnxscript"),
    ("COCO AP", "faster-coco-eval", "evaluates detectors", "pip install 'deploykit[eval]'"),
    (
        "shapes data",
        "scikit-image",
        "generates images to train on",
        "pip install 'deploykit[shapes]'",
    ),
    ("timm models", "timm", "loads timm checkpoints' models", "pip install 'deploykit[zoo]'"),
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
            "no CUDA compiler: it builds the C++ plugin library",
            "install the CUDA toolkit; the Python plugins need none",
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
        "" if row.rtx else f"build on the GPU itself: pip install '{row.packages}'",
    )
