"""COCO objects from data sets and back, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.tasks.annotations import ImageAnnotations
from deploykit.tasks.coco import AveragePrecision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.data.sources import Dataset
    from deploykit.tasks.coco import Part
    from deploykit.tasks.detections import Detections
    from deploykit.tasks.task import Scores


def whole(data: Dataset) -> dict[str, Any]:
    """Return the truth about all images of a set as one COCO `instances` object."""
    images, annotations = [], list[dict[str, Any]]()
    for sample in data.samples:
        assert sample.truth is not None
        truth = sample.truth()
        assert isinstance(truth, ImageAnnotations)
        size = dict(zip(("height", "width"), truth.size or (), strict=False))
        images.append({"id": truth.image_id, "file_name": sample.name, **size})
        for item in truth.annotations:
            links = {"id": len(annotations) + 1, "image_id": truth.image_id}
            annotations.append({**item, **links})
    categories = [{"id": number, "name": name} for number, name in data.categories.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def of_image(known: Mapping[str, Any], name: str) -> ImageAnnotations:
    """Return what a COCO object says about the image of this file name."""
    image = next(image for image in known["images"] if image["file_name"] == name)
    own = tuple(a for a in known["annotations"] if a["image_id"] == image["id"])
    size = (image["height"], image["width"]) if "height" in image else None
    return ImageAnnotations(image["id"], own, size)


def scored(
    known: Mapping[str, Any],
    found: Mapping[str, Detections],
    classes: Sequence[str],
    parts: Sequence[Part] = ("bbox",),
) -> Scores:
    """Return the scores of what was found (image file name -> objects)."""
    metric = AveragePrecision({c["id"]: c["name"] for c in known["categories"]}, classes, parts)
    for name, result in found.items():
        truth = of_image(known, name)
        metric.add(name, result, truth, truth.size or (999, 999))
    return metric.scores()
