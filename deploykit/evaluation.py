"""Task metrics: COCO average precision of any backend's forward pass."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import samples
from deploykit.errors import BackendError, DataError, ModelError, OptionError
from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.metadata import ModelCard
    from deploykit.recipe import Dataset, Decode, Detections, Floats
    from deploykit.values import Json, Progress

    Forward = Callable[[Floats], Mapping[str, Floats]]


@dataclass(frozen=True)
class Scores:
    """COCO average precision over one set of images, each 0 to 1.

    None where the truth holds no object of that size or class.
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

    def to_json(self) -> Json:
        """Return the scores as plain JSON values."""
        return asdict(self)


_METRICS: Mapping[str, tuple[float | None, str]] = {
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


def evaluate(  # noqa: PLR0913 - four nouns and three independent switches
    run: Forward,
    dataset: Dataset,
    card: ModelCard,
    decode: Decode,
    *,
    batch_size: int = 1,
    limit: int | None = None,
    progress: Progress = silent,
) -> Scores:
    """Return the scores of `run` (images float32[B, 3, H, W] -> outputs) on a data set.

    Only the images that were run count, see `samples.choose` for `limit`.

    Raises: OptionError for a set without truth; DataError where the truth's classes are not the
        model's or an image is unreadable; BackendError without faster-coco-eval.
    """
    if dataset.truth is None:
        raise OptionError(
            f"{dataset.name} has images but no truth to compare with",
            expected="a source with annotations, such as coco:DIR or shapes:",
        )
    _coco()
    truth = dataset.truth()
    categories = category_ids(truth, card.class_names)
    found: dict[str, Detections] = {}
    batches = samples.batches(dataset, card.preprocess, batch_size, limit=limit, progress=progress)
    for batch in batches:
        results = decode(run(batch.images), batch.geometries)
        if len(results) != len(batch.names):
            raise ModelError(
                f"the model returned results for {len(results)} images",
                expected=f"{len(batch.names)}, one per image of the batch",
            )
        found.update(zip(batch.names, results, strict=True))
    return coco_ap(truth, found, categories)


def category_ids(truth: Json, class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the truth's category id for each class of a model.

    By name where the names are the same set; otherwise by position among the sorted ids, provided
    that the counts agree and no shared name changes its place.

    Raises: DataError naming the differences.
    """
    known = sorted((int(c["id"]), str(c["name"])) for c in truth["categories"])
    names = [name for _, name in known]
    if sorted(names) == sorted(class_names) and len(set(names)) == len(names):
        ids = {name: number for number, name in known}
        return tuple(ids[name] for name in class_names)
    moved = [
        name for i, name in enumerate(class_names) if name in names and names[i : i + 1] != [name]
    ]
    if len(names) == len(class_names) and not moved:
        return tuple(number for number, _ in known)
    raise DataError(
        f"the truth has {len(names)} categories, the model {len(class_names)} classes; "
        + _differences(names, class_names, moved),
        expected="the same class names, or as many in the same order",
        fix="evaluate on the data set the model was trained for",
    )


def _differences(names: Sequence[str], class_names: Sequence[str], moved: Sequence[str]) -> str:
    groups = {
        "only in the truth": sorted(set(names) - set(class_names)),
        "only in the model": sorted(set(class_names) - set(names)),
        "in another place": moved,
    }
    return "; ".join(f"{label}: {_shortened(group)}" for label, group in groups.items() if group)


def _shortened(names: Sequence[str], most: int = 5) -> str:
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def coco_ap(truth: Json, detections: Mapping[str, Detections], categories: Sequence[int]) -> Scores:
    """Return the box scores of `detections` (image file name -> objects) under the COCO protocol.

    Images without an entry in `detections` do not count; at most 100 objects per image do.

    Args:
        truth: A COCO `instances` object.
        detections: Objects found, with classes that index `categories`.
        categories: The truth's category id of each class.

    Raises: DataError for an image that the truth does not know; BackendError without
        faster-coco-eval.
    """
    coco, coco_eval = _coco()
    ids = {str(image["file_name"]): int(image["id"]) for image in truth["images"]}
    unknown = sorted(detections.keys() - ids.keys())
    if unknown:
        raise DataError(f"the truth knows no image called {_shortened(unknown)}")
    known = coco(_restricted(truth, {ids[name] for name in detections}))
    rows = [_rows(ids[name], found, categories) for name, found in detections.items()]
    evaluation = coco_eval(known, known.loadRes(np.concatenate([np.empty((0, 7)), *rows])), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    names = {int(c["id"]): str(c["name"]) for c in truth["categories"]}
    return _scores(evaluation, names, len(detections))


def _coco() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise BackendError(
            "average precision needs faster-coco-eval, which cannot be imported",
            fix="pip install 'deploykit[eval]'",
        ) from error
    return COCO, COCOeval_faster


def _restricted(truth: Json, image_ids: set[int]) -> Json:
    """Return the images asked for with their boxes, numbered from 1: 0 would mean unmatched."""
    kept = [a for a in truth["annotations"] if a["image_id"] in image_ids]
    fields = ("image_id", "category_id", "bbox", "area", "iscrowd")
    return {
        "images": [dict(image) for image in truth["images"] if image["id"] in image_ids],
        "annotations": [
            {"id": number, **{field: annotation[field] for field in fields}}
            for number, annotation in enumerate(kept, start=1)
        ],
        "categories": [dict(category) for category in truth["categories"]],
    }


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
    # [IoU thresholds, recall points, categories, object sizes, detections per image]
    precision = np.asarray(evaluation.eval["precision"])[..., -1]
    metrics = {}
    for field, (threshold, size) in _METRICS.items():
        by_size = precision[..., params.areaRngLbl.index(size)]
        chosen = by_size if threshold is None else by_size[thresholds.index(threshold)]
        metrics[field] = _mean(chosen)
    everything = precision[..., params.areaRngLbl.index("all")]
    per_class = {
        names[int(number)]: _mean(everything[:, :, k]) for k, number in enumerate(params.catIds)
    }
    return Scores(**metrics, per_class=per_class, images=images)


def _mean(precision: NDArray[np.float64]) -> float | None:
    valid = precision[precision != _ABSENT]
    return float(valid.mean()) if valid.size else None
