"""What models are for: one file per task, each a value with the members of `Task`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from deploykit.errors import unknown_name
from deploykit.tasks.classification import Classification
from deploykit.tasks.detection import Detection
from deploykit.tasks.instances import Instances
from deploykit.tasks.keypoints import Keypoints
from deploykit.tasks.semantic import Semantic
from deploykit.tasks.task import Display, Metric, Pair, Pairing, Scores, Task

if TYPE_CHECKING:
    from collections.abc import Mapping

AnyTask: TypeAlias = "Task[Any]"

SHIPPED: Mapping[str, AnyTask] = {
    "classification": Classification(),
    "detection": Detection(),
    "instance_segmentation": Instances(),
    "keypoints": Keypoints(),
    "semantic_segmentation": Semantic(),
}
"""Name -> task, as recipes and the cards of files name them."""

__all__ = [
    "SHIPPED",
    "AnyTask",
    "Display",
    "Metric",
    "Pair",
    "Pairing",
    "Scores",
    "Task",
    "find",
    "name",
]


def find(task: str | AnyTask) -> AnyTask:
    """Return the task itself, or the shipped one of that name. Raises: OptionError."""
    if not isinstance(task, str):
        return task
    if task not in SHIPPED:
        raise unknown_name("task", task, SHIPPED)
    return SHIPPED[task]


def name(task: str | AnyTask) -> str:
    """Return a task's name: that of the shipped one of its class, or of a user's own class."""
    if isinstance(task, str):
        return task
    kind = type(task)
    return next((known for known, ours in SHIPPED.items() if type(ours) is kind), kind.__name__)
