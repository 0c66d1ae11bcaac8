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

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    *("system", "network, input", "checkpoints of", "FP32 proof", "INT8 share"),
    *("INT8 against FP32", "signal to noise, dB", "build, s", "CPU FPS", "plain", "any batch"),
)

NOTHING = "FP32 finds nothing"
"""Said where a detector of other things sees none on the photographs."""


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
    said = ", ".join(f"{name} {measured[name]:.3f}" for name in dict.fromkeys(names)) or NOTHING
    found = costs(system, record["primary"])
    return said if found is None else f"{said}; costs {found[0]:+.4f} ({found[1]:,})"


def costs(system: System, metric: str) -> tuple[float, int] | None:
    """Return what INT8 changes of a trained network's metric, and on how many labelled images.

    By the records of `quantization.py`, which are of more images, or by those of its example; None
    of a network that is not trained.
    """
    if not system.example:
        return None
    folder, name = Path(system.example).parts
    judged = _methods(system.net) if system.net else _judged(_lines(folder), name, metric)
    (float_, images), (int8_, others) = judged
    assert images == others, f"{name}: FP32 and INT8 are judged on the same images"
    return int8_ - float_, images


def _methods(net: str) -> list[tuple[float, int]]:
    """Return the metric in FP32 and in INT8, each with its count of images."""
    values = {
        each["method"]: (each["value"], each["images"])
        for each in _lines("quantization")
        if (each["net"], each["bits"]) == (net, 8)
    }
    return [values[method] for method in ("float", "default")]


def _judged(lines: list[Found], checkpoint: str, metric: str) -> list[tuple[float, int]]:
    """Return likewise of a checkpoint's latest FP32 file, and the first INT8 file made of that."""
    made = [each for each in lines if each["kind"] == "artifact"]
    float_ = [each for each in made if checkpoint in each["parents"]][-1]
    same = float_["path"], float_["sha256"]
    int8_ = next(
        each for each in made if same in each["parents"].items() and "int8" in each["precision"]
    )
    scores = {each["model_sha256"]: each for each in lines if each["kind"] == "accuracy"}
    found = [scores[each["sha256"]] for each in (float_, int8_)]
    return [(each["metrics"][metric], each["images"]) for each in found]


def _lines(name: str) -> list[Found]:
    text = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


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
    same = " (same)" if _same(record, kind) else ""
    return "" if found is None else f"{found:.2f} x{same}"


def _same(record: Found, kind: str) -> bool:
    """Return whether the runtime makes of another graph what it makes of ours."""
    return kind in record["cpu"].get("same", ())


def _notes(rows: Mapping[str, Found]) -> Iterator[str]:
    """Yield what misses what is asked for."""
    done = {name: record for name, record in rows.items() if "failed" not in record}
    low = [name for name, each in done.items() if int8(each) < SYSTEMS[name].least]
    yield (
        "Less in INT8 than 95 % (transformers: 85 %) of the multiply-accumulates: "
        f"{'; '.join(low) or 'none'}."
    )
    yield f"With If, Loop, Scan or NonZero in the main graph: {_branches(done)}."
    for kind, said in (("plain", "for one image"), ("dynamic", "for any number")):
        others = {name: each for name, each in done.items() if not _same(each, kind)}
        slow = [name for name, each in others.items() if (ratio(each, kind) or 1.0) < SLOWER]
        yield (
            f"Slower by more than 2 % on a CPU than the plain exporter's graph {said}: "
            f"{'; '.join(slow) or 'none'}."
        )
    refused = [
        f"{name} for SM{sm}"
        for name, record in done.items()
        for sm, engine in record["engines"].items()
        if "failed" in engine
    ]
    yield f"No engine: {'; '.join(refused) or 'none'}."
    failed = [name for name in rows if name not in done]
    yield f"Not to the end of the road: {'; '.join(failed) or 'none'}."
    for name, record in done.items():
        if SYSTEMS[name].beside in done and (found := ratio(record, "beside")):
            yield _beside(name, 1 / found, work(record) / work(done[SYSTEMS[name].beside]))
    commits = {each["commit"] for record in rows.values() for each in (record, _speed(record))}
    yield f"Commits: {', '.join(sorted(commits))}."


def _branches(rows: Mapping[str, Found]) -> str:
    has = [name for name, each in rows.items() if each.get("branches")]
    unseen = [name for name, each in rows.items() if "branches" not in each]
    said = "; ".join(has) or "none"
    return f"{said}; not looked at: {'; '.join(unseen)}" if unseen else said


def _speed(record: Found) -> Found:
    """Return the FPS of a record, with the commit that they are of."""
    cpu: Found = record.get("cpu", {})
    return {"commit": record["commit"]} | cpu


SLOWER = 0.98
"""Of the plain graph's speed, below which ours is called slower: medians differ by that much."""
MORE = 1.15
"""Times of the other system's time that one takes beside its share of work at most."""


def work(record: Found) -> float:
    """Return the multiply-accumulates of a network as it was trained, or of its file."""
    return float(record["work"] if "work" in record else record["macs"])


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
