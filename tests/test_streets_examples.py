"""The two examples on made-up streets: their batches, their losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from example_scripts import EXAMPLES, script
from torch.nn import functional

import deploykit
from deploykit.data import sources
from deploykit.networks import loading
from deploykit.recipes.describing import Description
from deploykit.recipes.recipe import RECIPES
from deploykit.tasks.cityscapes import labels

pytest.importorskip("skimage", reason="scikit-image is not installed")

SCENES = "streets:seed=3,count=3,size=512x256,split=train"


@pytest.fixture(scope="module")
def maps() -> Any:
    return script("streets_maps")


@pytest.fixture(scope="module")
def masks() -> Any:
    return script("streets_masks")


@pytest.fixture(scope="module")
def scenes(masks: Any) -> Any:
    made = masks.load(sources.dataset(f"{SCENES},truth=instance"))
    return masks.Scenes(*(torch.from_numpy(values) for values in made))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_a_batch_of_the_segmenter_is_cut_and_flipped_as_its_labels_are(maps: Any) -> None:
    planes = torch.from_numpy(maps.load(sources.dataset(SCENES)))
    counted = planes[:, 3][planes[:, 3] != labels.IGNORED]
    assert 0 <= counted.min() < counted.max() < len(maps.CLASS_NAMES)
    planes[:, :3] = planes[:, 3:].clamp(max=20) * 10  # what is seen is what is labelled
    preprocess = RECIPES.load("hrnet_seg").variant(maps.VARIANT).preprocess
    images, truth = maps.batch(planes, preprocess, 1, generator())
    assert images.shape == (1, 3, 256, 512)
    for image, label in zip(images[:, 0, 8:-8, 8:-8], truth[:, 8:-8, 8:-8], strict=True):
        for number in label.unique()[:4]:
            other = (label != number)[None, None].float()
            inner = functional.max_pool2d(other, 9, 1, 4)[0, 0] == 0
            if inner.any():  # away from borders, where pixels are mixed
                assert image[inner].max() - image[inner].min() < 1e-3


def test_the_segmenters_loss_is_small_where_it_is_right_and_ignores_what_does_not_count(
    maps: Any,
) -> None:
    right = torch.arange(19).repeat_interleave(256).reshape(1, 64, 76)
    scores = functional.one_hot(right, 19).permute(0, 3, 1, 2) * 40.0
    truth = right.clone()
    truth[:, :, :8] = labels.IGNORED
    assert maps.loss(scores, truth) < 0.01
    scores[:, :, :, :8] = -scores[:, :, :, :8]
    assert maps.loss(scores, truth) < 0.01
    assert maps.loss(-scores, truth) > 1


def test_boxes_of_a_batch_are_those_of_the_objects_that_its_pixels_show(
    masks: Any, scenes: Any
) -> None:
    preprocess = RECIPES.load("point_rend").variant(masks.VARIANT).preprocess
    (images, shown, boxes, classes), _ = masks.batch(scenes, preprocess, 6, generator())
    assert images.shape == (6, 3, 256, 512)
    for each, box, kind in zip(shown, boxes, classes, strict=True):
        count = int((kind >= 0).sum())
        assert each.max() == count > 0
        for number in range(count):
            rows, columns = np.nonzero((each == number + 1).numpy())
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box[number].tolist() == tight


def test_all_six_losses_of_the_point_renderer_fall_when_it_learns(masks: Any, scenes: Any) -> None:
    torch.manual_seed(0)
    learner = masks.Learner(masks.begin(masks.START)).train()
    preprocess = RECIPES.load("point_rend").variant(masks.VARIANT).preprocess
    batch, _ = masks.batch(scenes, preprocess, 1, generator())
    steps = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    told = []
    for _ in range(6):
        parts = learner(*batch)
        steps.zero_grad()
        masks.Total()(parts, None).backward()
        steps.step()
        told.append({name: float(value.detach()) for name, value in parts.items()})
    names = {"objectness", "rpn_box_reg", "classifier", "box_reg", "coarse", "points"}
    assert set(told[0]) == names
    assert sum(told[-1].values()) < 0.8 * sum(told[0].values())
    assert told[-1]["coarse"] < told[0]["coarse"]


@pytest.mark.parametrize(
    ("checkpoint", "truth", "metric", "least"),
    [
        ("streets_maps/hrnet_small.pth", "semantic", "miou", 0.8),
        ("streets_masks/point_rend_light.pth", "objects", "ap", 0.5),
    ],
)
def test_the_committed_networks_find_what_stands_in_streets_that_they_have_not_seen(
    checkpoint: str, truth: str, metric: str, least: float
) -> None:
    held_out = f"streets:split=val,seed=7,count=4,size=512x256,truth={truth}"
    about = Description(input_size=(256, 512))
    options = deploykit.EvalOptions(source=held_out, about=about)
    found = deploykit.evaluate(EXAMPLES / checkpoint, options)
    assert found.images == 4
    scores = {name: value or 0.0 for name, value in found.metrics.items()}
    assert scores[metric] > least
    if truth == "objects":
        assert scores["mask_ap"] > 0.85 * scores["ap"]


def test_a_sky_a_road_and_a_wall_of_houses_lie_where_the_segmenter_says() -> None:
    size = (256, 512)
    made = loading.load_network(
        EXAMPLES / "streets_maps" / "hrnet_small.pth", loading.NetworkOptions(input_size=size)
    )
    names = made.card.class_names
    same = total = 0
    for sample in sources.dataset(SCENES.replace("train", "val")).samples:
        pixels, _ = made.card.preprocess(sample.read())
        assert sample.truth is not None
        truth: Any = sample.truth()
        with torch.inference_mode():
            scores = made.module(torch.from_numpy(pixels)[None])
            whole = functional.interpolate(scores, size, mode="bilinear", align_corners=False)
        found = np.array(list(labels.CLASSES))[whole.argmax(1)[0].numpy()]
        for name in ("sky", "road", "building"):
            assert names[list(labels.CLASSES.values()).index(name)] == name
            right = truth.labels == labels.BY_NAME[name].number
            same += int((found[right] == truth.labels[right]).sum())
            total += int(right.sum())
    assert same > 0.95 * total > 0
