from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torchvision import ops

from deploykit.data.preprocess import Geometry
from deploykit.errors import ProofError
from deploykit.tasks.decoding import Limits, decode, nms, top, xyxy

Floats = NDArray[np.float32]
PLAIN = Geometry(100, 200, 1.0, 1.0)


def boxes_and_scores(count: int, seed: int) -> tuple[Floats, Floats]:
    """Return random overlapping boxes and scores that all differ."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 50, (count, 2))], 1)
    scores = rng.permutation(np.linspace(0.01, 0.99, count))
    return boxes.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 2, 50, 700])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.65, 1.0])
def test_nms_keeps_what_torchvision_keeps(count: int, threshold: float) -> None:
    boxes, scores = boxes_and_scores(count, seed=count)
    expected = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert nms(boxes, scores, threshold).tolist() == expected.tolist()


@pytest.mark.parametrize("classes", [1, 3, 40])
def test_nms_by_class_keeps_what_torchvision_keeps(classes: int) -> None:
    boxes, scores = boxes_and_scores(600, seed=classes)
    labels = np.random.default_rng(0).integers(0, classes, 600)
    tensors = (torch.from_numpy(v) for v in (boxes, scores, labels))
    expected = ops.batched_nms(*tensors, 0.5).tolist()
    assert nms(boxes, scores, 0.5, classes=labels).tolist() == expected
    assert nms(boxes, scores, 0.5, classes=labels, limit=7).tolist() == expected[:7]


@settings(deadline=None)
@given(
    corners=arrays(
        np.float32, st.tuples(st.integers(0, 30), st.just(4)), elements=st.integers(0, 6)
    ),
    levels=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.65, 0.75]),
)
def test_nms_meets_ties_flat_and_inverted_boxes_as_torchvision_does(
    corners: Floats, levels: int, threshold: float
) -> None:
    scores = (np.arange(len(corners)) % levels).astype(np.float32)
    expected = ops.nms(torch.from_numpy(corners), torch.from_numpy(scores), threshold)
    assert nms(corners, scores, threshold).tolist() == expected.tolist()


def test_a_box_with_a_nan_corner_suppresses_and_loses_to_none() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, np.nan, 9], [0, 0, 9, 9]], np.float32)
    assert nms(boxes, np.array([0.9, 0.8, 0.7], np.float32), 0.5).tolist() == [0, 1]


def test_a_box_just_at_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.4999).tolist() == [0]


def test_a_limit_of_zero_keeps_nothing() -> None:
    boxes, scores = boxes_and_scores(5, seed=0)
    assert nms(boxes, scores, 0.5, limit=0).tolist() == []


@given(
    scores=arrays(np.float32, st.integers(0, 40), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    count=st.integers(0, 50),
)
def test_top_is_a_stable_sort_cut_short(scores: Floats, count: int) -> None:
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
    assert top(scores, count).tolist() == expected


def test_corners_lie_half_a_side_from_the_centre() -> None:
    assert xyxy(np.array([[10, 20, 4, 8]], np.float32)).tolist() == [[8, 16, 12, 24]]


def rows(*anchors: list[float]) -> Floats:
    """Return the rows of one image."""
    return np.array([anchors], np.float32)


def test_an_anchor_can_be_an_object_of_two_classes() -> None:
    found = decode(rows([50, 50, 20, 10, 1, 0.9, 0.02, 0.5]), [PLAIN])[0]
    assert found.classes.tolist() == [0, 2]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.boxes.tolist() == [[40, 45, 60, 55]] * 2
    dtypes = [str(v.dtype) for v in (found.boxes, found.scores, found.classes)]
    assert dtypes == ["float32", "float32", "int64"]


def test_scores_are_weighed_by_the_objectness() -> None:
    found = decode(rows([50, 50, 20, 10, 0.5, 0.8], [10, 10, 4, 4, 0.01, 0.9]), [PLAIN])[0]
    assert found.scores.tolist() == pytest.approx([0.4])


def test_overlapping_objects_of_one_class_become_one_and_of_two_stay_two() -> None:
    same = decode(rows([50, 50, 20, 20, 1, 0.9, 0], [51, 50, 20, 20, 1, 0.8, 0]), [PLAIN])[0]
    other = decode(rows([50, 50, 20, 20, 1, 0.9, 0], [51, 50, 20, 20, 1, 0, 0.8]), [PLAIN])[0]
    assert same.classes.tolist() == [0]
    assert other.classes.tolist() == [0, 1]


def test_the_score_must_be_above_the_confidence() -> None:
    data = rows([50, 50, 20, 20, 1, 0.03], [50, 50, 20, 20, 1, 0.02])
    assert len(decode(data, [PLAIN], Limits(confidence=float(np.float32(0.03))))[0].scores) == 0


def test_boxes_return_to_the_pixels_of_the_image_and_stay_inside() -> None:
    place = Geometry(100, 200, scale_x=0.5, scale_y=0.5, offset_x=0, offset_y=25)
    found = decode(rows([50, 50, 20, 10, 1, 0.9], [0, 75, 400, 90, 1, 0.8]), [place])[0]
    assert found.boxes.tolist() == [[80, 40, 120, 60], [0, 10, 200, 100]]


def test_candidates_and_objects_are_limited_to_the_best() -> None:
    count = 20
    anchors = np.zeros((1, count, 6), np.float32)
    anchors[0, :, 0] = np.arange(count) * 10 + 5
    anchors[0, :, 1:5] = [50, 4, 4, 1]
    anchors[0, :, 5] = np.linspace(0.1, 0.9, count)
    best = anchors[0, ::-1, 5].tolist()
    assert decode(anchors, [PLAIN], Limits(objects=3))[0].scores.tolist() == best[:3]
    assert decode(anchors, [PLAIN], Limits(candidates=5))[0].scores.tolist() == best[:5]


def test_an_image_without_objects_has_none() -> None:
    found = decode(rows([50, 50, 20, 20, 1, 0.01]), [PLAIN])[0]
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.classes.shape == (0,)


def test_each_image_of_a_batch_has_its_own_geometry() -> None:
    data = np.repeat(rows([50, 50, 20, 10, 1, 0.9]), 2, axis=0)
    first, second = decode(data, [PLAIN, Geometry(100, 200, 0.5, 0.5)])
    assert first.boxes.tolist() == [[40, 45, 60, 55]]
    assert second.boxes.tolist() == [[80, 90, 120, 100]]


def test_infinite_and_huge_boxes_make_no_noise() -> None:
    edge = np.float32(3e38)
    boxes = np.array(
        [[-np.inf, 0, np.inf, 9], [-edge, -edge, edge, edge], [0, 0, 9, 9]], np.float32
    )
    assert nms(boxes, np.array([0.9, 0.8, 0.7], np.float32), 0.5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_returns_nan_or_infinity_is_an_error(bad: float) -> None:
    with pytest.raises(ProofError, match="1 of 2 anchors hold NaN or infinity") as caught:
        decode(rows([50, 50, bad, -bad, 1, bad], [1, 1, 1, 1, 1, 0.5]), [PLAIN])
    assert "FP32" in caught.value.fix
