"""COCO's panoptic benchmark, for networks that find objects with masks, as DETR's do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import Image

from deploykit.data.label_images import DIGITS
from deploykit.errors import DataError
from deploykit.files import artifacts
from deploykit.tasks import categories, coco_rows, segments
from deploykit.tasks.detections import Detections
from deploykit.tasks.panoptic import PanopticQuality, Segments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.tasks.task import Scores

    Size = tuple[int, int]


@dataclass(frozen=True)
class PanopticBenchmark:
    """Segments of things and stuff: PQ, SQ and RQ."""

    categories: Mapping[int, str]
    """Id -> name."""
    things: frozenset[int]
    """Ids of those of which each object is a segment of its own."""
    images: Mapping[str, int] = field(default_factory=dict)
    """Name -> id, for the files that the official scripts read."""

    def metric(self, known: Mapping[int, str], classes: Sequence[str], /) -> SegmentsFound:
        """Return a fresh metric. Raises: DataError where the classes do not fit."""
        return SegmentsFound(known, self.things, classes)

    def write(
        self, folder: Path, name: str, result: object, size: Size, classes: Sequence[str], /
    ) -> None:
        """Write the segments of an image as colours, and its entry of the official list.

        `NAME.png` and `NAME.json`, below `folder` as the images are below theirs. Raises: DataError
        for another result; ModelError for a class without a name; OutputError.
        """
        found = SegmentsFound(self.categories, self.things, classes).segments(result, size)
        picture = PurePosixPath(name).with_suffix(".png")
        path = folder / picture
        artifacts.made(path.parent)
        with artifacts.replacing(path) as temporary:
            Image.fromarray(DIGITS.colours(found.pixels)).save(temporary, "PNG")
        rows = [{"id": each.number, "category_id": each.category} for each in found.known]
        entry = {
            "image_id": self.images[name],
            "file_name": str(picture),
            "segments_info": rows,
        }
        artifacts.write_json(path.with_suffix(".json"), entry)


class SegmentsFound:
    """The quality of the segments that objects with masks make together."""

    def __init__(
        self, known: Mapping[int, str], things: frozenset[int], classes: Sequence[str]
    ) -> None:
        """Take the categories of the truth, and the model's classes. Raises: DataError."""
        self._match = categories.match(known, classes)
        self._ids = coco_rows.ids(self._match)
        self._things = {i for number, i in self._match.indices.items() if number in things}
        self._quality = PanopticQuality(known, things & known.keys())

    def segments(self, result: object, size: Size) -> Segments:
        """Return the segments of an image of H and W pixels; categories are the truth's ids.

        Objects of classes that the truth does not have are left out. Raises: DataError for a result
        of another form; ModelError for a class without a name.
        """
        if not isinstance(result, Detections) or (result.masks is None and len(result.boxes)):
            raise DataError(
                f"the model finds {type(result).__name__}, and segments are made of others",
                expected="objects with masks",
                fix="for this model: coco:DIR without truth=panoptic",
            )
        made = segments.merged(coco_rows.known(result, self._ids), size, self._things)
        ids = self._ids.tolist()
        return replace(made, known=[s._replace(category=ids[s.category]) for s in made.known])

    def add(self, name: str, result: object, truth: Any, size: Size, /) -> None:  # noqa: ANN401 - checked
        """Take what was found in the image `name`, of H and W pixels, and its segments.

        Raises: DataError for truth of another form or size; as `segments`.
        """
        if not isinstance(truth, Segments):
            raise DataError(
                f"the truth about {name} is a {type(truth).__name__}",
                expected="segments, as coco:DIR,truth=panoptic gives them",
            )
        self._quality.add(name, self.segments(result, size), truth, size)

    def scores(self) -> Scores:
        """Return PQ, SQ and RQ over all classes, over things and over stuff."""
        found = self._quality.scores()
        how = f"DETR's: the surest mask of each pixel, scores above {segments.LEAST_SCORE:g}"
        return replace(found, notes=self._match.notes, protocol={"segments": how})
