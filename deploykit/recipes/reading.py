"""A task as a model's card has it: how its outputs are read, by what `--decode` names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast, get_args

from deploykit import tasks
from deploykit.errors import ModelError, OptionError, unknown_name
from deploykit.recipes import metadata
from deploykit.tasks import decoding, foreground, heads, masks, semantic
from deploykit.tasks.detection import Detection
from deploykit.tasks.foreground import Foreground
from deploykit.tasks.instances import Instances
from deploykit.tasks.semantic import Semantic

if TYPE_CHECKING:
    from collections.abc import Collection

    from deploykit.recipes.metadata import ModelCard
    from deploykit.tasks import AnyTask
    from deploykit.tasks.head_shapes import Shapes

DECODES = (*heads.HEADS, *foreground.MIDDLE)
"""What `--decode` names."""


def check_name(name: str) -> None:
    """Check that `--decode` names something. Raises: OptionError."""
    if name not in DECODES:
        raise unknown_name("--decode", name, DECODES)


def check(name: str, card: ModelCard, outputs: Shapes) -> None:
    """Check that a model's outputs can be read as `--decode` names it.

    Raises: OptionError where that belongs to another task; ModelError for outputs of another form.
    """
    task = tasks.SHIPPED.get(card.task)
    is_binary = name in foreground.MIDDLE
    if task is not None and not isinstance(task, Semantic if is_binary else Detection):
        of = "segments pixels" if is_binary else "finds objects"
        raise OptionError(
            f"--decode {name} for the task {card.task}",
            expected=f"a model that {of}",
            fix="leave --decode out" if isinstance(task, Semantic) else "",
        )
    if isinstance(task, Detection) and task.parts != ("bbox",) and name != heads.NONE:
        raise OptionError(
            f"--decode {name} for the task {card.task}",
            expected="a head of boxes alone: masks and keypoints are read from padded rows",
            fix="--task detection scores and draws the boxes; for the rest give, in Python, a task "
            "of your own: `Keypoints(read=...)` or `Instances(read=...)`",
        )
    if is_binary:
        foreground.check(name, outputs)
    else:
        heads.check(name, outputs, card.preprocess.size, len(card.class_names))


def as_made(task: AnyTask, card: ModelCard | None) -> AnyTask:
    """Return a task as the family of a model's network does it. Raises: ModelError."""
    head = card.settings.get(heads.SETTING) if card else None
    told = card is not None and (head is not None or metadata.foreign(card))
    if told and card and isinstance(task, Detection) and task.read is decoding.objects:
        task = _read_by(task, card, heads.NONE if head is None else head.value)
    if head is not None and isinstance(task, Semantic) and task.read is semantic.read:
        task = replace(task, read=Foreground(_known(head.value, foreground.MIDDLE)))
    if isinstance(task, Semantic) and card and semantic.ALIGNED in card.settings:
        task = replace(task, aligned=card.settings[semantic.ALIGNED].value is True)
    said = card.settings.get(masks.SETTING) if card else None
    if said is None or not isinstance(task, Instances):
        return task
    if said.value not in get_args(masks.Pasting):
        raise ModelError(
            f"the card says that masks are pasted {said.value!r}",
            expected="one of " + ", ".join(get_args(masks.Pasting)),
        )
    return replace(task, pasting=cast("masks.Pasting", said.value))


def _read_by(task: Detection, card: ModelCard, head: object) -> Detection:
    """Return a task that reads the outputs of a head. Raises: ModelError for an unknown one."""
    named, size = _known(head, heads.HEADS), card.preprocess.size
    return replace(task, read=heads.Reader(named, size, len(card.class_names)))


def _known(head: object, known: Collection[str]) -> str:
    if not isinstance(head, str) or head not in known:
        raise ModelError(
            f"the card says that outputs are read as {str(head)[:100]!r}",
            expected="one of " + ", ".join(known),
        )
    return head
