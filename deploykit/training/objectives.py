"""What a network learns: its FP32 self by distillation, and a loss of the user's own.

Each is a sum of errors over a sum of weights, so that several processes that see a part of a batch
each come to what one that sees all of it does: both sums are added up before they are divided.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, distributed

from deploykit.errors import OptionError
from deploykit.files import extensions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.data.preprocess import Geometry

Truth: TypeAlias = "tuple[object, Geometry]"
"""What is known about an image, as its source gives it, and how the image lies in the input."""


class Sums(NamedTuple):
    """A mean of errors, error / weight, not divided yet."""

    error: Tensor
    weight: Tensor


class Term(NamedTuple):
    """A part of a loss."""

    kind: str
    """What it is called in the log."""
    share: float
    """What its mean is multiplied with."""
    sums: Sums
    left: float = 1.0
    """Of the share at this step; the log leaves it out, so that its figures compare."""


@dataclass(frozen=True)
class Loss:
    """The loss of a task, which a file of the user's own defines as `loss`."""

    tensors: tuple[str, ...]
    """Names of the tensors of the graph that it is computed of."""
    compute: Callable[[Mapping[str, Tensor], Sequence[Truth]], tuple[Tensor, Tensor | float]]
    """The tensors by name, and the truth about each image -> the sum of the errors, and what it is
    divided by, such as the number of objects."""


LOSSES = extensions.Kind("loss", "losses", Loss)
"""Those that users name by their files; none is shipped."""


def channelwise(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Sums:
    """Return how unlike two maps float[N, C, ...] are in where each channel is active.

    T^2 / C sum_c sum_i p_ci log(p_ci / q_ci), averaged over the images, with p and q the softmax
    of teacher / T and student / T over the positions i, in float32. Maps of three dimensions are
    tokens, float[N, L, C].

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction (2011.13256),
    equations 3 and 4.
    """
    q, p = ((_channels(each).float() / temperature).log_softmax(-1) for each in (student, teacher))
    error = F.kl_div(q, p, reduction="sum", log_target=True) * temperature**2
    return Sums(error, torch.tensor(float(p.shape[0] * p.shape[1]), device=error.device))


def _channels(x: Tensor) -> Tensor:
    """Return float[N, C, positions]."""
    return x.transpose(1, 2) if x.ndim == 3 else x.flatten(2)


def noise(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Sums:
    """Return the energy of the differences over that of the teacher about its mean in each image.

    A tensor weighs as much as any other, in whatever unit it is. weight: of each number, or row.
    """
    student, teacher = student.float(), teacher.float()
    each = 1.0 if weight is None else weight
    mean = teacher.flatten(1).mean(1).reshape(-1, *[1] * (teacher.ndim - 1))
    spread = ((teacher - mean).square() * each).sum()
    return Sums(((student - teacher).square() * each).sum(), spread)


def chances(student: Tensor, teacher: Tensor) -> Sums:
    """Return how unlike probabilities are, sum KL(p, q), for each thing that the teacher sees.

    p and q are the sigmoids of teacher and student; things are the sum of p: most places of a
    detector's map are empty, and say little.
    """
    student, teacher = student.float(), teacher.float()
    p = teacher.sigmoid()
    cross, own = (
        F.binary_cross_entropy_with_logits(each, p, reduction="sum") for each in (student, teacher)
    )
    return Sums(cross - own, p.sum())


def distributions(
    student: Tensor, teacher: Tensor, axis: int, weight: Tensor | None = None
) -> Sums:
    """Return how unlike distributions along an axis are, the mean of KL(p, q).

    p and q are the softmaxes of teacher and student. weight: of each, of size 1 along the axis.
    """
    q, p = (each.float().log_softmax(axis) for each in (student, teacher))
    each = F.kl_div(q, p, reduction="none", log_target=True).sum(axis, keepdim=True)
    shares = torch.ones_like(each) if weight is None else weight.expand_as(each)
    return Sums((each * shares).sum(), shares.sum())


def belief(seen: Tensor, other: Tensor) -> Tensor | None:
    """Return the largest chance of each row, or place, in a shape that `other` multiplies.

    seen: probabilities of shape [N, rows, classes], in any order behind N, or [N, classes, H, W].
    None: they and `other` have no rows in common.
    """
    one, two = seen.shape, other.shape
    if len(one) == len(two) > 3 and one[2:] == two[2:]:
        return seen.amax(1, keepdim=True)
    rows = max(one[1:], default=0)
    if len(one) < 3 or one[1:].count(rows) != 1 or two[1:].count(rows) != 1:
        return None
    others = [i for i in range(1, len(one)) if one[i] != rows]
    largest = seen.amax(others)
    return largest.reshape([n if i == 0 or n == rows else 1 for i, n in enumerate(two)])


def own(loss: Loss, found: Mapping[str, Tensor], truth: Sequence[Truth]) -> Sums:
    """Return the user's loss. Raises: OptionError where it fails or gives something else."""
    with extensions.blamed("the loss"):
        given: Any = loss.compute({name: found[name] for name in loss.tensors}, truth)
    good = isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor)
    if not good or given[0].numel() != 1:
        raise OptionError(
            "the loss returned something else than a sum of errors and what it is divided by",
            expected="(Tensor of one number, Tensor or float)",
        )
    error = given[0].reshape(())
    weight = torch.as_tensor(given[1], dtype=torch.float32, device=error.device)
    _check(error, weight)
    return Sums(error, weight.detach().reshape(()))


def _check(error: Tensor, weight: Tensor) -> None:
    """Check that a user's loss teaches something. Raises: OptionError."""
    if weight < 0:
        raise OptionError(
            f"the loss is divided by {weight:.4g}",
            expected="0 or more, such as a number of objects",
        )
    if torch.is_grad_enabled() and not error.requires_grad and error != 0:
        raise OptionError(
            "the loss has no gradient",
            expected="a sum computed of the tensors that it is given; 0 where nothing is to learn",
            fix="compute it by PyTorch alone, without detach(), item() or numpy()",
        )


def total(terms: Sequence[Term]) -> tuple[Tensor, dict[str, float]]:
    """Return the loss, sum of left * share * error / weight, and for the log its parts.

    Those are share * error / weight of each kind, and of all together.

    With several processes the sums are those of all of them, and the mean over the processes of
    the gradients is the gradient of the whole.
    """
    sums = torch.stack([torch.stack([t.sums.error.detach(), t.sums.weight]) for t in terms])
    processes = 1
    if distributed.is_initialized():
        distributed.all_reduce(sums)
        processes = distributed.get_world_size()
    loss = torch.zeros((), device=sums.device)
    parts = Counter[str]()
    weights = sums[:, 1].clamp(min=_LEAST)
    for term, weight, mean in zip(terms, weights, (sums[:, 0] / weights).tolist(), strict=True):
        loss = loss + term.left * term.share * processes * term.sums.error / weight
        parts.update({term.kind: term.share * mean, "loss": term.share * mean})
    return loss, dict(parts)


_LEAST = 1e-12
"""Weight of a part that no image has anything to say of."""
