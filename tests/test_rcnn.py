"""R-CNN against the steps of its MATLAB code told anew, and from the checkpoint on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dense_models
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from PIL import Image
from random_weights import HALVES
from torch.utils.flop_counter import FlopCounterMode

import deploykit
from deploykit import backends
from deploykit.data import sources
from deploykit.data.preprocess import PROPOSALS
from deploykit.errors import CheckpointError, DataError
from deploykit.networks import loading
from deploykit.networks.detectors import dense_family
from deploykit.networks.detectors.rcnn import TRUNKS, Limits, LocalNorm, Rcnn, Trunk, Warp
from deploykit.proof import random_inputs
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.recipe import RECIPES
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

RECIPE = RECIPES.load("rcnn")
CLASSES, SIZE = 3, (96, 128)

# --- the published networks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "published", "work"),
    [("alexnet", 60_965_224, 724_406_816), ("vgg16", 138_357_544, 15_470_264_320)],
)
def test_the_networks_that_see_crops_are_the_published_ones(
    variant: str, published: int, work: int
) -> None:
    """CaffeNet's and VGG-16's weights and multiply-adds, less those of the 1000 classes of fc8."""
    with torch.device("meta"):
        features: Any = RECIPE.network(variant, 20).get_submodule("features")
        crops = torch.empty(1, 3, TRUNKS[variant].side, TRUNKS[variant].side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features(crops)
    last = 4096 * 1000
    assert sum(p.numel() for p in features.parameters()) == published - last - 1000
    assert counter.get_total_flops() // 2 == work - last


def test_channels_are_normalised_as_torch_does() -> None:
    x = torch.randn(2, 9, 4, 5, generator=torch.Generator().manual_seed(0)) * 40
    torch.testing.assert_close(LocalNorm()(x), torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)(x))


# --- the steps, one number after the other -------------------------------------------------------


def whole(x: float) -> int:
    """Return what MATLAB's round does."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def cropped(image: Array, box: Array, side: int, mean: Array) -> Array:
    """Return [3, side, side] of image [3, H, W] and first and last pixels, counted from 0."""
    x1, y1, x2, y2 = (float(v) + 1 for v in box)
    scale = side / (side - 2 * 16)
    half_x, half_y = (x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2
    middle_x, middle_y = x1 + half_x, y1 + half_y
    left, right = whole(middle_x - half_x * scale), whole(middle_x + half_x * scale)
    top, bottom = whole(middle_y - half_y * scale), whole(middle_y + half_y * scale)
    scale_x, scale_y = side / (right - left + 1), side / (bottom - top + 1)
    pad_x, pad_y = max(0, 1 - left), max(0, 1 - top)
    left, top = max(1, left), max(1, top)
    right, bottom = min(image.shape[2], right), min(image.shape[1], bottom)
    width, height = whole((right - left + 1) * scale_x), whole((bottom - top + 1) * scale_y)
    pad_x, pad_y = whole(pad_x * scale_x), whole(pad_y * scale_y)
    width, height = min(width, side - pad_x), min(height, side - pad_y)
    window = torch.from_numpy(image[None, :, top - 1 : bottom, left - 1 : right])
    resized = F.interpolate(window, (height, width), mode="bilinear", align_corners=False)[0]
    found = np.zeros((3, side, side))
    there = slice(pad_y, pad_y + height), slice(pad_x, pad_x + width)
    found[:, there[0], there[1]] = resized.numpy() - mean[:, there[0], there[1]]
    return found


def image_of(seed: int) -> Array:
    return np.random.default_rng(seed).random((3, *SIZE)).astype(np.float32) * 255


BOXES = np.array(
    [
        [20, 30, 70, 60],
        [0, 0, 127, 95],
        [0, 0, 30, 9],
        [100, 80, 127, 95],
        [5, 2, 9, 90],
        [60, 50, 61, 52],
        [0, 40, 127, 44],
    ],
    np.float32,
)


@pytest.mark.parametrize("side", [227, 224])
def test_crops_are_warped_in_whole_pixels_with_their_context(side: int) -> None:
    image, mean = image_of(0), np.random.default_rng(1).random((3, side, side)) * 120
    tensors = torch.from_numpy(image)[None], torch.from_numpy(BOXES)[None]
    limit = torch.tensor([[128.0, 96, 128, 96]])
    found = Warp(side)(*tensors, limit, torch.from_numpy(mean).float())
    for crop, box in zip(found.numpy(), BOXES, strict=True):
        np.testing.assert_allclose(crop, cropped(image, box, side, mean), atol=0.02)


# --- the whole -----------------------------------------------------------------------------------


def narrow() -> Trunk:
    alexnet = TRUNKS["alexnet"]
    convolutions = tuple(replace(conv, width=32) for conv in alexnet.convolutions)
    return replace(alexnet, convolutions=convolutions, hidden=48)


def small(*, boxes: bool = True) -> Rcnn:
    torch.manual_seed(0)
    made = Rcnn(narrow(), CLASSES, (3, 227, 227), Limits(detections=9), boxes=boxes).eval()
    state = made.state_dict()
    for key, value in state.items():
        if value.ndim > 1 and "weight" in key:
            torch.nn.init.kaiming_normal_(value)
    made.features.conv1.weight.data /= 60  # type: ignore[operator,union-attr]  # a weight
    state["mean"].copy_(torch.rand(3, 227, 227) * 20 + 110)
    state["fc7_scale"].fill_(0.3)
    if boxes:
        state["pool5_scale"].fill_(0.02)
        state["box_unwhiten"].copy_(torch.eye(4) * 0.1 + torch.randn(CLASSES, 4, 4) * 0.02)
        state["box_mean"].copy_(torch.randn(CLASSES, 4) * 0.05)
    return made


def told(network: Rcnn, image: Array, boxes: Array) -> list[tuple[float, int, Array]]:
    """Return score, class and box of what is found, the best first."""
    state: dict[str, Any] = network.state_dict()
    mean = state["mean"].numpy()
    crops = np.stack([cropped(image, box, 227, mean) for box in boxes])
    x: Any = torch.from_numpy(crops).float()
    for number, (stride, edge, groups, then) in enumerate(
        ((4, 0, 1, "pn"), (1, 2, 2, "pn"), (1, 1, 1, ""), (1, 1, 2, ""), (1, 1, 2, "p")), start=1
    ):
        weight, bias = (state[f"features.conv{number}.{part}"] for part in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, stride, edge, groups=groups).relu()
        x = F.max_pool2d(x, 3, 2) if "p" in then else x
        x = F.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if "n" in then else x
    pooled = x.flatten(1)
    for layer in ("fc6", "fc7"):
        x = F.linear(x.flatten(1), *(state[f"features.{layer}.{p}"] for p in ("weight", "bias")))
        x = x.relu()
    scores = (x * 0.3 @ state["svm.weight"].T + state["svm.bias"]).numpy()
    white = (pooled * 0.02 @ state["box.weight"].T + state["box.bias"]).numpy()
    found = []
    for label in range(CLASSES):
        turned = white[:, 4 * label : 4 * label + 4] @ state["box_unwhiten"][label].numpy()
        moves = turned + state["box_mean"][label].numpy()
        sides = boxes[:, 2:] - boxes[:, :2]
        centre = boxes[:, :2] + sides / 2 + moves[:, :2] * sides
        half = np.exp(moves[:, 2:]) * sides / 2
        moved = np.concatenate([centre - half, centre + half], 1)
        moved = moved.clip(0, [SIZE[1] - 1, SIZE[0] - 1] * 2)
        left = [i for i in np.argsort(-scores[:, label]) if scores[i, label] > -1]
        while left:
            best = left.pop(0)
            found.append((float(scores[best, label]), label, moved[best]))
            left = [i for i in left if overlap(moved[best], moved[i]) <= 0.3]
    return sorted(found, key=lambda each: -each[0])[:9]


def overlap(one: Array, other: Array) -> float:
    shared = (np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) + 1).clip(0).prod()
    areas = sum((box[2:] - box[:2] + 1).prod() for box in (one, other))
    return float(shared / (areas - shared))


def rows(boxes: Array, count: int) -> Any:
    """Return the second input: boxes, then padding."""
    padded = np.zeros((1, count, 4), np.float32)
    padded[0, : len(boxes)] = boxes
    return torch.from_numpy(padded)


def test_the_network_finds_what_the_steps_find() -> None:
    network, image = small(), image_of(2)
    with torch.inference_mode():
        wanted = told(network, image, BOXES)
        found = network(torch.from_numpy(image)[None], rows(BOXES, 12))
    boxes, scores, classes, count = (each[0].numpy() for each in found)
    assert count == len(wanted) > 3
    assert classes[:count].tolist() == [label for _, label, _ in wanted]
    np.testing.assert_allclose(scores[:count], [score for score, _, _ in wanted], atol=1e-3)
    np.testing.assert_allclose(boxes[:count], [box for _, _, box in wanted], atol=0.05)


def test_without_regressors_boxes_stay_where_they_are() -> None:
    with torch.inference_mode():
        boxes, *_, count = small(boxes=False)(torch.from_numpy(image_of(2))[None], rows(BOXES, 8))
    kept = {tuple(box) for box in boxes[0, : int(count)].tolist()}
    assert kept <= {tuple(box) for box in BOXES.tolist()}


# --- from the checkpoint on ----------------------------------------------------------------------


def stored(network: Rcnn) -> dict[str, torch.Tensor]:
    """Return a state dict under the names of a checkpoint."""
    return {key.removeprefix("features."): v for key, v in network.state_dict().items()}


ROWS = 12
FEWER = replace(
    RECIPE,
    extra_inputs=lambda p: (
        TensorSpec(PROPOSALS, "float32", ("batch", ROWS, 4)),
        *dense_family.image_sizes(p),
    ),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rcnn") / "net.onnx"
    return dense_models.exported(small(), FEWER, SIZE, path)


def test_a_checkpoint_is_recognised_and_fits(tmp_path: Path) -> None:
    torch.save(stored(small()), tmp_path / "net.pth")
    loaded = loading.load_network(tmp_path / "net.pth", loading.NetworkOptions())
    assert (loaded.recipe.name, loaded.card.variant) == ("rcnn", "alexnet")
    assert [spec.name for spec in loaded.inputs] == ["images", "proposals", "image_sizes"]
    prepared, place = loaded.card.preprocess(np.full((300, 500, 3), 9, np.uint8))
    assert place.sides == (300, 500)  # as it is, whatever the canvas
    assert prepared.shape == (3, 512, 512)


def test_the_exported_graph_finds_the_same(exported: Path) -> None:
    kinds = {node.op_type for node in onnx.load(exported).graph.node}
    assert kinds.isdisjoint({"If", "Loop", "NonZero"})
    session = backends.load("onnxruntime").open_session(exported)
    feeds: Any = random_inputs.feeds(session.inputs, seed=1, batch=2)
    feeds["images"] = np.stack([image_of(3), image_of(4)])
    feeds["proposals"] = np.floor(feeds["proposals"])
    found = session.run(feeds)
    with torch.inference_mode():
        wanted = small()(*(torch.from_numpy(feeds[name]) for name in feeds))
    for ours, theirs in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, atol=0.02)


def test_it_is_calibrated_on_images_with_proposals_and_nearly_whole_in_int8(
    exported: Path, tmp_path: Path
) -> None:
    shapes = sources.dataset("shapes:count=4,size=96")
    boxes = {sample.name: BOXES.clip(0, 95).tolist() for sample in shapes.samples}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    spec = f"proposals:file={tmp_path / 'boxes.json'},shapes:count=4,size=96"
    deploykit.quantize(exported, tmp_path / "int8.onnx", deploykit.QuantizeOptions(spec))
    assert deploykit.inspect(tmp_path / "int8.onnx").shares["int8"] > 0.9


def test_it_is_a_function_of_an_image_and_its_regions(exported: Path, tmp_path: Path) -> None:
    pixels, boxes = image_of(3).transpose(1, 2, 0).astype(np.uint8), BOXES.clip(0, 95)
    model = deploykit.load(exported)
    alone = model(pixels, boxes)
    np.testing.assert_array_equal(model(pixels, lambda _: boxes).boxes, alone.boxes)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    (tmp_path / "boxes.json").write_text(json.dumps({"photo.png": boxes.tolist()}))
    given = f"proposals:file={tmp_path / 'boxes.json'},folder:{tmp_path}"
    (told,) = deploykit.predict(exported, [given], tmp_path / "found")
    assert told.said == model.said(alone)
    with pytest.raises(DataError, match="without regions"):
        model(pixels)
    for wrong in (boxes[:, :3], boxes.astype(str), np.full((2, 4), np.nan)):
        with pytest.raises(DataError, match="the proposals are"):
            model(pixels, wrong)


def test_what_the_weights_do_not_say_is_stated() -> None:
    state = RECIPE.adapt(stored(small()))
    found = RECIPE.identify(state, Facts(given={"score_threshold": "-0.5"}))
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == ("alexnet", CLASSES)
    assert found.settings["score_threshold"].value == -0.5


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        HALVES[0],
        (lambda s: {k: v for k, v in s.items() if "conv3" not in k}, "missing"),
        (lambda s: s | {"mean": torch.zeros(3, 256, 256)}, "a mean of the shape"),
        (lambda s: s | {"fc6.weight": torch.zeros(48, 7)}, "shaped"),
    ],
)
def test_other_files_are_refused_with_a_reason(harm: Any, said: str, tmp_path: Path) -> None:
    torch.save(harm(stored(small())), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=said):
        deploykit.export(tmp_path / "net.pth", tmp_path / "net.onnx", deploykit.ExportOptions())
