"""What cityscapesScripts says of a tree: run by `benchmarks/cityscapes.py`, with its own Python.

python benchmarks/cityscapes_official.py pixels|objects|polygons|panoptic TREE PREDICTIONS
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

_EVALUATION, _PREPARATION = "cityscapesscripts.evaluation", "cityscapesscripts.preparation"


def pixels(tree: str, predictions: str) -> Any:  # noqa: ANN401 - whatever it returns
    """Return the scores of label maps."""
    script: Any = importlib.import_module(f"{_EVALUATION}.evalPixelLevelSemanticLabeling")
    script.args.quiet, script.args.JSONOutput = True, False
    truths = sorted(glob.glob(f"{tree}/gtFine/val/*/*_labelIds.png"))  # noqa: PTH207 - its way
    script.args.predictionPath = predictions
    found = [script.getPrediction(script.args, truth) for truth in truths]
    return script.evaluateImgLists(found, truths, script.args)


def objects(tree: str, predictions: str) -> Any:  # noqa: ANN401 - whatever it returns
    """Return the scores of objects; distances.json of the tree has those of objects, if any."""
    script: Any = importlib.import_module(f"{_EVALUATION}.evalInstanceLevelSemanticLabeling")
    script.args.quiet, script.args.JSONOutput = True, False
    truths = sorted(glob.glob(f"{tree}/gtFine/val/*/*_instanceIds.png"))  # noqa: PTH207
    script.args.predictionPath = str(Path(predictions).resolve())
    found = [script.getPrediction(truth, script.args) for truth in truths]
    told = Path(tree, "distances.json")
    script.writeDict2JSON = lambda *_: None  # a file of matches that nothing reads
    with tempfile.TemporaryDirectory() as folder:
        known = script.instances2dict(truths)
        if told.is_file():
            script.args.distanceAvailable = True
            distances = json.loads(told.read_text(encoding="utf-8"))
            for path, instances in known.items():
                for one in (each for group in instances.values() for each in group):
                    pair = distances[Path(path).name].get(str(one["instID"]))
                    one["medDist"], one["distConf"] = pair or (-1.0, 0.0)
        script.args.gtInstancesFile = str(Path(folder, "instances.json"))
        Path(script.args.gtInstancesFile).write_text(json.dumps(known), encoding="utf-8")
        return script.evaluateImgLists(found, truths, script.args)


def polygons(tree: str, predictions: str) -> Any:  # noqa: ANN401 - a list of differences
    """Draw every file of polygons into `predictions`, as labelIds and instanceIds."""
    to_instances: Any = importlib.import_module(f"{_PREPARATION}.json2instanceImg")
    to_labels: Any = importlib.import_module(f"{_PREPARATION}.json2labelImg")
    files = sorted(Path(tree).glob("gtFine/*/*/*_polygons.json"))
    for file in files:
        stem = file.name.replace("_polygons.json", "")
        to_labels.json2labelImg(str(file), f"{predictions}/{stem}_labelIds.png")
        to_instances.json2instanceImg(str(file), f"{predictions}/{stem}_instanceIds.png")
    return len(files)


def panoptic(tree: str, predictions: str) -> Any:  # noqa: ANN401 - JSON
    """Return PQ, SQ and RQ: TREE has cases.json, with categories and pairs of annotations."""
    script: Any = importlib.import_module(f"{_EVALUATION}.evalPanopticSemanticLabeling")
    cases = json.loads(Path(tree, "cases.json").read_text(encoding="utf-8"))
    categories = {one["id"]: one for one in cases["categories"]}
    with contextlib.redirect_stdout(sys.stderr):
        found = script.pq_compute_single_core(0, cases["pairs"], tree, predictions, categories)
    groups = (("All", None), ("Things", True), ("Stuff", False))
    told = {name: found.pq_average(categories, isthing=kind) for name, kind in groups}
    return {**{name: means for name, (means, _) in told.items()}, "classes": told["All"][1]}


KINDS = {"pixels": pixels, "objects": objects, "polygons": polygons, "panoptic": panoptic}

if __name__ == "__main__":
    kind, *places = sys.argv[1:]
    print(json.dumps(KINDS[kind](*places)))
