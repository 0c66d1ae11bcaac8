"""PointRend on DeepLabV3, against its rules told anew with grid_sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import published
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from random_weights import HALVES, check_refused, skewed
from rendered_points import CLASSES, MOST, POINTS, check_exported, rendered, sampled
from torchvision.models import segmentation

from deploykit.networks import reparam
from deploykit.networks.detectors import point_rend_deeplab as deeplab
from deploykit.networks.detectors import point_rend_semantic as semantic
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

RECIPE = RECIPES.load("point_rend_deeplab")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few points that small maps have more, found in three searches."""
    monkeypatch.setattr(deeplab, "POINTS", POINTS)
    monkeypatch.setattr(semantic, "MOST", MOST)


def expected(head: Any, fine: Tensor, logits: Tensor, steps: int) -> Tensor:
    """Return the scores as the paper makes them; points read the scores of this moment."""

    def scores(logits: Tensor, points: Tensor) -> Tensor:
        x = torch.cat([sampled(logits, points), sampled(fine, points)], 1)
        return F.conv1d(x, head.mlp.weight, head.mlp.bias)

    for _ in range(steps):
        logits = rendered(logits, scores, align_corners=True)
    return logits


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("steps", [2, 3])
def test_scores_are_those_of_the_paper(steps: int) -> None:
    head = skewed(deeplab.Points(CLASSES), uneven=1 / 3, biases=0.2).double()
    generator = torch.Generator().manual_seed(0)
    fine, coarse = (
        torch.randn(2, channels, 8, 12, generator=generator, dtype=torch.float64)
        for channels in (deeplab.FINE, CLASSES)
    )
    sides = [8 << steps, 12 << steps]
    with torch.no_grad():
        wanted = expected(head, fine, coarse, steps)
        for form in (head, reparam.fold(head)):
            found = form(fine, coarse, sides)
            assert list(found.shape[2:]) == sides
            assert (wanted - found).abs().max() <= 1e-9 * wanted.abs().max()


DIGESTS = {
    "resnet50": (364, "fc3acf20462fe75aa7bb17e24a51d541a97f50d70e86bca2460c3ef0d9735dc8"),
    "resnet101": (670, "7dd75ee9e6235bcd04b8e231a68fddad025f19cfe694f0ff8fe3372d342e954e"),
    "resnet53": (364, "0b816cd615499d603e86a4a233c38fb7571dc632c090bb6f189581a753090c18"),
    "resnet103": (670, "185b332b15fc1d44dec30b98f89199efbb3ff887d37fdee1ba145d829dff68a3"),
}
"""How many entries a checkpoint has, and the SHA-256 of their names and shapes."""


@pytest.mark.parametrize("variant", RECIPE.variants)
def test_names_and_shapes_are_the_project_s_and_weights_torchvision_s(variant: str) -> None:
    with torch.device("meta"):
        network = RECIPE.network(variant, 19)
        body = deeplab.LARGE.get(variant, variant)
        whole = getattr(segmentation, f"deeplabv3_{body}")(
            weights=None, weights_backbone=None, num_classes=19, aux_loss=False
        )
    assert published.digest(network.state_dict()) == DIGESTS[variant]
    stem = 64 * 3 * (7 * 7 - 3 * 3) if variant in deeplab.LARGE else 0
    point = (deeplab.FINE + 19) * 19 + 19
    counts = [sum(p.numel() for p in each.parameters()) for each in (network, whole)]
    assert counts[0] == counts[1] + point - stem


@pytest.mark.parametrize("variant", RECIPE.variants)
def test_its_files_are_known(variant: str) -> None:
    with torch.device("meta"):
        state = dict(RECIPE.network(variant, 19).state_dict())
        state["backbone.backbone.fc.weight"] = torch.empty(1000, 2048)
    found = RECIPE.adapt(state)
    assert RECIPE.identify(found, Facts()) == (variant, 19)
    assert "backbone.backbone.fc.weight" not in found


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights of a network whose body has few blocks."""
    monkeypatch.setitem(deeplab.BLOCKS, "resnet50", (1, 1, 2, 1))
    torch.manual_seed(0)
    return dict(skewed(RECIPE.network("resnet50", CLASSES), uneven=1 / 3, biases=0.2).state_dict())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if "layer2" not in k}, "missing"),
        HALVES[0],
        (lambda s: s | {"head.mlp.weight": torch.zeros(3, 9, 1)}, "is not a checkpoint of"),
        (lambda s: s | {"head.mlp.weight": torch.tensor(1.0)}, "is not a checkpoint of"),
        (lambda s: s | {"backbone.backbone.conv1.weight": torch.zeros(64, 1, 7, 7)}, "1 channel"),
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
    check_exported(little, tmp_path, searches=9)  # three parts in each of three steps
