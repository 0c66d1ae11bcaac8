"""A calibration table is used only for what it was made with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from deploykit.data import sources
from deploykit.errors import InputError, StaleTableError
from deploykit.files import onnxfile
from deploykit.precision import calibration, tables
from deploykit.precision.calibration import CalibrationOptions
from deploykit.recipes import metadata, opened

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.data.preprocess import Preprocess
    from deploykit.values import CalibrationTable

ASKED = ("observer", "size")
OPTIONS = CalibrationOptions(observer="minmax", size=4)


@pytest.fixture(scope="module")
def preprocess(model: Path) -> Preprocess:
    card = metadata.read(onnxfile.read_model(model).metadata_props)
    assert card is not None
    return card.preprocess


@pytest.fixture(scope="module")
def table(model: Path, photos: Path, preprocess: Preprocess) -> CalibrationTable:
    data = sources.dataset(f"folder:{photos}")
    return calibration.calibrate(opened.read(model), data, preprocess, ["images"], options=OPTIONS)


def refused(table: CalibrationTable, message: str, **options: Any) -> None:
    images = options.pop("images", None)
    asked = options.pop("asked", ASKED)
    with pytest.raises(StaleTableError, match=message):
        tables.check_asked(table, replace(OPTIONS, **options), asked, images=images)


def test_a_table_serves_what_it_was_made_with(
    table: CalibrationTable, photos: Path, preprocess: Preprocess
) -> None:
    images = (sources.dataset(f"folder:{photos}"), preprocess)
    tables.check_asked(table, OPTIONS, ASKED, images=images)
    tables.check_asked(table, OPTIONS, ASKED)
    unsaid = CalibrationOptions()
    tables.check_asked(table, unsaid, (), images=images)


def test_another_method_and_another_size_are_said(
    table: CalibrationTable, photos: Path, preprocess: Preprocess
) -> None:
    images = (sources.dataset(f"folder:{photos}"), preprocess)
    refused(table, "method minmax, asked for mse", observer="mse")
    refused(
        table, "method minmax, asked for percentile 99.5", observer="percentile", percentile=99.5
    )
    refused(table, "4 images, asked for 3", size=3)
    refused(table, rf"4 images of folder:{photos}, asked for 8", size=8, images=images)
    refused(table, "method .*; made with 4 images", size=2, observer="mse", images=images)


def test_other_images_are_noticed_even_under_the_same_names(
    table: CalibrationTable, photos: Path, preprocess: Preprocess, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "same")
    moved = (sources.dataset(f"folder:{tmp_path / 'same'}"), preprocess)
    tables.check_asked(table, OPTIONS, ASKED, images=moved)  # a copy is as good
    with Image.open(tmp_path / "same" / table.samples[2]) as image:
        image.rotate(180).save(tmp_path / "same" / table.samples[2])
    refused(table, "have other pixels", images=moved)
    shutil.copytree(photos, tmp_path / "more")
    (tmp_path / "more" / table.samples[0]).rename(tmp_path / "more" / "another.jpg")
    refused(
        table, "other images", images=(sources.dataset(f"folder:{tmp_path / 'more'}"), preprocess)
    )


def test_a_table_of_the_version_before_is_read(table: CalibrationTable, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    tables.write(path, table)
    assert tables.read(path) == table
    data = json.loads(path.read_text())
    del data["source"], data["size"]
    path.write_text(json.dumps(data))
    assert tables.read(path) == replace(table, source="", size=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {}}, "unknown key 'layers'"),
        ({"ranges": {"x": {"threshold": -1, "minimum": 0, "maximum": 1}}}, "threshold is -1"),
        ({"ranges": {"x": {"threshold": 1, "minimum": 2, "maximum": 1}}}, "minimum above"),
        ({"ranges": {"x": {"threshold": 1, "minimum": 2}}}, "has no 'maximum'"),
        ({"ranges": {"x": {"threshold": 1e39, "minimum": 0, "maximum": 1}}}, "threshold is"),
        ({"samples": "all"}, "samples is 'all'"),
        ({"schema_version": 2}, "schema_version is 2"),
    ],
)
def test_what_makes_no_sense_in_a_table_is_named(
    table: CalibrationTable, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({**table.to_json(), **change}))
    with pytest.raises(InputError, match=message):
        tables.read(path)
