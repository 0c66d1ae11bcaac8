"""The scripts that train DETR and InstanceFCN on shapes: their batches, losses and steps."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from example_scripts import EXAMPLES, script
from torchvision import ops as ops_of

from deploykit import ops
from deploykit.data import sources
from deploykit.networks import detr_places, loading
from deploykit.networks.instance_fcn import InstanceFcn, Limits
from deploykit.recipes.recipe import RECIPES
from deploykit.training import loops, scenes, timed

pytest.importorskip("skimage", reason="scikit-image is not installed")


@pytest.fixture(scope="module")
def transformer() -> Any:
    return script("shapes_detr")


@pytest.fixture(scope="module")
def windows() -> Any:
    return script("shapes_instances")


def data(size: int, truth: str, count: int) -> Any:
    preprocess = RECIPES.load("fcn").variant("light").preprocess.sized((size, size))
    spec = f"shapes:split=train,seed=5,count={count},size={size},truth={truth}"
    return scenes.generated(spec, preprocess, masks=truth == "things"), preprocess


def test_a_query_starts_at_the_embedding_of_its_place(transformer: Any) -> None:
    cells = (torch.arange(10) + 0.5) / 10
    places = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), -1).reshape(-1, 2)
    expected = torch.from_numpy(detr_places.positions(10, 10, 128)[0])
    assert torch.allclose(transformer.embedded(places, 128), expected, atol=1e-4)


def learner(transformer: Any) -> Any:
    options = argparse.Namespace(seed=1, start=None)
    return transformer.begin(options, amp=False)


def test_the_first_set_of_queries_says_what_the_network_says_alone(transformer: Any) -> None:
    made = learner(transformer).eval()
    images = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = made(images, torch.rand(1, 3 * 4, 4))
        logits, boxes = made.network.raw(images)
    assert said.logits.shape == (1, 3, 4 * 25 + 12, 7)
    assert torch.allclose(said.logits[:, -1, :25], logits, atol=1e-4)
    assert torch.allclose(said.boxes[:, -1, :25], boxes, atol=1e-5)


def test_displaced_boxes_overlap_their_objects(transformer: Any) -> None:
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.1], [0.2, 0.7, 0.3, 0.3]]])
    found = transformer.displaced(boxes, torch.Generator().manual_seed(0))
    assert found.shape == (1, 6, 4)
    away = (found - boxes.repeat(1, 3, 1)).abs()
    assert (away[..., :2] <= 0.2 * boxes[..., 2:].repeat(1, 3, 1) + 1e-6).all()
    assert 0 < away[..., 2:].max() <= 0.4 * 0.3 + 1e-6


def test_a_detr_learns_what_it_is_shown(transformer: Any) -> None:
    scene, preprocess = data(160, "objects", 2)
    batches = transformer.Batches(scene, preprocess, 2, 1)
    inputs, truth = batches()
    assert inputs[0].shape == (2, 3, 160, 160)
    made = learner(transformer)
    before = float(transformer.loss(made(*inputs), truth).detach())
    learnt = timed.fit(
        made,
        lambda: (inputs, truth),
        transformer.loss,
        timed.Pace(12, learning_rate=1e-3, decay=0.5, limit=0.1),
    ).train()
    assert float(transformer.loss(learnt(*inputs), truth).detach()) < 0.8 * before


def test_windows_are_read_as_the_networks_op_reads_them(windows: Any) -> None:
    maps = torch.randn(2, 9, 6, 7, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0, 8, 41], [20, 6, 35]])
    line = torch.arange(5) * 3 // 5
    parts = (line[:, None] * 3 + line).expand(2, 3, -1, -1)
    found = windows.assembled(maps, parts, places)
    expected = ops.torch_op("assemble")(maps, places.to(torch.int32), bins=3, window=5)
    assert found.isnan().any()
    assert torch.equal(found.nan_to_num(0.0), expected)


def test_sampled_windows_lie_around_the_middles_of_their_objects(windows: Any) -> None:
    seen = torch.zeros(1, 3, 320, 320)
    seen[0, 0, 40:80, 100:180] = 1
    seen[0, 2, 200:320, 0:320] = 1  # larger than a window
    found = windows.sampled(seen, 21, torch.Generator().manual_seed(0))
    assert found.places.shape == (1, 256)
    chosen = found.places[found.real]
    middles = torch.stack([chosen % 40, chosen // 40], -1) * 8.0 + 4
    assert (found.rows[found.real] == 0).all()
    assert ((middles - torch.tensor([140.0, 60.0])).abs() <= torch.tensor([9.6, 8.0])).all()
    assert len(chosen.unique()) == len(chosen) >= 4
    assert int((found.used & ~found.real).sum()) == 128


def test_maps_that_say_the_masks_cost_little(windows: Any) -> None:
    """Each map says whether anything is there: the windows of one object hold only that."""
    seen = torch.zeros(1, 2, 320, 320)
    seen[0, 0, 64:128, 64:128] = 1
    found = windows.sampled(seen, 21, torch.Generator().manual_seed(0))
    covered = torch.nn.functional.avg_pool2d(seen.sum(1, keepdim=True), 8)
    maps = (covered * 40 - 20).expand(1, 25, -1, -1)
    objectness = torch.full((1, 1, 40, 40), -20.0)
    objectness.flatten()[found.places[found.real]] = 20.0
    right = windows.loss((maps, objectness), (seen, found), 5)
    assert float(right) < 1e-3
    assert float(windows.loss((-maps, objectness), (seen, found), 5)) > 100
    assert float(windows.loss((maps, -objectness), (seen, found), 5)) > 20


def test_folded_norms_change_nothing(windows: Any) -> None:
    torch.manual_seed(0)
    network = InstanceFcn(3, Limits(window=5), (8, 8, 8, 16, 16))
    made = windows.Learner(network, amp=False)
    images = torch.randn(2, 3, 64, 64)
    made.train()(images)  # statistics
    with torch.no_grad():
        maps, _ = made.eval()(images)
        folded = made.folded()
        alone = folded.instance(folded.features(images))
    assert list(folded.state_dict()) == list(network.state_dict())
    np.testing.assert_allclose(alone, maps, atol=1e-5 * float(maps.abs().max()))


def test_an_instance_fcn_learns_what_it_is_shown(windows: Any) -> None:
    scene, preprocess = data(128, "things", 4)
    torch.manual_seed(0)
    made = windows.Learner(InstanceFcn(3, Limits(), (8, 8, 16, 16, 16)), amp=False)
    images, truth = windows.Batches(scene, preprocess, 4, 1)()
    loss = partial(windows.loss, bins=3)
    before = float(loss(made(images), truth).detach())
    learnt = timed.fit(
        made, lambda: (images, truth), loss, timed.Pace(15, learning_rate=5e-3, decay=0.3)
    ).train()
    assert float(loss(learnt(images), truth).detach()) < 0.6 * before


def test_the_committed_instance_fcn_finds_most_objects_that_are_large_enough() -> None:
    made: Any = loading.load_network(
        EXAMPLES / "shapes_instances" / "instance_fcn_light.pth", loading.NetworkOptions()
    )
    assert (made.card.variant, made.card.class_names) == ("light", ("object",))
    data = sources.dataset("shapes:split=val,seed=1,count=5,truth=things")
    images, objects = loops.load(data, made.card.preprocess)
    shares = scenes.Scenes(images / 255, *(torch.zeros(0),) * 3)
    hits = []
    with torch.inference_mode():
        found = made.module(shares.normalised(made.card.preprocess))
    for boxes, scores, true in zip(found[0], found[1], objects, strict=True):
        wanted = torch.from_numpy(true.boxes)
        large = (wanted[:, 2:] - wanted[:, :2]).prod(1).sqrt() > 60
        hits += (ops_of.box_iou(wanted[large], boxes[scores > 0.5]) > 0.5).any(1).tolist()
    assert len(hits) > 5
    assert sum(hits) / len(hits) > 0.8


def test_the_committed_detr_names_and_boxes_most_objects_that_are_large_enough() -> None:
    made: Any = loading.load_network(
        EXAMPLES / "shapes_detr" / "detr_light.pth", loading.NetworkOptions()
    )
    assert made.card.variant == "light"
    data = sources.dataset("shapes:split=val,seed=1,count=16,size=160")
    images, objects = loops.load(data, made.card.preprocess)
    shares = scenes.Scenes(images / 255, *(torch.zeros(0),) * 3)
    hits = []
    with torch.inference_mode():
        boxes, scores, classes, _ = made.module(shares.normalised(made.card.preprocess))
    for k, true in enumerate(objects):
        wanted, kinds = torch.from_numpy(true.boxes), torch.from_numpy(true.classes)
        large = (wanted[:, 2:] - wanted[:, :2]).prod(1).sqrt() > 30
        near = ops_of.box_iou(wanted, boxes[k]) > 0.5
        same = (classes[k] == kinds[:, None]) & (scores[k] > 0.5)
        hits += (near & same).any(1)[large].tolist()
    assert len(hits) > 15
    assert sum(hits) / len(hits) > 0.75
