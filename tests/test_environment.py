from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deploykit import backends
from deploykit.backends import Availability
from deploykit.measuring import conditions, environment
from deploykit.measuring.environment import Machine, Row
from deploykit.values import BenchRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

FILES = {
    "/proc/cpuinfo": "processor\t: 0\nmodel name\t: Xeon Test\n",
    "/proc/meminfo": "MemTotal:       16384 kB\nMemAvailable:    8192 kB\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2500000\n",
    "/sys/class/thermal/thermal_zone0/temp": "45500\n",
}
T4 = (
    "Tesla T4, 7.5, 550.54, 1590, 1590, 5000, 61, 0x0000000000000000, "
    "Enabled, 68.1, 70.00, 15360, 3"
)
V100 = T4.replace("Tesla T4, 7.5", "Tesla V100-SXM2-16GB, 7.0")


def read(path: str) -> str:
    try:
        return FILES[path]
    except KeyError:
        raise OSError(2, "No such file or directory") from None


def machine(gpu: str, **changes: Any) -> Machine:
    """Return a machine with a GPU as nvidia-smi describes it, and nothing installed."""

    def run(command: Sequence[str]) -> str:
        assert command[0] == "nvidia-smi"
        if not gpu:
            raise OSError("nvidia-smi is not installed")
        return gpu + "\n"

    made = Machine(
        read=read,
        run=run,
        version=lambda _: None,
        find=lambda _: None,
        availability=lambda _: Availability(builds=False, runs=False, reason="absent", fix="do it"),
        load_average=lambda: (0.1, 0.2, 0.3),
        cores=lambda: 4,
    )
    return replace(made, **changes)


def topics(rows: list[Row]) -> dict[str, Row]:
    return {row.topic: row for row in rows}


def test_a_machine_is_described_in_plain_units() -> None:
    found = environment.describe(machine(T4))
    assert found["cpu"] == {
        "model": "Xeon Test",
        "cores": 4,
        "governor": "performance",
        "frequency_hz": 2.5e9,
        "temperature_celsius": 45.5,
    }
    assert found["memory_total_bytes"] == 16 << 20
    assert found["gpus"] == [
        {
            "name": "Tesla T4",
            "compute_capability": "7.5",
            "driver": "550.54",
            "clock_hz": 1.59e9,
            "max_clock_hz": 1.59e9,
            "memory_clock_hz": 5e9,
            "temperature_celsius": 61.0,
            "throttle_reasons": [],
            "persistence_mode": "Enabled",
            "power_watts": 68.1,
            "power_limit_watts": 70.0,
            "memory_total_bytes": 15360 << 20,
            "memory_used_bytes": 3 << 20,
        }
    ]
    assert found["unreadable_reasons"] == []
    assert json.loads(json.dumps(found)) == found


def test_what_cannot_be_read_is_null_with_its_reason() -> None:
    def nothing(*_: object) -> Any:
        raise OSError(13, "Permission denied")

    found = environment.describe(machine("", read=nothing, load_average=nothing))
    assert found["cpu"]["model"] is None
    assert found["load_average"] is None
    assert found["gpus"] == []
    assert "cpu.governor: Permission denied" in found["unreadable_reasons"]
    assert "gpus: nvidia-smi is not installed" in found["unreadable_reasons"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[N/A]", "gpus.0.clock_hz: N/A"),
        ("[Not Supported]", "gpus.0.clock_hz: Not Supported"),
        ("", "gpus.0.clock_hz: empty"),
        ("fast", "gpus.0.clock_hz: could not convert"),
    ],
)
def test_a_field_that_a_gpu_does_not_have_is_null(text: str, reason: str) -> None:
    found = environment.describe(machine(T4.replace("1590", text, 1)))
    assert found["gpus"][0]["clock_hz"] is None
    assert found["gpus"][0]["max_clock_hz"] == 1.59e9
    assert found["unreadable_reasons"][0].startswith(reason)


def test_an_answer_of_another_form_is_no_gpu_and_a_reason() -> None:
    found = environment.describe(machine("Tesla T4, 7.5"))
    assert found["gpus"] == []
    assert found["unreadable_reasons"] == ["gpus: nvidia-smi gave 2 of 13 fields"]


def test_throttling_is_named_and_an_idle_gpu_is_none() -> None:
    for bits, names in (("0x1", []), ("0x24", ["sw_power_cap", "sw_thermal_slowdown"])):
        found = environment.describe(machine(T4.replace("0x0000000000000000", bits)))
        assert found["gpus"][0]["throttle_reasons"] == names


def test_a_record_of_a_quiet_machine_has_no_warnings_and_a_throttled_one_has() -> None:
    quiet = environment.describe(machine(T4))
    hot = environment.describe(machine(T4.replace("0x0000000000000000", "0x20")))
    record = BenchRecord("m", "0", "tensorrt", "device", 1, (0.01,) * 200)
    for after, expected in ((quiet, ()), (hot, ("throttled after the run",))):
        made = replace(record, environment={"before": quiet, "after": after})
        warned = conditions.with_warnings(made).warnings
        assert [text.partition(":")[0] for text in warned] == list(expected)
    unreadable = environment.describe(machine("", read=lambda _: ""))
    made = replace(record, environment={"before": unreadable})
    assert conditions.with_warnings(made).warnings == ()


def test_two_readings_of_one_machine_identify_the_same_machine() -> None:
    before = environment.describe(machine(T4))
    after = environment.describe(
        machine(T4.replace("61", "70").replace("1590", "900", 1), load_average=lambda: (1, 1, 1))
    )
    record = BenchRecord("m", "0", "tensorrt", "device", 1, (0.01,) * 200)
    first, second = (replace(record, environment=found) for found in (before, after))
    assert conditions.machine(first) == conditions.machine(second)


def test_doctor_says_what_a_t4_can_do() -> None:
    rows = topics(environment.doctor(machine(T4)))
    assert rows["GPU"] == Row("GPU", "ok", "Tesla T4, SM75, driver 550.54")
    t4 = rows["SM75 T4, RTX 20"]
    assert "TensorRT 8.6 to 11 (FP32, FP16, INT8)" in t4.detail
    assert "no INT8 kernels for Turing" in t4.detail


def test_doctor_says_why_a_v100_has_no_int8_and_which_tensorrt_fits() -> None:
    rows = topics(environment.doctor(machine(V100)))
    assert rows["GPU"].status == "warn"
    assert "no INT8 tensor cores" in rows["GPU"].detail
    assert rows["GPU"].fix == "build FP16 for it"
    assert "10.4" in rows["SM70 V100"].detail
    assert "tensorrt-cu12==10.4.*" in rows["SM70 V100"].fix


def test_doctor_warns_of_a_throttled_and_of_an_unknown_gpu() -> None:
    throttled = T4.replace("0x0000000000000000", "0x4")
    assert "sw_power_cap" in topics(environment.doctor(machine(throttled)))["GPU"].detail
    unknown = topics(environment.doctor(machine(T4.replace("7.5", "6.1"))))["GPU"]
    assert (unknown.status, unknown.detail.rpartition(": ")[2]) == (
        "warn",
        "not among the known targets",
    )


def test_doctor_without_a_gpu_says_what_is_possible_all_the_same() -> None:
    rows = topics(environment.doctor(machine("")))
    assert rows["GPU"].status == "absent"
    assert "nvidia-smi is not installed" in rows["GPU"].detail
    assert "built here" in rows["GPU"].fix
    assert rows["nvcc"].status == "absent"
    for topic in ("PyTorch", "COCO AP", "shapes data", "timm models"):
        assert rows[topic].status == "absent"
        assert rows[topic].fix.startswith("`pip install")


def test_doctor_shows_each_backend_as_it_describes_itself() -> None:
    known = {
        "onnxruntime": Availability(builds=True, runs=True, version="1.2"),
        "tensorrt": Availability(builds=False, runs=False, reason="not here", fix="install"),
        "tensorrt_rtx": Availability(builds=True, runs=False, version="1.7", reason="no GPU"),
    }
    present = machine(
        "", availability=known.__getitem__, find=lambda _: "/bin/nvcc", version=lambda _: "9"
    )
    rows = topics(environment.doctor(present))
    assert rows["onnxruntime"] == Row("onnxruntime", "ok", "1.2 builds and runs")
    assert rows["tensorrt"] == Row("tensorrt", "absent", "not here", "install")
    assert rows["tensorrt_rtx"] == Row("tensorrt_rtx", "warn", "1.7 builds; no GPU")
    assert rows["nvcc"].detail == "/bin/nvcc"
    assert rows["COCO AP"] == Row("COCO AP", "ok", "faster-coco-eval 9")


def test_this_machine_can_be_described_and_examined() -> None:
    found = environment.describe()
    assert found["cpu"]["cores"] >= 1
    assert json.dumps(found)
    rows = topics(environment.doctor())
    assert set(backends.NAMES) <= rows.keys()
    assert rows["onnxruntime"].status == "ok"
    assert all(row.fix for row in rows.values() if row.status == "absent")


def test_a_program_that_is_absent_fails_or_hangs_is_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Machine().run
    assert run([sys.executable, "-c", "print(3)"]) == "3\n"
    with pytest.raises(OSError, match="no-such-program is not installed"):
        run(["no-such-program"])
    with pytest.raises(OSError, match="driver is broken"):
        run([sys.executable, "-c", "raise SystemExit('driver is broken')"])
    with pytest.raises(OSError, match="failed with status 4"):
        run([sys.executable, "-c", "raise SystemExit(4)"])
    monkeypatch.setattr("deploykit.measuring.environment.machine._SECONDS", 0.2)
    with pytest.raises(OSError, match="did not answer"):
        run([sys.executable, "-c", "import time; time.sleep(30)"])
