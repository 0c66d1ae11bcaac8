"""Panoptic quality against the numbers of the official evaluation, on rectangles by chance.

`python tests/test_panoptic.py DIR` writes the cases, and `python benchmarks/cityscapes_official.py
panoptic DIR DIR/found` (with a Python that has cityscapesScripts) says what is pinned here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit.errors import DataError
from deploykit.tasks.panoptic import VOID, PanopticQuality, Segment, Segments

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = {1: "cat", 2: "dog", 3: "bird", 10: "grass", 11: "sky", 12: "sea", 13: "snow"}
THINGS = (1, 2, 3)
CASES, SIZE = 12, (40, 60)


def truth(case: int) -> Segments:
    """Return rectangles over nothing; some things are crowds."""
    rng = np.random.default_rng(case)
    pixels = np.zeros(SIZE, np.int64)
    kinds: dict[int, Segment] = {}
    for number in range(1, 12):
        category = [1, 1, 2, 3, 10, 11, 12][int(rng.integers(7))]
        top, left, height, width = rng.integers(0, [40, 60, 30, 40]).tolist()
        pixels[top : top + 4 + height, left : left + 4 + width] = number * 7
        crowd = category in THINGS and rng.integers(5) == 0
        kinds[number * 7] = Segment(number * 7, category, bool(crowd))
    return of(pixels, kinds)


def found(case: int) -> Segments:
    """Return the truth, moved a little, with some classes changed and some segments lost."""
    rng = np.random.default_rng(100 + case)
    right = truth(case)
    pixels = np.roll(right.pixels, rng.integers(-1, 2, 2).tolist(), (0, 1)) * 1001
    kinds = {}
    for number, category, _ in right.known:
        kind = list(NAMES)[int(rng.integers(6))] if rng.integers(5) == 0 else category
        kinds[number * 1001] = Segment(number * 1001, kind)
        if rng.integers(6) == 0:
            pixels[pixels == number * 1001] = VOID
    extra = pixels[5:25, 30:50]
    extra[extra == VOID] = 999_999
    kinds[999_999] = Segment(999_999, 2)
    return of(pixels, kinds)


def of(pixels: Any, kinds: Mapping[int, Segment]) -> Segments:
    return Segments(pixels, [kinds[n] for n in np.unique(pixels).tolist() if n != VOID])


def measured() -> PanopticQuality:
    metric = PanopticQuality(NAMES, THINGS)
    for case in range(CASES):
        metric.add(str(case), found(case), truth(case), SIZE)
    return metric


def test_the_means_are_those_of_the_official_evaluation() -> None:
    assert measured().scores().metrics == MEANS


def test_classes_are_those_of_the_official_evaluation() -> None:
    of_class = measured().of_class()
    assert {name: None if q is None else tuple(q) for name, q in of_class.items()} == CLASSES


def test_the_truth_itself_is_perfect_and_nothing_has_no_score() -> None:
    metric = PanopticQuality(NAMES, THINGS)
    assert metric.scores().value is None
    right = truth(3)
    metric.add("a", right, right, SIZE)
    assert metric.scores().value == 1
    assert metric.of_class()["snow"] is None


def test_what_does_not_fit_is_refused() -> None:
    metric, right = PanopticQuality(NAMES, THINGS), truth(1)
    with pytest.raises(DataError, match="the result for a has 3x2 pixels, and the image 60x40"):
        metric.add("a", Segments(np.zeros((2, 3), np.int64), []), right, SIZE)
    with pytest.raises(DataError, match="1 numbers are in one of them alone"):
        metric.add("a", Segments(right.pixels, right.known[1:]), right, SIZE)
    with pytest.raises(DataError, match="each segment once in the list"):
        metric.add("a", Segments(right.pixels, [*right.known, right.known[0]]), right, SIZE)
    foreign = [right.known[0]._replace(category=99), *right.known[1:]]
    with pytest.raises(DataError, match="the truth about a has a segment of category 99"):
        metric.add("a", right, Segments(right.pixels, foreign), SIZE)


def save(path: Path, segments: Segments) -> dict[str, Any]:
    """Write the map as COCO does: red + 256 green + 65536 blue; return its annotation."""
    shifted = [(segments.pixels >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
    Image.fromarray(np.dstack(shifted)).save(path)
    rows = [
        {"id": n, "category_id": c, "iscrowd": int(w), "area": int((segments.pixels == n).sum())}
        for n, c, w in segments.known
    ]
    return {"file_name": path.name, "image_id": path.stem, "segments_info": rows}


def main(folder: Path) -> None:
    (folder / "found").mkdir(parents=True, exist_ok=True)
    pairs = [
        (save(folder / f"{n}.png", truth(n)), save(folder / "found" / f"{n}.png", found(n)))
        for n in range(CASES)
    ]
    rows = [{"id": n, "name": name, "isthing": int(n in THINGS)} for n, name in NAMES.items()]
    (folder / "cases.json").write_text(json.dumps({"categories": rows, "pairs": pairs}))


MEANS = {
    "pq": 0.480323434224521,
    "sq": 0.8480252185995614,
    "rq": 0.5662681947428001,
    "things_pq": 0.4271967454271623,
    "things_sq": 0.8521970689027785,
    "things_rq": 0.49987335359675783,
    "stuff_pq": 0.5334501230218797,
    "stuff_sq": 0.8438533682963443,
    "stuff_rq": 0.6326630358888423,
}
CLASSES = {
    "cat": (0.47264647261911147, 0.8543993928114707, 0.5531914893617021),
    "dog": (0.49635442458487605, 0.8686202430235331, 0.5714285714285714),
    "bird": (0.3125893390774993, 0.8335715708733314, 0.375),
    "grass": (0.5767573008184768, 0.8971780234954083, 0.6428571428571429),
    "sky": (0.452680786606898, 0.8299147754459796, 0.5454545454545454),
    "sea": (0.5709122816402642, 0.8044673059476449, 0.7096774193548387),
    "snow": None,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
