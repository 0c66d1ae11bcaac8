"""The example's losses against torchvision and against plain loops."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torchvision
from example_scripts import script
from torch.nn import functional

from deploykit.data import sources
from deploykit.recipes import opened
from deploykit.recipes.recipe import RECIPES
from deploykit.training import landmarks, loops

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def losses() -> Any:
    return script("shapes", "losses")


def boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 200
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 90 + 1], 1)


@pytest.mark.parametrize("generalized", [False, True])
def test_overlap_equals_torchvision(losses: Any, *, generalized: bool) -> None:
    a, b = boxes(40, 1), boxes(30, 2)
    ops = torchvision.ops
    wanted = (ops.generalized_box_iou if generalized else ops.box_iou)(a, b)
    found = losses.overlap(a[:, None], b[None], generalized=generalized)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_decoding_inverts_one_hot_bins(losses: Any) -> None:
    distances = torch.full((1, 1, 4, 17), -50.0)
    for side, bin_ in enumerate((1, 2, 3, 4)):
        distances[0, 0, side, bin_] = 50
    box = losses.decode(distances.flatten(2), torch.tensor([[100.0, 80]]), torch.tensor([[8.0]]))
    torch.testing.assert_close(box, torch.tensor([[[92.0, 64, 124, 112]]]))


def test_distribution_focal_equals_a_plain_loop(losses: Any) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4, 17), torch.rand(5, 4) * 15
    log = functional.log_softmax(logits, -1)
    for n in range(5):
        wanted = 0.0
        for side in range(4):
            value = float(target[n, side])
            low = math.floor(value)
            wanted -= float(log[n, side, low]) * (low + 1 - value)
            wanted -= float(log[n, side, low + 1]) * (value - low)
        assert float(losses.distribution_focal(logits, target)[n]) == pytest.approx(
            wanted / 4, rel=1e-4
        )


def test_varifocal_equals_its_formula(losses: Any) -> None:
    logits, target = torch.tensor([[0.3, -1.2, 2.0]]), torch.tensor([[0.8, 0.0, 0.0]])
    p = logits.sigmoid()
    positive = -0.8 * (0.8 * p[0, 0].log() + 0.2 * (1 - p[0, 0]).log())
    negative = -(0.75 * p[0, 1:] ** 2 * (1 - p[0, 1:]).log()).sum()
    torch.testing.assert_close(losses.varifocal(logits, target), positive + negative)


def grid(side: int, stride: int) -> torch.Tensor:
    line = (torch.arange(side) + 0.5) * stride
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)


def test_assignment_gives_each_object_inner_anchors_of_its_class(losses: Any) -> None:
    anchors = grid(20, 16)
    truth = losses.Truth(
        labels=torch.tensor([[2, 0, 0]]),
        boxes=torch.tensor([[[20.0, 20, 120, 120], [200, 180, 300, 300], [0, 0, 0, 0]]]),
        present=torch.tensor([[True, True, False]]),
    )
    predicted = torch.cat([anchors - 40, anchors + 40], 1)[None]
    targets = losses.assign(torch.full((1, 400, 3), 0.5), predicted, anchors, truth)
    for label, box in ((2, truth.boxes[0, 0]), (0, truth.boxes[0, 1])):
        mine = targets.positive[0] & (targets.boxes[0] == box).all(-1)
        assert 1 <= int(mine.sum()) <= losses.CANDIDATES
        assert bool(((anchors[mine] > box[:2]) & (anchors[mine] < box[2:])).all())
        assert bool((targets.scores[0][mine].argmax(-1) == label).all())
        best = torchvision.ops.box_iou(predicted[0][mine], box[None]).max()
        torch.testing.assert_close(targets.scores[0][mine].max(), best)
    assert int(targets.positive.sum()) <= 2 * losses.CANDIDATES


def test_an_image_without_objects_still_gives_a_finite_loss(losses: Any) -> None:
    anchors = grid(10, 32)
    raw = (
        torch.randn(2, 100, 6, requires_grad=True),
        torch.randn(2, 100, 68, requires_grad=True),
        anchors,
        torch.full((100, 1), 32.0),
    )
    truth = losses.Truth(
        torch.zeros(2, 1, dtype=torch.long),
        torch.zeros(2, 1, 4),
        torch.zeros(2, 1, dtype=torch.bool),
    )
    total, parts = losses.loss(raw, truth)
    total.backward()
    assert math.isfinite(total.item())
    assert parts["box"] == 0


def test_training_on_one_image_drives_the_loss_down(losses: Any) -> None:
    torch.manual_seed(0)
    anchors = grid(20, 16)
    logits = torch.full((1, 400, 3), -3.0, requires_grad=True)
    distances = torch.zeros(1, 400, 68, requires_grad=True)
    truth = losses.Truth(
        torch.tensor([[1]]), torch.tensor([[[40.0, 40, 168, 200]]]), torch.tensor([[True]])
    )
    optimizer = torch.optim.Adam([logits, distances], lr=0.1)
    values = []
    for _ in range(150):
        total, _ = losses.loss((logits, distances, anchors, torch.full((400, 1), 16.0)), truth)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < 0.35 * values[0]
    best = logits[0].max(-1).values.argmax()
    box = losses.decode(distances, anchors, torch.full((400, 1), 16.0))[0, best]
    assert torchvision.ops.box_iou(box[None], truth.boxes[0]).item() > 0.8


def test_labels_teach_int8_by_the_same_losses(losses: Any, model: Path) -> None:
    taught = script("shapes", "qat_loss").loss
    assert taught.tensors == landmarks.heads(opened.read(model).graph.graph)
    recipe = RECIPES.load("yolov6")
    torch.manual_seed(0)
    network: Any = recipe.network("pico", 6).eval()
    data: Any = sources.dataset("shapes:split=train,seed=1,count=3,size=128")
    images, objects = loops.load(data, recipe.variant("pico").sized((128, 128)))
    truth = [
        (sample.truth(), recipe.variant("pico").sized((128, 128))(sample.read())[1])
        for sample in data.samples
    ]
    with torch.no_grad():
        raw = network.raw(images / 255)
    known = losses.pad([each.classes for each in objects], [each.boxes for each in objects])
    wanted, _ = losses.loss(raw, known)
    tensors = dict(zip(taught.tensors, (raw[0], raw[1].unflatten(2, (4, -1))), strict=True))
    error, weight = taught.compute(tensors, truth)
    torch.testing.assert_close(error / weight, wanted)
