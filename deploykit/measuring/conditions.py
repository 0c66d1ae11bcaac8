"""The conditions a measurement was made under: which machine, and what disturbed it.

An environment is any nested JSON object. It is read by the meaning of its keys, so that records
of other versions, and of machines that cannot tell everything, are understood as far as they go.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.values import BenchRecord

MAX_VARIATION = 0.025
"""Coefficient of variation above which timings are called unstable, as trtexec does."""
MAX_LOAD = 0.5
"""Load average per core above which other work is taken to disturb the timings."""
FEW = 100
"""Below this number of iterations the 99th percentile is the slowest one."""

_VOLATILE = re.compile(
    r"load|freq|clock|hz\b|temperature|throttl|power|util|free|available|used|reason|pstate"
    r"|(^|[._])((up|date)?time(stamp)?|pid)\b",
    re.IGNORECASE,
)
"""Keys whose values change from minute to minute: no part of a machine's identity."""
_LOCKED = frozenset({"applications_clocks_setting", "display_clock_setting"})
"""Reasons why a GPU keeps below its highest clock that a user chose."""
_NOT_THROTTLED = _LOCKED | frozenset(
    {"", "0", "none", "no", "not active", "false", "unknown", "gpu_idle", "gpu idle"}
)


def with_warnings(record: BenchRecord) -> BenchRecord:
    """Return the record with everything that makes its timings less than repeatable."""
    return replace(record, warnings=tuple(_warnings(record)))


def _warnings(record: BenchRecord) -> Iterator[str]:
    figures = record.device or record.wall
    if figures.variation > MAX_VARIATION:
        yield (
            f"unstable: the coefficient of variation is {figures.variation:.1%}, above "
            f"{MAX_VARIATION:.1%}; stop other work, or lock the clocks"
        )
    readings = {moment: dict(leaves(found)) for moment, found in moments(record).items()}
    before = readings["before"]
    yield from _load(before)
    for path, value in before.items():
        if path.endswith("governor") and isinstance(value, str) and value != "performance":
            yield f"the CPU frequency governor is {value!r}, not 'performance'"
    for moment, found in readings.items():
        yield from _throttling(moment, found)


def _load(before: Mapping[str, Any]) -> Iterator[str]:
    loads = [v for path, v in before.items() if re.search(r"load", path) and _is_number(v)]
    cores = [v for path, v in before.items() if re.search(r"(cores|cpus|count)$", path)]
    counts = [value for value in cores if _is_number(value) and value > 0]
    if loads and counts and loads[0] > MAX_LOAD * max(counts):
        yield (
            f"the load average was {loads[0]:.2f} on {max(counts):.0f} cores before the run: "
            "other work, or the benchmark before this one"
        )


def _throttling(moment: str, environment: Mapping[str, Any]) -> Iterator[str]:
    for path, value in environment.items():
        if "throttl" in path.lower() and value and str(value).lower() not in _NOT_THROTTLED:
            yield f"throttled {moment} the run: {path} is {value}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def leaves(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Return dotted path -> value of every leaf of a nested JSON value, in its own order."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        yield path, value
        return
    for key, item in items:
        yield from leaves(item, f"{path}.{key}" if path else str(key))


def moments(record: BenchRecord) -> dict[str, Any]:
    """Return the record's environment `before` the run and, where it was read, `after` it."""
    if "before" not in record.environment:
        return {"before": record.environment}
    return {
        name: record.environment[name] for name in ("before", "after") if name in record.environment
    }


def machine(record: BenchRecord) -> tuple[tuple[str, str], ...]:
    """Return what identifies the machine and its software: (dotted path, text) of lasting facts.

    Two measurements may be compared only where these are equal.
    """
    known = moments(record)["before"]
    facts = ((path, str(value)) for path, value in leaves(known) if value is not None)
    return tuple(sorted((path, text) for path, text in facts if not _VOLATILE.search(path)))
