from __future__ import annotations

from typing import Any

import pytest

from deploykit.measuring import conditions
from deploykit.values import BenchRecord

QUIET = {
    "cpu": {"model": "Fast 9000", "cores": 8, "governor": "performance", "mhz": 3000.5},
    "load_average": [0.2, 0.3, 0.4],
    "gpu": [{"name": "T4", "throttle_reasons": [], "temperature_c": 40}],
    "versions": {"onnxruntime": "1.23.0"},
}


def record(before: Any, after: Any = None, seconds: tuple[float, ...] = (1.0,)) -> BenchRecord:
    environment = {"before": before, "after": before if after is None else after}
    return BenchRecord("m", "s", "b", "device", 1, seconds, environment=environment)


def changed(**changes: Any) -> dict[str, Any]:
    return {**QUIET, **changes}


def test_a_quiet_machine_gives_no_warning() -> None:
    assert conditions.with_warnings(record(QUIET)).warnings == ()


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (changed(load_average=[4.1, 0.0, 0.0]), "load average was 4.10 on 8 cores"),
        (changed(cpu={"governor": "powersave"}), "governor is 'powersave'"),
        (changed(gpu=[{"throttle_reasons": ["sw_power_cap"]}]), "throttled before the run"),
        (changed(gpu=[{"throttled": True}]), "throttled before the run: gpu.0.throttled is True"),
    ],
)
def test_what_disturbs_a_run_is_said(before: dict[str, Any], message: str) -> None:
    (warning, *_) = conditions.with_warnings(record(before, QUIET)).warnings
    assert message in warning


def test_throttling_that_began_during_the_run_is_said() -> None:
    after = changed(gpu=[{"throttle_reasons": "0x8"}])
    (warning,) = conditions.with_warnings(record(QUIET, after)).warnings
    assert warning == "throttled after the run: gpu.0.throttle_reasons is 0x8"


@pytest.mark.parametrize(
    "value",
    [None, False, 0, "", [], "none", "Not Active", "gpu_idle", ["applications_clocks_setting"]],
)
def test_what_is_not_throttling_is_not_called_so(value: Any) -> None:
    found = changed(gpu=[{"throttle_reasons": value}])
    assert conditions.with_warnings(record(found)).warnings == ()


def test_a_load_counts_only_against_the_cores_there_are() -> None:
    assert conditions.with_warnings(record({"load_average": [9.0]})).warnings == ()
    assert conditions.with_warnings(record({"load_average": None, "cores": 2})).warnings == ()


def test_the_device_clock_decides_on_stability_where_there_is_one() -> None:
    steady = BenchRecord("m", "s", "b", "device", 1, (1.0, 2.0), device_seconds=(1.0, 1.0))
    assert conditions.with_warnings(steady).warnings == ()
    (warning,) = conditions.with_warnings(record(QUIET, seconds=(1.0, 2.0))).warnings
    assert warning.startswith("unstable: the coefficient of variation is 47.1%, above 2.5%")


def test_a_machine_is_what_lasts() -> None:
    busy = changed(
        load_average=[3.0, 1.0, 1.0],
        cpu={**QUIET["cpu"], "mhz": 1000.0},  # type: ignore[dict-item]
        gpu=[{"name": "T4", "throttle_reasons": ["hot"], "temperature_c": 90}],
    )
    assert conditions.machine(record(busy)) == conditions.machine(record(QUIET, busy))
    assert dict(conditions.machine(record(QUIET))) == {
        "cpu.cores": "8",
        "cpu.governor": "performance",
        "cpu.model": "Fast 9000",
        "gpu.0.name": "T4",
        "versions.onnxruntime": "1.23.0",
    }


def test_another_version_is_another_machine() -> None:
    other = changed(versions={"onnxruntime": "1.22.0"})
    assert conditions.machine(record(other)) != conditions.machine(record(QUIET))


def test_an_environment_that_was_read_once_is_the_one_before() -> None:
    once = BenchRecord("m", "s", "b", "device", 1, (1.0,), environment=QUIET)
    assert conditions.machine(once) == conditions.machine(record(QUIET))
    assert conditions.moments(once) == {"before": QUIET}
