"""Average precision of boxes, masks and keypoints under the COCO protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from deploykit.errors import BackendError, DataError
from deploykit.tasks import categories, coco_rows, masks
from deploykit.tasks.annotations import ImageAnnotations
from deploykit.tasks.task import Display, Scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats
    from deploykit.tasks.detections import Detections
    from deploykit.values import Json

    Size: TypeAlias = tuple[int, int]
    Doubles: TypeAlias = NDArray[np.float64]

Part: TypeAlias = Literal["bbox", "segm", "keypoints"]
"""What is compared with the truth, as faster-coco-eval names it."""

METRICS: Mapping[str, tuple[str, float | None, str]] = {
    "ap": ("AP", None, "all"),
    "ap50": ("AP50", 0.5, "all"),
    "ap75": ("AP75", 0.75, "all"),
    "ap_small": ("AP small", None, "small"),
    "ap_medium": ("AP medium", None, "medium"),
    "ap_large": ("AP large", None, "large"),
}
"""Metric -> title, IoU threshold (None: mean over 0.50, 0.55 ... 0.95) and size of objects.

Small: below 32 x 32 pixels; large: from 96 x 96.
"""
_NAMES: Mapping[Part, tuple[str, str]] = {
    "bbox": ("", ""),
    "segm": ("mask_", "Mask "),
    "keypoints": ("keypoint_", "Keypoint "),
}
"""Part -> what stands before a metric's name, and before its title."""
DISPLAY: Mapping[str, Display] = {
    prefix + name: Display(
        label + title, summary=name == "ap" or prefix + name == "ap50", drop=name == "ap"
    )
    for prefix, label in _NAMES.values()
    for name, (title, _, _) in METRICS.items()
}
_ABSENT = -1
"""What faster-coco-eval writes where there is no truth to find."""
PERSON = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""How far annotators of COCO's 17 keypoints of a person disagree, over the object's scale.

Source: Ronchi and Perona 2017, as the COCO evaluation publishes it.
"""


class _Kept(NamedTuple):
    """What the scores need of one image: no mask is kept as pixels."""

    image_id: int
    size: Size
    truth: Sequence[Json]
    rows: Doubles
    """[N, 7]: image id, x, y, width, height, score, category id."""
    segments: Sequence[Json]
    """Of the results: compressed run lengths; none where masks do not count."""
    points: Floats | None
    """Of the results: float32[N, K, 3]."""
    worth: Floats | None
    """Of the results: float32[N], by which their masks are ranked; None: by `rows`."""


class AveragePrecision:
    """COCO average precision of the images taken in, at most 100 objects each (keypoints 20).

    Masks are scored where all results and all objects of the truth have them, keypoints likewise;
    the last part that is scored gives the primary metric.
    """

    def __init__(
        self,
        known: Mapping[int, str],
        classes: Sequence[str],
        parts: Sequence[Part] = ("bbox",),
        tolerances: Sequence[float] = PERSON,
    ) -> None:
        """Take the truth's known categories and the model's classes.

        tolerances: Of each keypoint, over the object's scale.
        Raises: DataError where the classes do not fit; BackendError without faster-coco-eval.
        """
        _require()
        self._categories = dict(known)
        self._match = categories.match(known, classes)
        self._ids = coco_rows.ids(self._match)
        self._tolerances = tuple(tolerances)
        self._parts = list(parts)
        """Those that every image so far has."""
        self._objects = 0
        self._kept: list[_Kept] = []

    def add(self, name: str, result: Detections, truth: Any, size: Size, /) -> None:  # noqa: ANN401 - checked
        """Take the objects found in the image `name`, of H and W pixels.

        Raises: DataError for truth of another form, or of another size where masks are scored;
        ModelError for numbers that are not finite.
        """
        if not isinstance(truth, ImageAnnotations):
            raise DataError(
                f"the truth about {name} is a {type(truth).__name__}",
                expected="COCO annotations, as the sources coco and shapes give them",
            )
        result = coco_rows.known(result, self._ids)
        objects = [a for a in truth.annotations if not a["iscrowd"]]
        self._objects += len(objects)
        self._parts = [part for part in self._parts if self._is_known(part, result, objects)]
        if "segm" in self._parts and truth.size not in (None, size):
            raise DataError(
                f"the truth says that image {name} is {_sides(truth.size)}, and it has "
                f"{_sides(size)} pixels",
                expected="the height and the width of each image: its masks are drawn on them",
            )
        kept = _Kept(
            truth.image_id,
            size,
            tuple(self._compact(annotation, size) for annotation in truth.annotations),
            coco_rows.rows(truth.image_id, result, self._ids),
            _segments(result, size) if "segm" in self._parts else (),
            result.keypoints if "keypoints" in self._parts else None,
            result.mask_scores if "segm" in self._parts else None,
        )
        self._kept.append(kept)

    def scores(self) -> Scores:
        """Return the scores of all images."""
        metrics: dict[str, float | None] = {}
        primary, per_class = "", dict[str, float | None]()
        for part in self._parts if self._objects else self._parts[:1]:
            prefix = _NAMES[part][0]
            found, per_class = self._scored(part)
            primary = f"{prefix}ap"
            metrics |= {prefix + name: value for name, value in found.items()}
        return Scores(metrics, primary, DISPLAY, per_class, self._match.notes)

    def _is_known(self, part: Part, result: Detections, objects: Sequence[Json]) -> bool:
        """Return whether the objects found, and those of the truth, have this part."""
        if part == "bbox":
            return True
        field = _FIELDS[part][0]
        if not all(annotation.get(field) for annotation in objects):
            return False
        if part == "segm":
            return result.masks is not None or not len(result.boxes)
        shape = (len(self._tolerances), 3)
        points = result.keypoints
        return not len(result.boxes) or (points is not None and points.shape[1:] == shape)

    def _compact(self, annotation: Json, size: Size) -> Json:
        """Return what the scores need of an annotation; a mask as compressed run lengths."""
        parts = [part for part in self._parts if part != "bbox"]
        names = [name for part in parts for name in _FIELDS[part] if annotation.get(name)]
        kept = {name: annotation[name] for name in (*_PLAIN, *names)}
        if "segmentation" in kept:
            kept["segmentation"] = masks.compressed(kept["segmentation"], size)
        if "keypoints" in kept:
            seen = sum(visible > 0 for visible in kept["keypoints"][2::3])
            kept["num_keypoints"] = annotation.get("num_keypoints", seen)
        return kept

    def _scored(self, part: Part) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """Return the metrics of one part, and its AP per class."""
        coco, coco_eval = _require()
        known = coco(self._truth(part))
        results: Any = list(self._records(part))
        if part == "bbox":
            results = np.concatenate([np.empty((0, 7)), *(kept.rows for kept in self._kept)])
        evaluation = coco_eval(known, known.loadRes(results), part)
        if part == "keypoints":
            evaluation.params.kpt_oks_sigmas = np.array(self._tolerances)
        evaluation.evaluate()
        evaluation.accumulate()
        return _figures(evaluation, self._categories)

    def _truth(self, part: Part) -> Json:
        """Return a COCO object; its annotations are numbered from 1: 0 would mean unmatched."""
        needed = _FIELDS[part][:1]
        annotations = [
            {**annotation, "image_id": kept.image_id}
            for kept in self._kept
            for annotation in kept.truth
            if all(name in annotation for name in needed)
        ]
        images = ((kept.image_id, *kept.size) for kept in self._kept)
        return {
            "images": [
                dict(zip(("id", "height", "width"), image, strict=True)) for image in images
            ],
            "annotations": [{**a, "id": number} for number, a in enumerate(annotations, start=1)],
            "categories": [{"id": i, "name": name} for i, name in self._categories.items()],
        }

    def _records(self, part: Part) -> Iterator[Json]:
        """Yield each object as faster-coco-eval wants it, with its mask or its keypoints.

        Without a box: an object's area is then its mask's, not its box's.
        """
        for kept in self._kept if part != "bbox" else ():
            field = _FIELDS[part][0]
            values: Sequence[Any] = kept.segments
            if part == "keypoints":
                points = kept.points
                values = [] if points is None else [list(p.ravel().astype(float)) for p in points]
            ranks = kept.rows[:, 5]
            if part == "segm" and kept.worth is not None:
                ranks = kept.worth.astype(np.float64)
            for row, score, value in zip(kept.rows, ranks.tolist(), values, strict=True):
                links = {"image_id": int(row[0]), "category_id": int(row[6])}
                yield {**links, "score": score, field: value}


def _sides(size: Size | None) -> str:
    return "x".join(map(str, size or ()))


def _require() -> tuple[Any, Any]:
    """Return faster-coco-eval's truth and evaluation classes. Raises: BackendError."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise BackendError(
            "average precision needs faster-coco-eval, which cannot be imported",
            fix="`pip install faster-coco-eval`",
        ) from error
    return COCO, COCOeval_faster


def _segments(found: Detections, size: Size) -> tuple[Json, ...]:
    """Return the compressed run lengths of each object's mask in an image of `size`."""
    return tuple(
        masks.compressed({"size": list(size), "counts": counts}, size)
        for counts in found.run_lengths(size)
    )


_PLAIN = ("category_id", "bbox", "area", "iscrowd")
_FIELDS: Mapping[Part, tuple[str, ...]] = {
    "bbox": (),
    "segm": ("segmentation",),
    "keypoints": ("keypoints", "num_keypoints"),
}
"""Part -> what the truth about each object has for it, beyond its box."""


def _figures(
    evaluation: Any,  # noqa: ANN401 - the package has no types
    names: Mapping[int, str],
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Return every metric of `METRICS`, and the AP of each class by its name."""
    params = evaluation.params
    thresholds = [round(float(t), 2) for t in params.iouThrs]
    sizes = list(params.areaRngLbl)
    # [IoU thresholds, recall points, categories, object sizes, detections per image]
    precision = np.asarray(evaluation.eval["precision"])[..., -1]
    metrics: dict[str, float | None] = {}
    for name, (_, threshold, size) in METRICS.items():
        place = sizes.index(size) if size in sizes else len(sizes)
        by_size = precision[..., place : place + 1]
        chosen = by_size if threshold is None else by_size[thresholds.index(threshold)]
        metrics[name] = _mean(chosen)
    everything = precision[..., sizes.index("all")]
    numbers = map(int, params.catIds)
    return metrics, {names[n]: _mean(everything[:, :, k]) for k, n in enumerate(numbers)}


def _mean(precision: Doubles) -> float | None:
    valid = precision[precision != _ABSENT]
    return float(valid.mean()) if valid.size else None
