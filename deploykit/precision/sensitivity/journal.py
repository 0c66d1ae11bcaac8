"""What is done so far, beside the file that it will become: a run that was killed goes on there."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import DeployError
from deploykit.files import artifacts, jsonfile, schema
from deploykit.files.schema import mapping, nothing_or, number, record, row, text, whole
from deploykit.precision.sensitivity import local
from deploykit.precision.sensitivity.local import Energies
from deploykit.precision.sensitivity.work import Alones, Unit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.precision.sensitivity.local import Sums
    from deploykit.values import Json

_NUMBERS = mapping(nothing_or(number(-1e300, 1e300)))
_SHAPE = record(
    {
        "schema_version": schema.VERSION,
        "question": text(most=64),
        "chunks": whole(0),
        "energies": mapping(row(text(most=1 << 24), whole(0))),
        "groups": mapping(
            record({"layers": mapping(_NUMBERS), "base": _NUMBERS, "primary": text()})
        ),
    }
)


@dataclass
class Journal:
    """Results of units; those of kind `local` are added up in their order, whoever did them."""

    path: Path
    question: str
    """What tells one question from another (hex)."""
    chunks: int = 0
    """Units of kind `local` that are in `energies`: the first ones."""
    energies: Sums = field(default_factory=dict)
    groups: dict[Unit, Alones] = field(default_factory=dict)
    """Results of the other kinds."""
    _early: dict[int, Sums] = field(default_factory=dict)
    """Those that came before one that stands before them."""

    def has(self, unit: Unit) -> bool:
        """Return whether a unit is done."""
        return unit.number < self.chunks if unit.kind == "local" else unit in self.groups

    def take(self, unit: Unit, result: Any) -> None:  # noqa: ANN401 - as the unit's kind
        """Keep what a unit gave, in the file too. Raises: OutputError."""
        if unit.kind == "local":
            self._early[unit.number] = result
            while self.chunks in self._early:
                self.energies = local.added(self.energies, self._early.pop(self.chunks))
                self.chunks += 1
        else:
            self.groups[unit] = result
        artifacts.write_json(self.path, self._to_json())

    def forget(self) -> None:
        """Remove the file: all is done."""
        self.path.unlink(missing_ok=True)

    def _to_json(self) -> Json:
        return {
            "schema_version": 1,
            "question": self.question,
            "chunks": self.chunks,
            "energies": {
                name: [
                    base64.b64encode(each.channels.astype("<f8").tobytes()).decode(),
                    each.values,
                ]
                for name, each in self.energies.items()
            },
            "groups": {
                f"{unit.kind} {unit.number}": _plain(each) for unit, each in self.groups.items()
            },
        }


def opened(path: Path, question: str) -> tuple[Journal, bool]:
    """Return the journal in a file, and whether it holds anything of this question.

    One that is about another question, or is no journal, is begun anew.
    """
    if not path.exists():
        return Journal(path, question), False
    try:
        data = jsonfile.read(path, _SHAPE, "a journal of sensitivities")
        energies = {
            name: Energies(_array(*each), each[1]) for name, each in data["energies"].items()
        }
        groups = {_unit(name): _alones(each) for name, each in data["groups"].items()}
    except (DeployError, ValueError):
        return Journal(path, question), False
    if data["question"] != question:
        return Journal(path, question), False
    return Journal(path, question, data["chunks"], energies, groups), True


def _array(text: str, _: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f8").reshape(3, -1).copy()


def _unit(name: str) -> Unit:
    """Return the unit of that name. Raises: ValueError."""
    kind, _, number = name.partition(" ")
    return Unit(kind, int(number))


def _plain(found: Alones) -> Json:
    """Return JSON values; null where a number is unknown."""
    return {
        "layers": {name: _nulls(each) for name, each in found.layers.items()},
        "base": _nulls(found.base),
        "primary": found.primary,
    }


def _nulls(numbers: Mapping[str, float]) -> Json:
    return {key: value if math.isfinite(value) else None for key, value in numbers.items()}


def _alones(data: Json) -> Alones:
    """Return what `_plain` wrote."""
    layers = {name: _floats(each) for name, each in data["layers"].items()}
    return Alones(layers, _floats(data["base"]), data["primary"])


def _floats(data: Json) -> dict[str, float]:
    return {key: math.nan if value is None else float(value) for key, value in data.items()}


def ordered(groups: Mapping[Unit, Alones], kind: str) -> list[Alones]:
    """Return the results of one kind, by their numbers."""
    return [each for unit, each in sorted(groups.items()) if unit.kind == kind]
