"""What a model file that nobody described shows of itself: shapes, and metadata of its exporter.

Metadata is data: it is parsed by its form, within bounds, and never run. What is guessed is told to
the user, and what is not certain is offered, not taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit.data import feeding
from deploykit.tasks import foreground, heads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.data.preprocess import Size
    from deploykit.values import TensorSpec

_LONGEST, _MOST = 1 << 20, 1 << 16
"""Letters of a table of names, and entries of it, that are read."""
_NAME = re.compile(r"""\s*(\d{1,6})\s*:\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*(,|\Z)""")
_PAIR = re.compile(r"\s*\[\s*(\d{1,5})\s*,\s*(\d{1,5})\s*\]\s*")
_TASKS = {
    "detect": "detection",
    "segment": "instance_segmentation",
    "pose": "keypoints",
    "classify": "classification",
}
"""Task in Ultralytics' words -> in ours."""
SIDE, PIXELS = 1 << 15, 1 << 26
"""Of an input, at most."""
_SQUASHED, _CHOICES = ("Sigmoid", "HardSigmoid"), ("ArgMax", "TopK")
"""Nodes that make probabilities, and those that choose a class themselves."""
_BY = "the file's inputs and outputs"
_TOLD = ("yolov8", "yolov5", "end2end", "torchvision")
"""Heads that the form of the outputs tells; YOLOX's is that of rows that are decoded already."""


@dataclass(frozen=True)
class Facts:
    """What a file shows without being run."""

    inputs: tuple[TensorSpec, ...]
    """Those that are not weights."""
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    ends: Mapping[str, str] = field(default_factory=dict)
    """Output -> kind of the node that makes its values, before they are moved or resized."""


@dataclass(frozen=True)
class Guess:
    """What can be told from facts; None: nothing."""

    by: str
    size: Size | None = None
    planes: int | None = None
    task: str | None = None
    preprocess: str | None = None
    """A preset, only where the file names its exporter."""
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    decode: str | None = None
    """A head of `tasks.heads`."""
    foreground: str | None = None
    """What one number per pixel is, one of `tasks.foreground.MIDDLE`, if the model segments."""


def guess(facts: Facts) -> Guess:
    """Return what can be told from facts."""
    size, planes = _image(facts)
    said = facts.metadata
    if "names" in said and "stride" in said and said.get("task") in _TASKS:
        return _by_ultralytics(facts, size or _pair(said.get("imgsz", "")), planes)
    task, classes = _form(facts)
    found = {} if size is None else heads.fitting(_shapes(facts), size)
    for head in _TOLD:
        if head in found:
            known = found[head] or None
            return Guess(_BY, size, planes, "detection", classes=known, decode=head)
    return Guess(_BY, size, planes, task, classes=classes, foreground=_foreground(facts))


def _foreground(facts: Facts) -> str | None:
    """Return what the number per pixel is that outputs have the form of: by what makes it."""
    name = foreground.main(_shapes(facts))
    spec = next((each for each in facts.outputs if each.name == name), None)
    if spec is None or not spec.dtype.startswith("float") or len(spec.shape) != feeding.RANK:
        return None
    made_by = facts.ends.get(spec.name)
    if made_by in _CHOICES:
        return None
    return "probability" if made_by in _SQUASHED else "logit"


def _by_ultralytics(facts: Facts, size: Size | None, planes: int | None) -> Guess:
    names = names_of(facts.metadata["names"])
    task = _TASKS[facts.metadata["task"]]
    found = {} if size is None else heads.fitting(_shapes(facts), size)
    head = next((name for name in _TOLD if name in found), None)
    return Guess(
        "the metadata of Ultralytics",
        size,
        planes,
        task,
        None if task == "classification" else "yolo",
        len(names) or None,
        names,
        head if task == "detection" else None,
    )


def _shapes(facts: Facts) -> dict[str, tuple[int | str, ...]]:
    return {spec.name: spec.shape for spec in facts.outputs}


def _image(facts: Facts) -> tuple[Size | None, int | None]:
    """Return the size (H, W) and the channels of the first input that holds images."""
    for spec in facts.inputs:
        if feeding.takes_images((spec,)):
            _, planes, height, width = feeding.nchw(spec).shape
            known = _known(height) and _known(width)
            return (
                (int(height), int(width)) if known else None,
                planes if isinstance(planes, int) and planes in feeding.CHANNELS else None,
            )
    return None, None


def _known(dim: int | str) -> bool:
    return isinstance(dim, int) and dim > 0


def _form(facts: Facts) -> tuple[str | None, int | None]:
    """Return the task and the number of classes that the only output has the form of."""
    if len(facts.outputs) != 1:
        return None, None
    shape = facts.outputs[0].shape
    last = shape[-1] if shape else None
    if len(shape) == 2 and isinstance(last, int) and last > 1:
        return "classification", last
    return None, None


def _pair(text: str) -> Size | None:
    """Return `[640, 640]` as a size."""
    match = _PAIR.fullmatch(text) if len(text) < 50 else None
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    return found if is_size(*found) else None


def is_size(height: int, width: int) -> bool:
    """Return whether an input can have this height and width."""
    return 0 < height <= SIDE and 0 < width <= SIDE and height * width <= PIXELS


def names_of(text: str) -> tuple[str, ...]:
    """Return the names in `{0: 'person', 1: "can't"}`, in the order of their numbers.

    Nothing where the text is anything else; none of it is run.
    """
    inner = text.strip()
    if len(inner) > _LONGEST or not (inner.startswith("{") and inner.endswith("}")):
        return ()
    found: dict[int, str] = {}
    inner, place = inner[1:-1].strip(), 0
    while place < len(inner):
        match = _NAME.match(inner, place)
        if match is None or int(match[1]) in found or len(found) >= _MOST:
            return ()
        name = match[2] if match[2] is not None else match[3]
        found[int(match[1])] = re.sub(r"\\(.)", r"\1", name)
        place = match.end()
    return tuple(found[i] for i in range(len(found))) if set(found) == {*range(len(found))} else ()
