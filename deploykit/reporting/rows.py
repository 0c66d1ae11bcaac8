"""Records joined by the hash of the file they speak of: one `Row` per model and measurement."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from deploykit.measuring import conditions
from deploykit.measuring.layer_records import PlanRecord, SensitivityRecord, TrainingRecord
from deploykit.measuring.records import AccuracyRecord, ArtifactRecord
from deploykit.values import BenchRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from deploykit.measuring.records import Record
    from deploykit.tasks.task import Display

MIN_SHARE = 0.005
"""Share of the multiply-accumulates below which a precision does not name a model."""
DataKey: TypeAlias = tuple[str, str, int, str, str]
"""Data set, its sha256, number of images, protocol but for the batch size, and primary metric.

Scores compare only where all five are equal.
"""


@dataclass(frozen=True)
class Figure:
    """One metric of one model."""

    name: str
    display: Display
    value: float | None
    drop: float | None = None
    """What it lost since the first ancestor that was evaluated, above 0 where it got worse."""


@dataclass(frozen=True)
class Row:
    """One model: its accuracy and its file, and one measurement of its speed, if there is one."""

    name: str
    precision: str
    """Such as `int8 + fp16`, the larger share first; empty where nobody read it back."""
    figures: tuple[Figure, ...] = ()
    """What summaries show of its scores, the primary metric first."""
    baseline: str = ""
    """The ancestor that the drops compare with."""
    scores_of: str = ""
    """The file the scores belong to, where this one was built from it and was not evaluated."""
    bytes: int | None = None
    int8_share: float | None = None
    """Of the multiply-accumulates, 0 to 1."""
    target: str = ""
    bench: BenchRecord | None = None
    notes: tuple[str, ...] = ()
    ancestors: int = 0
    """How many files it was made from, directly or not: 0 for a checkpoint."""

    @property
    def primary(self) -> Figure | None:
        """Return the primary metric; None where the model was not evaluated."""
        return self.figures[0] if self.figures else None


@dataclass(frozen=True)
class Machine:
    """Everything that was timed in one environment."""

    name: str
    facts: tuple[tuple[str, str], ...]
    """What identifies it: dotted path, value."""
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Joined:
    """All records, joined."""

    machines: tuple[Machine, ...]
    untimed: tuple[Row, ...]
    accuracies: tuple[AccuracyRecord, ...]
    compared_on: DataKey | None
    """The data set whose scores stand in the rows; None where nothing was evaluated."""
    artifacts: tuple[ArtifactRecord, ...] = ()
    """Every file that was made, in order."""
    sensitivities: tuple[SensitivityRecord, ...] = ()
    plans: tuple[PlanRecord, ...] = ()
    trainings: tuple[TrainingRecord, ...] = ()
    times: tuple[str, ...] = ()
    """When each record was kept, as far as they say it."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """Return every row: those of each machine, then the untimed ones."""
        return tuple(row for machine in self.machines for row in machine.rows) + self.untimed


def join(records: Sequence[Record]) -> Joined:
    """Return the records as rows, grouped by the machine they were measured on."""
    files = _Files.of(records)
    benches = [record for record in records if isinstance(record, BenchRecord)]
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for record in benches:
        row = files.row(record.model_sha256, record.model, record)
        groups.setdefault(conditions.machine(record), []).append(row)
    timed = {record.model_sha256 for record in benches}
    names = {r.model_sha256: r.model for r in files.accuracies}
    names |= {r.sha256: r.path for r in files.artifacts.values()}
    return Joined(
        machines=tuple(
            Machine(_machine_name(facts, number), facts, tuple(rows))
            for number, (facts, rows) in enumerate(groups.items(), start=1)
        ),
        untimed=tuple(files.row(sha, name) for sha, name in names.items() if sha not in timed),
        accuracies=files.accuracies,
        compared_on=files.compared_on,
        artifacts=tuple(files.artifacts.values()),
        sensitivities=tuple(r for r in records if isinstance(r, SensitivityRecord)),
        plans=tuple(r for r in records if isinstance(r, PlanRecord)),
        trainings=tuple(r for r in records if isinstance(r, TrainingRecord)),
        times=tuple(record.time for record in records if record.time),
    )


@dataclass(frozen=True)
class _Files:
    """What is known of each file, by its sha256."""

    artifacts: Mapping[str, ArtifactRecord]
    accuracies: tuple[AccuracyRecord, ...]
    compared_on: DataKey | None
    scores: Mapping[str, AccuracyRecord]
    """sha256 -> its latest scores on `compared_on`."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> _Files:
        """Return the files that `records` speak of; the later record of two alike counts."""
        everything = tuple(records)
        artifacts = {r.sha256: r for r in everything if isinstance(r, ArtifactRecord)}
        latest = {
            (r.model_sha256, data_key(r)): r for r in everything if isinstance(r, AccuracyRecord)
        }
        most = Counter(key for _, key in latest).most_common(1)
        chosen = most[0][0] if most else None
        scores = {sha: record for (sha, key), record in latest.items() if key == chosen}
        return cls(artifacts, tuple(latest.values()), chosen, scores)

    def row(self, sha256: str, name: str, bench: BenchRecord | None = None) -> Row:
        """Return the row of one file."""
        artifact = self.artifacts.get(sha256)
        scored = self.scores.get(sha256)
        source = ""
        if scored is None and artifact is not None and artifact.target:
            # An engine computes what its ONNX file says: that file's scores, named as such.
            scored = next((self.scores[s] for s in _origins(artifact) if s in self.scores), None)
            source = scored.model if scored else ""
        shares: Mapping[str, float] = artifact.precision if artifact else {}
        base = self._baseline(scored)
        return Row(
            name=name,
            precision=_precision(shares),
            figures=tuple(_figures(scored, base)) if scored else (),
            baseline=base.model if base else "",
            scores_of=source,
            bytes=artifact.bytes if artifact else None,
            int8_share=shares.get("int8", 0.0) if shares else None,
            target=artifact.target if artifact else "",
            bench=bench,
            notes=artifact.notes if artifact else (),
            ancestors=len(self._ancestors(sha256)),
        )

    def _baseline(self, scored: AccuracyRecord | None) -> AccuracyRecord | None:
        """Return the scores of the first ancestor that was evaluated."""
        if scored is None or scored.metrics.get(scored.primary) is None:
            return None
        found = (self.scores.get(sha) for sha in reversed(self._ancestors(scored.model_sha256)))
        known = (base for base in found if base and base.metrics.get(base.primary) is not None)
        return next(known, None)

    def _ancestors(self, sha256: str) -> list[str]:
        """Return every file it was made from, directly or not, the nearest first."""
        found: dict[str, None] = {}
        queue = [sha256]
        while queue:
            artifact = self.artifacts.get(queue.pop(0))
            for sha in _origins(artifact) if artifact else ():
                if sha not in found and sha != sha256:
                    found[sha] = None
                    queue.append(sha)
        return list(found)


def _origins(artifact: ArtifactRecord) -> tuple[str, ...]:
    return tuple(artifact.parents.values())


def _figures(scored: AccuracyRecord, base: AccuracyRecord | None) -> Iterator[Figure]:
    """Yield the metrics that summaries show, the primary one first."""
    for name, display in scored.shown().items():
        if name != scored.primary and not display.summary:
            continue
        value, drop = scored.metrics[name], None
        before = base.metrics.get(name) if base else None
        if value is not None and before is not None and (display.drop or name == scored.primary):
            drop = before - value if display.higher_is_better else value - before
        yield Figure(name, display, value, drop)


def _precision(shares: Mapping[str, float]) -> str:
    by_share = sorted(shares.items(), key=lambda item: -item[1])
    return " + ".join(name for name, share in by_share if share >= MIN_SHARE)


def data_key(record: AccuracyRecord) -> DataKey:
    """Return what two accuracy records must share to be compared."""
    settings = {name: value for name, value in record.protocol.items() if name != "batch_size"}
    protocol = json.dumps(settings, sort_keys=True, default=str)
    return record.dataset, record.dataset_sha256, record.images, protocol, record.primary


def _machine_name(facts: Sequence[tuple[str, str]], number: int) -> str:
    """Return the processor's and the graphics card's names, as far as they are known."""
    found: dict[str, Any] = {}
    for path, text in facts:
        words = path.lower().replace("_", ".").split(".")
        for unit in ("gpu", "cpu"):
            if any(unit in word for word in words[:-1]) and words[-1] in {"name", "model"}:
                found.setdefault(unit, text)
    return ", ".join(found[unit] for unit in ("gpu", "cpu") if unit in found) or f"machine {number}"
