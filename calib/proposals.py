"""Regions for the images of another source: from OpenCV's selective search, or from a file.

Source: Uijlings et al., Selective Search for Object Recognition (IJCV 2013), as OpenCV's
contributed modules have it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.data import sources
from deploykit.data.sources import Dataset, Source
from deploykit.errors import DataError, OptionError
from deploykit.files import jsonfile, schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.data.preprocess import Floats, Pixels

BOX = schema.row(*(schema.number(-1e6, 1e6) for _ in range(4)))
FILE = schema.mapping(schema.many(BOX))
"""Name of an image -> its regions, each x1, y1, x2, y2: first and last pixels."""
FORM = "proposals:SOURCE:LOCATION, or proposals:file=BOXES.json,SOURCE:LOCATION"


def _open(location: str) -> Dataset:
    """Return the data set that the location names, with regions for its images."""
    first, comma, rest = location.partition(",")
    name = first.removeprefix("file=")
    if name == first:
        _check_search()
        inner = sources.dataset(_named(location))
        search = [replace(sample, proposals=searched) for sample in inner.samples]
        return replace(inner, samples=search)
    known: Any = jsonfile.read(Path(name), FILE, "regions of images", error=DataError)
    inner = sources.dataset(_named(rest if comma else ""))
    missing = [sample.name for sample in inner.samples if sample.name not in known]
    if missing:
        raise DataError(
            f"{name} has no regions for {len(missing)} images, the first {missing[0]}",
            expected="a list of x1, y1, x2, y2 under the name of each image",
        )
    given = [replace(s, proposals=partial(_given, known, s.name)) for s in inner.samples]
    return replace(inner, samples=given)


def _named(text: str) -> str:
    if ":" not in text:
        raise OptionError(f"proposals for {text!r}", expected=FORM)
    return text


def _given(known: Mapping[str, Any], name: str, _: Pixels) -> Floats:
    return np.array(known[name], np.float32).reshape(-1, 4)


def searched(image: Pixels) -> Floats:
    """Return float32[n, 4], first and last pixels: what OpenCV's fast selective search finds."""
    import cv2  # noqa: PLC0415 - 0.1 s that other sources need not

    search: Any = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()  # type: ignore[attr-defined]  # not in every build
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    search.switchToSelectiveSearchFast()
    found = np.asarray(search.process(), np.float32).reshape(-1, 4)  # x, y, width, height
    boxes: Floats = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:] - 1], 1)
    return boxes


def _check_search() -> None:
    import cv2  # noqa: PLC0415 - as above

    if not hasattr(cv2, "ximgproc"):
        raise OptionError(
            "this build of OpenCV has no selective search",
            expected=FORM,
            fix="pip install opencv-contrib-python-headless in place of opencv-python-headless, "
            "or give the regions in a file",
        )


source = Source("proposals", "the images of another source, with regions for each", _open)
