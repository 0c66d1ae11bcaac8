"""PointRend for semantic segmentation, against its rules told anew with grid_sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import detectron2_names
import published
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from random_weights import HALVES, check_refused, skewed
from rendered_points import CLASSES, MOST, POINTS, check_exported, rendered, sampled

from deploykit.networks import reparam
from deploykit.networks.detectors import point_rend_semantic as semantic
from deploykit.recipes.identity import Facts, Found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

RECIPE = RECIPES.load("point_rend_seg")
CHANNELS = 8


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few points that small maps have more, found in three searches."""
    monkeypatch.setattr(semantic, "POINTS", POINTS)
    monkeypatch.setattr(semantic, "MOST", MOST)


def expected(head: semantic.Head, maps: list[Tensor]) -> Tensor:
    """Return the scores as the papers make them."""
    own: Any = head
    parts = []
    for level, features in zip(("p2", "p3", "p4", "p5"), maps, strict=True):
        x = features
        for layer in own.coarse_sem_seg_head.get_submodule(level):
            if isinstance(layer, torch.nn.Upsample):
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            else:
                x = F.conv2d(x, layer.weight, padding=1)
                x = F.group_norm(x, 32, layer.norm.weight, layer.norm.bias).relu()
        parts.append(x)
    predictor = own.coarse_sem_seg_head.predictor
    logits = coarse = F.conv2d(torch.stack(parts).sum(0), predictor.weight, predictor.bias)

    def scores(_: Tensor, points: Tensor) -> Tensor:
        x = torch.cat([sampled(maps[0], points), sampled(coarse, points)], 1)
        for layer in (own.point_head.fc1, own.point_head.fc2, own.point_head.fc3):
            x = F.conv1d(x, layer.weight, layer.bias).relu()
        return F.conv1d(x, own.point_head.predictor.weight, own.point_head.predictor.bias)

    for _ in range(2):
        logits = rendered(logits, scores, align_corners=False)
    return logits


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("form", "size"), [("trained", (16, 24)), ("folded", (16, 24)), ("folded", (8, 16))]
)
def test_scores_are_those_of_the_paper(form: str, size: tuple[int, int]) -> None:
    """A map with fewer cells than there are points goes through the first layer as it is."""
    head = skewed(semantic.Head(CHANNELS, CLASSES), uneven=1 / 3, biases=0.2).double()
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(2, CHANNELS, *(s >> i for s in size), generator=generator, dtype=torch.float64)
        for i in range(4)
    ]
    module = head if form == "trained" else reparam.fold(head)
    with torch.no_grad():
        wanted, found = expected(head, maps), module(maps)
    assert found.shape == (2, CLASSES, *(4 * side for side in size))
    assert (wanted - found).abs().max() <= 1e-9 * wanted.abs().max()


def test_the_most_doubtful_points_are_found_whatever_their_number() -> None:
    logits = torch.randn(2, 3, 70, 80, generator=torch.Generator().manual_seed(0))
    logits[:, :, 0, 0] = torch.tensor([1.0, 1.0, 0.0])  # two are first
    doubt = semantic.doubt(logits)
    first, second = logits.topk(2, 1).values.unbind(1)
    assert torch.equal(doubt, (second - first).flatten(1))
    assert doubt[0, 0] == 0
    chosen = semantic.most(doubt, 5000)  # more than one search may find
    assert semantic.most(doubt, 5000).shape == (2, 5000)
    for row, wanted in zip(chosen, doubt.argsort(1, descending=True)[:, :5000], strict=True):
        assert set(row.tolist()) == set(wanted.tolist())


KEYS = 567
DIGEST = "0f8a77b758d005ee4c3edbb1bf58777de33f2741e29292710d04e1a029d436eb"
"""How many entries a published checkpoint on ResNet-101 has, and the SHA-256 of their names and
shapes."""
WEIGHTS = 47_677_926
"""Of the official network on ResNet-101 with 19 classes."""


def official(body: str = "resnet101") -> dict[str, Tensor]:
    """Return a state dict on the meta device under detectron2's names."""
    with torch.device("meta"):
        network = RECIPE.network(f"{body}_fpn", 19)
    found = {}
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        name = key
        for ours, theirs in detectron2_names.BACKBONE:
            name = name.replace(ours, theirs)
        found[name] = value
    return found


def test_names_and_shapes_are_those_of_the_official_network() -> None:
    assert published.digest(official()) == (KEYS, DIGEST)
    with torch.device("meta"):
        network = RECIPE.network("resnet101_fpn", 19)
    assert sum(p.numel() for p in network.parameters()) == WEIGHTS


@pytest.mark.parametrize("body", ["resnet18", "resnet101"])
def test_its_files_are_known_and_what_they_say_of_images_is_kept(body: str) -> None:
    state = official(body)
    state |= {"pixel_mean": torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)}
    found = RECIPE.identify(RECIPE.adapt(state), Facts())
    assert isinstance(found, Found)
    assert (found.variant, found.classes) == (f"{body}_fpn", 19)
    assert found.settings["channels"].value == "RGB"
    assert found.preprocess is not None
    assert found.preprocess(None).channels == "RGB"
    assert RECIPE.class_names(19)[13] == "car"
    assert RECIPES.load("point_rend").identify(RECIPE.adapt(state), Facts()) is None


@pytest.fixture(scope="module")
def little() -> dict[str, Tensor]:
    """The weights of a small network."""
    torch.manual_seed(0)
    return dict(
        skewed(RECIPE.network("resnet18_fpn", CLASSES), uneven=1 / 3, biases=0.2).state_dict()
    )


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if "point_head" not in k}, "missing"),
        (lambda s: {k: v for k, v in s.items() if "fpn" not in k}, "missing"),
        *HALVES,
        (lambda s: s | {"sem_seg_head.point_head.fc1.weight": torch.tensor(1.0)}, "fc1"),
        (lambda s: s | {"backbone.body.conv1.weight": torch.zeros(64, 1, 7, 7)}, "1 channel"),
    ],
)
def test_harmed_weights_are_refused_with_one_message(
    harm: Callable[[Any], Any], said: str, little: dict[str, Tensor], tmp_path: Path
) -> None:
    check_refused(harm(little), said, tmp_path)


@pytest.mark.usefixtures("few")
def test_a_segmenter_is_exported_as_a_graph_without_branches(
    little: dict[str, Tensor], tmp_path: Path
) -> None:
    check_exported(little, tmp_path, searches=6)  # three parts in each of two steps
