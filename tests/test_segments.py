"""Segments of objects with masks, by hand and against rules told pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploykit.tasks import segments
from deploykit.tasks.detections import Detections
from deploykit.tasks.panoptic import PanopticQuality

SIZE = (9, 12)
THINGS = (0, 1)


def objects(shares: Any, classes: list[int], scores: list[float] | None = None) -> Detections:
    """Objects whose masks, float[N, 9, 12], lie on the pixels of the image."""
    count = len(classes)
    return Detections(
        np.zeros((count, 4), np.float32),
        np.array(scores or np.linspace(0.99, 0.9, count), np.float32),
        np.array(classes, np.int64),
        masks=np.asarray(shares, np.float32),
        frames=np.array([[0, 0, 12, 9]] * count, np.float32),
        pasting="whole",
    )


def flat(*columns: tuple[int, int, float]) -> list[Any]:
    """Masks that are 0.01 but for columns from one to another, of some certainty."""
    made = np.full((len(columns), *SIZE), 0.01)
    for mask, (first, last, share) in zip(made, columns, strict=True):
        mask[:, first:last] = share
    return list(made)


def test_a_pixel_is_the_surest_masks_and_doubtful_objects_have_none() -> None:
    masks = flat((0, 8, 0.8), (4, 12, 0.9), (0, 12, 0.99))
    made = segments.merged(objects(masks, [0, 1, 1], [0.95, 0.9, 0.8]), SIZE, THINGS)
    assert [each[:2] for each in made.known] == [(1, 0), (2, 1)]
    assert (made.pixels[:, :4] == 1).all()
    assert (made.pixels[:, 4:] == 2).all()


def test_of_stuff_of_one_class_one_segment_is_kept_and_things_stay_apart() -> None:
    masks = flat((0, 3, 0.9), (3, 6, 0.8), (6, 9, 0.9), (9, 12, 0.9))
    stuff = segments.merged(objects(masks, [5, 5, 0, 0]), SIZE, THINGS)
    assert [each.category for each in stuff.known] == [5, 0, 0]
    assert (stuff.pixels[:, :6] == 1).all()
    assert len(np.unique(stuff.pixels)) == 3


def test_a_segment_of_four_pixels_is_left_to_the_others() -> None:
    masks = np.array(flat((0, 12, 0.6), (0, 0, 0.0)))
    masks[1, :2, :2] = 0.9
    assert len(segments.merged(objects(masks, [0, 1]), SIZE, THINGS).known) == 1
    masks[1, 2, 0] = 0.9
    assert len(segments.merged(objects(masks, [0, 1]), SIZE, THINGS).known) == 2


def test_no_object_leaves_every_pixel_empty() -> None:
    made = segments.merged(objects(flat((0, 12, 0.9)), [0], [0.5]), SIZE, THINGS)
    assert not made.known
    assert not made.pixels.any()


@pytest.mark.parametrize("pasting", ["rounded", "exact"])
def test_a_pixel_that_no_mask_over_a_box_covers_is_in_no_segment(pasting: Any) -> None:
    boxes = np.array([[0, 0, 6, 9], [4, 0, 10, 9]], np.float32)
    shares = np.full((2, 3, 3), 0.9, np.float32)
    shares[1] = 0.8
    found = Detections(
        boxes,
        np.array([0.99, 0.95], np.float32),
        np.array([0, 1]),
        masks=shares,
        pasting=pasting,
    )
    made = segments.merged(found, SIZE, THINGS)
    assert [each.category for each in made.known] == [0, 1]
    assert set(made.pixels[4, 1:5].tolist()) == {1}
    assert made.pixels[4, 8] == 2
    assert (made.pixels[:, 11:] == 0).all()


def told(masks: Any, classes: list[int]) -> list[list[int]]:
    """The same, pixel by pixel: the object of each, in the order of scores."""
    kept = list(range(len(classes)))
    for rest in (False, *[True] * 9):
        owners = [
            [max(kept, key=lambda i: masks[i][y][x]) for x in range(SIZE[1])]
            for y in range(SIZE[0])
        ]
        if not rest:
            first = {kind: classes.index(kind) for kind in classes if kind not in THINGS}
            owners = [[first.get(classes[i], i) for i in row] for row in owners]
        areas = {i: sum(row.count(i) for row in owners) for i in kept}
        kept = [i for i in kept if areas[i] > 4]
        if len(kept) == len(areas):
            return owners
    raise AssertionError("some object is dropped each time")


@pytest.mark.parametrize("seed", range(6))
def test_any_objects_are_merged_as_told(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((7, 3, 4)).repeat(3, 1).repeat(3, 2) * 0.8 + rng.random((7, *SIZE)) * 0.1
    classes = rng.integers(0, 5, 7).tolist()
    made = segments.merged(objects(masks, classes), SIZE, THINGS)
    assert (made.pixels - 1).tolist() == told(masks.tolist(), classes)
    metric = PanopticQuality({kind: str(kind) for kind in range(5)}, THINGS)
    metric.add("a", made, made, SIZE)
    assert metric.scores().value == 1
