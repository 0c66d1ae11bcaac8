"""Small trees in Cityscapes' layout, and results for them, made of rectangles by seeded integers.

`python tests/street_trees.py TREE` writes the tree and results for it below TREE; then
`python benchmarks/cityscapes_official.py pixels TREE TREE/pixels` (with a Python that has
cityscapesScripts) says what the tests pin, and `objects TREE TREE/objects` likewise.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deploykit.tasks.cityscapes import benchmarks, labels
from deploykit.tasks.detections import Detections
from deploykit.tasks.semantic import LabelMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HEIGHT, WIDTH, SCENES = 120, 200, 6
EMPTY = 3
"""The scene that nothing is labelled in."""
KINDS = (7, 8, 11, 13, 17, 21, 23, 24, 24, 24, 25, 26, 26, 26, 28, 29, 32, 33, 0, 3, 4)
"""Ids of what is drawn: some classes never are, some labels are not scored."""
NAMES = (*labels.CLASSES.values(), "parking", "own class")
"""Of a segmenter's classes."""
THINGS = tuple(labels.THINGS.values())


def core(scene: int) -> str:
    return f"ulm_{scene:06d}_000019"


def instances(scene: int) -> NDArray[np.int32]:
    """Return a map of instances; every fifth object is in a group."""
    rng = np.random.default_rng(scene)
    found = np.zeros((HEIGHT, WIDTH), np.int32)
    for number in range(0 if scene == EMPTY else 26):
        kind = KINDS[rng.integers(len(KINDS))]
        top, left, height, width = rng.integers(0, [HEIGHT, WIDTH, 80, 90]).tolist()
        single = labels.LABELS[kind].instances and number % 5
        value = kind * labels.GROUPED + number if single else kind
        found[top : top + 4 + height, left : left + 4 + width] = value
    return found


def segmented(scene: int) -> LabelMap:
    """Return a label map that is right in about three pixels of four."""
    rng = np.random.default_rng(100 + scene)
    known = {number: place for place, number in enumerate(labels.CLASSES)}
    right = labels.of_instances(instances(scene))
    found = np.array([known.get(n, len(known)) for n in range(len(labels.LABELS))], np.uint8)[right]
    wrong = rng.integers(0, 4, right.shape) == 0
    found[wrong] = rng.integers(0, len(NAMES), int(wrong.sum()))
    return LabelMap(found, "by hand", len(NAMES))


def detected(scene: int) -> Detections:
    """Return rectangles: what is there once or twice, moved or whole, and some that are not."""
    rng = np.random.default_rng(200 + scene)
    boxes: list[list[int]] = []
    classes: list[int] = []
    truth = instances(scene)
    for value in np.unique(truth).tolist():
        rows, columns = np.nonzero(truth == value)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        label = int(labels.of_instances(np.array(value, np.int32)))
        for _ in range(int(rng.integers(0, 3))):
            moved = np.add(box, rng.integers(-3, 4, 4)).tolist()
            if moved[2] > moved[0] and moved[3] > moved[1]:
                boxes.append(moved)
                known = label in labels.THINGS
                classes.append(list(labels.THINGS).index(label) if known else int(rng.integers(8)))
    scores = rng.integers(1, 40, len(boxes)) / 40
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        scores.astype(np.float32),
        np.array(classes, np.int64),
        np.ones((len(boxes), 28, 28), np.float32),
        pasting="exact",
    )


def distances(scene: int) -> dict[int, tuple[float, float]]:
    """Return metres and certainty of each object."""
    rng = np.random.default_rng(300 + scene)
    values = np.unique(instances(scene)).tolist()
    return {v: (float(rng.integers(0, 140)), float(rng.integers(4, 11)) / 10) for v in values}


def save(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def scene_files(root: Path, scene: int, kinds: Sequence[str] = ("labelIds", "instanceIds")) -> None:
    """Write the image and the maps of one scene."""
    name, truth = core(scene), instances(scene)
    image = np.random.default_rng(scene).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    save(root / f"leftImg8bit/val/ulm/{name}_leftImg8bit.png", image)
    own = labels.of_instances(truth)
    maps: dict[str, NDArray[Any]] = {
        "labelIds": own,
        "instanceIds": truth.astype(np.uint16),
        "labelTrainIds": labels.to_train()[own],
    }
    for kind in kinds:
        save(root / f"gtFine/val/ulm/{name}_gtFine_{kind}.png", maps[kind])


def main(root: Path) -> None:
    for scene in range(SCENES):
        scene_files(root, scene)
        size = (HEIGHT, WIDTH)
        found = segmented(scene)
        benchmarks.PixelBenchmark().write(root / "pixels", core(scene), found, size, NAMES)
        objects = detected(scene)
        benchmarks.ObjectBenchmark().write(root / "objects", core(scene), objects, size, THINGS)
    if "--distances" in sys.argv:
        told = {f"{core(s)}_gtFine_instanceIds.png": distances(s) for s in range(SCENES)}
        (root / "distances.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
