from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection import _utils, anchor_utils
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops

from deploykit.networks.detectors import dense, grids

IMAGE = (96, 160)


def maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.zeros(1, 1, *size) for size in sizes]


@pytest.mark.parametrize("image", [IMAGE, (100, 130)])
def test_anchors_are_torchvisions(image: tuple[int, int]) -> None:
    generator = anchor_utils.AnchorGenerator(((32, 40), (64, 81)), ((0.5, 1.0, 2.0),) * 2)
    features = maps((12, 20), (5, 3))
    (expected,) = generator(ImageList(torch.zeros(1, 3, *image), [image]), features)
    found = [
        grids.anchors(cell.numpy(), image, (f.shape[2], f.shape[3]))
        for cell, f in zip(generator.cell_anchors, features, strict=True)
    ]
    assert np.array_equal(np.concatenate(found), expected.numpy())


@pytest.mark.parametrize("steps", [None, [8, 30]])
def test_default_boxes_are_torchvisions(steps: list[int] | None) -> None:
    generator = anchor_utils.DefaultBoxGenerator([[2], [2, 3]], steps=steps)
    sizes = [(12, 20), (4, 5)]
    (expected,) = generator(ImageList(torch.zeros(1, 3, *IMAGE), [IMAGE]), maps(*sizes))
    found = [
        grids.default_boxes(
            pairs.clamp(0, 1).numpy(),
            IMAGE,
            size,
            size if steps is None else (IMAGE[0] / steps[k], IMAGE[1] / steps[k]),
        )
        for k, (pairs, size) in enumerate(zip(generator._wh_pairs, sizes, strict=True))
    ]
    assert np.array_equal(np.concatenate(found), expected.numpy())


def boxes(random: np.random.Generator, count: int) -> torch.Tensor:
    low, sides = random.uniform(-20, 100, (count, 2)), random.uniform(0, 90, (count, 2))
    return torch.tensor(np.concatenate([low, low + sides], 1), dtype=torch.float32)


@given(st.integers(0, 10_000), st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]))
def test_boxes_move_and_are_clipped_as_torchvisions(
    seed: int, weights: tuple[float, float, float, float]
) -> None:
    random = np.random.default_rng(seed)
    start = boxes(random, 9)
    deltas = torch.tensor(random.normal(0, 3, (9, 4)), dtype=torch.float32)
    expected = _utils.BoxCoder(weights).decode_single(deltas, start)
    assert torch.equal(grids.moved(deltas, start, weights), expected)
    inside = box_ops.clip_boxes_to_image(expected, IMAGE)
    assert torch.equal(grids.clipped(expected, grids.limits(IMAGE, None)), inside)
    sizes = [IMAGE, (IMAGE[0] // 2, IMAGE[1] // 3)]
    several = [box_ops.clip_boxes_to_image(expected, size) for size in sizes]
    limit = grids.limits(IMAGE, torch.tensor(sizes, dtype=torch.float32))
    assert torch.equal(grids.clipped(expected.expand(2, -1, -1), limit), torch.stack(several))
    linear = _utils.BoxLinearCoder(normalize_by_size=True).decode(deltas, start)
    assert torch.equal(grids.spread(deltas, start), linear)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_the_best_pairs_are_the_best_of_all(
    seed: int,
    n: int,
    classes: int,
    quality: bool,  # noqa: FBT001 - drawn
) -> None:
    random = np.random.default_rng(seed)
    logits, deltas = (
        torch.tensor(random.permutation(2 * n * k).reshape(2, n, k) / (n * k) - 1.0)
        for k in (classes, 4)
    )
    shared = torch.tensor(random.normal(0, 1, (2, n, 1))) if quality else None
    anchors = torch.tensor(random.normal(0, 1, (n, 4)))
    picks = dense.best(dense.Level(logits, deltas, anchors, shared), 7)
    scores = dense.probability(logits, shared)
    for i in range(2):
        ranked = scores[i].flatten().sort(descending=True)
        pairs = ranked.indices[: picks.scores.shape[1]]
        assert torch.allclose(picks.scores[i], ranked.values[: len(pairs)], rtol=1e-12)
        assert torch.equal(picks.classes[i], pairs % classes)
        assert torch.equal(picks.deltas[i], deltas[i, pairs // classes])
        assert torch.equal(picks.anchors[i], anchors[pairs // classes])


def test_a_quality_and_a_class_score_have_a_geometric_mean() -> None:
    found = dense.probability(torch.zeros(1, 1, 2), torch.full((1, 1, 1), 2.0))
    expected = (0.5 * torch.tensor(2.0).sigmoid()).sqrt()
    assert torch.allclose(found, expected)


def candidates(count: int, seed: int = 0) -> dense.Candidates:
    random = np.random.default_rng(seed)
    return dense.Candidates(
        boxes(random, count).unsqueeze(0),
        torch.tensor(random.random((1, count)), dtype=torch.float32),
        torch.tensor(random.integers(0, 3, (1, count))),
    )


def test_what_survives_is_what_torchvision_keeps() -> None:
    found = candidates(500)
    limits = dense.Limits(0.3, 0.4, 500, 60)
    corners, scores, classes, places, count = dense.nms(found, limits, limits.score)
    above = torch.where(found.scores[0] > 0.3)[0]
    kept = box_ops._batched_nms_vanilla(
        found.boxes[0, above], found.scores[0, above], found.classes[0, above], 0.4
    )
    expected = above[kept][:60]
    assert int(count) == len(expected)
    assert torch.equal(places[0, : len(expected)].long(), expected)
    assert torch.equal(corners[0, : len(expected)], found.boxes[0, expected])
    assert torch.equal(scores[0, : len(expected)], found.scores[0, expected])
    assert torch.equal(classes[0, : len(expected)].long(), found.classes[0, expected])


def test_the_threshold_may_be_another_than_the_limits() -> None:
    found = candidates(50)
    limits = dense.Limits(2.0, 0.9, 50, 50)
    assert int(dense.suppressed(found, limits, limits.score)[-1]) == 0
    assert int(dense.suppressed(found, limits, -1.0)[-1]) > 40


def test_more_candidates_than_tensorrt_ranks_enter_by_score() -> None:
    found = candidates(dense.MOST + 500)
    limits = dense.Limits(0.0, 0.5, dense.MOST, 20)
    *_, places, count = dense.nms(found, limits, 0.0)
    order = found.scores[0].argsort(descending=True)[: dense.MOST]
    kept = box_ops._batched_nms_vanilla(
        found.boxes[0, order], found.scores[0, order], found.classes[0, order], 0.5
    )
    assert int(count) == 20
    assert torch.equal(places[0].long(), order[kept][:20])


def test_limits_are_those_of_torchvisions_model() -> None:
    class Model:
        score_thresh, nms_thresh, topk_candidates, detections_per_img = 0.2, 0.6, 1000, 100

    model: Any = Model()
    assert dense.Limits.of(model) == dense.Limits(0.2, 0.6, 1000, 100)
