"""The table of the records that `systems.py` writes, which `docs/systems.md` shows."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from systems_list import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from systems_list import System

    Found = dict[str, Any]

TRAINED = Path(__file__).parent / "results" / "quantization.jsonl"
COLUMNS = (
    *("system", "network, input", "checkpoints of", "FP32 proof", "INT8 share"),
    *("INT8 against FP32", "signal to noise, dB", "build, s", "CPU FPS", "plain", "any batch"),
)


def records(path: Path) -> dict[str, Found]:
    """Return the last record of each system."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {found["name"]: found for found in map(json.loads, lines)}


def table(found: Mapping[str, Found]) -> Iterator[str]:
    """Yield the lines of the table, and what misses what is asked for."""
    rows = {name: found[name] for name in SYSTEMS if name in found}
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    yield from (row(name, record) for name, record in rows.items())
    yield ""
    yield from (f"* {note}" for note in _notes(rows))


def row(name: str, record: Found) -> str:
    """Return one line of the table."""
    system = SYSTEMS[name]
    if "failed" in record:
        start = (name, _network(system, {}), system.layouts, reason(record["failed"]))
        return f"| {' | '.join(start)} |{' |' * (len(COLUMNS) - len(start))}"
    cells = (
        name,
        _network(system, record),
        system.layouts,
        f"{record['proof']:.1e}",
        _share(record["engines"]["86"]),
        _agreement(system, record),
        ", ".join(f"{output} {value:.1f}" for output, value in record["snr"].items()),
        " / ".join(_seconds(record["engines"][sm]) for sm in ("86", "75")),
        f"{1 / statistics.median(record['cpu']['seconds']['ours']):.1f}",
        *(_times_as_fast(record, kind) for kind in ("plain", "dynamic")),
    )
    return f"| {' | '.join(cells)} |"


def _network(system: System, record: Found) -> str:
    high, wide = system.size
    parts = [f"`{system.variant}`", f"{high}x{wide}"]
    if record:
        parts.append(f"{record['parameters'] / 1e6:.1f} M, {record['macs'] / 1e9:.2f} GMAC")
    return ", ".join([*parts, *filter(None, [system.note])])


def _share(engine: Found) -> str:
    if "failed" in engine:
        return f"refused: {reason(engine['failed'])}"
    return f"{engine['shares'].get('int8', 0.0):.1%}"


def _seconds(engine: Found) -> str:
    return "refused" if "failed" in engine else f"{engine['seconds']:.1f}"


def _agreement(system: System, record: Found) -> str:
    measured = record["agreement"]
    names = [name for name in ("ap", "mask_ap", record["primary"]) if name in measured]
    said = ", ".join(f"{name} {measured[name]:.3f}" for name in dict.fromkeys(names))
    drop = _drop(system.net)
    return said if drop is None else f"{said}; costs {drop:+.4f}"


def _drop(net: str) -> float | None:
    """Return what INT8 changes of a trained example's metric, of 2,000 images."""
    lines = TRAINED.read_text(encoding="utf-8").splitlines() if net else []
    values = {
        each["method"]: each["value"]
        for each in map(json.loads, lines)
        if (each["net"], each["bits"], each["images"]) == (net, 8, 2000)
    }
    if not {"float", "default"} <= values.keys():
        return None
    return float(values["default"] - values["float"])


def int8(record: Found) -> float:
    """Return the share in INT8 that was read back for SM86."""
    return float(record["engines"]["86"].get("shares", {}).get("int8", 0.0))


def ratio(record: Found, kind: str) -> float | None:
    """Return how many times as fast ours is as another graph; None: there is none.

    The median over the turns, in each of which both ran.
    """
    seconds = record["cpu"]["seconds"]
    if kind not in seconds:
        return None
    pairs = zip(seconds["ours"], seconds[kind], strict=True)
    return float(statistics.median(other / ours for ours, other in pairs))


def _times_as_fast(record: Found, kind: str) -> str:
    found = ratio(record, kind)
    return "" if found is None else f"{found:.2f} x"


def _notes(rows: Mapping[str, Found]) -> Iterator[str]:
    """Yield what misses what is asked for."""
    done = {name: record for name, record in rows.items() if "failed" not in record}
    low = [name for name, each in done.items() if int8(each) < SYSTEMS[name].least]
    yield (
        "Less in INT8 than 95 % (transformers: 85 %) of the multiply-accumulates: "
        f"{', '.join(low) or 'none'}."
    )
    for kind, said in (("plain", "for one image"), ("dynamic", "for any number")):
        slow = [name for name, each in done.items() if (ratio(each, kind) or 1.0) < SLOWER]
        yield (
            f"Slower by more than 2 % on a CPU than the plain exporter's graph {said}: "
            f"{', '.join(slow) or 'none'}."
        )
    refused = [
        f"{name} for SM{sm}"
        for name, record in done.items()
        for sm, engine in record["engines"].items()
        if "failed" in engine
    ]
    yield f"No engine: {', '.join(refused) or 'none'}."
    failed = [name for name in rows if name not in done]
    yield f"Not to the end of the road: {', '.join(failed) or 'none'}."
    for name, record in done.items():
        if SYSTEMS[name].beside in done and (found := ratio(record, "beside")):
            yield _beside(name, 1 / found, record["macs"] / done[SYSTEMS[name].beside]["macs"])
    commits = {each["commit"] for record in rows.values() for each in (record, _speed(record))}
    yield f"Commits: {', '.join(sorted(commits))}."


def _speed(record: Found) -> Found:
    """Return the FPS of a record, with the commit that they are of."""
    cpu: Found = record.get("cpu", {})
    return {"commit": record["commit"]} | cpu


SLOWER = 0.98
"""Of the plain graph's speed, below which ours is called slower: medians differ by that much."""
MORE = 1.15
"""Times of the other system's time that one takes beside its share of work at most."""


def _beside(name: str, time: float, work: float) -> str:
    """Return how a system compares with the one that it is built on."""
    most = MORE + work - 1
    return (
        f"{name} takes {time:.2f} x {SYSTEMS[name].beside}'s time in the same turns, with "
        f"{work:.2f} x its work: {'at most' if time <= most else 'more than'} the {most:.2f} x "
        "that are asked for."
    )


def reason(text: str) -> str:
    """Return a failure in a few words."""
    return re.sub(r"\s+", " ", text.replace("|", "/"))[:160]
