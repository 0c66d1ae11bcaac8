"""The table of the records that `systems.py` writes, which `docs/systems.md` shows."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from systems_nets import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from systems_nets import System

    Found = dict[str, Any]

TRAINED = Path(__file__).parent / "results" / "quantization.jsonl"
COLUMNS = (
    *("system", "network, input", "checkpoints of", "FP32 proof", "INT8 share"),
    *("INT8 against FP32", "signal to noise, dB", "build, s", "CPU FPS", "plain"),
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
        _plain(record),
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


def ratio(record: Found) -> float | None:
    """Return how many times as fast ours is as the plain graph; None: there is none."""
    seconds = record["cpu"]["seconds"]
    if "plain" not in seconds:
        return None
    return float(statistics.median(seconds["plain"]) / statistics.median(seconds["ours"]))


def _plain(record: Found) -> str:
    found = ratio(record)
    return "" if found is None else f"{found:.2f} x"


def _notes(rows: Mapping[str, Found]) -> Iterator[str]:
    """Yield what misses what is asked for."""
    done = {name: record for name, record in rows.items() if "failed" not in record}
    low = [name for name, each in done.items() if int8(each) < SYSTEMS[name].least]
    yield (
        "Less in INT8 than 95 % (transformers: 85 %) of the multiply-accumulates: "
        f"{', '.join(low) or 'none'}."
    )
    slow = [name for name, record in done.items() if (ratio(record) or 1.0) < SLOWER]
    yield f"Slower on a CPU than the plain exporter's graph: {', '.join(slow) or 'none'}."
    refused = [
        f"{name} for SM{sm}"
        for name, record in done.items()
        for sm, engine in record["engines"].items()
        if "failed" in engine
    ]
    yield f"No engine: {', '.join(refused) or 'none'}."
    failed = [name for name in rows if name not in done]
    yield f"Not to the end of the road: {', '.join(failed) or 'none'}."
    for name in ("PointRend", "Mask Scoring R-CNN"):
        if {name, "Mask R-CNN"} <= done.keys():
            time, work = (_times(done[name], done["Mask R-CNN"], key) for key in ("cpu", "macs"))
            yield f"{name} takes {time:.2f} x Mask R-CNN's time, with {work:.2f} x its work."
    yield f"Commits: {', '.join(sorted({r['commit'] for r in rows.values()}))}."


SLOWER = 0.98
"""Of the plain graph's speed, below which ours is called slower: turns differ by that much."""


def _times(one: Found, other: Found, key: str) -> float:
    if key == "macs":
        return float(one["macs"] / other["macs"])
    seconds = [statistics.median(each["cpu"]["seconds"]["ours"]) for each in (one, other)]
    return float(seconds[0] / seconds[1])


def reason(text: str) -> str:
    """Return a failure in a few words."""
    return re.sub(r"\s+", " ", text.replace("|", "/"))[:160]
