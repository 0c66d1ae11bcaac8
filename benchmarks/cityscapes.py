"""Scores of made-up street scenes beside cityscapesScripts', number by number.

    python benchmarks/cityscapes.py --official OTHER/bin/python --scenes 50

OTHER is an environment of its own: `pip install cityscapesScripts "numpy<2.4" "pillow<13"` (the
package calls what later ones do not have). Scenes have groups, regions that are not scored and
classes that are absent; results are the truth with pixels, masks and classes changed at random.
What the polygons become, label maps' scores, and objects' scores with distances and without, must
be equal to the last digit.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deploykit.data import sources
from deploykit.tasks.cityscapes import labels, truth
from deploykit.tasks.cityscapes.objects import StreetObjects
from deploykit.tasks.cityscapes.pixels import StreetPixels
from deploykit.tasks.cityscapes.truth import StreetTruth
from deploykit.tasks.detections import Detections
from deploykit.tasks.semantic import LabelMap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.data.sources import Dataset

_ROOT = Path(__file__).parent.parent
_CLASSES = (*labels.CLASSES.values(), "unlabeled", "caravan")
_THINGS = tuple(labels.THINGS.values())
_SIDE = 28


def main() -> None:
    """Compare, and print what was equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", required=True, help="a Python with cityscapesScripts")
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--size", default="512x256")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        spec = f"count={wanted.scenes},size={wanted.size}"
        ours = [sys.executable, str(_ROOT / "calib/streets.py")]
        subprocess.run([*ours, spec, str(tree)], check=True)
        compare(tree, wanted.official)


def compare(tree: Path, official: str) -> None:
    """Compare everything on one tree. Raises: AssertionError where a number differs."""

    def told(kind: str, predictions: Path) -> Any:  # noqa: ANN401 - JSON
        predictions.mkdir(exist_ok=True)
        script = Path(__file__).with_name("cityscapes_official.py")
        command = [official, str(script), kind, str(tree), str(predictions)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    rng = np.random.default_rng(0)
    data = sources.dataset(f"cityscapes:{tree}")
    truths = {s.name: s.truth() for s in data.samples if s.truth is not None}
    known = {name: found for name, found in truths.items() if isinstance(found, StreetTruth)}
    print(f"{told('polygons', tree / 'drawn')} files of polygons")
    for name, found in known.items():
        for kind, ids in (("labelIds", found.labels), ("instanceIds", found.instances)):
            drawn = np.asarray(Image.open(tree / "drawn" / f"{name}_gtFine_{kind}.png"))
            assert (drawn == ids).all(), (name, kind)
    pixels = _pixels(rng, data, known, tree / "pixels")
    _same(_pixel_scores(pixels), _flat(told("pixels", tree / "pixels")), "label maps")
    objects = _objects(rng, known, tree / "objects")
    _same(_object_scores(objects[0]), _flat(told("objects", tree / "objects")), "objects")
    (tree / "distances.json").write_text(json.dumps(objects[2]), encoding="utf-8")
    _same(_object_scores(objects[1]), _flat(told("objects", tree / "objects")), "with distances")


def _pixels(
    rng: np.random.Generator, data: Dataset, known: Mapping[str, StreetTruth], folder: Path
) -> StreetPixels:
    """Return the scores of label maps that are written to a folder."""
    metric = StreetPixels(data.known(_CLASSES), _CLASSES)
    place = np.full(len(labels.LABELS), len(labels.CLASSES), np.uint8)
    place[list(labels.CLASSES)] = np.arange(len(labels.CLASSES))
    for name, found in known.items():
        wrong = rng.random(found.labels.shape) < rng.uniform(0.05, 0.4)
        chosen = place[found.labels]
        chosen[wrong] = rng.integers(0, len(_CLASSES), int(wrong.sum()))
        result = LabelMap(chosen, "by chance", len(_CLASSES))
        metric.add(name, result, found, found.labels.shape)
        assert data.benchmark is not None
        data.benchmark.write(folder, name, result, found.labels.shape, _CLASSES)
    return metric


def _objects(
    rng: np.random.Generator, known: Mapping[str, StreetTruth], folder: Path
) -> tuple[StreetObjects, StreetObjects, dict[str, Any]]:
    """Return the scores of objects that are written to a folder, without and with distances."""
    plain, far = (StreetObjects(labels.THINGS, _THINGS) for _ in range(2))
    benchmark = sources.dataset("streets:count=1,truth=instance").benchmark
    told: dict[str, Any] = {}
    assert benchmark is not None
    for name, found in known.items():
        result = _detected(rng, found)
        size = found.labels.shape
        assert found.instances is not None
        away = {
            value: (float(rng.uniform(0, 140)), float(rng.uniform(0.4, 1.0)))
            for value in np.unique(found.instances).tolist()
        }
        plain.add(name, result, found, size)
        far.add(name, result, replace(found, distances=away), size)
        told[f"{name}_gtFine_instanceIds.png"] = away
        benchmark.write(folder, name, result, size, _THINGS)
    return plain, far, told


def _detected(rng: np.random.Generator, found: StreetTruth) -> Detections:
    """Return objects of the truth, none to two for each: moved, of another class, or groups."""
    rows: list[tuple[list[float], float, int, Any]] = []
    for one in truth.coco_objects(1, found).annotations:
        x, y, width, height = one["bbox"]
        runs = one["segmentation"]["counts"]
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        mask = flat.reshape(found.labels.shape[1], -1).T[y : y + height, x : x + width]
        grid = np.ix_(*(np.arange(_SIDE) * side // _SIDE for side in mask.shape))
        for _ in range(int(rng.integers(0, 3))):
            moved = rng.normal(0.0, 0.08, 4) * ([width, height] * 2) if rng.random() < 0.7 else 0
            box = (np.array([x, y, x + width, y + height]) + moved).tolist()
            right = list(labels.THINGS).index(one["category_id"])
            place = right if rng.random() < 0.9 else int(rng.integers(len(_THINGS)))
            score = round(float(rng.random()), 2)
            if box[2] > box[0] and box[3] > box[1]:
                rows.append((box, score, place, mask[grid]))
    boxes, scores, classes, masks = ([row[i] for row in rows] for i in range(4))
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int64),
        np.array(masks, np.float32).reshape(-1, _SIDE, _SIDE),
    )


def _pixel_scores(metric: StreetPixels) -> dict[str, float | None]:
    """Return our scores under the names that the script's JSON has."""
    groups = {
        "classScores": metric.classes(),
        "categoryScores": metric.categories(),
        "classInstScores": metric.instance_classes(),
        "categoryInstScores": metric.instance_categories(),
    }
    means = metric.scores().metrics
    return {
        **{
            f"{key}.{name}": value for key, group in groups.items() for name, value in group.items()
        },
        "averageScoreClasses": means["miou"],
        "averageScoreInstClasses": means["iiou"],
        "averageScoreCategories": means["category_miou"],
        "averageScoreInstCategories": means["category_iiou"],
    }


def _object_scores(metric: StreetObjects) -> dict[str, float | None]:
    """Return our scores under the names that the script's JSON has."""
    scores = metric.scores()
    found = {"averages." + _OFFICIAL[name]: value for name, value in scores.metrics.items()}
    for name, value in scores.per_class.items():
        found[f"averages.classes.{name}.ap"] = value
    for i, value in enumerate(metric.table().ravel().tolist()):
        found[f"resultApMatrix.{i}"] = None if math.isnan(value) else value
    return found


_OFFICIAL = {
    "cityscapes_ap": "allAp",
    "cityscapes_ap50": "allAp50%",
    "cityscapes_ap_100m": "allAp100m",
    "cityscapes_ap_50m": "allAp50m",
    "cityscapes_ap50_50m": "allAp50%50m",
}


def _flat(told: Any, under: str = "") -> dict[str, float | None]:  # noqa: ANN401 - JSON
    """Return every number in a JSON value by the keys that lead to it; NaN as None."""
    if isinstance(told, dict):
        pairs = [_flat(value, f"{under}.{key}" if under else key) for key, value in told.items()]
        return {name: value for pair in pairs for name, value in pair.items()}
    if isinstance(told, list):
        flat = np.array(told, dtype=object).ravel().tolist()
        return {f"{under}.{i}": _number(value) for i, value in enumerate(flat)}
    return {under: _number(told)}


def _number(value: Any) -> Any:  # noqa: ANN401 - a number, or None
    return None if isinstance(value, float) and math.isnan(value) else value


def _same(ours: Mapping[str, float | None], told: Mapping[str, float | None], what: str) -> None:
    """Print how many numbers are equal. Raises: AssertionError naming one that is not."""
    for name, value in ours.items():
        assert told[name] == value, (what, name, value, told[name])
    known = sum(value is not None for value in ours.values())
    print(f"{what}: {len(ours)} numbers equal, {known} of them defined")


if __name__ == "__main__":
    main()
