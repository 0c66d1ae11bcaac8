from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploykit.tasks import painting
from deploykit.tasks.detection import Detection
from deploykit.tasks.detections import LEAST_SCORE, Detections
from deploykit.tasks.instances import Instances
from deploykit.tasks.keypoints import Keypoints

GREY = np.full((120, 160, 3), 128, np.uint8)
BOX = np.array([[40, 50, 100, 90]], np.float32)


def found(score: float, box: np.ndarray = BOX, **parts: Any) -> Detections:
    return Detections(box, np.array([score], np.float32), np.array([1]), **parts)


def test_a_box_is_outlined_in_the_colour_of_its_class_and_named_above() -> None:
    drawn = Detection().draw(GREY, found(0.9), ["cat", "dog"])
    assert drawn.shape == GREY.shape
    assert (GREY == 128).all(), "the image itself stays as it was"
    assert tuple(drawn[50, 70]) == tuple(drawn[89, 40]) == painting.colour(1)
    assert (drawn[70, 70] == 128).all(), "nothing inside"
    assert (drawn[38:49, 42:100] != 128).any(), "its name"


@pytest.mark.parametrize("box", [[0, 0, 30, 20], [-20, -9, 400, 300], [150, 110, 160, 120]])
def test_boxes_at_and_beyond_the_border_are_drawn(box: list[float]) -> None:
    drawn = Detection().draw(GREY, found(0.9, np.array([box], np.float32)), [])
    assert drawn.shape == GREY.shape
    assert (drawn != 128).any()


def test_doubtful_objects_are_left_out() -> None:
    assert (Detection().draw(GREY, found(LEAST_SCORE / 2), ["a", "b"]) == 128).all()


def test_a_mask_tints_its_pixels_alone() -> None:
    mask = np.zeros((1, 28, 28), np.float32)
    mask[:, :, :14] = 1  # the left half
    drawn = Instances().draw(GREY, found(0.9, masks=mask), ["a", "b"])
    tint = (128 + np.array(painting.colour(1))) / 2
    assert np.abs(drawn[70, 55] - tint).max() <= 1
    assert (drawn[70, 85] == 128).all()


def test_keypoints_are_dots_at_their_places() -> None:
    points = np.array([[[60, 70, 1], [90, 80, 1]]], np.float32)
    drawn = Keypoints().draw(GREY, found(0.9, keypoints=points), ["a", "b"])
    assert tuple(drawn[70, 60]) == tuple(drawn[80, 90]) == painting.colour(1)
    assert (drawn[75, 75] == 128).all()


def test_neighbouring_classes_have_colours_apart() -> None:
    colours = np.array([painting.colour(i) for i in range(12)], int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(12, dtype=int)
    assert apart.min() > 30
