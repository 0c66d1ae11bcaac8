"""Quantisation-aware training: weights and steps that suit INT8, learnt from the FP32 self."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from deploykit.errors import BackendError, OptionError, unknown_name
from deploykit.training import distilling, graphs, landmarks, loops, objectives
from deploykit.training.objectives import Term
from deploykit.training.optimizing import Learner

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import onnx_ir as ir

    from deploykit.training.batches import Batches, Fed
    from deploykit.training.course import Course
    from deploykit.training.fake_quant import FakeQuantized
    from deploykit.training.landmarks import Head
    from deploykit.training.objectives import Loss
    from deploykit.values import CalibrationTable, Json, Progress

INTERVAL = 25
"""Steps after which readers whose steps came near share one, and a snapshot may be taken."""


@dataclass(frozen=True)
class Trained:
    """What came of it."""

    weights: Mapping[str, Tensor]
    """By name; on the host."""
    table: CalibrationTable
    """The one that training began from, with the thresholds at its end."""
    curve: tuple[Json, ...]
    """For each epoch, the means of the parts of the loss, weighed as in the first step, and all."""
    steps: int


@dataclass
class Run:
    """A training in progress: all that it takes to go on."""

    student: FakeQuantized
    average: FakeQuantized
    teacher: graphs.GraphModule
    learner: Learner
    course: Course
    loss: Loss | None
    steps: int
    """Of an epoch."""
    step: int = 0
    sums: list[Counter[str]] = field(default_factory=list)
    """Of each epoch, the parts of the loss added up."""
    heads: tuple[Head, ...] = ()
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler(enabled=False)
    )

    @property
    def total(self) -> int:
        """Return the steps of the whole training."""
        return self.steps * self.course.epochs

    def state(self) -> Json:
        """Return what changes, as tensors and plain values. See `restore`."""
        return {
            "step": self.step,
            "student": _tensors(self.student),
            "average": _tensors(self.average),
            "learner": self.learner.state(),
            "sums": [dict(each) for each in self.sums],
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Json) -> None:
        """Go on from a state of the same training. Raises: ValueError, and others, for no state."""
        step, sums = state["step"], state["sums"]
        if type(step) is not int or not 0 < step < self.total or step % INTERVAL:
            raise ValueError(f"step {step!r}")
        if len(sums) != -(-step // self.steps):
            raise ValueError(f"{len(sums)} epochs at step {step}")
        self.step = step
        _load(self.student, state["student"])
        _load(self.average, state["average"])
        self.learner.restore(state["learner"])
        self.sums = [Counter({str(k): float(v) for k, v in each.items()}) for each in sums]
        self.scaler.load_state_dict(state["scaler"])
        self.student.refresh()

    def result(self) -> Trained:
        """Return what was learnt so far."""
        self.average.refresh()
        weights = self.average.weights()
        curve = tuple(
            {name: value / self.steps for name, value in sorted(each.items())} for each in self.sums
        )
        return Trained(weights, self.average.ranged(), curve, self.total)


def begin(  # noqa: PLR0913 - three nouns and three independent choices
    model: ir.Model,
    student: FakeQuantized,
    course: Course,
    steps: int,
    *,
    loss: Loss | None = None,
    logits: Collection[str] = (),
) -> Run:
    """Return a training that has not made a step.

    logits: Outputs that are class scores, see `landmarks.named`.

    Raises: OptionError where there is nothing to learn from, or a tensor is not in the graph.
    """
    if course.device != "cpu" and not torch.cuda.is_available():
        raise BackendError(f"no GPU is there for --device {course.device}", fix="--device cpu")
    teacher = graphs.module(model).requires_grad_(requires_grad=False).eval()
    compared = (*course.features, *course.heads, *(loss.tensors if loss else ()))
    known = {str(value.name) for node in model.graph for value in node.outputs}
    for name in compared:
        if name not in known:
            raise unknown_name("tensor", name, known)
    if not compared:
        raise OptionError(
            "nothing to learn from", expected="features, heads or a loss", fix="name some tensors"
        )
    average = copy.deepcopy(student)
    for each in (student, average, teacher):
        each.to(course.device)
    return Run(
        student.train(),
        average.eval(),
        teacher,
        _learner(student, course),
        course,
        loss,
        steps,
        heads=landmarks.named(model.graph, course.heads, logits),
        scaler=torch.amp.GradScaler(course.device, enabled=course.amp and course.device != "cpu"),
    )


def _learner(student: FakeQuantized, course: Course) -> Learner:
    steps = [p for p in student.thresholds.parameters() if p.requires_grad]
    weights = list(student.graph.parameters())
    limits = list(student.limits.parameters())
    rates = (course.learning_rate, course.scale_rate, _CALM * course.scale_rate)
    return Learner(course.optimizer, list(zip((weights, steps, limits), rates, strict=True)))


_CALM = 0.1
"""Of the rate of other steps, that of a channel's: what few weights say of it varies more."""


def advance(run: Run, batches: Batches, progress: Progress) -> Iterator[Run]:
    """Yield the training after each step in which it may be kept, and at its end.

    Raises: OptionError where the loss is no number any more; DataError for an image.
    """
    for fed in progress(_fed(run, batches), "qat", run.total - run.step):
        epoch = run.step // run.steps
        while len(run.sums) <= epoch:
            run.sums.append(Counter())
        run.sums[epoch].update(step(run, fed))
        run.step += 1
        if run.step % INTERVAL == 0 or run.step == run.total:
            run.student.refresh()
            yield run


def _fed(run: Run, batches: Batches) -> Iterator[Fed]:
    first, start = divmod(run.step, run.steps)
    for epoch in range(first, run.course.epochs):
        yield from batches.epoch(epoch, start if epoch == first else 0)


def step(run: Run, fed: Fed) -> dict[str, float]:
    """Return the parts of the loss of one step, made."""
    course = run.course
    rate = loops.rate(run.step, run.total, warmup=0, final=course.final)
    loss, parts = loss_of(run, run.student, fed)
    run.learner.rest()
    torch.autograd.backward(run.scaler.scale(loss))
    if distributed.is_initialized():
        loops.average_gradients(run.student)
    run.scaler.step(run.learner, rate)  # type: ignore[arg-type]  # it has what a scaler uses
    run.scaler.update()
    done = run.step + 1
    loops.follow(run.average, run.student, min(course.average, done / (9 + done)))
    return parts


def loss_of(run: Run, net: FakeQuantized, fed: Fed) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a network with its gradient, and for the log its parts.

    Raises: OptionError where it is no number.
    """
    course = run.course
    inputs = {name: value.to(course.device) for name, value in fed.inputs.items()}
    compared = (*course.features, *course.heads)
    own = run.loss.tensors if run.loss else ()
    moving = net.training and net.thresholds.scales == "moving"
    watched = net.thresholds.names if moving else ()
    halves = torch.autocast(course.device, enabled=course.amp)
    with halves, torch.no_grad():
        told = run.teacher.tensors(inputs, names=compared)
    with halves:
        found = net.tensors(inputs, names=dict.fromkeys((*compared, *own, *watched)))
    net.thresholds.move({name: found[name] for name in watched})
    pairs = {name: (found[name], told[name]) for name in compared}
    left = loops.rate(run.step, run.total, warmup=0, final=_LEFT)
    terms = distilling.terms(course, run.heads, pairs, left)
    if run.loss is not None:
        own_loss = objectives.own(run.loss, found, fed.truth)
        terms.append(Term("task", course.loss_weight, own_loss))
    loss, parts = objectives.total(terms)
    _check(run, parts)
    return loss, parts


def _check(run: Run, parts: Mapping[str, float]) -> None:
    """Check that a loss is a number. Raises: OptionError."""
    if math.isfinite(parts["loss"]):
        return
    strange = [name for name, value in parts.items() if not math.isfinite(value)]
    when = f"at step {run.step + 1} of {run.total}" if run.step < run.total else "at the end"
    amp = ", or no --amp" if run.course.amp else ""
    raise OptionError(
        f"the loss is {parts['loss']} {when}, by its part {strange[-1]!r}",
        expected="a finite number",
        fix=f"a lower learning rate{amp}" if run.step else f"mend what gives it{amp}",
    )


_LEFT = 0.01
"""Of the weight of the distillation, at the end. Source: the YOLOv6 report (2209.02976)."""


def _tensors(net: FakeQuantized) -> dict[str, Tensor]:
    """Return everything that learns, on the host."""
    found = {name: p.detach().cpu().clone() for name, p in net.graph.named_parameters()}
    return found | {name: each.detach().cpu().clone() for name, each in _steps(net).items()}


def _steps(net: FakeQuantized) -> dict[str, Tensor]:
    """Return the logarithms that the steps come from."""
    limits = net.limits.named_parameters()
    return {
        "thresholds of activations": net.thresholds.logs,
        **{f"limits of weights: {name}": each for name, each in limits},
    }


@torch.no_grad()
def _load(net: FakeQuantized, state: Mapping[str, Tensor]) -> None:
    """Put everything that learns back."""
    own = {**dict(net.graph.named_parameters()), **_steps(net)}
    for name, tensor in own.items():
        tensor.copy_(state[name])
