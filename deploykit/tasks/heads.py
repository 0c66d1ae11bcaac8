"""How the raw outputs of known detector heads are read: what `--decode` names.

Settings are those with which each family reports its average precision. Geometry and forms are
those of the published architectures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import ModelError, unknown_name
from deploykit.tasks import decoding
from deploykit.tasks.decoding import Limits
from deploykit.tasks.detections import Detections
from deploykit.tasks.head_shapes import STRIDES, cells, one, single, strides_of
from deploykit.tasks.matching import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.data.preprocess import Floats, Geometry, Size
    from deploykit.tasks.head_shapes import Shapes

SETTING = "decode"
"""Name of the setting of a card."""
NONE = "none"
"""Outputs that are decoded already, see `decoding.objects`."""
_MANY = 30_000
_END, _MOST_ROWS = 6, 1000
"""Columns of rows that are suppressed already, and how many rows there are at most."""
_V5 = Limits(confidence=0.001, iou=0.6)
_V8 = Limits(confidence=0.001, iou=0.7)
_YOLOX = Limits(confidence=0.01, iou=0.65, objects=_MANY)


@dataclass(frozen=True)
class Head:
    """One form of outputs."""

    form: str
    """What its outputs look like."""
    classes: Callable[[Shapes, Size, int], int | None]
    """(outputs, input H and W, classes that are known or 0) -> classes; None: another form."""
    read: Callable[[Mapping[str, Floats], Sequence[Geometry], Size], list[Detections]]
    counts: bool = True
    """Whether its outputs tell how many classes there are."""


@dataclass(frozen=True)
class Reader:
    """Reads the outputs of one head of a model whose input has `size` and that has `classes`."""

    head: str
    size: Size
    classes: int = 0
    """0: not known."""

    def __call__(
        self, outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /
    ) -> Sequence[Detections]:
        """Return the objects in each image. Raises: ModelError for outputs of another form."""
        check(self.head, {n: v.shape for n, v in outputs.items()}, self.size, self.classes)
        found = HEADS[self.head].read(outputs, geometries, self.size)
        for objects in found:
            if self.classes and (objects.classes >= self.classes).any():
                raise ModelError(
                    f"an object of class {int(objects.classes.max())}, counted from 0",
                    expected=f"fewer than {self.classes}, as there are class names",
                    fix="give one name for each class, in the order of training: --class-names",
                )
        return found


def check(head: str, outputs: Shapes, size: Size, classes: int = 0) -> None:
    """Check that outputs have the form of a head. Raises: ModelError, OptionError."""
    if head not in HEADS:
        raise unknown_name("--decode", head, HEADS)
    others = [name for name in fitting(outputs, size) if name != head]
    strict = others and head != NONE
    found = HEADS[head].classes(outputs, size, 0 if strict else classes)
    if found is not None and (not classes or not HEADS[head].counts or classes == found):
        return
    forms = ", ".join(f"{name}[{', '.join(map(str, shape))}]" for name, shape in outputs.items())
    near = [f"--decode {name}" for name in (*others, *([NONE] if "yolox" in others else []))]
    many = f" of {classes} classes" if classes else ""
    raise ModelError(
        f"the outputs {forms} are no {'decoded rows' if head == NONE else f'{head} head'}{many}",
        expected=HEADS[head].form,
        fix=f"they have the form of {' or '.join(near)}" if near else "",
    )


def fitting(outputs: Shapes, size: Size) -> dict[str, int]:
    """Return the heads that outputs have the form of -> their classes."""
    told = {name: head for name, head in HEADS.items() if name != NONE}
    found = {name: head.classes(outputs, size, 0) for name, head in told.items()}
    return {name: classes for name, classes in found.items() if classes is not None}


def _rows(
    anchors: int, places: tuple[int, int], beside: int
) -> Callable[[Shapes, Size, int], int | None]:
    """Return how classes are told: `anchors` a cell, where they and the columns stand."""

    def classes(outputs: Shapes, size: Size, known: int) -> int | None:
        shape = single(outputs)
        if shape is None:
            return None
        rows, columns = (shape[place] for place in places)
        if not isinstance(columns, int) or columns <= beside:
            return None
        even = isinstance(rows, int) and not rows % anchors
        fits = even and strides_of(rows // anchors, size) is not None
        return columns - beside if fits or (known and columns - beside == known) else None

    return classes


def _yolov5(
    outputs: Mapping[str, Floats], geometries: Sequence[Geometry], _: Size
) -> list[Detections]:
    return decoding.decode(one(outputs), geometries, _V5)


def _yolov8(
    outputs: Mapping[str, Floats], geometries: Sequence[Geometry], _: Size
) -> list[Detections]:
    rows = one(outputs).transpose(0, 2, 1)
    return [
        decoding.chosen(image[:, :4], image[:, 4:], geometry, _V8)
        for image, geometry in zip(rows, geometries, strict=True)
    ]


def _yolox(
    outputs: Mapping[str, Floats], geometries: Sequence[Geometry], size: Size
) -> list[Detections]:
    """Return the objects of cells whose boxes are relative to a grid.

    Centre: (offset + cell) * stride; sides: exp(side) * stride. A cell is an object of its best
    class alone. Source: YOLOX (arXiv 2107.08430) section 2.2.
    """
    rows = one(outputs)
    grid, stride = _grid(rows.shape[1], size)
    found = []
    for image, geometry in zip(rows, geometries, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            centres, sides = (image[:, :2] + grid) * stride, np.exp(image[:, 2:4]) * stride
        scores = image[:, 5:] * image[:, 4:5]
        best = scores == scores.max(1, keepdims=True)
        alone = np.where(best & (np.cumsum(best, 1) == 1), scores, 0)
        boxes = np.concatenate([centres, sides], 1)
        found.append(decoding.chosen(boxes, alone, geometry, _YOLOX))
    return found


def _grid(count: int, size: Size) -> tuple[Floats, Floats]:
    """Return column and row (float32[N, 2]) and stride (float32[N, 1]) of each cell."""
    strides = strides_of(count, size)
    if strides is None:
        raise ModelError(
            f"{count} cells for images of {size[0]}x{size[1]}",
            expected=f"{cells(size, STRIDES[0])}, with strides of 8, 16 and 32",
        )
    places, steps = [], []
    for stride in strides:
        rows, columns = np.indices((size[0] // stride, size[1] // stride), np.float32)
        places.append(np.stack([columns, rows], -1).reshape(-1, 2))
        steps.append(np.full((len(places[-1]), 1), stride, np.float32))
    return np.concatenate(places), np.concatenate(steps)


def _end_classes(outputs: Shapes, size: Size, known: int) -> int | None:
    """Return the classes that are known, 0 where none are: these rows do not tell."""
    shape = single(outputs)
    few = shape is not None and isinstance(shape[1], int) and shape[1] <= _MOST_ROWS
    ends = shape is not None and few and shape[2] == _END and strides_of(shape[1], size) is None
    return known if ends else None


def _end2end(
    outputs: Mapping[str, Floats], geometries: Sequence[Geometry], _: Size
) -> list[Detections]:
    """Return the objects of rows x1, y1, x2, y2, score, class, which are suppressed already."""
    found = []
    for rows, geometry in zip(one(outputs), geometries, strict=True):
        if not np.isfinite(rows).all():
            raise decoding.not_finite("an object's box, score or class is NaN or infinity")
        kept = rows[rows[:, 4] > _V8.confidence]
        kept = kept[decoding.top(kept[:, 4], len(kept))]
        classes = kept[:, 5].astype(np.int64)
        found.append(Detections(geometry.to_image(kept[:, :4]), kept[:, 4], classes))
    return found


def _decoded_classes(outputs: Shapes, _: Size, known: int) -> int | None:
    """Return the classes of rows that are decoded; those that are known for padded rows."""
    if all(name in outputs for name in KEYS):
        return known
    shape = single(outputs)
    columns = None if shape is None else shape[2]
    return columns - 5 if isinstance(columns, int) and columns > 5 else None


def _decoded(
    outputs: Mapping[str, Floats], geometries: Sequence[Geometry], _: Size
) -> list[Detections]:
    return decoding.objects(outputs, geometries)


_PARTS = ("boxes", "labels", "scores")


def _torchvision_classes(outputs: Shapes, _: Size, known: int) -> int | None:
    """Return the classes that are known, 0 where none are: these outputs do not tell."""
    return known if _parts(outputs) is not None else None


def _parts(outputs: Shapes) -> dict[str, str] | None:
    """Return boxes, labels and scores -> the output that holds them; by name, else by place."""
    named = {part: [n for n in outputs if n.rpartition(".")[2] == part] for part in _PARTS}
    if all(len(names) == 1 for names in named.values()):
        found = {part: names[0] for part, names in named.items()}
    elif len(outputs) >= len(_PARTS):
        found = dict(zip(_PARTS, outputs, strict=False))
    else:
        return None
    ranks = [len(outputs[found[part]]) for part in _PARTS]
    boxes = list(outputs[found["boxes"]])
    return found if ranks == [2, 1, 1] and boxes[-1] == 4 else None


def _torchvision(
    outputs: Mapping[str, Floats], geometries: Sequence[Geometry], _: Size
) -> list[Detections]:
    """Return the objects of one image as torchvision's detectors give them; class 0 is nothing."""
    if len(geometries) != 1:
        raise ModelError(
            f"outputs of one image for {len(geometries)} images", fix="give --batch-size 1"
        )
    parts = _parts({name: value.shape for name, value in outputs.items()})
    assert parts is not None  # `check` has looked
    boxes, labels, scores = (outputs[parts[part]] for part in _PARTS)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and np.isfinite(labels).all()):
        raise decoding.not_finite("an object's box, label or score is NaN or infinity")
    order = decoding.top(scores, len(scores))
    order = order[labels[order] >= 1]
    classes = labels[order].astype(np.int64) - 1
    return [Detections(geometries[0].to_image(boxes[order]), scores[order], classes)]


HEADS: Mapping[str, Head] = {
    "yolov8": Head(
        "one output [batch, 4 + classes, anchors]: cx, cy, w, h in pixels, class scores",
        _rows(1, (2, 1), 4),
        _yolov8,
    ),
    "yolov5": Head(
        "one output [batch, anchors, 5 + classes]: cx, cy, w, h in pixels, objectness, class "
        "scores; 3 anchors a cell",
        _rows(3, (1, 2), 5),
        _yolov5,
    ),
    "yolox": Head(
        "one output [batch, cells, 5 + classes]: boxes relative to the grid, objectness, class "
        "scores",
        _rows(1, (1, 2), 5),
        _yolox,
    ),
    "end2end": Head(
        "one output [batch, objects, 6]: x1, y1, x2, y2 in pixels, score, class, suppressed",
        _end_classes,
        _end2end,
        counts=False,
    ),
    "torchvision": Head(
        "outputs boxes [objects, 4] in pixels, labels and scores [objects], for one image",
        _torchvision_classes,
        _torchvision,
        counts=False,
    ),
    NONE: Head(
        f"{', '.join(KEYS)}; or one output [batch, anchors, 5 + classes]: cx, cy, w, h in pixels, "
        "objectness, class scores",
        _decoded_classes,
        _decoded,
    ),
}
"""What `--decode` names -> the head."""
