"""Average precision of boxes, masks and keypoints under the COCO protocol."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deploykit.errors import BackendError, DataError, ModelError
from deploykit.tasks import masks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats
    from deploykit.tasks.detections import Detections
    from deploykit.values import Json

    Size = tuple[int, int]


@dataclass(frozen=True)
class Scores:
    """COCO average precision over one set of images, each 0 to 1.

    None where the truth holds no object of that size or class, or the protocol has no such size.
    """

    ap: float | None
    """Mean over IoU 0.50, 0.55 ... 0.95, also written AP50-95."""
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    """Objects below 32 x 32 pixels."""
    ap_medium: float | None
    ap_large: float | None
    """Objects from 96 x 96 pixels."""
    per_class: Mapping[str, float | None]
    """Truth category name -> AP50-95."""
    images: int
    masks: Scores | None = None
    """The same with the IoU of masks; None where the model or the truth has none."""
    keypoints: Scores | None = None
    """The same with the similarity of keypoints (OKS) in place of IoU; at most 20 objects."""

    def to_json(self) -> Json:
        """Return the scores as plain JSON values."""
        return asdict(self)

    def metrics(self) -> dict[str, float | None]:
        """Return every score by name, those of masks as `mask_ap` ..., keypoints `keypoint_ap`."""
        parts = (("", self), ("mask_", self.masks), ("keypoint_", self.keypoints))
        return {
            prefix + name: getattr(scores, name)
            for prefix, scores in parts
            if scores is not None
            for name in METRICS
        }


METRICS: Mapping[str, tuple[float | None, str]] = {
    "ap": (None, "all"),
    "ap50": (0.5, "all"),
    "ap75": (0.75, "all"),
    "ap_small": (None, "small"),
    "ap_medium": (None, "medium"),
    "ap_large": (None, "large"),
}
"""Field of Scores -> IoU threshold (None: the mean over all ten) and object size."""
_ABSENT = -1
"""What faster-coco-eval writes where there is no truth to find."""
PERSON_KEYPOINTS = 17
"""Of COCO's persons, the only objects whose keypoints have published tolerances."""


class Objects(NamedTuple):
    """What was found in one image, as little of it as the scores need."""

    rows: NDArray[np.float64]
    """[N, 7]: image id, x, y, width, height, score, category id."""
    segments: tuple[Json, ...] | None
    """Compressed run lengths."""
    points: Floats | None
    """float32[N, K, 3]."""


@dataclass
class Results:
    """The objects found in the images that were run."""

    truth: Json
    """A COCO `instances` object."""
    categories: Sequence[int]
    """Its category id of each class."""
    found: dict[str, Objects] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the truth's images."""
        self._images = {str(image["file_name"]): image for image in self.truth["images"]}
        self._has_masks = _all_have(self.truth, "segmentation")

    def add(self, name: str, found: Detections, size: Size | None = None) -> None:
        """Take the objects of the image `name`, of size H, W; None: as the truth says.

        Raises: DataError for an image that the truth does not know, or whose size is not the
        truth's where masks are scored; ModelError for numbers that are not finite.
        """
        if name not in self._images:
            raise DataError(f"the truth knows no image called {name}")
        image = self._images[name]
        segments = None
        if found.masks is not None and self._has_masks:
            segments = tuple(_segments(found, _size(image, size)))
        rows = _rows(int(image["id"]), found, self.categories)
        self.found[name] = Objects(rows, segments, found.keypoints)

    def scores(self) -> Scores:
        """Return the scores. Raises: BackendError without faster-coco-eval."""
        scores = self._scored("bbox", [objects.rows for objects in self.found.values()])
        if self.found and all(objects.segments is not None for objects in self.found.values()):
            scores = replace(scores, masks=self._scored("segm", self._records("segmentation")))
        if self._scores_keypoints():
            scores = replace(
                scores, keypoints=self._scored("keypoints", self._records("keypoints"))
            )
        return scores

    def _scores_keypoints(self) -> bool:
        points = [objects.points for objects in self.found.values()]
        known = _all_have(self.truth, "keypoints")
        return known and bool(points) and all(_are_persons(p) for p in points)

    def _records(self, kind: str) -> list[Json]:
        """Return each object as faster-coco-eval wants it, with its mask or its keypoints.

        Without a box: an object's area is then its mask's, not its box's.
        """
        return [
            {"image_id": int(row[0]), "category_id": int(row[6]), "score": row[5], kind: value}
            for objects in self.found.values()
            for row, value in zip(objects.rows, _values(objects, kind), strict=True)
        ]

    def _scored(self, kind: str, rows: Sequence[Any]) -> Scores:
        coco, coco_eval = require()
        ids = {int(self._images[name]["id"]) for name in self.found}
        known = coco(_restricted(self.truth, ids, kind))
        results = np.concatenate([np.empty((0, 7)), *rows]) if kind == "bbox" else list(rows)
        evaluation = coco_eval(known, known.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        names = {int(c["id"]): str(c["name"]) for c in self.truth["categories"]}
        return _scores(evaluation, names, len(self.found))


def coco_ap(truth: Json, detections: Mapping[str, Detections], categories: Sequence[int]) -> Scores:
    """Return the scores of `detections` (image file name -> objects) under the COCO protocol.

    Images without an entry in `detections` do not count; at most 100 objects per image do.

    Args:
        truth: A COCO `instances` object.
        detections: Objects found, with classes that index `categories`.
        categories: The truth's category id of each class.

    Raises: DataError for an image that the truth does not know; BackendError without
        faster-coco-eval.
    """
    require()
    unknown = sorted(detections.keys() - {str(image["file_name"]) for image in truth["images"]})
    if unknown:
        raise DataError(f"the truth knows no image called {shortened(unknown)}")
    results = Results(truth, categories)
    for name, found in detections.items():
        results.add(name, found)
    return results.scores()


def shortened(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def require() -> tuple[Any, Any]:
    """Return faster-coco-eval's truth and evaluation classes. Raises: BackendError."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise BackendError(
            "average precision needs faster-coco-eval, which cannot be imported",
            fix="`pip install faster-coco-eval`",
        ) from error
    return COCO, COCOeval_faster


def _all_have(truth: Json, key: str) -> bool:
    """Return whether there are objects in the truth, all of them with `key`."""
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    return bool(objects) and all(annotation.get(key) for annotation in objects)


def _are_persons(points: Floats | None) -> bool:
    return points is not None and points.shape[1:] == (PERSON_KEYPOINTS, 3)


def _size(image: Json, given: Size | None) -> Size:
    """Return an image's height and width. Raises: DataError where the truth says otherwise."""
    size = (image.get("height"), image.get("width"))
    if None in size or (given is not None and size != given):
        was = "" if given is None else f", and it has {given[0]}x{given[1]} pixels"
        raise DataError(
            f"the truth says that image {image['file_name']} is {size[0]}x{size[1]}{was}",
            expected="the height and the width of each image: its masks are drawn on them",
        )
    return int(image["height"]), int(image["width"])


def _segments(found: Detections, size: Size) -> Iterator[Json]:
    """Yield the compressed run lengths of each object's mask in an image of `size`."""
    from faster_coco_eval.core import mask  # noqa: PLC0415 - an optional package

    assert found.masks is not None  # the caller looked
    frames = found.boxes if found.frames is None else found.frames
    for counts in masks.run_lengths(found.masks, frames, *size):
        yield mask.frPyObjects({"size": list(size), "counts": counts}, *size)


def _values(objects: Objects, kind: str) -> Sequence[Any]:
    if kind == "segmentation":
        return objects.segments or ()
    assert objects.points is not None  # the caller looked
    rows: list[list[float]] = objects.points.reshape(len(objects.points), -1).tolist()
    return rows


_FIELDS = {"segm": ("segmentation",), "keypoints": ("keypoints", "num_keypoints"), "bbox": ()}
"""Kind of score -> what the truth about each object has for it, beyond its box."""


def _restricted(truth: Json, image_ids: set[int], kind: str) -> Json:
    """Return the images asked for with their objects, numbered from 1: 0 would mean unmatched."""
    fields = ("image_id", "category_id", "bbox", "area", "iscrowd", *_FIELDS[kind])
    kept = [a for a in truth["annotations"] if a["image_id"] in image_ids]
    return {
        "images": [dict(image) for image in truth["images"] if image["id"] in image_ids],
        "annotations": [
            {"id": number, **{field: _known(annotation, field) for field in fields}}
            for number, annotation in enumerate(kept, start=1)
            if all(annotation.get(field) is not None for field in _FIELDS[kind][:1])
        ],
        "categories": [dict(category) for category in truth["categories"]],
    }


def _known(annotation: Json, name: str) -> Any:  # noqa: ANN401 - JSON
    """Return a field of an annotation; the number of keypoints is counted where it is absent."""
    if name == "num_keypoints" and name not in annotation:
        return sum(seen > 0 for seen in annotation["keypoints"][2::3])
    return annotation[name]


def _rows(image_id: int, found: Detections, categories: Sequence[int]) -> NDArray[np.float64]:
    """Return float64[N, 7]: image id, x, y, width, height, score, category id."""
    boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4)
    rows = np.empty((len(boxes), 7))
    rows[:, 0] = image_id
    rows[:, 1:3] = boxes[:, :2]
    rows[:, 3:5] = boxes[:, 2:] - boxes[:, :2]
    rows[:, 5] = found.scores
    rows[:, 6] = np.asarray(categories)[found.classes]
    if not np.isfinite(rows).all():
        raise ModelError(
            "the model found an object whose box or score is not a finite number",
            fix="compare it with its float form: deploykit verify",
        )
    return rows


def _scores(evaluation: Any, names: Mapping[int, str], images: int) -> Scores:  # noqa: ANN401 - the package has no types
    params = evaluation.params
    thresholds = [round(float(t), 2) for t in params.iouThrs]
    sizes = list(params.areaRngLbl)
    # [IoU thresholds, recall points, categories, object sizes, detections per image]
    precision = np.asarray(evaluation.eval["precision"])[..., -1]
    metrics: dict[str, Any] = {}
    for name, (threshold, size) in METRICS.items():
        by_size = (
            precision[..., sizes.index(size) : sizes.index(size) + 1]
            if size in sizes
            else precision[..., :0]
        )
        chosen = by_size if threshold is None else by_size[thresholds.index(threshold)]
        metrics[name] = _mean(chosen)
    everything = precision[..., sizes.index("all")]
    per_class = {
        names[int(number)]: _mean(everything[:, :, k]) for k, number in enumerate(params.catIds)
    }
    return Scores(**metrics, per_class=per_class, images=images)


def _mean(precision: NDArray[np.float64]) -> float | None:
    valid = precision[precision != _ABSENT]
    return float(valid.mean()) if valid.size else None
