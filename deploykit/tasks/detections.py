"""The objects that a detector finds in an image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from deploykit.tasks import masks, matching
from deploykit.tasks.annotations import ImageAnnotations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry
    from deploykit.tasks.masks import Pasting
    from deploykit.values import Json

LEAST_SCORE = 0.3
"""Certainty from which on an object is drawn, counted, and taken for truth: networks return
hundreds of guesses."""
_PARTNER = 0.5
"""IoU from which on two models are said to have found the same object."""


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first."""

    boxes: Floats
    """float32[N, 4]: x1, y1, x2, y2 in pixels of the original image."""
    scores: Floats
    """float32[N], 0 to 1."""
    classes: NDArray[np.int64]
    """int64[N], indices into the model's class names."""
    masks: Floats | None = None
    """float32[N, S, S], 0 to 1: the mask of each object on an even grid over its box, before
    that box was clipped to the image (`frames`)."""
    frames: Floats | None = None
    """float32[N, 4]: the boxes that `masks` span, x1, y1, x2, y2 in pixels of the original image;
    None: `boxes`."""
    pasting: Pasting = "rounded"
    """How `masks` are brought to pixels, see `tasks.masks`."""
    mask_scores: Floats | None = None
    """float32[N], what masks are ranked by; None: `scores`."""
    keypoints: Floats | None = None
    """float32[N, K, 3]: x, y in pixels of the original image, and a score (a logit)."""

    def __repr__(self) -> str:
        """Return how many objects there are, and what is known of each."""
        parts = [f"{len(self.scores)} objects"]
        parts += [f"best score {self.scores[0]:.3f}"] if len(self.scores) else []
        parts += [name for name in ("masks", "keypoints") if getattr(self, name) is not None]
        return f"<Detections {', '.join(parts)}>"

    def as_truth(self, number: int, size: tuple[int, int], /) -> ImageAnnotations:
        """Return the objects of some certainty as COCO's annotations; classes are categories."""
        sure = self.only(self.scores >= LEAST_SCORE)
        runs = list(sure.run_lengths(size))
        made = []
        for i, box in enumerate(sure.boxes.astype(float).tolist()):
            width, height = box[2] - box[0], box[3] - box[1]
            one: Json = {
                "category_id": int(sure.classes[i]),
                "bbox": [box[0], box[1], width, height],
                "area": width * height,
                "iscrowd": 0,
            }
            if runs:
                one["segmentation"] = {"size": list(size), "counts": runs[i]}
                one["area"] = sum(runs[i][1::2])
            if sure.keypoints is not None:
                points = [[*point[:2], 2] for point in sure.keypoints[i].astype(float).tolist()]
                one["keypoints"] = [value for point in points for value in point]
            made.append(one)
        return ImageAnnotations(number, tuple(made), size)

    def unlike(self, other: Detections, /) -> Detections:
        """Return the objects of some certainty that have no partner among the other's.

        Partners are of one class, overlap by half and have at least half that certainty.
        """
        sure = self.only(self.scores >= LEAST_SCORE)
        rest = other.only(other.scores >= LEAST_SCORE / 2)
        boxes = [side.boxes.astype(np.float64) for side in (sure, rest)]
        same = sure.classes[:, None] == rest.classes[None]
        partner = ((matching.overlaps(*boxes) >= _PARTNER) & same).any(1)
        return sure.only(~partner)

    def said(self, classes: Sequence[str], /) -> str:
        """Return how many objects of some certainty there are of each class."""
        numbers = self.classes[self.scores >= LEAST_SCORE].tolist()
        counts = Counter(numbers).most_common()
        return ", ".join(f"{count} {class_name(classes, number)}" for number, count in counts)

    def to_json(self, classes: Sequence[str], size: tuple[int, int], /) -> Json:
        """Return every object: class, score, box, mask (run lengths down columns), keypoints."""
        rows = zip(self.classes.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        found: list[Json] = [
            {"class": class_name(classes, number), "index": number, "score": score, "box": box}
            for number, score, box in rows
        ]
        for one, counts in zip(found, self.run_lengths(size), strict=False):
            one["mask"] = {"size": list(size), "counts": counts}
        worth = () if self.mask_scores is None else self.mask_scores.tolist()
        for one, score in zip(found, worth, strict=False):
            one["mask_score"] = score
        for one, points in zip(
            found, () if self.keypoints is None else self.keypoints, strict=False
        ):
            one["keypoints"] = points.tolist()
        return {"objects": found}

    def run_lengths(self, size: tuple[int, int]) -> Iterator[list[int]]:
        """Yield COCO's uncompressed run lengths of each mask; nothing where there are none."""
        if self.masks is not None:
            frames = self.boxes if self.frames is None else self.frames
            yield from masks.run_lengths(self.masks, frames, *size, pasting=self.pasting)

    def areas(self, size: tuple[int, int]) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """Yield where each mask begins (row, column), and its pixels from there on, bool[h, w]."""
        if self.masks is not None:
            frames = self.boxes if self.frames is None else self.frames
            found = masks.patches(self.masks, frames, *size, pasting=self.pasting)
            yield from ((top, left, masks.inside(p, self.pasting)) for top, left, p in found)

    def only(self, kept: NDArray[np.bool_]) -> Detections:
        """Return those objects of which `kept`, bool[N], says so."""
        if kept.all():
            return self
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = {name: value[kept] for name, value in named.items() if hasattr(value, "shape")}
        return replace(self, **rows)


def class_name(classes: Sequence[str], number: int) -> str:
    """Return the name of a class, or its number where it has none."""
    return classes[number] if 0 <= number < len(classes) else f"class {number}"


class Decode(Protocol):
    """Turns a model's outputs for a batch into one result per image."""

    def __call__(
        self, outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /
    ) -> Sequence[Detections]:
        """Return one Detections per geometry, coordinates in original pixels."""
        ...
