"""Cityscapes: trees on disk, polygons drawn by hand, and scores that cityscapesScripts gives."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from street_trees import (
    HEIGHT,
    NAMES,
    SCENES,
    THINGS,
    WIDTH,
    core,
    detected,
    distances,
    instances,
    save,
    scene_files,
    segmented,
)

import deploykit
from deploykit.data import sources
from deploykit.data.preprocess import Preprocess
from deploykit.errors import DataError, ModelError, OptionError
from deploykit.recipes import metadata
from deploykit.recipes.metadata import ModelCard
from deploykit.tasks import SHIPPED, evaluation, masks
from deploykit.tasks.cityscapes import labels, polygons
from deploykit.tasks.cityscapes.objects import StreetObjects
from deploykit.tasks.cityscapes.pixels import StreetPixels
from deploykit.tasks.cityscapes.truth import StreetTruth
from deploykit.tasks.coco import AveragePrecision
from deploykit.tasks.outputs import Output
from deploykit.tasks.semantic import LabelMap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from deploykit.data.sources import Dataset

SIZE = (HEIGHT, WIDTH)
GROUND = "gtFine/val/ulm/" + core(0) + "_gtFine_"
IMAGE = f"leftImg8bit/val/ulm/{core(0)}_leftImg8bit.png"


def whole(scene: int) -> StreetTruth:
    found = instances(scene)
    return StreetTruth(labels.of_instances(found), found)


def opened(root: Path, more: str = "") -> Dataset:
    return sources.dataset(f"cityscapes:{root}{more}")


def only_truth(data: Dataset) -> Any:
    (sample,) = data.samples
    assert sample.truth is not None
    return sample.truth()


def test_the_labels_are_those_of_the_published_table() -> None:
    assert (len(labels.LABELS), len(labels.CLASSES), len(labels.THINGS)) == (34, 19, 8)
    train = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert list(labels.CLASSES) == train
    assert list(labels.THINGS) == [24, 25, 26, 27, 28, 31, 32, 33]
    assert [labels.BY_NAME[n].number for n in ("polegroup", "caravan", "bicycle")] == [18, 29, 33]
    assert (labels.to_train()[train] == np.arange(19)).all()
    assert (labels.from_train()[labels.to_train()[train]] == train).all()
    assert labels.from_train()[255] == 0


def test_maps_of_ids_are_read_beside_their_images(tmp_path: Path) -> None:
    for scene in range(3):
        scene_files(tmp_path, scene)
    data = opened(tmp_path)
    assert [sample.name for sample in data.samples] == [core(scene) for scene in range(3)]
    assert data.samples[0].read().shape == (*SIZE, 3)
    assert dict(data.categories) == dict(labels.CLASSES)
    for scene, sample in enumerate(data.samples):
        found: Any = sample.truth and sample.truth()
        assert (found.instances == instances(scene)).all()
        assert (found.labels == labels.of_instances(instances(scene))).all()
    assert dict(opened(tmp_path, ",truth=instance").categories) == dict(labels.THINGS)


def test_train_ids_are_brought_back_to_official_ids(tmp_path: Path) -> None:
    scene_files(tmp_path, 0, ["labelTrainIds"])
    found = only_truth(opened(tmp_path))
    official = labels.of_instances(instances(0))
    assert (found.labels == np.where(np.isin(official, list(labels.CLASSES)), official, 0)).all()
    assert found.instances is None


def test_coarse_labels_have_names_of_their_own(tmp_path: Path) -> None:
    scene_files(tmp_path, 0)
    found = np.full(SIZE, 7, np.uint8)
    save(tmp_path / f"gtCoarse/val/ulm/{core(0)}_gtCoarse_labelIds.png", found)
    assert (only_truth(opened(tmp_path, ",quality=coarse")).labels == 7).all()
    with pytest.raises(OptionError, match="unknown quality of cityscapes 'rough'"):
        opened(tmp_path, ",quality=rough")


def box(x1: int, y1: int, x2: int, y2: int) -> list[list[int]]:
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def test_polygons_cover_each_other_in_their_order_and_are_numbered_by_class(tmp_path: Path) -> None:
    scene_files(tmp_path, 0, ())
    objects: list[dict[str, Any]] = [
        {"label": "road", "polygon": box(0, 0, 9, 5)},
        {"label": "car", "polygon": box(0, 0, 3, 2), "deleted": 1},
        {"label": "car", "polygon": box(0, 0, 3, 2)},
        {"label": "license plate", "polygon": box(1, 1, 2, 2)},
        {"label": "cargroup", "polygon": box(4, 0, 6, 2)},
        {"label": "caravan", "polygon": box(7, 0, 9, 2), "id": 5, "user": "x"},
        {"label": "car", "polygon": box(2, 2, 5, 4)},
        {"label": "polegroup", "polygon": box(9, 4, 9, 5)},
    ]
    path = tmp_path / (GROUND + "polygons.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"imgHeight": 7, "imgWidth": 11, "objects": objects}))
    right = np.zeros((7, 11), np.int32)
    right[:6, :10] = 7
    right[:3, :4] = 26000
    right[:3, 4:7] = 26
    right[:3, 7:10] = 29000
    right[2:5, 2:6] = 26001
    right[4:6, 9] = 18
    found = only_truth(opened(tmp_path))
    assert (found.instances == right).all()
    assert (found.labels == np.where(right < 1000, right, right // 1000)).all()
    again = polygons.read(path)
    assert polygons.Polygons(7, 11, again.objects).to_json()["objects"][0] == objects[0]


def test_objects_are_also_given_as_cocos_annotations(tmp_path: Path) -> None:
    scene_files(tmp_path, 0)
    data = opened(tmp_path, ",truth=objects")
    found = only_truth(data)
    values = np.unique(instances(0))
    mine = [v for v in values if (v // 1000 if v >= 1000 else v) in labels.THINGS]
    assert len(found.annotations) == len(mine)
    assert {a["iscrowd"] for a in found.annotations} == {0, 1}
    assert [a["area"] for a in found.annotations] == [int((instances(0) == v).sum()) for v in mine]
    metric = SHIPPED["instance_segmentation"].metric(data.known(THINGS), THINGS)
    assert isinstance(metric, AveragePrecision)
    metric.add("a", detected(0), found, SIZE)
    assert metric.scores().value is not None


def _rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / old).rename(root / new)


def _grey(kind: str, value: int, size: tuple[int, int] = SIZE) -> Callable[[Path], object]:
    ids = np.full(size, value, np.uint16 if value > 255 else np.uint8)
    return lambda root: save(root / f"{GROUND}{kind}.png", ids)


def _json(text: str) -> Callable[[Path], object]:
    def broken(root: Path) -> None:
        _gone(root)
        (root / f"{GROUND}polygons.json").write_text(text)

    return broken


def _gone(root: Path) -> None:
    for kind in ("labelIds", "instanceIds"):
        (root / f"{GROUND}{kind}.png").unlink()


BROKEN: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "no label": (
        _gone,
        r"1 of 1 images have no \*_labelIds.png or .*, the first one ulm_000000_000019",
    ),
    "no image": (
        lambda root: save(
            root / f"gtFine/val/ulm/{core(7)}_gtFine_labelIds.png", np.zeros(SIZE, np.uint8)
        ),
        "1 label maps in .* have no image in leftImg8bit, the first one ulm_000007_000019",
    ),
    "ending twice": (
        _rename(f"{GROUND}labelIds.png", f"{GROUND}labelIds.png.png"),
        "labelIds.png.png has its ending twice",
    ),
    "image's ending twice": (_rename(IMAGE, f"{IMAGE}.png"), "rename it to ulm_000000_000019"),
    "image's name": (_rename(IMAGE, "leftImg8bit/val/ulm/a.png"), "a.png is not named as"),
    "a label's id": (_grey("labelIds", 34), "labelIds.png holds the ids 34;? ?.*official ids"),
    "train ids": (_grey("labelIds", 255), "holds the ids 255"),
    "an object's id": (_grey("instanceIds", 7001), "holds the ids 7001"),
    "an object without label": (_grey("instanceIds", 34000), "holds the ids 34000"),
    "two sizes": (_grey("instanceIds", 7, (9, 5)), "has 5x9 pixels, and .*labelIds.png 200x120"),
    "no JSON": (_json("{"), "is not JSON"),
    "one corner": (
        _json('{"imgHeight":4,"imgWidth":4,"objects":[{"label":"car","polygon":[[0,0]]}]}'),
        r"objects\[0\].polygon is a list of 1",
    ),
    "a foreign label": (
        _json('{"imgHeight":4,"imgWidth":4,"objects":[{"label":"cat","polygon":[[0,0],[1,1]]}]}'),
        "unknown label of Cityscapes in .*polygons.json 'cat'",
    ),
    "no split": (
        _rename("leftImg8bit/val", "leftImg8bit/train"),
        "unknown split of .*leftImg8bit 'val'",
    ),
    "no images": (_rename("leftImg8bit", "images"), "has no leftImg8bit"),
    "no truth": (_rename("gtFine", "fine"), "has no gtFine"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_tree_is_said_in_one_message(case: str, tmp_path: Path) -> None:
    scene_files(tmp_path, 0)
    breaks, message = BROKEN[case]
    breaks(tmp_path)
    with pytest.raises((DataError, OptionError)) as caught:
        only_truth(opened(tmp_path))
    assert re.search(message, str(caught.value).replace("\n", " ")), caught.value


def test_a_test_split_has_images_without_truth(tmp_path: Path) -> None:
    save(
        tmp_path / f"leftImg8bit/test/bonn/{core(0)}_leftImg8bit.png", np.zeros((4, 4, 3), np.uint8)
    )
    assert [sample.truth for sample in opened(tmp_path, ",split=test").samples] == [None]


def pixel_scores() -> StreetPixels:
    metric = StreetPixels(labels.CLASSES, NAMES)
    for scene in range(SCENES):
        metric.add(core(scene), segmented(scene), whole(scene), SIZE)
    return metric


def test_label_maps_are_scored_as_cityscapesscripts_scores_them() -> None:
    """The numbers are those of cityscapesScripts 2.3.0, by the commands of `street_trees.py`."""
    found = pixel_scores()
    assert found.scores().metrics == PIXELS_MEANS
    assert {k: v for k, v in found.classes().items() if v} == PIXELS_CLASSES
    assert found.categories() == PIXELS_CATEGORIES
    assert {k: v for k, v in found.instance_classes().items() if v} == PIXELS_INSTANCES
    assert found.instance_categories() == PIXELS_INSTANCE_CATEGORIES
    assert found.scores().primary == "miou"
    assert "the truth has 19 of the model's 21 classes" in found.scores().notes[0]


def object_scores(*, far: bool) -> StreetObjects:
    metric = StreetObjects(labels.THINGS, THINGS)
    for scene in range(SCENES):
        truth = replace(whole(scene), distances=distances(scene) if far else None)
        metric.add(core(scene), detected(scene), truth, SIZE)
    return metric


def pinned(numbers: Mapping[str, float | None]) -> dict[str, Any]:
    """Return what equals numbers of areas below curves up to how a processor adds.

    Both evaluations end in NumPy's dot, whose last digit is the matrix library's.
    """
    near = partial(pytest.approx, rel=4 * np.finfo(float).eps, abs=0)
    return {name: v if v is None else near(v) for name, v in numbers.items()}


def test_objects_are_scored_as_cityscapesscripts_scores_them() -> None:
    """The numbers are those of cityscapesScripts 2.3.0, by the commands of `street_trees.py`."""
    near = object_scores(far=False).scores()
    assert near.metrics == pinned({name: OBJECTS_MEANS[name] for name in list(OBJECTS_MEANS)[:2]})
    assert near.per_class == pinned(OBJECTS_CLASSES)
    assert object_scores(far=True).scores().metrics == pinned(OBJECTS_MEANS)


def kept_distances(*, scenes: int = SCENES) -> dict[str, Any]:
    """Return what the benchmark's own script keeps in its file of instances."""
    return {
        f"/data/{core(scene)}_gtFine_instanceIds.png": {
            "car": [
                {"instID": v, "labelID": 1, "pixelCount": 1, "medDist": far, "distConf": sure}
                for v, (far, sure) in distances(scene).items()
            ]
        }
        for scene in range(scenes)
    }


def test_distances_of_objects_are_read_from_the_official_file(tmp_path: Path) -> None:
    for scene in range(SCENES):
        scene_files(tmp_path, scene)
    file = tmp_path / "gtInstances.json"
    file.write_text(json.dumps(kept_distances()))
    data = opened(tmp_path, f",truth=instance,distances={file}")
    assert data.benchmark is not None
    metric = data.benchmark.metric(data.categories, THINGS)
    for scene, sample in enumerate(data.samples):
        metric.add(sample.name, detected(scene), sample.truth and sample.truth(), SIZE)
    assert metric.scores().metrics == pinned(OBJECTS_MEANS)
    file.write_text(json.dumps(kept_distances(scenes=2)))
    with pytest.raises(DataError, match="no distances for 4 of 6 scenes, the first one ulm_000002"):
        opened(tmp_path, f",truth=instance,distances={file}")
    file.write_text('{"a": {"car": [{"instID": 1}]}}')
    with pytest.raises(DataError, match="has no 'medDist'"):
        opened(tmp_path, f",truth=instance,distances={file}")


def test_a_set_without_maps_of_instances_has_no_iiou() -> None:
    metric = StreetPixels(labels.CLASSES, NAMES)
    metric.add("a", segmented(0), StreetTruth(labels.of_instances(instances(0))), SIZE)
    found = metric.scores()
    assert found.metrics["iiou"] is None
    assert found.metrics["miou"] is not None
    assert "iIoU is not known" in found.notes[-1]


def test_nothing_found_and_nothing_there_have_no_score() -> None:
    empty = replace(detected(0), boxes=np.zeros((0, 4), np.float32), masks=None)
    empty = replace(empty, scores=empty.scores[:0], classes=empty.classes[:0])
    metric = StreetObjects(labels.THINGS, THINGS)
    metric.add("a", empty, StreetTruth(np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.int32)), SIZE)
    assert metric.scores().value is None
    metric.add("b", empty, whole(0), SIZE)
    assert metric.scores().value == 0
    assert StreetPixels(labels.CLASSES, NAMES).scores().value is None


def test_results_of_another_kind_size_or_class_are_refused() -> None:
    pixels, objects = StreetPixels(labels.CLASSES, NAMES), StreetObjects(labels.THINGS, THINGS)
    with pytest.raises(DataError, match="finds Detections, the truth is StreetTruth"):
        pixels.add("a", detected(0), whole(0), SIZE)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="label map found of a has 7x5 pixels, and the image 200x"):
        pixels.add("a", LabelMap(np.zeros((5, 7), np.uint8), ""), whole(0), SIZE)
    with pytest.raises(DataError, match="truth of a has 200x120 pixels, and the image 7x5"):
        pixels.add("a", LabelMap(np.zeros((5, 7), np.uint8), ""), whole(0), (5, 7))
    with pytest.raises(ModelError, match="class 21 and others"):
        pixels.add("a", LabelMap(np.full(SIZE, 21), ""), whole(0), SIZE)
    with pytest.raises(DataError, match="finds LabelMap, and the benchmark takes masks"):
        objects.add("a", segmented(0), whole(0), SIZE)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="finds boxes, and the benchmark takes masks"):
        objects.add("a", replace(detected(0), masks=None), whole(0), SIZE)
    with pytest.raises(DataError, match="has no map of instances"):
        objects.add("a", detected(0), StreetTruth(np.zeros(SIZE, np.uint8)), SIZE)
    with pytest.raises(DataError, match="map of instances of a has 200x120 pixels"):
        objects.add("a", detected(0), whole(0), (5, 7))


def test_a_data_set_is_scored_by_its_own_benchmark(tmp_path: Path) -> None:
    for scene in range(SCENES):
        scene_files(tmp_path, scene)
    maps = [segmented(scene).labels.astype(np.float32) for scene in range(SCENES)]
    contract = evaluation.Contract(Preprocess(SIZE), NAMES, SHIPPED["semantic_segmentation"])
    found = evaluation.evaluate(
        lambda batch: {"out": np.stack([maps[int(name.split("_")[1])] for name in batch.names])},
        opened(tmp_path),
        contract,
    )
    assert found.scores.metrics == PIXELS_MEANS
    assert found.scores.protocol["benchmark"] == "Cityscapes"


def test_predictions_are_written_with_official_ids(tmp_path: Path) -> None:
    scene_files(tmp_path, 0)
    benchmark = opened(tmp_path).benchmark
    assert benchmark is not None
    benchmark.write(tmp_path / "a", core(0), segmented(0), SIZE, NAMES)
    written = np.asarray(Image.open(tmp_path / "a" / f"{core(0)}_labelIds.png"))
    official = [*labels.CLASSES, 9, 0]
    assert (written == np.array(official)[segmented(0).labels]).all()
    with pytest.raises(DataError, match="finds Detections"):
        benchmark.write(tmp_path / "a", core(0), detected(0), SIZE, NAMES)


def test_objects_are_written_as_a_list_of_masks(tmp_path: Path) -> None:
    scene_files(tmp_path, 0)
    benchmark = opened(tmp_path, ",truth=instance").benchmark
    assert benchmark is not None
    found = detected(0)
    assert found.masks is not None
    whole_masks = masks.paste(found.masks, found.boxes, *SIZE, pasting="exact")
    seen = np.array([mask.any() for mask in whole_masks])
    found, inside = found.only(seen), whole_masks[seen]
    assert len(inside) < len(whole_masks)
    benchmark.write(tmp_path / "a", core(0), detected(0), SIZE, THINGS)
    lines = (tmp_path / "a" / f"{core(0)}_pred.txt").read_text().splitlines()
    rows = zip(lines, found.scores, found.classes, inside, strict=True)
    for line, score, place, mask in rows:
        file, number, said = line.split(" ")
        assert (int(number), float(said)) == (list(labels.THINGS)[place], float(score))
        assert (np.asarray(Image.open(tmp_path / "a" / file)) == mask * 255).all()
    with pytest.raises(DataError, match="finds LabelMap"):
        benchmark.write(tmp_path / "a", core(0), segmented(0), SIZE, THINGS)


def reader(path: Path) -> Path:
    """Write a segmenter of the 19 classes: an image's red is the train id."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Slice", ["images", "from", "to", "axis"], ["red"]),
        helper.make_node("Squeeze", ["red", "axis"], ["plane"]),
        helper.make_node("Mul", ["plane", "scale"], ["levels"]),
        helper.make_node("Round", ["levels"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["out"], to=TensorProto.INT64),
    ]
    given = [
        onnx.numpy_helper.from_array(np.array([number], np.int64), name)
        for name, number in (("from", 0), ("to", 1), ("axis", 1))
    ]
    given.append(onnx.numpy_helper.from_array(np.array(255, np.float32), "scale"))
    images = value("images", TensorProto.FLOAT, [1, 3, *SIZE])
    outputs = [value("out", TensorProto.INT64, [1, *SIZE])]
    graph = helper.make_graph(nodes, "reader", [images], outputs, given)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    properties: dict[str, str] = {}
    task, names = "semantic_segmentation", tuple(labels.CLASSES.values())
    card = ModelCard("", "", task, Preprocess(SIZE, "stretch"), names, "")
    metadata.write(properties, replace(card, outputs=(Output("out", "label_map"),)))
    helper.set_model_props(proto, properties)
    onnx.save(proto, path)
    return path


def test_the_verbs_write_what_the_benchmark_takes(tmp_path: Path) -> None:
    tree, model = tmp_path / "tree", reader(tmp_path / "m.onnx")
    for scene in range(2):
        scene_files(tree, scene)
        train = np.minimum(labels.to_train()[labels.of_instances(instances(scene))], 18)
        save(tree / f"leftImg8bit/val/ulm/{core(scene)}_leftImg8bit.png", np.dstack([train] * 3))
    source, folder = f"cityscapes:{tree}", tmp_path / "eval"
    found = deploykit.evaluate(model, deploykit.EvalOptions(source, predictions=folder))
    assert found.metrics["miou"] is not None
    assert found.metrics["miou"] > 0.9
    assert found.protocol["benchmark"] == "Cityscapes"
    wanted = deploykit.PredictOptions(predictions=tmp_path / "predict")
    deploykit.predict(model, [source], tmp_path / "drawn", wanted)
    for scene in range(2):
        name = f"{core(scene)}_labelIds.png"
        right = labels.of_instances(instances(scene))
        right = np.where(np.isin(right, list(labels.CLASSES)), right, 33)
        assert (np.asarray(Image.open(folder / name)) == right).all()
        assert (folder / name).read_bytes() == (tmp_path / "predict" / name).read_bytes()


def test_predictions_need_a_benchmark(tmp_path: Path) -> None:
    model = reader(tmp_path / "m.onnx")
    folder = f"folder:{tmp_path}"
    save(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(OptionError, match="nobody takes predictions for folder:"):
        deploykit.evaluate(model, deploykit.EvalOptions(folder, predictions=tmp_path / "x"))
    wanted = deploykit.PredictOptions(predictions=tmp_path / "x")
    with pytest.raises(OptionError, match="nobody takes predictions for a"):
        deploykit.predict(model, [tmp_path / "a.png"], tmp_path / "drawn", wanted)
    assert not (tmp_path / "x").exists()


PIXELS_MEANS: Mapping[str, float | None] = {
    "miou": 0.42074989229994286,
    "category_miou": 0.6222494190435661,
    "iiou": 0.5546657646617797,
    "category_iiou": 0.7851588298218284,
}
PIXELS_CLASSES: Mapping[str, float | None] = {
    "road": 0.5333607907742999,
    "sidewalk": 0.6155549404926653,
    "building": 0.6028194912657064,
    "fence": 0.6471121177802944,
    "pole": 0.6883134308332215,
    "vegetation": 0.5838401390095569,
    "sky": 0.6017083201518507,
    "person": 0.6869172082509183,
    "rider": 0.7064671410632064,
    "car": 0.7359316169736441,
    "bus": 0.574310692669805,
    "motorcycle": 0.4235159817351598,
    "bicycle": 0.5943960826985855,
}
PIXELS_CATEGORIES: Mapping[str, float | None] = {
    "flat": 0.5943962641761175,
    "construction": 0.6050755287009063,
    "object": 0.6052721670660732,
    "nature": 0.4953000723065799,
    "sky": 0.6017083201518507,
    "human": 0.7165167719980554,
    "vehicle": 0.7374768089053804,
}
PIXELS_INSTANCES: Mapping[str, float | None] = {
    "person": 0.7619342335587921,
    "rider": 0.7321112327521517,
    "car": 0.7537017139047686,
    "bus": 0.7475876170860276,
    "motorcycle": 0.7281354950969539,
    "bicycle": 0.7138558248955448,
}
PIXELS_INSTANCE_CATEGORIES: Mapping[str, float | None] = {
    "human": 0.7627654354415093,
    "vehicle": 0.8075522242021475,
}
OBJECTS_MEANS: Mapping[str, float | None] = {
    "cityscapes_ap": 0.041480780022446685,
    "cityscapes_ap50": 0.09564243626743625,
    "cityscapes_ap_100m": 0.10609126984126985,
    "cityscapes_ap_50m": 0.17916666666666664,
    "cityscapes_ap50_50m": 0.5416666666666666,
}
OBJECTS_CLASSES: Mapping[str, float | None] = {
    "person": 0.0,
    "rider": 0.02330026455026455,
    "car": 0.08560606060606059,
    "truck": None,
    "bus": 0.021666666666666667,
    "train": None,
    "motorcycle": 0.025454545454545452,
    "bicycle": 0.09285714285714286,
}
