"""Times of layers that were measured on a GPU: the files that `trtexec --exportProfile` writes.

A profile is a list: how many runs, then a row for each layer of the engine, with its name and mean
milliseconds. An engine joins layers, and names what it joined: the parts stand between ` + ` and
` || `. A row counts for each of our layers that it names, in equal shares.

Source: NVIDIA TensorRT, samples/common/sampleReporting.cpp (8.5 to 11 write the same).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.errors import InputError
from deploykit.files import contents, jsonfile, schema
from deploykit.files.schema import many, number, record, text
from deploykit.precision.planning.costs import Seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

WHAT = "a layer profile as trtexec --exportProfile writes it"
_ROW = record(
    {"name": text(), "averageMs": number(0)},
    {**dict.fromkeys(("timeMs", "medianMs", "percentage"), number()), "count": number(0)},
)
_PARTS = re.compile(r" \+ | \|\| ")
_LARGEST = 64 << 20


def read(path: Path) -> dict[str, float]:
    """Return name -> seconds of each layer of an engine; equal names are added up.

    Raises: InputError.
    """

    def bounded(size: int) -> None:
        if size > _LARGEST:
            raise InputError(f"{path} has more than {_LARGEST} bytes", expected=WHAT)

    data = jsonfile.parse(contents.read(path, InputError, WHAT, check=bounded), str(path))
    rows = [row for row in data if not _counts(row)] if isinstance(data, list) else data
    try:
        many(_ROW, least=1)(rows)
    except schema.MisfitError as misfit:
        raise InputError(f"{path} is not {WHAT}: {misfit}", expected=misfit.expected) from misfit
    found: dict[str, float] = {}
    for row in rows:
        found[row["name"]] = found.get(row["name"], 0.0) + float(row["averageMs"]) / 1e3
    return found


def _counts(row: object) -> bool:
    """Return whether a row says how many runs there were."""
    return isinstance(row, dict) and row.keys() == {"count"}


def measured(
    layers: Sequence[str], int8: Mapping[str, float], half: Mapping[str, float]
) -> dict[str, Seconds]:
    """Return the time of each layer in an INT8 engine and in an FP16 one of the same model.

    Raises: InputError where an engine names too few of the layers.
    """
    both = [_shared(layers, profile) for profile in (int8, half)]
    for kind, times in zip(("INT8", "FP16"), both, strict=True):
        absent = [name for name in layers if name not in times]
        if absent:
            raise InputError(
                f"the {kind} profile names {len(layers) - len(absent)} of {len(layers)} layers, "
                f"and not {absent[0]!r}",
                expected="profiles of engines built from this model, with "
                "--profilingVerbosity=detailed",
                fix="leave the profiles out: layers are then timed by the GPU's peaks",
            )
    first, second = both
    return {name: Seconds(first[name], second[name]) for name in layers}


def _shared(layers: Sequence[str], profile: Mapping[str, float]) -> dict[str, float]:
    """Return the time of each layer that a profile names."""
    known = set(layers)
    found: dict[str, float] = {}
    for name, seconds in profile.items():
        named = [part for part in dict.fromkeys(_PARTS.split(name)) if part in known]
        for part in named:
            found[part] = found.get(part, 0.0) + seconds / len(named)
    return found
