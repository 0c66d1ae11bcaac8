"""InstanceFCN against the paper, told anew in numpy, and from the checkpoint on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import published
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from random_weights import HALVES

import deploykit
from deploykit import backends
from deploykit.errors import CheckpointError, OptionError
from deploykit.networks.instance_fcn import InstanceFcn, Limits
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

RECIPE = RECIPES.load("instance_fcn")
WIDTHS = (16, 16, 16, 32, 32)
LIMITS = Limits(window=9, candidates=60, iou=0.79, score=0.0, detections=12)
SIZE = (64, 96)


def test_the_network_has_the_weights_and_the_work_of_the_paper() -> None:
    """25 maps from a layer of 115,225 weights; 207.2 G multiply-adds at 600x800."""
    with torch.device("meta"):
        network: Any = RECIPE.network("vgg16", 1)
        network.select = torch.nn.Identity()
        network.forward = lambda images: _heads(network, network.features(images))
        images = torch.empty(1, 3, 600, 800)
    parameters, work, entries, digest = published.facts(network, images)
    once = 14_714_688 + 262_656 + 115_225 + 2_359_808 + 513
    assert (parameters, entries) == (once, 34) == (17_452_890, 34)
    assert sum(p.numel() for p in network.instance[2].parameters()) == 115_225
    assert round(work / 1e9, 1) == 207.2
    assert digest == DIGEST


def _heads(network: Any, x: torch.Tensor) -> Any:
    return network.instance(x), network.objectness(x)


DIGEST = "8368fd40be1723dc"


def small(seed: int = 0) -> InstanceFcn:
    torch.manual_seed(seed)
    network = InstanceFcn(3, LIMITS, WIDTHS).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        network.objectness[2].weight.mul_(0.1)  # type: ignore[operator]  # a weight
    return network


def pictures(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 12, generator=generator)
    return F.interpolate(coarse, SIZE, mode="bilinear") * 6 - 3


def maps_of(state: dict[str, Any], images: torch.Tensor) -> tuple[Array, Array]:
    """Return the maps [k * k, H, W] and the objectness [H, W], layer by layer."""
    x = images
    for number in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        if number in (5, 10, 17):
            x = F.max_pool2d(x, 2)
        if number == 24:  # stride 1: each cell with its right and lower neighbours
            near = F.pad(x, [0, 1, 0, 1], value=-torch.inf)
            x = torch.stack(
                [near[:, :, i : i + x.shape[2], j : j + x.shape[3]] for i in (0, 1) for j in (0, 1)]
            ).amax(0)
        hole = 2 if number >= 24 else 1
        weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
        x = F.conv2d(x, weight, bias, padding=hole, dilation=hole).relu()

    def head(name: str, edges: tuple[int, int]) -> torch.Tensor:
        y = x
        for place, edge in zip((0, 2), edges, strict=True):
            y = F.conv2d(
                y, state[f"{name}.{place}.weight"], state[f"{name}.{place}.bias"], padding=edge
            )
            y = y.relu() if place == 0 else y
        return y[0]

    return head("instance", (0, 1)).numpy(), head("objectness", (1, 0))[0].numpy()


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def told(maps: Array, objectness: Array, image: tuple[float, float]) -> list[Any]:
    """Return (box, score, mask [m, m], corner of the window) of each object, the best first."""
    window, bins = LIMITS.window, 3
    height, width = objectness.shape
    found = []
    for place in np.argsort(-sigmoid(objectness).ravel(), kind="stable"):
        y, x = divmod(int(place), width)
        if y * 8 >= image[0] or x * 8 >= image[1]:
            continue
        mask = np.zeros((window, window))
        for v, u in np.ndindex(window, window):
            row, column = y + v - window // 2, x + u - window // 2
            if 0 <= row < height and 0 <= column < width:
                mask[v, u] = maps[v * bins // window * bins + u * bins // window, row, column]
            mask[v, u] = sigmoid(mask[v, u])
        rows, columns = np.nonzero(mask > 0.5)
        found.append(
            (y - window // 2, x - window // 2, mask, rows, columns, sigmoid(objectness[y, x]))
        )
        if len(found) == LIMITS.candidates:
            break
    objects: list[Any] = []
    for top, left, mask, rows, columns, score in found:
        if not len(rows):
            continue
        box = np.array(
            [left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1]
        )
        box = (box * 8.0).clip(0, [image[1], image[0]] * 2)
        if (box[2:] <= box[:2]).any():
            continue
        if all(overlap(box, other[0]) <= LIMITS.iou for other in objects):
            objects.append((box, score, mask, (top, left)))
    return objects[: LIMITS.detections]


def overlap(one: Array, other: Array) -> float:
    shared = (np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])).clip(0).prod()
    areas = sum((box[2:] - box[:2]).prod() for box in (one, other))
    return float(shared / (areas - shared))


def over_box(mask: Array, corner: tuple[int, int], box: Array) -> Array:
    """Return [28, 28]: the window's mask at the middles of 28 x 28 parts of the box."""
    padded = np.pad(mask, 1)
    ends = [
        (box[k] / 8 - corner[1 - k] + 0.5, box[k + 2] / 8 - corner[1 - k] + 0.5) for k in (1, 0)
    ]
    y, x = (low + (np.arange(28) + 0.5) * (high - low) / 28 for low, high in ends)
    low_y, low_x = np.floor(y).astype(int), np.floor(x).astype(int)
    high_y, high_x = (np.minimum(low + 1, len(padded) - 1) for low in (low_y, low_x))
    down, along = (y - low_y)[:, None], (x - low_x)[None]
    upper = padded[low_y][:, low_x] * (1 - along) + padded[low_y][:, high_x] * along
    lower = padded[high_y][:, low_x] * (1 - along) + padded[high_y][:, high_x] * along
    return np.asarray(upper * (1 - down) + lower * down)


@pytest.mark.parametrize(("seed", "image"), [(0, SIZE), (1, (50, 70))])
def test_the_network_finds_what_the_paper_says(seed: int, image: tuple[int, int]) -> None:
    network, images = small(seed), pictures(seed)
    with torch.inference_mode():
        wanted = told(*maps_of(network.state_dict(), images), image)
        ends = torch.tensor([image], dtype=torch.float32)
        boxes, scores, classes, count, masks = (each[0] for each in network(images, ends))
    assert int(count) == len(wanted) > 2
    assert not classes[: len(wanted)].any()
    for row, (box, score, mask, corner) in enumerate(wanted):
        np.testing.assert_allclose(boxes[row], box, atol=1e-3)
        assert float(scores[row]) == pytest.approx(float(score), abs=1e-5)
        np.testing.assert_allclose(masks[row], over_box(mask, corner, box), atol=1e-4)
    assert not masks[len(wanted) :].any()


# --- from the checkpoint on ----------------------------------------------------------------------

SETTINGS = {"window": "9", "candidates": "60", "detections": "12", "nms_threshold": "0.79"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instances")
    torch.save(small().state_dict(), folder / "net.pth")
    options = deploykit.ExportOptions(input_size=SIZE, settings=SETTINGS)
    deploykit.export(folder / "net.pth", folder / "net.onnx", options)
    return folder / "net.onnx"


def test_a_checkpoint_is_recognised_and_its_graph_finds_the_same(exported: Path) -> None:
    kinds = {node.op_type for node in onnx.load(exported).graph.node}
    assert kinds.isdisjoint({"If", "Loop", "NonZero"})
    assert {"DKAssemble", "DKBatchedNms", "DKMultiscaleCrop"} <= kinds
    images, ends = pictures(), np.array([SIZE], np.float32)
    session = backends.load("onnxruntime").open_session(exported)
    found = session.run({"images": images.numpy(), "image_sizes": ends})
    with torch.inference_mode():
        wanted = small()(images, torch.from_numpy(ends))
    for ours, theirs in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, atol=1e-3)


def test_it_is_quantised_nearly_whole(exported: Path, photos: Path, tmp_path: Path) -> None:
    options = deploykit.QuantizeOptions(source=f"folder:{photos}")
    deploykit.quantize(exported, tmp_path / "int8.onnx", options)
    assert deploykit.inspect(tmp_path / "int8.onnx").shares["int8"] > 0.9


def test_the_number_of_parts_is_in_the_weights_and_the_rest_is_stated() -> None:
    found = RECIPE.identify(small().state_dict(), Facts(given={"window": "15"}))
    assert isinstance(found, Found)
    assert (found.variant, found.classes, found.class_names) == ("vgg16", 1, ("object",))
    assert found.settings["window"].value == 15
    with pytest.raises(OptionError, match="setting window is 65"):
        RECIPE.identify(small().state_dict(), Facts(given={"window": "65"}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        *HALVES,
        (lambda s: {k: v for k, v in s.items() if "features.12" not in k}, "missing"),
        (lambda s: s | {"instance.2.weight": s["instance.2.weight"][:8]}, "is not a checkpoint of"),
    ],
)
def test_other_files_are_refused_with_a_reason(harm: Any, said: str, tmp_path: Path) -> None:
    torch.save(harm(small().state_dict()), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=said):
        deploykit.export(tmp_path / "net.pth", tmp_path / "net.onnx", deploykit.ExportOptions())
