"""Calibration tables as files: written, read, and used only for what they were made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.data import samples
from deploykit.errors import DataError, StaleTableError
from deploykit.files import artifacts, jsonfile, schema
from deploykit.files.schema import many, mapping, number, record, text, whole
from deploykit.precision import calibration
from deploykit.values import CalibrationTable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from deploykit.data.arrays import ArraySet
    from deploykit.data.preprocess import Preprocess
    from deploykit.data.sources import Dataset
    from deploykit.precision.calibration import CalibrationOptions
    from deploykit.recipes.opened import Opened

WHAT = "a calibration table"
_LARGEST = 3.4e38
"""What float32 holds."""
_EXPONENT = 64
"""Of a factor of channels; far beyond what a float32 model needs."""
_BATCH = 8
_WEIGHTS = 1 << 26
"""Letters for the weights of one layer, a bit each."""


_INSIDE = number(-_LARGEST, _LARGEST)
_RANGE = record({"threshold": number(0, _LARGEST), "minimum": _INSIDE, "maximum": _INSIDE})


def _range(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for the range of one tensor."""
    _RANGE(value)
    if value["minimum"] > value["maximum"]:
        raise schema.MisfitError("has a minimum above its maximum", "minimum <= maximum")


def _ways(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for two texts."""
    many(text(most=_WEIGHTS))(value)
    if len(value) != 2:
        raise schema.MisfitError(f"has {len(value)} texts", "two, what goes up and what down")


TABLE = record(
    {
        "schema_version": schema.VERSION,
        "model_sha256": text(most=64),
        "observer": text(most=100),
        "samples": many(text()),
        "samples_sha256": text(most=64),
        "ranges": mapping(_range),
    },
    {
        "skipped": many(text()),
        "source": text(),
        "size": schema.nothing_or(whole(1)),
        "factors": mapping(many(whole(-_EXPONENT, _EXPONENT))),
        "shifts": mapping(many(_INSIDE)),
        "ways": mapping(_ways),
    },
)


def write(path: Path, table: CalibrationTable) -> None:
    """Write the table as JSON, atomically. Raises: OutputError."""
    artifacts.write_json(path, table.to_json())


def read(path: Path) -> CalibrationTable:
    """Return the table in a JSON file. Raises: InputError."""
    return CalibrationTable.from_json(jsonfile.read(path, TABLE, WHAT))


def check_fresh(table: CalibrationTable, model: Opened) -> None:
    """Check that the table was made for this very model, its channels as they are.

    Raises: StaleTableError.
    """
    check_file(table, model)
    if model.factors != table.factors:
        raise StaleTableError(
            f"the calibration table was made for other scales of the channels of {model.path}",
            expected="ranges of the model as it is",
            fix="make another table: quantize --repair none --table",
        )


def check_file(table: CalibrationTable, model: Opened) -> None:
    """Check that the table was made for a model from this very file. Raises: StaleTableError."""
    if model.sha256 != table.model_sha256:
        raise StaleTableError(
            f"the calibration table was made for another model than {model.path}",
            expected=f"sha256 {table.model_sha256}, found {model.sha256}",
            fix="calibrate this model, or name the model that the table was made for",
        )


def check_asked(
    table: CalibrationTable,
    options: CalibrationOptions,
    asked: Collection[str],
    *,
    images: tuple[Dataset, Preprocess] | None = None,
) -> None:
    """Check that the table was made as it would be made anew.

    asked: the fields of `options` that the user decided. images: those the user named; they are
    read again, so that other pixels under the same names are noticed.

    Raises: StaleTableError that says what differs; DataError for images.
    """
    different = [*_methods(table, options, asked)]
    if images is not None:
        different += _images(table, *images, options.size if "size" in asked else None)
    elif "size" in asked and options.size not in (table.size, _count(table)):
        different.append(f"made with {_count(table)} images, asked for {options.size}")
    if different:
        raise StaleTableError(
            f"the calibration table is not what is asked for: {'; '.join(different)}",
            expected="images, method and size as the table was made with",
            fix="ask for those, or give another name as the table: it is then made anew",
        )


def check_arrays(table: CalibrationTable, data: ArraySet) -> None:
    """Check that a table was made on these arrays. Raises: StaleTableError, DataError."""
    names, sha256 = data.fingerprint(_count(table))
    if names != table.samples or sha256 != table.samples_sha256:
        raise StaleTableError(
            f"the calibration table was made on other arrays than those of {data.name}",
            expected="the arrays that it was made on",
            fix="give another name as the table: it is then made anew",
        )


def _methods(
    table: CalibrationTable, options: CalibrationOptions, asked: Collection[str]
) -> Iterator[str]:
    if "percentile" in asked or "observer" in asked:
        wanted = calibration.label(options)
        if wanted != table.observer:
            yield f"made with the method {table.observer}, asked for {wanted}"


def _count(table: CalibrationTable) -> int:
    return len(table.samples) + len(table.skipped)


def _images(
    table: CalibrationTable, dataset: Dataset, preprocess: Preprocess, size: int | None
) -> Iterator[str]:
    """Yield what differs; size None: as many images as the table was made with."""
    chosen = samples.choose(dataset.samples, size or max(1, _count(table)))
    names = [sample.name for sample in chosen]
    of = f" of {table.source}" if table.source else ""
    if len(names) != _count(table):
        yield f"made with {_count(table)} images{of}, asked for {len(names)} of {dataset.name}"
    elif set(names) != {*table.samples, *table.skipped}:
        yield f"made with other images{of}: {dataset.name} has {names[0]} and others"
    elif _fingerprint(dataset, preprocess, len(names)) != table.samples_sha256:
        yield f"the images of {dataset.name} have other pixels than when it was made"


def _fingerprint(dataset: Dataset, preprocess: Preprocess, limit: int) -> str:
    names: list[str] = []
    pixels: list[str] = []
    try:
        for batch in samples.batches(dataset, preprocess, _BATCH, limit=limit, skipped=[]):
            names += batch.names
            pixels += batch.pixel_sha256s
    except DataError:
        return ""
    return samples.fingerprint(names, pixels)
