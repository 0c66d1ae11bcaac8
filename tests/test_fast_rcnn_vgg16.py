from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dense_models
import numpy as np
import pytest
import torch
import vgg_models

from deploykit import pipeline
from deploykit.backends.pytorch import TorchSession
from deploykit.data.preprocess import PROPOSALS
from deploykit.errors import DataError
from deploykit.measuring.benchmarking import BenchOptions
from deploykit.networks.detectors import vgg
from deploykit.networks.loading import Network
from deploykit.proof import random_inputs
from deploykit.recipes.identity import Facts
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import RECIPES
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = RECIPES.load("fast_rcnn_vgg16")
ROWS = 24
NARROW = replace(
    RECIPE,
    extra_inputs=lambda _: (TensorSpec(PROPOSALS, "float32", ("batch", ROWS, 4)),),
)


def regions(batch: int, seed: int = 0) -> torch.Tensor:
    """Return proposals, every fourth of them padding."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, ROWS, 2, generator=generator) * torch.tensor([100.0, 70.0])
    sides = torch.rand(batch, ROWS, 2, generator=generator) * 40 + 4
    boxes = torch.cat([low, low + sides], -1)
    boxes[:, ::4] = 0
    return boxes


@pytest.fixture(scope="module")
def network() -> Any:
    """A narrow Fast R-CNN with random weights."""
    return vgg_models.narrow(vgg.FastRcnn, vgg_models.NARROW, regions(2))


@pytest.fixture(scope="module")
def onnx(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, exported."""
    path = tmp_path_factory.mktemp("fast") / "model.onnx"
    return dense_models.exported(network, NARROW, vgg_models.SIZE, path)


def expected(network: Any, images: torch.Tensor, boxes: torch.Tensor) -> list[vgg_models.Found]:
    """Return what the published steps find, padding left out."""
    with torch.inference_mode():
        return [
            vgg_models.detections(
                network, network.features(image.unsqueeze(0)), rows[rows.any(dim=1)]
            )
            for image, rows in zip(images, boxes, strict=True)
        ]


def assert_found(outputs: Any, wanted: list[vgg_models.Found]) -> None:
    boxes, scores, classes, counts = (np.asarray(output) for output in outputs)
    for i, found in enumerate(wanted):
        count = len(found.scores)
        assert counts[i] == count > 10
        np.testing.assert_allclose(scores[i, :count], found.scores, atol=1e-4)
        np.testing.assert_allclose(boxes[i, :count], found.boxes, atol=5e-3)
        np.testing.assert_array_equal(classes[i, :count], found.labels)
        assert (classes[i, count:] == -1).all()


def test_it_finds_what_the_published_steps_find(network: Any) -> None:
    images, boxes = vgg_models.images(2, seed=3), regions(2, seed=4)
    with torch.inference_mode():
        assert_found(network(images, boxes), expected(network, images, boxes))


@pytest.mark.parametrize("batch", [1, 2])
def test_the_exported_model_takes_the_regions_as_a_second_input(
    network: Any, onnx: Path, batch: int
) -> None:
    images, boxes = vgg_models.images(batch, seed=5), regions(batch, seed=6)
    found = dense_models.run(onnx, images=images, proposals=boxes)
    assert_found(found, expected(network, images, boxes))


def test_padding_anywhere_changes_nothing(network: Any) -> None:
    images, boxes = vgg_models.images(1, seed=7), regions(1, seed=8)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    empty = boxes.clone()
    empty[:, ::4] = torch.tensor([50.0, 60.0, 50.0, 90.0])  # no width
    with torch.inference_mode():
        results = [network(images, each) for each in (boxes, boxes[:, order], empty)]
    for found in results[1:]:
        assert torch.equal(found[3], results[0][3])
        assert torch.allclose(found[1], results[0][1], atol=1e-6)


def test_without_any_region_nothing_is_found(network: Any) -> None:
    with torch.inference_mode():
        *_, classes, count = network(vgg_models.images(2), torch.zeros(2, ROWS, 4))
    assert count.tolist() == [0, 0]
    assert classes.eq(-1).all()


def test_the_reference_of_every_proof_takes_the_same_inputs(network: Any) -> None:
    preprocess = replace(RECIPE.variant("vgg16").preprocess, size=vgg_models.SIZE)
    card = ModelCard(RECIPE.name, "vgg16", "detection", preprocess, ("a",) * 4, "")
    session = TorchSession(Network(network, NARROW, card))
    assert [str(spec) for spec in session.inputs] == [
        "images: float32[batch, 3, 112, 160]",
        f"proposals: float32[batch, {ROWS}, 4]",
    ]
    feeds = random_inputs.feeds(session.inputs, seed=0, batch=2)
    assert set(session.run(feeds)) == {output.name for output in RECIPE.outputs}


def test_random_proposals_are_boxes_in_the_image_with_padding() -> None:
    images = TensorSpec("images", "float32", ("batch", 3, 60, 200))
    specs = (images, TensorSpec(PROPOSALS, "float32", ("batch", 80, 4)))
    feeds = random_inputs.feeds(specs, seed=1, batch=3)
    boxes: Any = feeds[PROPOSALS]
    assert (boxes.shape, boxes.dtype) == ((3, 80, 4), np.float32)
    assert (boxes >= 0).all()
    assert (boxes <= [200, 60, 200, 60]).all()
    sides = boxes[..., 2:] - boxes[..., :2]
    assert (sides[:, :70] > 0).all()
    assert not boxes[:, 70:].any()
    assert sides[..., 0].max() > 80
    again = random_inputs.feeds(specs, seed=1, batch=3)[PROPOSALS]
    assert np.array_equal(boxes, again)


def test_a_model_of_images_alone_gets_the_same_feeds_as_ever() -> None:
    spec = TensorSpec("images", "float32", ("batch", 3, 60, 200))
    (found,) = random_inputs.feeds((spec,), seed=1).values()
    assert np.array_equal(found, random_inputs.images(spec, 1, 1))


def test_the_recipe_asks_for_as_many_regions_as_the_paper_takes() -> None:
    specs = RECIPE.extra_inputs(RECIPE.variant("vgg16").preprocess)
    assert list(map(str, specs)) == [
        "proposals: float32[batch, 2000, 4]",
        "image_sizes: float32[batch, 2]",
    ]


def test_it_is_known_by_a_head_without_a_region_proposal_network() -> None:
    with torch.device("meta"):
        state = {v: dict(RECIPE.network(v, 20).state_dict()) for v in RECIPE.variants}
        other = RECIPES.load("faster_rcnn_vgg16").network("vgg16", 20).state_dict()
    assert {v: RECIPE.identify(s, Facts()) for v, s in state.items()} == {
        v: (v, 20) for v in RECIPE.variants
    }
    assert RECIPE.identify(other, Facts()) is None
    assert RECIPES.load("faster_rcnn_vgg16").identify(state["vgg16"], Facts()) is None


def test_bench_and_verify_make_both_inputs(onnx: Path) -> None:
    options = BenchOptions(warmup_seconds=0, duration_seconds=0, min_iterations=2)
    (record,) = pipeline.bench([onnx], pipeline.BenchPlan(options))
    assert record.seconds
    agreements = pipeline.verify(onnx, onnx, pipeline.VerifyOptions(count=1))
    assert all(agreement.passed for agreement in agreements)


def test_calibration_says_that_images_are_not_enough(onnx: Path) -> None:
    said = r"takes proposals: float32\[batch, 24, 4\], and the images come without regions"
    with pytest.raises(DataError, match=said):
        pipeline.quantize(
            onnx, onnx.with_name("int8.onnx"), pipeline.QuantizeOptions("shapes:count=1,size=96")
        )
