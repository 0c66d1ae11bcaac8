"""Distances of Cityscapes' objects, from the file that the benchmark's own script keeps them in."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from deploykit.errors import DataError
from deploykit.files import jsonfile
from deploykit.files.schema import many, mapping, number, record, whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_OBJECT = record(
    {"instID": whole(0), "medDist": number(), "distConf": number(0, 1)},
    others=True,
)
_FILE = mapping(mapping(many(_OBJECT)))
_WHAT = "distances of objects: file -> label -> objects with instID, medDist and distConf"


def read(path: Path) -> dict[str, Mapping[int, tuple[float, float]]]:
    """Return scene -> value in the map of instances -> metres, and the share of known pixels.

    A scene is known by city, sequence and frame in the name of its file of `instanceIds`.
    Raises: DataError.
    """
    data: Any = jsonfile.read(path, _FILE, _WHAT, error=DataError)
    found: dict[str, Mapping[int, tuple[float, float]]] = {}
    for name, groups in data.items():
        core = "_".join(PurePosixPath(name).name.split("_")[:3])
        if core in found:
            raise DataError(f"{path} has the scene {core} twice", expected=_WHAT)
        found[core] = {
            one["instID"]: (float(one["medDist"]), float(one["distConf"]))
            for group in groups.values()
            for one in group
        }
    return found
