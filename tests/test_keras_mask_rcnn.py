"""Matterport's Mask R-CNN: its Keras graph told anew on its own names, and what is made of it."""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import published
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
import torchvision
from fuzz import hdf5_files
from random_weights import HALVES

import deploykit
from deploykit import backends
from deploykit.data import feeding
from deploykit.data.resizing import resized
from deploykit.errors import CheckpointError, OptionError
from deploykit.networks.detectors import keras_layout, keras_rcnn
from deploykit.networks.detectors.keras_network import KerasMaskRcnn
from deploykit.networks.detectors.keras_rcnn import Limits, Widths
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Preprocess

    Array = NDArray[Any]
    Weights = dict[str, Array]

RECIPE = RECIPES.load("keras_mask_rcnn")
SMALL = Widths(16, ((16, 32), (16, 32), (24, 48), (24, 48)), 16, 16, 32, 16, 3)
LIMITS = Limits(candidates=400, proposals=60, score=0.0, detections=20)
CLASSES, SIDE = 3, 128

# --- the names and the counts --------------------------------------------------------------------


def layers(blocks: int, widths: Widths, labels: int) -> dict[str, tuple[int, ...]]:
    """Return the path and the shape of every weight in a file; blocks: of the fourth stage."""
    found: dict[str, tuple[int, ...]] = {}

    def add(name: str, *kernel: int, bias: int = 0, within: str = "") -> None:
        path = f"{within or name}/{name}"
        found[f"{path}/kernel:0"] = kernel
        found[f"{path}/bias:0"] = (bias or kernel[-1],)

    def norm(name: str, count: int) -> None:
        for weight in ("gamma", "beta", "moving_mean", "moving_variance"):
            found[f"{name}/{name}/{weight}:0"] = (count,)

    add("conv1", 7, 7, 3, widths.stem)
    norm("bn_conv1", widths.stem)
    channels = widths.stem
    for stage, (depth, (inner, outer)) in enumerate(
        zip((3, 4, blocks, 3), widths.stages, strict=True), start=2
    ):
        for letter in string.ascii_lowercase[:depth]:
            shapes = {"2a": (1, channels, inner), "2b": (3, inner, inner), "2c": (1, inner, outer)}
            if letter == "a":
                shapes["1"] = (1, channels, outer)
            for branch, (side, before, after) in shapes.items():
                add(f"res{stage}{letter}_branch{branch}", side, side, before, after)
                norm(f"bn{stage}{letter}_branch{branch}", after)
            channels = outer
    wide, hidden, mask = widths.pyramid, widths.hidden, widths.mask
    for stage, (_, outer) in enumerate(widths.stages, start=2):
        add(f"fpn_c{stage}p{stage}", 1, 1, outer, wide)
        add(f"fpn_p{stage}", 3, 3, wide, wide)
    add("rpn_conv_shared", 3, 3, wide, widths.rpn, within="rpn_model")
    add("rpn_class_raw", 1, 1, widths.rpn, 2 * widths.anchors, within="rpn_model")
    add("rpn_bbox_pred", 1, 1, widths.rpn, 4 * widths.anchors, within="rpn_model")
    add("mrcnn_class_conv1", 7, 7, wide, hidden)
    norm("mrcnn_class_bn1", hidden)
    add("mrcnn_class_conv2", 1, 1, hidden, hidden)
    norm("mrcnn_class_bn2", hidden)
    add("mrcnn_class_logits", hidden, labels)
    add("mrcnn_bbox_fc", hidden, 4 * labels)
    for number in range(1, 5):
        add(f"mrcnn_mask_conv{number}", 3, 3, mask if number > 1 else wide, mask)
        norm(f"mrcnn_mask_bn{number}", mask)
    add("mrcnn_mask_deconv", 2, 2, mask, mask)
    add("mrcnn_mask", 1, 1, mask, labels)
    return found


@pytest.mark.parametrize(
    ("variant", "blocks", "classes", "total", "trained"),
    [
        ("resnet101_fpn", 23, 80, 64_158_584, 64_047_096),
        ("resnet101_fpn", 23, 1, 63_733_406, 63_621_918),
        ("resnet50_fpn", 6, 1, 44_662_942, 44_603_678),
    ],
)
def test_the_networks_have_as_many_weights_as_keras_says(
    variant: str, blocks: int, classes: int, total: int, trained: int
) -> None:
    """The summaries that Keras prints: all, and those that are trained."""
    with torch.device("meta"):
        network = RECIPE.network(variant, classes)
        names = layers(blocks, Widths(), classes + 1)
        state = keras_layout.adapt({key: torch.empty(shape) for key, shape in names.items()})
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("batches_tracked")}
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in state.items()}
    assert sum(p.numel() for p in network.parameters()) == trained
    assert sum(v.numel() for v in own.values()) == total
    assert sum(math.prod(shape) for shape in names.values()) == total


def test_the_names_are_pinned() -> None:
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in layers(23, Widths(), 81).items()}
    assert published.digest(state)[0] == 690
    found = RECIPE.identify(RECIPE.adapt(state), Facts())
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == ("resnet101_fpn", 80)
    assert found.settings["mean"].value == (123.7, 116.8, 103.9)


SCALES = {"conv1/conv1/kernel": 0.01, "rpn_class_raw": 0.1, "rpn_bbox": 0.1, "logits": 0.2}
SCALES |= {"mrcnn_bbox": 0.1, "mrcnn_mask/": 0.5}
"""What brings the answers of random weights to the size of a trained network's."""


def weights(seed: int = 0) -> Weights:
    """Return random weights with uneven norms; scores and boxes spread."""
    random, found = np.random.default_rng(seed), {}
    for key, shape in layers(6, SMALL, CLASSES + 1).items():
        fan = math.prod(shape[:-1]) if len(shape) > 1 else 1
        values = random.standard_normal(shape) * (1.4 / math.sqrt(fan) if fan > 1 else 0.1)
        if "moving_variance" in key or "gamma" in key:
            values = random.uniform(0.3, 1.6, shape)
        if "_branch2c/gamma" in key:
            values = values * 0.3
        values = values * next((by for part, by in SCALES.items() if part in key), 1.0)
        found[key] = values.astype(np.float32)
    return found


# --- the Keras graph, function by function -------------------------------------------------------


class Graph:
    """What the Keras code computes, on the weights of its file."""

    def __init__(self, file: Weights, limits: Limits) -> None:
        self.weights = {key.split("/", 1)[1][:-2]: torch.from_numpy(v) for key, v in file.items()}
        self.limits = limits

    def conv(self, x: torch.Tensor, name: str, stride: int = 1, *, same: bool = False) -> Any:
        kernel = self.weights[f"{name}/kernel"].permute(3, 2, 0, 1)
        edge = kernel.shape[-1] // 2 if same else 0
        return F.conv2d(x, kernel, self.weights[f"{name}/bias"], stride, edge)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        gamma, beta, mean, variance = (
            self.weights[f"{name}/{part}"].reshape(1, -1, 1, 1)
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / (variance + 0.001).sqrt() * gamma + beta

    def body(self, images: torch.Tensor) -> list[Any]:
        x = self.norm(self.conv(F.pad(images, [3, 3, 3, 3]), "conv1", 2), "bn_conv1").relu()
        x = F.max_pool2d(F.pad(x, [0, 1, 0, 1], value=-torch.inf), 3, 2)
        maps = []
        for stage, depth in enumerate((3, 4, 6, 3), start=2):
            for letter in string.ascii_lowercase[:depth]:
                x = self.block(x, f"{stage}{letter}", 2 if stage > 2 and letter == "a" else 1)
            maps.append(x)
        return maps

    def block(self, x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        def branch(y: torch.Tensor, part: str, step: int = 1, *, same: bool = False) -> Any:
            y = self.conv(y, f"res{name}_branch{part}", step, same=same)
            return self.norm(y, f"bn{name}_branch{part}")

        y = branch(x, "2a", stride).relu()
        y = branch(branch(y, "2b", same=True).relu(), "2c")
        past = branch(x, "1", stride) if name.endswith("a") else x
        summed: torch.Tensor = y + past
        return summed.relu()

    def pyramid(self, maps: list[Any]) -> list[Any]:
        levels = [self.conv(maps[3], "fpn_c5p5")]
        for stage in (4, 3, 2):
            grown = levels[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
            levels.insert(0, grown + self.conv(maps[stage - 2], f"fpn_c{stage}p{stage}"))
        levels = [self.conv(x, f"fpn_p{i}", same=True) for i, x in enumerate(levels, start=2)]
        return [*levels, levels[-1][:, :, ::2, ::2]]

    def proposals(self, levels: list[Any]) -> Array:
        """Return [n, 4]: y1, x1, y2, x2 of the first image, from 0 to 1."""
        scores, deltas = [], []
        for level in levels:
            x = self.conv(level[:1], "rpn_conv_shared", same=True).relu()
            logits = self.conv(x, "rpn_class_raw").permute(0, 2, 3, 1).reshape(-1, 2)
            scores.append(logits.softmax(-1)[:, 1])
            deltas.append(self.conv(x, "rpn_bbox_pred").permute(0, 2, 3, 1).reshape(-1, 4))
        found = np.concatenate([each.numpy() for each in scores])
        order = np.argsort(-found, kind="stable")[: self.limits.candidates]
        moves = np.concatenate([each.numpy() for each in deltas])[order]
        boxes = decoded(self.anchors()[order], moves).clip(0, 1)
        return boxes[kept(boxes, found[order], self.limits.proposal_iou)[: self.limits.proposals]]

    def anchors(self) -> Array:
        boxes = []
        for scale, stride in zip((32, 64, 128, 256, 512), (4, 8, 16, 32, 64), strict=True):
            for y in range(0, SIDE, stride):
                for x in range(0, SIDE, stride):
                    for ratio in (0.5, 1, 2):
                        h, w = scale / math.sqrt(ratio), scale * math.sqrt(ratio)
                        boxes.append([y - h / 2, x - w / 2, y + h / 2, x + w / 2])
        return (np.array(boxes) - [0, 0, 1, 1]) / (SIDE - 1)

    def detections(self, levels: list[Any], rois: Array, window: Array) -> tuple[Array, ...]:
        """Return boxes [n, 4] (y1, x1, y2, x2, 0 to 1), classes, scores and masks."""
        x: Any = torch.from_numpy(crops(levels[:4], rois, 7)).float()
        x = self.norm(self.conv(x, "mrcnn_class_conv1"), "mrcnn_class_bn1").relu()
        x = self.norm(self.conv(x, "mrcnn_class_conv2"), "mrcnn_class_bn2").relu()[:, :, 0, 0]
        logits = x @ self.weights["mrcnn_class_logits/kernel"]
        logits = logits + self.weights["mrcnn_class_logits/bias"]
        chances: Array = logits.softmax(-1).numpy()
        moves = x @ self.weights["mrcnn_bbox_fc/kernel"] + self.weights["mrcnn_bbox_fc/bias"]
        label = chances.argmax(-1)
        of_label = moves.numpy().reshape(len(rois), -1, 4)[np.arange(len(rois)), label]
        boxes = decoded(rois, of_label).clip(window[[0, 1, 0, 1]], window[[2, 3, 2, 3]])
        best = chances.max(-1)
        places: list[Any] = []
        for each in range(1, CLASSES + 1):
            mine = np.flatnonzero((label == each) & (best >= self.limits.score))
            places += list(mine[kept(boxes[mine], best[mine], self.limits.iou)])
        places = sorted(places, key=lambda place: -best[place])[: self.limits.detections]
        masks = self.masks(crops(levels[:4], boxes[places], 14))
        chosen = masks[np.arange(len(places)), label[places]]
        return boxes[places], label[places], best[places], chosen

    def masks(self, pooled: Array) -> Array:
        x = torch.from_numpy(pooled).float()
        for number in range(1, 5):
            x = self.conv(x, f"mrcnn_mask_conv{number}", same=True)
            x = self.norm(x, f"mrcnn_mask_bn{number}").relu()
        kernel = self.weights["mrcnn_mask_deconv/kernel"]  # height, width, out, in
        blocks = torch.einsum("nihw,yxoi->nohywx", x, kernel)
        x = blocks.reshape(x.shape[0], kernel.shape[2], 28, 28)
        x = (x + self.weights["mrcnn_mask_deconv/bias"].reshape(1, -1, 1, 1)).relu()
        found: Array = self.conv(x, "mrcnn_mask").sigmoid().numpy()
        return found


def decoded(boxes: Array, deltas: Array) -> Array:
    """Return boxes moved by dy, dx, log dh, log dw, as the Keras graph does."""
    moves = deltas.astype(np.float64) * [0.1, 0.1, 0.2, 0.2]
    sides = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + 0.5 * sides + moves[:, :2] * sides
    sides = sides * np.exp(moves[:, 2:])
    first = centre - 0.5 * sides
    return np.concatenate([first, first + sides], 1)


def kept(boxes: Array, scores: Array, threshold: float) -> list[int]:
    """Return the places that a suppression leaves, best first."""
    left, found = list(np.argsort(-scores, kind="stable")), []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while left:
        best = int(left.pop(0))
        found.append(best)
        inside = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(
            boxes[best, :2], boxes[left, :2]
        )
        shared = inside.clip(0).prod(1)
        joined = np.maximum(area[best] + area[left] - shared, 1e-30)
        left = [i for i, each in zip(left, shared / joined, strict=True) if each <= threshold]
    return found


def crops(levels: list[Any], boxes: Array, side: int) -> Array:
    """Return [n, C, side, side] of y1, x1, y2, x2: crop_and_resize from the level of each."""
    found = []
    for y1, x1, y2, x2 in boxes:
        size = math.sqrt(max((y2 - y1) * (x2 - x1), 1e-30))
        power = round(math.log2(size / (224 / math.sqrt(SIDE * SIDE))))
        maps = levels[min(5, max(2, 4 + power)) - 2][0].numpy().astype(np.float64)
        last = maps.shape[1] - 1
        y, x = (np.linspace(low, high, side) * last for low, high in ((y1, y2), (x1, x2)))
        found.append(sampled(maps, y, x))
    return np.array(found).reshape(len(boxes), -1, side, side)


def sampled(maps: Array, y: Array, x: Array) -> Array:
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.ceil(y).astype(int), np.ceil(x).astype(int)
    down, along = (y - top)[:, None], (x - left)[None]
    upper = maps[:, top][:, :, left] * (1 - along) + maps[:, top][:, :, right] * along
    lower = maps[:, bottom][:, :, left] * (1 - along) + maps[:, bottom][:, :, right] * along
    return np.asarray(upper * (1 - down) + lower * down)


# --- the same ------------------------------------------------------------------------------------

WINDOW = (8, 24, 120, 104)
"""x1, y1, x2, y2 of the image in the input."""


def picture(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 16, 16, generator=generator)
    return F.interpolate(small, (SIDE, SIDE), mode="bilinear") * 255 - 117


def network(file: Weights) -> KerasMaskRcnn:
    made = KerasMaskRcnn("resnet50_fpn", CLASSES, SMALL, LIMITS).eval()
    state = keras_layout.adapt({key: torch.from_numpy(value) for key, value in file.items()})
    missing, unexpected = made.load_state_dict(dict(state), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return made


@pytest.mark.parametrize("seed", [0, 1])
def test_the_network_finds_what_the_keras_graph_finds(seed: int) -> None:
    file, image = weights(seed), picture(seed)
    x1, y1, x2, y2 = WINDOW
    window = np.array([y1, x1, y2 - 1, x2 - 1]) / (SIDE - 1)
    graph, own = Graph(file, LIMITS), network(file)
    with torch.inference_mode():
        levels = graph.pyramid(graph.body(image))
        theirs = graph.proposals(levels)
        rois = own.propose(own.rpn(own.pyramid(own.body(image))), (SIDE, SIDE), LIMITS)
        assert rois.count.tolist() == [len(theirs)] == [LIMITS.proposals]
        proposed = rois.boxes[0].numpy()[:, [1, 0, 3, 2]]
        np.testing.assert_allclose(proposed, theirs, atol=1e-5)
        boxes, label, best, masks = graph.detections(levels, proposed, window)
        assert len(boxes) > 5
        for module in (own, keras_rcnn.deploy(own)):
            found = module(image, torch.tensor([WINDOW], dtype=torch.float32))
            count = len(boxes)
            assert found[3].tolist() == [count]
            assert found[2][0, :count].tolist() == [each - 1 for each in label]
            edges = boxes * (SIDE - 1) + [0, 0, 1, 1]
            np.testing.assert_allclose(found[0][0, :count], edges[:, [1, 0, 3, 2]], atol=0.02)
            np.testing.assert_allclose(found[1][0, :count], best, atol=1e-4)
            np.testing.assert_allclose(found[4][0, :count], masks, atol=2e-3)
            assert not found[0][0, count:].any()


# --- the images ----------------------------------------------------------------------------------

PREPROCESS: Preprocess = RECIPE.variant("resnet101_fpn").preprocess


def test_proposals_are_ranked_where_their_shares_are_all_one() -> None:
    """Float32 cannot tell apart the softmax of logits above 17, and would rank by place."""
    generator = torch.Generator().manual_seed(5)
    count = len(keras_rcnn.anchors((SIDE, SIDE), LIMITS))
    logits = torch.stack(
        [torch.zeros(count), 20 + 0.01 * torch.randperm(count, generator=generator)], -1
    )
    deltas = 0.2 * torch.randn(count, 4, generator=generator)
    answers = keras_rcnn.Answers(logits[None], deltas[None])
    found = keras_rcnn.Propose()(answers, (SIDE, SIDE), LIMITS)
    every = keras_rcnn.anchors((SIDE, SIDE), LIMITS)
    boxes = keras_rcnn.moved(torch.from_numpy(every), deltas).clamp(0, 1)
    order = logits[:, 1].argsort(descending=True)[: LIMITS.candidates]
    kept = torchvision.ops.nms(boxes[order], logits[order, 1], LIMITS.proposal_iou)
    expected = boxes[order][kept][: LIMITS.proposals]
    assert torch.equal(found.boxes[0, : len(expected)], expected)
    assert int(found.count) == len(expected)


@pytest.mark.parametrize(
    ("image", "sides"),
    [
        ((480, 640), (768, 1024)),
        ((1000, 1000), (1000, 1000)),
        ((900, 2000), (461, 1024)),
        ((300, 300), (800, 800)),
        ((1024, 700), (1024, 700)),
    ],
)
def test_images_only_grow_and_lie_in_the_middle_of_the_square(
    image: tuple[int, int], sides: tuple[int, int]
) -> None:
    fit = PREPROCESS.fit(*image)
    assert (fit.canvas, fit.sides) == ((1024, 1024), sides)
    pixels, place = PREPROCESS(np.full((*image, 3), 255, np.uint8))
    top, left = ((1024 - side) // 2 for side in sides)
    assert list(place.window) == [left, top, left + sides[1], top + sides[0]]
    if top or left:  # the padding is black, less the mean
        np.testing.assert_allclose(pixels[:, 0, 0], [-123.7, -116.8, -103.9], atol=1e-4)
    np.testing.assert_allclose(pixels[:, 512, 512], [131.3, 138.2, 151.1], atol=1e-4)
    specs = RECIPE.extra_inputs(PREPROCESS)
    images = deploykit.values.TensorSpec("images", "float32", ("batch", 3, 1024, 1024))
    fed = feeding.feeds((images, *specs), pixels[None], [place])
    assert fed[feeding.IMAGE_WINDOWS].tolist() == [list(place.window)]


@pytest.mark.parametrize("sides", [(53, 90), (20, 31), (40, 61)])
def test_pixels_are_those_of_scikit_image(sides: tuple[int, int]) -> None:
    """Its bilinear resize with zeros beside the image, cut to whole levels."""
    transform = pytest.importorskip("skimage.transform")
    image = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    theirs = transform.resize(
        image, sides, order=1, mode="constant", preserve_range=True, anti_aliasing=False
    ).astype(np.uint8)
    ours = resized(image, sides, "skimage", ratio=sides[0] / 40)
    away = np.abs(ours.astype(int) - theirs.astype(int))
    assert away.max() <= 1
    assert (away > 0).mean() < 0.01


# --- from the file on ----------------------------------------------------------------------------

SETTINGS = {"candidates": "400", "proposals": "60", "detections": "20", "score_threshold": "0"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    hdf5_files.write(folder / "net.h5", weights())
    options = deploykit.ExportOptions(input_size=(SIDE, SIDE), settings=SETTINGS)
    deploykit.export(folder / "net.h5", folder / "net.onnx", options)
    return folder / "net.onnx"


def test_an_h5_file_is_recognised_exported_and_finds_the_same(exported: Path) -> None:
    kinds = {node.op_type for node in onnx.load(exported).graph.node}
    assert kinds.isdisjoint({"If", "Loop", "NonZero", "BatchNormalization", "ConvTranspose"})
    assert {"DKMultiscaleCrop", "DKBatchedNms"} <= kinds
    image = picture()
    session = backends.load("onnxruntime").open_session(exported)
    window = np.array([WINDOW], np.float32)
    found = session.run({"images": image.numpy(), "image_windows": window})
    with torch.inference_mode():
        wanted = network(weights())(image, torch.from_numpy(window))
    for ours, theirs in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, atol=5e-3)


def test_it_is_quantised_nearly_whole(exported: Path, photos: Path, tmp_path: Path) -> None:
    options = deploykit.QuantizeOptions(source=f"folder:{photos}")
    deploykit.quantize(exported, tmp_path / "int8.onnx", options)
    assert deploykit.inspect(tmp_path / "int8.onnx").shares["int8"] > 0.9


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        *HALVES,
        (lambda s: {k: v for k, v in s.items() if "bn3b_branch2b" not in k}, "missing"),
        (lambda s: {k: v for k, v in s.items() if "res4f" not in k and "bn4f" not in k}, "blocks"),
        (lambda s: s | {"mrcnn_mask/mrcnn_mask/bias:0": np.zeros(9, np.float32)}, "shaped"),
        (lambda s: s | {"conv1/conv1/bias:0": np.full(8, np.nan, np.float32)}, "NaN"),
    ],
)
def test_other_files_are_refused_with_a_reason(harm: Any, said: str, tmp_path: Path) -> None:
    hdf5_files.write(tmp_path / "net.h5", harm(weights()))
    with pytest.raises(CheckpointError, match=said):
        deploykit.export(tmp_path / "net.h5", tmp_path / "net.onnx", deploykit.ExportOptions())


def test_anchors_must_fit_the_weights() -> None:
    state = RECIPE.adapt({k: torch.from_numpy(v) for k, v in weights().items()})
    with pytest.raises(OptionError, match="5 anchor sizes with 2 ratios"):
        RECIPE.identify(state, Facts(given={"anchor_ratios": "[0.5, 1]"}))
    with pytest.raises(OptionError, match="setting candidates is 6000"):
        RECIPE.identify(state, Facts(given={"candidates": "6000"}))
