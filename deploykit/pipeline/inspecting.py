"""The verbs that only read: inspect and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import backends, reporting
from deploykit.backends import onnxruntime
from deploykit.errors import OptionError
from deploykit.files import bundles
from deploykit.measuring import records
from deploykit.pipeline import intake, opening, places
from deploykit.precision import lint, repairs, risk, tables
from deploykit.recipes import opened
from deploykit.reporting import pictures as shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.pipeline.made import StrPath
    from deploykit.precision.lint import Finding
    from deploykit.precision.risk import Risk
    from deploykit.recipes.opened import Opened
    from deploykit.values import Json, LayerPrecision


@dataclass(frozen=True)
class Inspection:
    """What a file's layers run in, and what the lint says of its Q/DQ."""

    path: Path
    layers: tuple[LayerPrecision, ...]
    findings: tuple[Finding, ...] = ()
    risk: Risk | None = None
    """What INT8 may cost, foretold; None of an engine, and where nothing is known."""

    def __repr__(self) -> str:
        """Return the shares and the number of findings, without the layers one by one."""
        parts = [f"{share:.1%} {name}" for name, share in self.shares.items()]
        return f"Inspection({str(self.path)!r}, {', '.join(parts)}, {len(self.findings)} findings)"

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Return the findings for which TensorRT refuses the graph."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def shares(self) -> dict[str, float]:
        """Return precision -> its share of the multiply-accumulates."""
        return records.shares(self.layers)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what the shares leave out or assume."""
        return records.remarks(self.layers)

    def to_json(self) -> Json:
        """Return the inspection as plain JSON values."""
        return {
            "path": str(self.path),
            "shares": self.shares,
            "remarks": list(self.remarks),
            "layers": [vars(layer) for layer in self.layers],
            "findings": [vars(finding) for finding in self.findings],
            "risk": None if self.risk is None else self.risk.to_json(),
        }


def inspect(path: StrPath, *, table: StrPath | None = None) -> Inspection:
    """Return the precision of every layer of an ONNX file or an engine.

    table: Ranges of an ONNX file, which tell more of what INT8 may cost.

    Raises: InputError, StaleTableError, BackendError; OptionError for an engine with a table.
    """
    path = Path(path)
    found, data = opening.read(path)
    if found == "engine":
        if table is not None:
            raise OptionError(f"--table of {path}, which is an engine", expected="an ONNX file")
        return Inspection(path, _engine_layers(path))
    model = intake.taken(opened.parsed(data, path))
    if opening.optimised(model) is not None:
        return Inspection(path, onnxruntime.layers(model))
    found_ = lint.precision_table(model.graph), lint.lint(model.graph)
    return Inspection(path, *found_, _risk(model, table))


def _risk(model: Opened, table: StrPath | None) -> Risk | None:
    """Return what INT8 may cost a model, with its channels as the table's are."""
    if table is None:
        return risk.risk(model.graph)
    ranges = tables.read(Path(table))
    return risk.risk(repairs.restored(model, ranges).graph, ranges)


def _engine_layers(path: Path) -> tuple[LayerPrecision, ...]:
    """Return the layers of an engine; of several in one file the first's, for all are alike."""
    backend, sizes = backends.load(engine_backend(path)), bundles.sizes(path)
    if not sizes:
        return backend.inspect(path)
    with bundles.one(path, sizes[0]) as engine:
        return backend.inspect(engine)


def engine_backend(path: Path) -> str:
    """Return the name of the backend that built an engine, from its sidecar."""
    return str(opening.made_by(path)["backend"])


def report(
    paths: Sequence[StrPath],
    output: StrPath,
    *,
    title: str = "deploykit report",
    pictures: StrPath | None = None,
) -> tuple[str, tuple[Path, ...]]:
    """Return the summary table as text and the files written.

    pictures: A folder that `predict` wrote, of which the page shows a few. Raises: InputError,
    OutputError.
    """
    output, sources = Path(output), [Path(path) for path in paths]
    reads = {f"file {i} of records": path for i, path in enumerate(sources, start=1)}
    for page in reporting.pages(output):
        places.check(reads, output=page)
    found = records.read(sources)
    seen = () if pictures is None else shown.read(Path(pictures))
    written = reporting.report(found, output, title=title, pictures=seen)
    return reporting.summary(found), written
