"""What machine is this, and how does it fare?"""

from __future__ import annotations

import platform
from functools import partial
from typing import TYPE_CHECKING, Any

from deploykit.files import artifacts
from deploykit.measuring.environment.machine import Machine, Reader, stripped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.values import Json

_CPU = "/sys/devices/system/cpu/cpu0/cpufreq/"
_MEGA, _KIBI, _MEBI, _MILLI = 10**6, 1 << 10, 1 << 20, 1e-3


def describe(machine: Machine | None = None) -> Json:
    """Return what the machine is and how it fares; what cannot be read is None.

    The reasons are listed under `unreadable_reasons`. Units: Hz, bytes, degrees Celsius, watts.
    """
    machine = machine or Machine()
    reader = Reader(machine)
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


def _cpu(reader: Reader) -> Json:
    read = reader.machine.read
    return {
        "model": reader.get("cpu.model", lambda: _line(read("/proc/cpuinfo"), "model name")),
        "cores": reader.machine.cores(),
        "governor": reader.get("cpu.governor", lambda: stripped(read(_CPU + "scaling_governor"))),
        "frequency_hz": reader.number("cpu.frequency_hz", _CPU + "scaling_cur_freq", 1e3),
        "temperature_celsius": reader.number(
            "cpu.temperature_celsius", "/sys/class/thermal/thermal_zone0/temp", _MILLI
        ),
    }


def _memory(reader: Reader, key: str) -> int | None:
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


def _gpus(reader: Reader) -> list[Json]:
    query = ",".join(name for name, _ in _GPU_FIELDS.values())
    text = reader.machine.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    )
    rows = [line.split(", ") for line in text.splitlines() if line.strip()]
    return [_gpu(reader, index, row) for index, row in enumerate(rows)]


def _gpu(reader: Reader, index: int, row: Sequence[str]) -> Json:
    if len(row) != len(_GPU_FIELDS):
        raise ValueError(f"nvidia-smi gave {len(row)} of {len(_GPU_FIELDS)} fields")
    found: dict[str, Any] = {}
    for (name, (_, scale)), text in zip(_GPU_FIELDS.items(), row, strict=True):
        parse = partial(_gpu_value, name, text.strip(), scale)
        found[name] = reader.get(f"gpus.{index}.{name}", parse)
    return found


def _gpu_value(name: str, text: str, scale: float | None) -> str | float | list[str]:
    if stripped(text).startswith("["):
        raise ValueError(text.strip("[]"))
    if name == "throttle_reasons":
        active = int(text, 16)
        return [reason for bit, reason in _THROTTLING.items() if active & bit]
    return text if scale is None else float(text) * scale
