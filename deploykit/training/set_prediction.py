"""Learning sets of objects: which query is which object, and what that costs.

Source: End-to-End Object Detection with Transformers (arXiv 2005.12872, sections 3.1 and A.2).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = 0.1
"""Weight of a query that is no object in the cross entropy."""
SIDES, OVERLAP = 5.0, 2.0
"""Weights of the sides' differences and of what GIoU lacks to 1."""


class Objects(NamedTuple):
    """What is in each image, as many rows each."""

    boxes: Tensor
    """float32[B, M, 4]: cx, cy, w, h as shares of the image."""
    classes: Tensor
    """int64[B, M]; -1: no object."""


def assigned(costs: Tensor) -> Tensor:
    """Return the query of each object, int64[N, M], so that the costs' sum is the least.

    costs: float32[N, M, Q], finite, M at most Q. All N problems are solved side by side, by
    shortest augmenting paths: the objects enter one by one, each by the cheapest chain of queries
    that change hands. Row 0 and column 0 stand for "none" inside.

    Source: Jonker and Volgenant, A shortest augmenting path algorithm (Computing 38, 1987).
    """
    count, rows, columns = costs.shape
    by_row = costs.new_zeros(count, rows + 1)  # the duals
    by_column = costs.new_zeros(count, columns + 1)
    owner = torch.zeros(count, columns + 1, dtype=torch.int64, device=costs.device)
    for row in range(1, rows + 1):
        owner[:, 0] = row
        column, way = _path(costs, by_row, by_column, owner, row)
        for _ in range(row):
            before = way.gather(1, column)
            given = torch.where(column > 0, owner.gather(1, before), owner.gather(1, column))
            owner.scatter_(1, column, given)
            column = torch.where(column > 0, before, column)
    owner[:, 0] = 0
    places = torch.arange(columns + 1, device=costs.device).expand_as(owner)
    found = torch.zeros(count, rows + 1, dtype=torch.int64, device=costs.device)
    return found.scatter_(1, owner, places)[:, 1:] - 1


class Replayed:
    """`assigned` for costs of one shape on a GPU: recorded once, its thousand kernels are one call.

    They take microseconds each, less than a call of torch does.
    """

    def __init__(self, costs: Tensor) -> None:
        """Record. Raises: RuntimeError where that is impossible, or gives another result."""
        self._costs = costs.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it bare
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            expected = assigned(self._costs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = assigned(self._costs)
        if not torch.equal(self(costs), expected):
            raise RuntimeError("the recorded assignment is another one")

    def __call__(self, costs: Tensor) -> Tensor:
        """Return what `assigned` does."""
        self._costs.copy_(costs)
        self._graph.replay()
        return self._found.clone()


class Assigner:
    """`assigned`, replayed on a GPU, where that is possible, while the shape stays the same."""

    def __init__(self) -> None:
        """Wait for the first costs."""
        self._shape: torch.Size | None = None
        self._assign: Callable[[Tensor], Tensor] = assigned

    def __call__(self, costs: Tensor) -> Tensor:
        """Return what `assigned` does."""
        if costs.is_cuda and costs.shape != self._shape:
            self._shape, self._assign = costs.shape, assigned
            with contextlib.suppress(RuntimeError):
                self._assign = Replayed(costs)
        return self._assign(costs)


def _path(
    costs: Tensor, by_row: Tensor, by_column: Tensor, owner: Tensor, row: int
) -> tuple[Tensor, Tensor]:
    """Return the free column [N, 1] that is reached the cheapest, and how [N, Q + 1].

    The duals are changed. With `row` - 1 columns taken, a free one is reached in `row` steps.
    """
    columns = by_column.shape[1]
    column = torch.zeros_like(owner[:, :1])
    way = torch.zeros_like(owner)
    least = torch.full_like(by_column, torch.inf)
    used = torch.zeros_like(by_column, dtype=torch.bool)
    for _ in range(row):
        holder = owner.gather(1, column)
        going = holder > 0
        used = used | (torch.zeros_like(used).scatter_(1, column, value=True) & going)
        index = (holder - 1).clamp(min=0)[..., None].expand(-1, -1, columns - 1)
        edge = costs.gather(1, index)[:, 0] - by_row.gather(1, holder)
        edge = functional.pad(edge, (1, 0), value=torch.inf) - by_column
        better = (edge < least) & ~used & going
        least, way = torch.where(better, edge, least), torch.where(better, column, way)
        step, nearest = least.masked_fill(used, torch.inf).min(1, keepdim=True)
        step = torch.where(going, step, 0.0)
        taken = used * step
        by_row.scatter_add_(1, owner, taken)
        by_column.sub_(taken)
        least = torch.where(used, least, least - step)
        column = torch.where(going, nearest, column)
    return column, way


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Return GIoU, -1 to 1, of boxes cx, cy, w, h that are broadcast.

    Source: arXiv 1902.09630: IoU less the share of the hull that is in neither.
    """
    ends = [
        (boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2)
        for boxes in (one, other)
    ]
    (low, high), (first, last) = ends
    shared = (torch.minimum(high, last) - torch.maximum(low, first)).clamp(min=0).prod(-1)
    hull = (torch.maximum(high, last) - torch.minimum(low, first)).prod(-1).clamp(min=1e-9)
    union = one[..., 2:].prod(-1) + other[..., 2:].prod(-1) - shared
    return shared / union.clamp(min=1e-9) - (hull - union) / hull


@torch.no_grad()
def matched(
    logits: Tensor,
    boxes: Tensor,
    truth: Objects,
    assign: Callable[[Tensor], Tensor] = assigned,
) -> Tensor:
    """Return the query of each object, int64[B, K, M], anything for rows without one.

    logits: float32[B, K, Q, classes + 1]; boxes: float32[B, K, Q, 4]; K sets are matched apart.
    """
    sets, queries = logits.shape[1:3]
    there = truth.boxes[:, None, :, None]
    index = truth.classes.clamp(min=0)[:, None, None].expand(-1, sets, queries, -1)
    chance = logits.softmax(-1).gather(-1, index).transpose(2, 3)
    sides = (boxes[:, :, None] - there).abs().sum(-1)
    costs = SIDES * sides - OVERLAP * overlaps(boxes[:, :, None], there) - chance
    costs = torch.where((truth.classes >= 0)[:, None, :, None], costs, 0.0)
    return assign(costs.flatten(0, 1)).reshape(len(costs), sets, -1)


def set_losses(logits: Tensor, boxes: Tensor, truth: Objects, query: Tensor) -> dict[str, Tensor]:
    """Return the losses of K sets of queries, added up over the sets.

    As `matched` takes and gives them.
    """
    sets = logits.shape[1]
    nothing = logits.shape[-1] - 1
    real = (truth.classes >= 0)[:, None].expand(-1, sets, -1)
    wanted = torch.full(logits.shape[:3], nothing, device=logits.device)
    given = truth.classes[:, None].expand(-1, sets, -1)
    wanted.scatter_(2, query, torch.where(real, given, nothing))
    weights = torch.ones(nothing + 1, device=logits.device)
    weights[nothing] = NOTHING
    named = functional.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weights)
    found = boxes.gather(2, query[..., None].expand(-1, -1, -1, 4))
    return {
        "class": sets * named,
        **box_losses(found, truth.boxes[:, None], real, real.sum() / sets),
    }


def box_losses(found: Tensor, there: Tensor, real: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Return what the sides and the overlaps cost where `real`, per `count`."""
    share = real / count.clamp(min=1)
    sides = (found - there).abs().sum(-1)
    return {
        "sides": SIDES * (sides * share).sum(),
        "overlap": OVERLAP * ((1 - overlaps(found, there)) * share).sum(),
    }
