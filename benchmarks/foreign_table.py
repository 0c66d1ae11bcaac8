"""The table of the records that `foreign.py` writes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from foreign_graphs import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Found: TypeAlias = "dict[str, Any]"

FURTHER = 0.005
"""Of the products in INT8 that a peer has more: from there on ours is measured with further kinds
of layers in INT8 too, `--int8-layers computed` and then `all`."""


def records(path: Path) -> dict[str, Found]:
    """Return the last record of each graph."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {found["name"]: found for found in map(json.loads, lines)}


TOOLS = {"ours": "ours", "more": "ours, more kinds", "ort": "ORT", "modelopt": "ModelOpt"}
ALLOWED = 0.5
"""dB that ours may be behind a peer, with as much in INT8 as the peer."""


def table(found: dict[str, Found]) -> Iterator[str]:
    """Yield the lines of the table: dB, and INT8 share by the engine and by `inspect`."""
    yield f"| graph | images | {' | '.join(TOOLS.values())} | behind | note |"
    yield f"|---|---|{'---|' * len(TOOLS)}---|---|"
    rows = {name: found[name] for name in NAMES if name in found}
    yield from (row(name, record) for name, record in rows.items())
    yield ""
    behind = [name for name, record in rows.items() if (behind_by(record) or 0.0) > ALLOWED]
    refused = [name for name, record in rows.items() if "failed" in record.get("ours", record)]
    tools = [record[tool] for record in rows.values() for tool in TOOLS if tool in record]
    shares = [tool for tool in tools if "runs" in tool]
    off = [tool for tool in shares if _off(tool)]
    yield f"{len(rows)} of {len(NAMES)} graphs; commits: {', '.join(_commits(rows))}."
    yield f"Behind by more than {ALLOWED} dB: {', '.join(behind) or 'none'}."
    yield f"Not to the end of the road: {', '.join(refused) or 'none'}."
    yield f"Shares that differ by more than {NEAR:.0%}: {len(off)} of {len(shares)} files."


def _commits(rows: Mapping[str, Found]) -> list[str]:
    return sorted({record.get("commit", "unknown") for record in rows.values()})


def _off(tool: Found) -> bool:
    """Return whether `inspect` and the engine's text disagree."""
    said = tool.get("said")
    return not isinstance(said, float) or abs(said - tool["runs"]) > NEAR


def behind_by(record: Found) -> float | None:
    """Return dB that ours is behind the better peer, on the worst output; None: no peer's ran.

    Beside each peer stands the best of ours with as much in INT8 as the peer has.
    """
    ours = [record[key] for key in ("ours", "more") if "runs" in record.get(key, {})]
    peers = [record[key] for key in ("ort", "modelopt") if "runs" in record.get(key, {})]
    found = []
    for peer in peers:
        able = [each for each in ours if each["runs"] >= peer["runs"] - FURTHER]
        lacks = [max(p - o for p, o in zip(peer["snr"], e["snr"], strict=True)) for e in able]
        found.append(min(lacks, default=np.inf))
    return max(found, default=None)


def row(name: str, record: Found) -> str:
    """Return one line of the table."""
    if "failed" in record:
        return f"| {name} | | | | | | | {reason(record['failed'])} |"
    cells, notes = [], []
    for key, label in TOOLS.items():
        tool = record.get(key, {})
        cells.append(_cell(tool))
        said = tool.get("said", 0.0)
        if "runs" in tool and _off(tool):
            said = reason(said) if isinstance(said, str) else f"{said:.1%}"
            notes.append(f"{label}: inspect says {said}")
        if "failed" in tool or "engine" in tool:
            notes.append(f"{label}: {reason(tool.get('failed', tool.get('engine', '')))}")
    if record.get("same"):
        notes.append("the output is the same for all images")
    behind = behind_by(record)
    shown = "" if behind is None else f"{behind:.1f}"
    line = (name, str(record.get("images", "")), *cells, shown, "; ".join(notes))
    return f"| {' | '.join(line)} |"


def _cell(tool: Found) -> str:
    """Return dB and shares of one tool: by the engine's text, and as `inspect` says."""
    values = tool.get("snr", [])
    ratio = "/".join(f"{value:.1f}" for value in values[:SHOWN])
    ratio += f" ({len(values) - SHOWN} more)" if len(values) > SHOWN else ""
    kinds = f" `{tool['kinds']}`" if "kinds" in tool else ""
    said = tool.get("said")
    shares = f" {tool['runs']:.1%}" if "runs" in tool else ""
    shares += f" / {said:.1%}" if isinstance(said, float) else ""
    return f"{ratio}{shares}{kinds}"


SHOWN = 4
"""Outputs of a network whose dB stand in the table."""
NEAR = 0.01
"""Of the products, that `inspect` and the engine's text may differ by."""


def reason(text: str) -> str:
    """Return a failure in a few words."""
    message = re.search(r'"message": "(.*?)"[,}]', text)
    return (message[1] if message else text.strip())[:160].replace("|", "/").replace("\n", " ")
