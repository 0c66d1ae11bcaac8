"""What PointRend's heads learn from, against masks that grid_sample reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it

from deploykit.networks.detectors.point_rend import PointRend, Widths
from deploykit.training import rendering

if TYPE_CHECKING:
    from torch import Tensor

CLASSES, CHANNELS, STRIDE = 3, 8, 4


@pytest.fixture
def known() -> rendering.Objects:
    """A disc and a bar in the first of two images, a disc in the second; four boxes."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    shown = torch.zeros(2, 48, 64, dtype=torch.uint8)
    shown[0][(x - 20) ** 2 + (y - 24) ** 2 < 150] = 1
    shown[0][(x > 36) & (x < 60) & (y > 10) & (y < 18)] = 2
    shown[1][(x - 40) ** 2 + (y - 20) ** 2 < 220] = 1
    boxes = [[8, 12, 33, 36], [37, 11, 60, 18], [30, 4, 62, 30.5], [25, 5, 55, 35]]
    return rendering.Objects(
        shown,
        torch.tensor([0, 0, 0, 1]),
        torch.tensor([1, 2, 2, 1]),
        torch.tensor([0, 2, 2, 1]),
        torch.tensor(boxes, dtype=torch.float32),
    )


def read(known: rendering.Objects, points: Tensor) -> Tensor:
    """Return each object's mask at points of its box, float[n, P], by grid_sample."""
    size = torch.tensor([64.0, 48.0])
    masks = (known.shown[known.image] == known.number[:, None, None]).float()
    within = known.boxes[:, None, :2] + points * (
        known.boxes[:, None, 2:] - known.boxes[:, None, :2]
    )
    grid = 2 * (within / size).unsqueeze(2) - 1
    return F.grid_sample(masks.unsqueeze(1), grid, align_corners=False)[:, 0, :, 0]


def test_points_show_what_the_masks_of_their_objects_have_there(known: rendering.Objects) -> None:
    torch.manual_seed(0)
    points = torch.rand(4, 500, 2)
    share = read(known, points)
    sure = (share - 0.5).abs() > 1e-4
    assert sure.float().mean() > 0.9
    assert torch.equal(known.at(points)[sure], (share >= 0.5).float()[sure])


def test_most_points_lie_where_the_coarse_mask_of_the_label_is_in_doubt() -> None:
    torch.manual_seed(0)
    line = (torch.arange(7) - 3.0).repeat(7, 1)  # in doubt on the middle column
    head = PointRend(CHANNELS, CLASSES, Widths(32, 16, 64))
    masks = torch.stack([torch.full((7, 7), 5.0), 8 * line])[None]
    found = rendering.doubtful(head, masks.expand(2, -1, -1, -1), torch.tensor([1, 1]))
    assert found.shape == (2, rendering.POINTS, 2)
    assert 0 <= found.min() < found.max() <= 1
    near = ((found[..., 0] - 0.5).abs() < 0.17).float().mean()
    assert near > rendering.IMPORTANT
    even = rendering.doubtful(head, masks, torch.tensor([0]))
    assert 0.2 < ((even[..., 0] - 0.5).abs() < 0.17).float().mean() < 0.5


def test_the_heads_learn_masks_that_they_are_shown(known: rendering.Objects) -> None:
    torch.manual_seed(0)
    head = PointRend(CHANNELS, CLASSES, Widths(32, 16, 64))
    features = F.avg_pool2d((known.shown.unsqueeze(1) == 1).float(), STRIDE)
    features = torch.cat([features, torch.randn(2, CHANNELS - 1, 12, 16)], 1)
    learner = torch.optim.AdamW(head.parameters(), lr=3e-3)
    told = []
    for _ in range(40):
        parts = rendering.losses(head, features, STRIDE, known)
        learner.zero_grad()
        torch.stack([*parts.values()]).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
        learner.step()
        told.append({name: float(value.detach()) for name, value in parts.items()})
    assert all(told[-1][name] < 0.4 * told[0][name] for name in ("coarse", "points"))


def test_a_batch_without_objects_costs_nothing(known: rendering.Objects) -> None:
    none = torch.empty(0, dtype=torch.int64)
    empty = rendering.Objects(known.shown, none, none, none, torch.empty(0, 4))
    head = PointRend(CHANNELS, CLASSES, Widths(32, 16, 64))
    parts = rendering.losses(head, torch.randn(2, CHANNELS, 12, 16), STRIDE, empty)
    assert [float(value.detach()) for value in parts.values()] == [0.0, 0.0]
    torch.stack([*parts.values()]).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
