"""Two-stage networks find what torchvision's find, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from dense_models import assert_same, cut, eager, told
from torchvision.models import detection as zoo
from torchvision.models.detection import backbone_utils, keypoint_rcnn
from two_stage_models import (
    SIZE,
    assert_same_keypoints,
    assert_same_masks,
    pictures,
    settled,
)

from deploykit import backends, ops
from deploykit.backends import onnxruntime
from deploykit.data.feeding import IMAGE_SIZES
from deploykit.data.preprocess import Preprocess
from deploykit.errors import CheckpointError
from deploykit.files import onnxfile
from deploykit.graph import canvases, fusion
from deploykit.networks import loading, tracing
from deploykit.networks.detectors import (
    detectron2_layout,
    light,
    two_stage_family,
    two_stage_models,
)
from deploykit.networks.detectors.two_stage import NOTHING, Proposals, Rois, Sampling, TwoStage
from deploykit.pipeline import exporting
from deploykit.pipeline.exporting import ExportOptions
from deploykit.recipes import opened
from deploykit.recipes.identity import Facts
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLASSES = 5
HEADS = {"boxes": assert_same, "masks": assert_same_masks, "keypoints": assert_same_keypoints}
NAMES = {"boxes": "faster_rcnn", "masks": "mask_rcnn", "keypoints": "keypoint_rcnn"}
FEWER = 300
"""Candidates of a level, and proposals: the images have no use for torchvision's 1,000, and both
limits cut all the same."""
FOUND = 20
"""Objects per image: torchvision's 100 take minutes in float64."""
OUTPUTS = ("boxes", "scores", "classes", "count")


@contextlib.contextmanager
def narrowed() -> Iterator[None]:
    """Let all layers but the last of torchvision's head for keypoints give 32 channels, not 512."""
    whole: Any = keypoint_rcnn.KeypointRCNNHeads

    def head(channels: int, layers: tuple[int, ...]) -> Any:
        return whole(channels, (*(32 for _ in layers[1:]), layers[-1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keypoint_rcnn, "KeypointRCNNHeads", head)
        yield


def made(head: str, body: str = "resnet18") -> Any:
    """Return a small torchvision model with weights that give detections."""
    torch.manual_seed(0)
    backbone = backbone_utils.resnet_fpn_backbone(
        backbone_name=body, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    kind = {"boxes": zoo.FasterRCNN, "masks": zoo.MaskRCNN, "keypoints": zoo.KeypointRCNN}[head]
    limits = {"rpn_pre_nms_top_n_test": FEWER, "rpn_post_nms_top_n_test": FEWER}
    limits["box_detections_per_img"] = FOUND
    return settled(kind(backbone, CLASSES + 1, **limits))


@pytest.fixture(scope="module", params=list(HEADS))
def model(request: pytest.FixtureRequest) -> Any:
    """One model of each kind."""
    with narrowed():
        found = made(request.param)
    found.head = request.param
    return found


@pytest.fixture(scope="module")
def theirs(model: Any) -> Callable[[int], Any]:
    """Return a function that says what torchvision finds in so many of the pictures."""
    return functools.cache(lambda batch: eager(model, pictures(batch)))


def compare(head: str, found: Any, expected: Any) -> None:
    """Compare detections with torchvision's."""
    if head == "boxes":
        assert_same(found, expected, 1)
    else:
        HEADS[head](found, expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_network_finds_what_torchvision_finds(
    model: Any, theirs: Callable[[int], Any], batch: int
) -> None:
    assert all(len(found["scores"]) == FOUND for found in theirs(batch))
    with torch.inference_mode():
        found = TwoStage(model).eval()(pictures(batch))
    compare(model.head, [value.numpy() for value in found], theirs(batch))


def test_boxes_end_where_their_images_do(model: Any, exported: Path) -> None:
    images, sizes = cut(pictures(3))
    expected = eager(model, images, sizes)
    assert all(len(found["scores"]) == FOUND for found in expected)
    ends = torch.tensor(sizes, dtype=torch.float32)
    with torch.inference_mode():
        found = TwoStage(model).eval()(images, ends)
    compare(model.head, [value.numpy() for value in found], expected)
    session = backends.load("onnxruntime").open_session(exported)
    values = session.run({"images": images.numpy(), IMAGE_SIZES: ends.numpy()})
    compare(model.head, list(values.values()), expected)
    assert (values["boxes"].max(1) <= ends.flip(1).repeat(1, 2).numpy()).all()


def test_a_network_is_the_same_graph_whatever_the_levels_of_its_pyramid_hold() -> None:
    recipe = RECIPES.load("mask_rcnn")
    torch.manual_seed(0)
    network = settled(light.light_mask_rcnn(CLASSES))
    sizes = [(96, 128), (32, 320), (256, 64)]  # from 3 to 768 anchors in the coarser levels
    preprocess = Preprocess(sizes[0], resize="corner", canvases=tuple(sizes[1:]))
    card = ModelCard(recipe.name, "light", "instance_segmentation", preprocess, ("a",), "")
    trained = loading.Network(TwoStage(network).eval(), recipe, card)
    models = [tracing.to_onnx(trained.at(size), 19) for size in sizes]
    for one in models:
        fusion.fuse(one)
        ops.attach(one)
    session = onnxruntime.open_model(opened.made(canvases.merged(models), Path("model.onnx")))
    for size in sizes:
        images = torch.nn.functional.interpolate(pictures(1), size)
        found = session.run({"images": images.numpy()})
        assert_same_masks(list(found.values()), eager(network, images))
        assert int(found["count"].min()) > 5


def test_an_image_without_objects_gives_zeros(model: Any) -> None:
    network = TwoStage(model).eval()
    network.score_threshold = 1.0
    with torch.inference_mode():
        boxes, scores, classes, count, *_ = network(pictures(2))
    assert count.tolist() == [0, 0]
    assert not boxes.any()
    assert not scores.any()
    assert (classes == -1).all()


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model exported from its state dict."""
    folder = tmp_path_factory.mktemp(model.head)
    torch.save(model.state_dict(), folder / "model.pth")
    path = folder / "model.onnx"
    limits = {"candidates": str(FEWER), "proposals": str(FEWER)}
    limits["detections"] = str(FOUND)
    options = ExportOptions(input_size=SIZE, settings=limits)
    with narrowed():
        exporting.export(folder / "model.pth", path, options)
    return path


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_onnx_runtime_finds_what_torchvision_finds(
    model: Any, theirs: Callable[[int], Any], exported: Path, batch: int
) -> None:
    session = backends.load("onnxruntime").open_session(exported)
    found = session.run({"images": pictures(batch).numpy()})
    compare(model.head, list(found.values()), theirs(batch))


def test_the_exported_graph_is_small_and_holds_nothing_that_tensorrt_refuses(
    model: Any, exported: Path
) -> None:
    graph = onnxfile.read_model(exported)
    assert len(graph.graph) <= 700
    types = {node.op_type for node in graph.graph if node.domain != "deploykit"}
    assert not types & {"If", "Loop", "NonZero", "NonMaxSuppression", "RoiAlign"}
    assert "BatchNormalization" not in types
    poolers = 1 if model.head == "boxes" else 2
    assert ops.counts(graph) == {"DKBatchedNms": 2, "DKMultiscaleRoiAlign": poolers}


def test_the_standard_ops_for_tensorrt_find_the_same(
    model: Any, theirs: Callable[[int], Any], exported: Path, tmp_path: Path
) -> None:
    if model.head != "masks":
        pytest.skip("one kind shows it")
    graph = onnxfile.read_model(exported)
    ops.inline(graph)
    onnxfile.write_model(graph, tmp_path / "standard.onnx")
    session = backends.load("onnxruntime").open_session(tmp_path / "standard.onnx")
    found = list(session.run({"images": pictures(1).numpy()}).values())
    compare(model.head, found, theirs(1))


@pytest.mark.parametrize("head", HEADS)
def test_every_variant_is_told_from_its_state_dict(head: Any) -> None:
    recipe = RECIPES.load(NAMES[head])
    alike = {two_stage_models.MOBILE_320: two_stage_models.MOBILE}
    for variant in recipe.variants:
        with torch.device("meta"):
            state = recipe.network(variant, CLASSES).state_dict()
        if variant == two_stage_models.EPS0:
            state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        answer = told(recipe.identify(recipe.adapt(state), Facts()))
        assert answer == (alike.get(variant, variant), CLASSES)


@pytest.mark.parametrize(
    ("recipe", "variant", "published"),
    [
        ("faster_rcnn", "resnet50_fpn", 41_755_286),
        ("faster_rcnn", "resnet50_fpn_v2", 43_712_278),
        ("faster_rcnn", "mobilenet_v3_large_fpn", 19_386_354),
        ("mask_rcnn", "resnet50_fpn", 44_401_393),
        ("mask_rcnn", "resnet50_fpn_v2", 46_359_409),
        ("keypoint_rcnn", "resnet50_fpn", 59_137_258),
    ],
)
def test_parameters_are_as_many_as_published(recipe: str, variant: str, published: int) -> None:
    classes = 1 if recipe == "keypoint_rcnn" else 90
    with torch.device("meta"):
        network = RECIPES.load(recipe).network(variant, classes)
    frozen = variant.endswith(("resnet50_fpn", "large_fpn"))  # its norms count no parameters
    norms = [
        parameter.numel()
        for module in network.get_submodule("backbone").modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for parameter in module.parameters()
    ]
    total = sum(parameter.numel() for parameter in network.parameters())
    assert total - (sum(norms) if frozen else 0) == published


def test_older_names_of_torchvision_are_read() -> None:
    network = RECIPES.load("mask_rcnn").network("resnet18_fpn", CLASSES)
    state = network.state_dict()
    old = {
        key.replace("rpn.head.conv.0.0", "rpn.head.conv")
        .replace("blocks.0.0.", "blocks.0.")
        .replace("mask_head.1.0.", "mask_head.mask_fcn2."): value
        for key, value in state.items()
    }
    assert set(old) != set(state)
    assert set(two_stage_family.adapt(old)) == set(state)


_RENAMED = (
    (r"^backbone\.body\.layer(\d)\.(\d+)\.conv(\d)\.", "backbone.bottom_up.res{0}.{1}.conv{2}."),
    (r"^backbone\.body\.layer(\d)\.(\d+)\.bn(\d)\.", "backbone.bottom_up.res{0}.{1}.conv{2}.norm."),
    (
        r"^backbone\.body\.layer(\d)\.(\d+)\.downsample\.0\.",
        "backbone.bottom_up.res{0}.{1}.shortcut.",
    ),
    (
        r"^backbone\.body\.layer(\d)\.(\d+)\.downsample\.1\.",
        "backbone.bottom_up.res{0}.{1}.shortcut.norm.",
    ),
)
"""Blocks: torchvision's name -> detectron2's, whose stages count from 2."""
_REPLACED = (
    ("backbone.body.conv1.", "backbone.bottom_up.stem.conv1."),
    ("backbone.body.bn1.", "backbone.bottom_up.stem.conv1.norm."),
    *((f"backbone.fpn.inner_blocks.{i}.0.", f"backbone.fpn_lateral{i + 2}.") for i in range(4)),
    *((f"backbone.fpn.layer_blocks.{i}.0.", f"backbone.fpn_output{i + 2}.") for i in range(4)),
    ("rpn.head.conv.0.0", "proposal_generator.rpn_head.conv"),
    ("rpn.head.cls_logits", "proposal_generator.rpn_head.objectness_logits"),
    ("rpn.head.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"),
    ("box_head.fc6", "box_head.fc1"),
    ("box_head.fc7", "box_head.fc2"),
    ("mask_predictor.conv5_mask", "mask_head.deconv"),
    ("mask_predictor.mask_fcn_logits", "mask_head.predictor"),
    *((f"mask_head.{i}.0", f"mask_head.mask_fcn{i + 1}") for i in range(4)),
)


def detectron2_name(key: str) -> str:
    """Return detectron2's name of a weight, written from its model zoo's listing."""
    for pattern, name in _RENAMED:
        found = re.match(pattern, key)
        if found:
            layer, *rest = found.groups()
            return name.format(int(layer) + 1, *rest) + key[found.end() :]
    for old, new in _REPLACED:
        key = key.replace(old, new)
    return key


def detectron2s(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict as detectron2 keeps it: its background class is the last, or none."""
    top, found = "roi_heads.box_predictor", {"pixel_mean": torch.zeros(3, 1, 1)}
    for key, value in state.items():
        name = detectron2_name(key)
        if key == detectron2_layout.MARK or key.endswith("num_batches_tracked"):
            continue
        if name.startswith(f"{top}.cls_score"):
            found[name] = torch.cat([value[1:], value[:1]])
        elif name.startswith(f"{top}.bbox_pred"):
            found[name] = value[4:]
        elif name.startswith("roi_heads.mask_head.predictor"):
            found[name] = value[1:]
        else:
            found[name] = value
    return found


def test_detectron2s_weights_come_to_their_places() -> None:
    recipe = RECIPES.load("mask_rcnn")
    network = recipe.network("detectron2_resnet50_fpn", CLASSES)
    state = network.state_dict()
    for key, value in state.items():
        if "box_predictor.bbox_pred" in key:
            value[:4] = 0
        if "mask_fcn_logits" in key:
            value[:1] = 0
    theirs = detectron2s(state)
    assert "backbone.bottom_up.res4.0.shortcut.norm.running_mean" in theirs
    back = recipe.adapt(theirs)
    assert told(recipe.identify(back, Facts())) == ("detectron2_resnet50_fpn", CLASSES)
    for key, value in back.items():
        if key != "pixel_mean":
            assert torch.equal(value, state[key]), key
    assert {k for k in set(state) - set(back) if not k.endswith("num_batches_tracked")} == set()


def test_detectron2s_conventions_are_kept() -> None:
    network: Any = RECIPES.load("mask_rcnn").network("detectron2_resnet50_fpn", CLASSES)
    assert network.sampling == Sampling(1, 0, 1e-8, 1)
    block = network.backbone.body.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    side = 32 / 2**0.5
    expected = np.array([[-side, -side / 2, side, side / 2]], np.float32)
    np.testing.assert_allclose(network.cells[0][:1], expected, rtol=1e-6)
    prepared = RECIPES.load("mask_rcnn").variant("detectron2_resnet50_fpn").preprocess
    assert (prepared.channels, prepared.std, prepared.resampler) == (
        "BGR",
        (1.0, 1.0, 1.0),
        "pillow",
    )


def test_proposals_of_nothing_are_nothing() -> None:
    model = made("boxes")
    propose = Proposals(model.rpn)
    scores = torch.full((2, 1000), NOTHING)
    kept = (torch.zeros(2, 1000, 4), scores * 0, None, torch.full((2, 1000), -1), None)
    rois = propose._joined(kept, 1)  # type: ignore[arg-type]  # what is not looked at is None
    assert isinstance(rois, Rois)
    assert rois.count.tolist() == [0, 0]
    assert not rois.boxes.any()


def test_a_mask_rcnn_is_not_taken_for_a_faster_rcnn(tmp_path: Path) -> None:
    torch.save(made("masks").state_dict(), tmp_path / "model.pth")
    network = loading.load_network(tmp_path / "model.pth", ExportOptions(input_size=SIZE))
    assert (network.recipe.name, network.card.variant) == ("mask_rcnn", "resnet18_fpn")
    with pytest.raises(CheckpointError, match="is not a checkpoint of faster_rcnn"):
        loading.load_network(tmp_path / "model.pth", ExportOptions("faster_rcnn"))


def test_names_of_classes_follow_their_number() -> None:
    names = RECIPES.load("mask_rcnn").class_names
    assert names(90)[:2] == ("person", "bicycle")
    assert names(80)[-1] == "toothbrush"
    assert "N/A" not in names(80)
    assert names(1) == ("person",)
    assert names(3) == ("class0", "class1", "class2")
