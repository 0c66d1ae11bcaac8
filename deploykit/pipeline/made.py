"""What every verb that writes a model file returns and does: check, write, describe, record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.files import artifacts, onnxfile
from deploykit.measuring import records
from deploykit.precision import lint

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from typing import Any, TypeAlias

    from deploykit.recipes.opened import Opened
    from deploykit.values import Artifact, Json, LayerPrecision

    StrPath: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True)
class Made:
    """A model file, and the precision of its layers."""

    artifact: Artifact
    layers: tuple[LayerPrecision, ...]
    notes: tuple[str, ...] = ()
    target: str = ""

    def __repr__(self) -> str:
        """Return what was made and what it computes in, without the layers one by one."""
        parts = (f"{share:.1%} {name}" for name, share in records.shares(self.layers).items())
        return f"Made({str(self.artifact.path)!r}, {', '.join(parts)})"

    def to_json(self) -> Json:
        """Return what is known beyond the artifact as plain JSON values."""
        return {
            "precision": records.shares(self.layers),
            "layers": [vars(layer) for layer in self.layers],
            "notes": list(self.notes),
        }


def path_or_none(path: StrPath | None) -> Path | None:
    """Return `path`, which a user may give as text or not at all, as a path."""
    return None if path is None else Path(path)


def written(candidate: Opened, parents: Mapping[str, str], made_by: Mapping[str, Any]) -> Artifact:
    """Return the artifact of an accepted ONNX model, now at its path.

    parents: file name -> sha256 of each file that it was made from. Raises: OutputError.
    """
    candidate.write()
    return artifacts.describe(
        candidate.path,
        made_by=made_by,
        parents=parents,
        interface=onnxfile.interface(candidate.graph),
        digest="" if onnxfile.has_data_beside(candidate.graph) else candidate.sha256,
    )


def described(
    artifact: Artifact, candidate: Opened, notes: tuple[str, ...], record: Path | None
) -> Made:
    """Return an ONNX file with the precision of its layers; appended to `record` where given."""
    return recorded(Made(artifact, lint.precision_table(candidate.graph), notes), record)


def recorded(made: Made, record: Path | None) -> Made:
    """Append the artifact's record to the file `record` and return `made`."""
    if record is not None:
        notes = records.remarks(made.layers)
        kept = records.artifact_record(made.artifact, made.layers, target=made.target, notes=notes)
        records.append(record, kept)
    return made
