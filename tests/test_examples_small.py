"""The small classifier and segmenter of examples/: how they learn, and what they score."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest
import torch
from example_scripts import EXAMPLES, script

from deploykit.data import sources
from deploykit.networks import loading
from deploykit.recipes.recipe import RECIPES
from deploykit.training import loops

pytest.importorskip("skimage", reason="scikit-image is not installed")


def options(size: int) -> argparse.Namespace:
    return argparse.Namespace(rng=np.random.default_rng(3), batch_size=size)


def network(name: str) -> Any:
    return loading.load_network(EXAMPLES / name, loading.NetworkOptions())


def test_a_batch_of_the_classifier_is_turned_and_lit_images_with_their_classes() -> None:
    train = script("shapes_classes")
    preprocess = RECIPES.load("repvgg").variant("pico").preprocess
    images, classes = train.load("shapes:split=train,count=9,size=64,truth=class", preprocess)
    assert images.shape == (9, 3, 64, 64)
    found = list(train.batches(images, classes, preprocess, options(4)))
    assert [batch.shape for batch, _ in found] == [(4, 3, 64, 64)] * 2
    assert sorted(classes.tolist()) != classes.tolist()
    assert -2.2 < found[0][0].min() < 0 < found[0][0].max() < 2.7  # normalised as ImageNet's are


def test_a_batch_of_the_segmenter_is_turned_as_its_labels_are() -> None:
    train = script("shapes_maps")
    preprocess = RECIPES.load("fcn").variant("light").preprocess
    planes = train.load("shapes:split=train,count=4,size=128,truth=map", preprocess)
    planes[:, :3] = planes[:, 3:] * 30  # what is seen is what is labelled
    (images, labels), *_ = train.batches(planes, preprocess, options(4))
    assert labels.shape == (4, 128, 128)
    for image, label in zip(images, labels, strict=True):
        levels = [image[0][label == number] for number in label.unique()]
        assert all(values.max() - values.min() < 1e-5 for values in levels)
    perfect = torch.nn.functional.one_hot(labels, 7).permute(0, 3, 1, 2) * 60.0
    assert train.loss({"out": perfect}, labels) < 0.05
    assert train.loss({"out": -perfect}, labels) > 1


def test_a_network_learns_what_it_is_shown() -> None:
    torch.manual_seed(0)
    line = torch.nn.Linear(2, 1)
    points = torch.randn(64, 2)
    truth = points @ torch.tensor([[2.0], [-1.0]])
    learnt = loops.fit(
        line,
        lambda: iter([(points, truth)] * 40),
        torch.nn.functional.mse_loss,
        loops.Schedule(8, 40, learning_rate=0.05, weight_decay=0, warmup=5, decay=0.9),
    )
    (weight,) = (value for name, value in learnt.named_parameters() if name == "weight")
    assert torch.allclose(weight, torch.tensor([[2.0, -1.0]]), atol=0.02)
    assert learnt is not line


def test_the_committed_classifier_scores_what_the_readme_says() -> None:
    made = network("shapes_classes/repvgg_pico.pth")
    data = sources.dataset("shapes:split=val,seed=1,count=120,size=64,truth=class")
    scores = loops.scores(made.module, made.recipe, "pico", data, made.card.class_names)
    assert scores["top1"] > 0.92


def test_the_committed_segmenter_has_the_mean_iou_of_a_confusion_matrix_counted_apart() -> None:
    made = network("shapes_maps/fcn_light.pth")
    data = sources.dataset("shapes:split=val,seed=1,count=12,size=128,truth=map")
    scores = loops.scores(made.module, made.recipe, "light", data, made.card.class_names)
    table = np.zeros((7, 7), np.int64)
    for sample in data.samples:
        pixels, _ = made.card.preprocess(sample.read())
        assert sample.truth is not None
        truth: Any = sample.truth()
        with torch.inference_mode():
            found = made.module(torch.from_numpy(pixels)[None])["out"]
            whole = torch.nn.functional.interpolate(
                found, truth.shape, mode="bilinear", align_corners=False
            )
        np.add.at(table, (truth, whole.argmax(1)[0].numpy()), 1)
    union = table.sum(0) + table.sum(1) - table.diagonal()
    iou = table.diagonal()[union > 0] / union[union > 0]
    assert scores["miou"] == pytest.approx(iou.mean(), abs=2e-4)  # ties of rounding
    assert scores["pixel_accuracy"] == pytest.approx(table.trace() / table.sum(), abs=1e-4)
