"""Measurements as JSON lines: one record a line, appended and never rewritten."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from deploykit.errors import InputError, OutputError
from deploykit.files import appending, jsonfile, paths, schema
from deploykit.measuring.fields import CHECKS
from deploykit.measuring.layer_records import Kept, PlanRecord, SensitivityRecord, TrainingRecord
from deploykit.tasks import coco
from deploykit.tasks.task import Display
from deploykit.values import SCHEMA_VERSION, BenchRecord, LayerPrecision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from deploykit.values import Artifact, Json

_NAMED = 4
"""Layers that a remark names."""


@dataclass(frozen=True)
class AccuracyRecord(Kept):
    """How well one file does its task on one data set."""

    kind: ClassVar[str] = "accuracy"
    model: str
    model_sha256: str
    metrics: Mapping[str, float | None]
    """Metric name -> value; None where it is undefined."""
    images: int
    """How many images were run."""
    dataset: str
    dataset_sha256: str
    backend: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    """Class name -> the primary metric of it alone; None where it is undefined."""
    task: str = ""
    primary: str = next(iter(coco.DISPLAY))
    """The metric that models are ranked by."""
    warnings: tuple[str, ...] = ()
    """What makes the scores others than those of the family's own pipeline."""
    display: Mapping[str, Display] = field(default_factory=dict)
    """Metric name -> how it is shown; where a record does not say it, see `shown`."""
    time: str = field(default="", compare=False)
    """When it was kept, UTC in ISO 8601; empty: not kept, or by a version that did not say it."""

    def shown(self) -> dict[str, Display]:
        """Return how each metric is shown, the primary one first.

        A metric that the record does not describe is COCO's of that name, or shown plainly.
        """
        names = sorted(self.metrics, key=lambda name: name != self.primary)
        known = {**coco.DISPLAY, **self.display}
        return {name: known.get(name, Display(name.replace("_", " "))) for name in names}


@dataclass(frozen=True)
class ArtifactRecord(Kept):
    """One file that was made: how large, in which precision, from what and for what."""

    kind: ClassVar[str] = "artifact"
    path: str
    """The file's name, without folders."""
    sha256: str
    bytes: int
    precision: Mapping[str, float] = field(default_factory=dict)
    """int8, fp16, fp32 or unknown -> its share of the multiply-accumulates, 0 to 1."""
    target: str = ""
    """What an engine was built for, such as `TensorRT-RTX SM86`; empty for a portable file."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """File name -> sha256 of each file this one was made from."""
    notes: tuple[str, ...] = ()
    read_back: tuple[LayerPrecision, ...] = ()
    """The precision of each layer; none in files of versions that did not say it."""
    time: str = field(default="", compare=False)
    """As of `AccuracyRecord`."""


Record: TypeAlias = (
    "BenchRecord | AccuracyRecord | ArtifactRecord | SensitivityRecord | PlanRecord"
    " | TrainingRecord"
)


def artifact_record(
    artifact: Artifact,
    layers: Iterable[LayerPrecision],
    *,
    target: str = "",
    notes: tuple[str, ...] = (),
) -> ArtifactRecord:
    """Return the record of a file and its layers. Raises: InputError where it is not there."""
    kept = list(layers)
    try:
        size = artifact.path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {artifact.path}: {error.strerror}") from error
    return ArtifactRecord(
        path=artifact.path.name,
        sha256=artifact.sha256,
        bytes=size,
        precision=shares(kept),
        target=target,
        parents=dict(artifact.parents),
        notes=notes,
        read_back=tuple(kept),
    )


def shares(layers: Iterable[LayerPrecision]) -> dict[str, float]:
    """Return precision -> its share of all multiply-accumulates; empty where there are none."""
    macs: Counter[str] = Counter()
    for layer in layers:
        macs[layer.precision] += layer.macs
    total = sum(macs.values())
    return {name: count / total for name, count in sorted(macs.items()) if count}


def remarks(layers: Iterable[LayerPrecision]) -> tuple[str, ...]:
    """Return what a share of the multiply-accumulates leaves out or assumes, each in one line."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        if layer.note:
            found.setdefault(layer.note, []).append(f"{layer.name} ({layer.op})")
    return tuple(f"{_few(names)}: {note}" for note, names in found.items())


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def append(path: Path, record: Record) -> None:
    """Add `record` to the file as one line, at once; a full disk leaves the file as it was.

    The line says when. Raises: OutputError.
    """
    data = {**record.to_json(), "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    appending.append(path, json.dumps(data, sort_keys=True, allow_nan=False))


def check_appendable(path: Path) -> None:
    """Fail before the slow step rather than after it; leaves no file, and takes none away.

    Raises: OutputError where it cannot be written, or holds something other than records.
    """
    first = appending.check(path)
    if first.strip() and not _begins(first):
        raise OutputError(
            f"{path} holds something other than records, which would be damaged",
            expected=f"a new file, or {_EXPECTED}",
            fix="give another file for the records",
        )


def _begins(line: bytes) -> bool:
    """Return whether the first line of a file can be that of a file of records, torn or whole."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return line.startswith(b'{"') and not line.endswith(b"\n")
    return isinstance(data, dict) and isinstance(data.get("kind"), str)


def read(paths: Iterable[Path]) -> tuple[Record, ...]:
    """Return every record in the files, in order.

    Raises: InputError naming the file and the line of a record that is torn or not one.
    """
    return tuple(record for path in paths for record in _read(path))


def _read(path: Path) -> Iterator[Record]:
    paths.require_file(path, _EXPECTED)
    try:
        with path.open(encoding="utf-8") as file:
            for number in itertools.count(1):
                line = file.readline(jsonfile.LARGEST)
                if not line:
                    return
                if line.strip():
                    yield _parse(line, f"{path} line {number}")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: {error.reason}", expected=_EXPECTED) from error


_EXPECTED = "records as JSON lines, as bench, eval and build write them"
_LATER = frozenset({"task", "primary", "display", "read_back", "time"})
"""Fields that a record may lack."""
_KINDS: Mapping[str, type[Any]] = {
    "bench": BenchRecord,
    "accuracy": AccuracyRecord,
    "artifact": ArtifactRecord,
    "sensitivity": SensitivityRecord,
    "plan": PlanRecord,
    "training": TrainingRecord,
}


def _parse(line: str, where: str) -> Record:
    torn = "" if line.endswith("\n") else ": its end is missing, writing was interrupted"
    try:
        data = jsonfile.parse(line, where)
    except InputError as error:
        raise InputError(
            f"{where} is not JSON{torn}" if torn else error.found,
            expected=_EXPECTED,
            fix="delete that line" if torn else "",
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise InputError(f"{where} is not a record: it has no kind", expected=_EXPECTED)
    return _decode(data, where)


def _decode(data: Json, where: str) -> Record:
    name, version = data.pop("kind"), data.pop("schema_version", None)
    if name not in _KINDS or version != SCHEMA_VERSION:
        raise InputError(
            f"{where} is of a kind or schema_version ({schema.shown(version)}) that is not known",
            expected=f"schema_version {SCHEMA_VERSION}, and as kind {', '.join(_KINDS)}",
            fix="read it with the version of deploykit that wrote it",
        )
    kind = _KINDS[name]
    checks = {item.name: CHECKS[item.name] for item in fields(kind)}
    later = {key: checks.pop(key) for key in _LATER & checks.keys()}
    jsonfile.fitted(data, schema.record(checks, later), "a record", where)
    if "display" in data:
        data["display"] = {name: Display(**shown) for name, shown in data["display"].items()}
    if "read_back" in data:
        data["read_back"] = [LayerPrecision(**layer) for layer in data["read_back"]]
    record: Record = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
    return record
