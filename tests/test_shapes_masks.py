"""The Mask R-CNN example: its network, its batches, its training step, its checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest
import torch
from example_scripts import EXAMPLES, script
from torch.utils.flop_counter import FlopCounterMode

from deploykit.data import sources
from deploykit.data.preprocess import Preprocess
from deploykit.networks.detectors.light import light_mask_rcnn
from deploykit.training import loops

FOLDER = EXAMPLES / "shapes_masks"


@pytest.fixture(scope="module")
def train() -> Any:
    return script("shapes_masks")


@pytest.fixture(scope="module")
def shapes() -> Any:
    data = sources.dataset("shapes:split=train,seed=5,count=4,size=320")
    return loops.load(data, Preprocess((320, 320)), masks=True)


def test_the_network_has_the_size_that_the_readme_states() -> None:
    network = light_mask_rcnn(6).eval()
    assert sum(p.numel() for p in network.parameters()) == 3_685_977
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = network.backbone(torch.zeros(1, 3, 320, 320))
        network.rpn.head([*features.values()])
    assert counter.get_total_flops() / 2 == pytest.approx(1.363e9, rel=1e-3)
    assert [tuple(f.shape[1:]) for f in features.values()] == [
        (48, side, side) for side in (80, 40, 20, 10, 5)
    ]


def test_masks_and_boxes_of_a_batch_fit_each_other(train: Any, shapes: Any) -> None:
    images, objects = shapes
    batch, targets = next(iter(train.batches(images, objects, 4, np.random.default_rng(2))))
    assert batch.shape == (4, 3, 320, 320)
    assert -2.2 < batch.min() < 0 < batch.max() < 2.7  # normalised as ImageNet's are
    for target in targets:
        assert target["masks"].shape == (len(target["boxes"]), 320, 320)
        assert target["labels"].min() >= 1
        for mask, box in zip(target["masks"], target["boxes"], strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (box - torch.tensor(tight)).abs().max() <= 3  # thin tips vanish when scaled


def test_training_steps_lower_every_loss(train: Any, shapes: Any) -> None:
    options = argparse.Namespace(seed=1, epochs=1, images=96, batch_size=2)
    run = train.begin(options)
    images, objects = shapes
    batch, targets = next(iter(train.batches(images, objects, 2, np.random.default_rng(2))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "average_gradients", lambda _: None)
        patch.setattr(train, "WARMUP_STEPS", 1)
        found = [run.learn(batch, targets, half=True) for _ in range(8)]
    assert set(found[0]) == {"objectness", "rpn_box_reg", "classifier", "box_reg", "mask"}
    for name in ("objectness", "classifier", "mask"):
        assert found[-1][name] < 0.9 * found[0][name], name
    assert run.step == 8
