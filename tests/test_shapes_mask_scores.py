"""The example that trains what scores masks: what it learns from, and that it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from example_scripts import EXAMPLES, script

from deploykit.data import sources
from deploykit.networks import loading
from deploykit.tasks import masks
from deploykit.training import loops, timed

STORED = EXAMPLES / "shapes_mask_scores" / "mask_scoring_rcnn_light.pth"

pytest.importorskip("skimage", reason="scikit-image is not installed")


@pytest.fixture(scope="module")
def train() -> Any:
    return script("shapes_mask_scores")


@pytest.fixture(scope="module")
def seen(train: Any) -> Any:
    """A batch of images, what is known of it, and what the frozen network finds in it."""
    images, objects = train.load(sources.dataset("shapes:split=train,seed=9,count=4"))
    network = train.frozen(torch.device("cpu"))
    stream = train.batches(images, objects, np.random.default_rng(1), torch.device("cpu"))
    pixels, truth = next(stream)
    return network, pixels[:3], truth[:3]


def test_what_a_mask_is_worth_is_its_iou_in_pixels(train: Any, seen: Any) -> None:
    network, pixels, truth = seen
    with torch.no_grad():
        maps = network.backbone(pixels)
        sizes = [(320, 320)] * len(pixels)
        proposals, _ = network.rpn(train.ImageList(pixels, sizes), maps)
        found, _ = network.roi_heads(maps, proposals, sizes)
    ours, theirs = [], []
    for each, known in zip(found, truth, strict=True):
        worth = train.worth(each, known)
        pasted = masks.paste(each["masks"][:, 0].numpy(), each["boxes"].numpy(), 320, 320)
        for i in torch.nonzero(worth >= 0).flatten().tolist():
            own = known["labels"] == each["labels"][i]
            shown = known["masks"][own].bool().numpy()
            iou = [(pasted[i] & one).sum() / (pasted[i] | one).sum() for one in shown]
            ours.append(float(worth[i]))
            theirs.append(max(iou))
    assert len(ours) >= 5
    assert np.abs(np.array(ours) - theirs).max() < 0.06  # cells of 28 x 28 against pixels


def test_an_object_of_another_class_or_beside_the_box_is_none(train: Any) -> None:
    whole = torch.zeros(1, 40, 40, dtype=torch.uint8)
    whole[0, 10:30, 10:30] = 1
    truth = {
        "boxes": torch.tensor([[10.0, 10, 30, 30]]),
        "labels": torch.tensor([2]),
        "masks": whole,
    }
    boxes = torch.tensor([[10.0, 10, 30, 30], [10, 10, 30, 30], [10, 10, 30, 30], [20, 20, 39, 39]])
    inside = torch.ones(4, 1, 28, 28)
    inside[1, :, 14:] = 0.2
    found = {"boxes": boxes, "labels": torch.tensor([2, 2, 1, 2]), "masks": inside}
    assert train.worth(found, truth).tolist() == pytest.approx([1.0, 0.5, -1.0, -1.0])


def test_the_head_learns_and_the_rest_stays(train: Any, seen: Any) -> None:
    network, pixels, truth = seen
    before = {k: v.clone() for k, v in network.state_dict().items() if "maskiou" not in k}
    rows = train.look(network, pixels, truth)
    every = torch.arange(len(rows.iou))
    head = network.roi_heads.maskiou.requires_grad_(True)
    learnt = timed.fit(head, lambda: rows.chosen(every), train.loss, timed.Pace(40, tell=60))
    with torch.no_grad():
        read, iou = rows.chosen(every)
        error = float(train.loss(learnt(*read), iou))
    assert error < 0.5 * float(iou.var())
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_committed_one_says_what_masks_of_held_out_images_are_worth(
    train: Any, seen: Any
) -> None:
    made = loading.load_network(STORED, loading.NetworkOptions())
    data = sources.dataset("shapes:split=val,seed=3,count=16")
    stream = train.batches(*train.load(data), np.random.default_rng(1), torch.device("cpu"))
    found = [train.look(seen[0], *next(stream)) for _ in range(2)]
    head = made.module.get_submodule("roi_heads.maskiou")
    with torch.no_grad():
        said = torch.cat(
            [head(*rows.chosen(torch.arange(len(rows.iou)))[0])[:, 0] for rows in found]
        )
    right = torch.cat([rows.iou for rows in found])
    assert len(right) > 40
    assert float(torch.corrcoef(torch.stack([said, right]))[0, 1]) > 0.6
    assert float(train.loss(said[:, None], right)) < 0.6 * float(right.var())


def test_the_committed_one_finds_objects_and_scores_their_masks() -> None:
    made = loading.load_network(STORED, loading.NetworkOptions())
    (sample,) = sources.dataset("shapes:split=val,seed=3,count=1").samples
    pixels, _ = made.card.preprocess(sample.read())
    with torch.no_grad():
        _, scores, _, count, _, worth = made.module(torch.from_numpy(pixels)[None])
    assert count.item() >= 1
    assert 0.5 < worth[0, 0] / scores[0, 0] < 1.1


def test_what_scores_bring_is_the_ap_of_both_networks(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = script("shapes_mask_scores", "compare")
    monkeypatch.setattr(compare, "BLOCKS", 2)
    data = sources.dataset("shapes:split=val,seed=3,count=6")
    found = compare.compared(loading.load_network(STORED, loading.NetworkOptions()), data)
    assert found["mask_ap_by_masks"] == pytest.approx(loops.score(STORED, data)["mask_ap"])
    plain = loops.score(train.FROZEN, data)["mask_ap"]
    assert found["mask_ap_by_boxes"] == pytest.approx(plain, abs=1e-4)
    low, high = found["interval"]
    assert low <= found["gain_of_blocks"] <= high
