"""What a model finds, in the files that the makers of a data set take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit.errors import OptionError
from deploykit.files import artifacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.data.sources import Benchmark, Dataset
    from deploykit.tasks.task import Metric, Scores, Size


def with_files(data: Dataset, folder: Path | None) -> Dataset:
    """Return a data set whose metric also writes each result to a folder; None: it does not.

    Raises: OptionError where the data set has no benchmark; OutputError.
    """
    if folder is None:
        return data
    return replace(data, benchmark=_Kept(benchmark(data), artifacts.made(folder)))


def benchmark(data: Dataset) -> Benchmark:
    """Return the benchmark of a data set. Raises: OptionError where it has none."""
    if data.benchmark is None:
        raise OptionError(
            f"--predictions: nobody takes predictions for {data.name}",
            expected="a source with a benchmark, such as cityscapes:DIR, and no --against",
            fix="leave --predictions out; `deploykit predict` writes pictures and JSON",
        )
    return data.benchmark


@dataclass(frozen=True)
class _Kept:
    """A benchmark whose metric writes what it takes in."""

    whole: Benchmark
    folder: Path

    def metric(self, known: Mapping[int, str], classes: Sequence[str], /) -> _Writing:
        return _Writing(self, self.whole.metric(known, classes), classes)

    def write(
        self, folder: Path, name: str, result: object, size: Size, classes: Sequence[str], /
    ) -> None:
        self.whole.write(folder, name, result, size, classes)


@dataclass(frozen=True)
class _Writing:
    """A metric that writes each result that it takes in."""

    kept: _Kept
    metric: Metric[Any]
    classes: Sequence[str]

    def add(self, name: str, result: Any, truth: Any, size: Size, /) -> None:  # noqa: ANN401 - as the metric
        self.metric.add(name, result, truth, size)
        self.kept.write(self.kept.folder, name, result, size, self.classes)

    def scores(self) -> Scores:
        return self.metric.scores()
