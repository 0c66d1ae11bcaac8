"""How unlike a student is to its teacher: the parts of the loss of a distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from typing_extensions import assert_never

from deploykit.training import objectives
from deploykit.training.objectives import Term

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from deploykit.training.course import Course
    from deploykit.training.landmarks import Head
    from deploykit.training.objectives import Sums

Pairs: TypeAlias = "Mapping[str, tuple[Tensor, Tensor]]"
"""Tensor -> what the student and the teacher give."""


def terms(course: Course, heads: Sequence[Head], pairs: Pairs, left: float) -> list[Term]:
    """Return the parts; left: what is left of their weights at this step."""
    features = [objectives.channelwise(*pairs[n], course.temperature) for n in course.features]
    compared = list(_by_kind(heads, pairs))
    return [
        *_shared("features", course.feature_weight, features, left),
        *_shared("heads", course.head_weight, compared, left),
    ]


def _shared(kind: str, weight: float, sums: Sequence[Sums], left: float) -> Iterator[Term]:
    """Yield parts of a loss that weigh `weight` together, of which `left` is left."""
    for each in sums:
        yield Term(kind, weight / len(sums), each, left)


def _by_kind(heads: Sequence[Head], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[Sums]:
    """Yield how unlike what the heads of student and teacher give is, by what it means.

    Where one gives the chances that a row holds something, the others count by the largest.
    """
    told = [pairs[head.tensor][1] for head in heads if head.kind == "sigmoid"]
    seen = told[0].float().sigmoid() if told else None
    for head in heads:
        student, teacher = pairs[head.tensor]
        weight = None if seen is None else objectives.belief(seen, teacher)
        match head.kind:
            case "sigmoid":
                yield objectives.chances(student, teacher)
            case "softmax":
                yield objectives.distributions(student, teacher, head.axis, weight)
            case "plain":
                yield objectives.noise(student, teacher, weight)
            case _:
                assert_never(head.kind)
