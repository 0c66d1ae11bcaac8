"""Learning sets of objects, against scipy's and torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision import ops

from deploykit.training import set_prediction
from deploykit.training.set_prediction import Objects


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (5, 7), (8, 25)])
def test_objects_are_assigned_at_the_cost_that_scipy_finds(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    costs = 5 * torch.randn(60, rows, columns, generator=generator)
    costs[::3] = costs[::3].round()  # ties
    for cost, query in zip(costs, set_prediction.assigned(costs), strict=True):
        best = cost[linear_sum_assignment(cost.numpy())].sum()
        assert len(query.unique()) == rows
        assert float(cost[torch.arange(rows), query].sum()) == pytest.approx(float(best), abs=1e-4)


def test_an_assigner_gives_the_same_for_costs_of_any_shape() -> None:
    assign = set_prediction.Assigner()
    for shape in ((4, 3, 5), (2, 1, 5), (4, 3, 5)):
        costs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(assign(costs), set_prediction.assigned(costs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_replayed_assignment_is_the_one_that_is_computed_step_by_step() -> None:
    costs = torch.randn(2, 48, 8, 25, device="cuda")
    replayed = set_prediction.Replayed(costs[0])
    for each in costs:
        assert torch.equal(replayed(each), set_prediction.assigned(each))


def corners(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def test_overlaps_are_torchvisions() -> None:
    one, other = torch.rand(2, 9, 4, generator=torch.Generator().manual_seed(1))
    expected = ops.generalized_box_iou(corners(one), corners(other))
    found = set_prediction.overlaps(one[:, None], other[None])
    torch.testing.assert_close(found, expected)


def test_queries_that_say_the_truth_cost_nothing_wherever_they_stand() -> None:
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.1], [0.7, 0.6, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0]]])
    truth = Objects(boxes, torch.tensor([[2, 0, -1]]))
    places = np.array([4, 1])
    logits = torch.full((1, 1, 5, 4), -20.0)
    logits[..., 3] = 20.0
    logits[0, 0, places, [2, 0]] = 60.0
    found = torch.full((1, 1, 5, 4), 0.5)
    found[0, 0, places] = boxes[0, :2]
    query = set_prediction.matched(logits, found, truth)
    assert query[0, 0, :2].tolist() == places.tolist()
    costs = set_prediction.set_losses(logits, found, truth, query)
    assert all(abs(float(value)) < 1e-5 for value in costs.values())
    wrong = set_prediction.set_losses(logits, found, truth, query.roll(1, 2))
    assert all(float(value) > 0.5 for value in wrong.values())
