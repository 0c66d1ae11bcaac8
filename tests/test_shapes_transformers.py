"""The example Swin and MPViT: their batches, and that they learn what they are shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from example_scripts import EXAMPLES, script
from torch import nn

from deploykit.data import sources
from deploykit.recipes.recipe import RECIPES
from deploykit.training import gathering, loops, timed

pytest.importorskip("skimage", reason="scikit-image is not installed")


@pytest.fixture(scope="module")
def train() -> Any:
    return script("shapes_transformers")


@pytest.fixture(scope="module")
def batches(train: Any) -> Any:
    images, classes = gathering.classified(
        sources.dataset("shapes:split=train,seed=5,count=6,size=64,truth=class"), train.PREPROCESS
    )
    return train.Batches(torch.from_numpy(images), torch.from_numpy(classes), 12, 3)


def test_both_are_fed_alike(train: Any) -> None:
    made = [RECIPES.load(name).variant("light").preprocess for name in ("swin", "mpvit")]
    assert made == [train.PREPROCESS] * 2


def test_a_batch_is_changed_images_with_their_classes_and_follows_from_the_seed(
    train: Any, batches: Any
) -> None:
    images, classes = batches()
    assert images.shape == (12, 3, 64, 64)
    assert -2.2 < images.min() < 0 < images.max() < 2.7  # normalised as ImageNet's are
    assert set(classes.tolist()) <= set(batches.classes.tolist())
    firsts = [train.Batches(batches.images, batches.classes, 12, 7)()[0] for _ in range(2)]
    assert torch.equal(*firsts)


@pytest.mark.parametrize("name", ["swin", "mpvit"])
def test_a_network_learns_a_batch(name: str, batches: Any) -> None:
    torch.manual_seed(0)
    network = RECIPES.load(name).network("light", 6)
    images, classes = (each[:4] for each in batches())
    loss = nn.CrossEntropyLoss()
    pace = timed.Pace(8, learning_rate=1e-3, tell=60)
    timed.fit(network, lambda: (images, classes), loss, pace)
    assert float(loss(network(images), classes).detach()) < 0.9  # by chance 1.8


@pytest.mark.parametrize("name", ["swin", "mpvit"])
def test_the_committed_ones_score_what_the_readme_says(name: str) -> None:
    data = sources.dataset("shapes:split=val,seed=1,count=100,size=64,truth=class")
    scores = loops.score(EXAMPLES / "shapes_transformers" / f"{name}_light.pth", data)
    assert scores["top1"] >= 0.97
