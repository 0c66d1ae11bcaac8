"""Raw outputs of known detector heads, beside decodes written from their definitions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from foreign_nets import Net
from head_reference import GAIN, HEIGHT, SIZE, WIDTH, average_precision, cells, expected
from PIL import Image

from deploykit import pipeline
from deploykit.data.preprocess import Geometry, Preprocess
from deploykit.errors import ModelError, OptionError, ProofError
from deploykit.pipeline.predictor import PredictOptions
from deploykit.recipes import opened
from deploykit.recipes.describing import Description
from deploykit.tasks import heads

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

CLASSES = 3
NAMES = ("cat", "dog", "cow")


def boxes(anchors: int, seed: int = 0) -> NDArray[Any]:
    """Centres and sides in pixels of the input, some alike, so that they suppress each other."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform((0, 0), SIZE[::-1], (anchors, 2))
    centres[::3] = centres[0] + rng.normal(0, 2, (len(centres[::3]), 2))
    return np.concatenate([centres, rng.uniform(8, 40, (anchors, 2))], 1)


def scores(anchors: int, columns: int, seed: int = 1) -> NDArray[Any]:
    """Most of them small, as of a trained head."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((anchors, columns)) < 0.2, rng.random((anchors, columns)), 1e-4)


def raw(family: str) -> NDArray[np.float32]:
    """What a head gives for one image, as its family's exporter writes it."""
    grid = cells()
    count = len(grid) * (3 if family == "yolov5" else 1)
    xywh = boxes(count)
    if family == "yolov8":
        return np.concatenate([xywh, scores(count, CLASSES)], 1).T[None].astype(np.float32)
    if family == "yolox":
        xywh[:, :2] = xywh[:, :2] / grid[:, 2:] - grid[:, :2]
        xywh[:, 2:] = np.log(xywh[:, 2:] / grid[:, 2:])
    rows = np.concatenate([xywh, scores(count, 1 + CLASSES)], 1)
    return rows[None].astype(np.float32)


PREPARED: Mapping[str, Description] = {
    "yolov8": Description(preprocess="yolo"),
    "yolov5": Description(preprocess="yolo"),
    "yolox": Description(preprocess="yolo", resize="corner", channels="BGR", scale=1.0),
}
OFFSETS = {"yolov8": (8.0, 0.0), "yolov5": (8.0, 0.0), "yolox": (0.0, 0.0)}


@pytest.mark.parametrize("family", PREPARED)
def test_objects_are_those_of_an_independent_decode(family: str) -> None:
    output = raw(family)
    place = Geometry(HEIGHT, WIDTH, GAIN, GAIN, *OFFSETS[family])
    (found,) = heads.Reader(family, SIZE, CLASSES)({"y": output}, [place])
    theirs = expected(family, output, OFFSETS[family])
    assert len(theirs) > 10
    np.testing.assert_allclose(found.scores, theirs[:, 4], rtol=1e-6)
    np.testing.assert_array_equal(found.classes, theirs[:, 5])
    np.testing.assert_allclose(found.boxes, theirs[:, :4], atol=1e-3)


def network(family: str, path: Path) -> Path:
    """A file that gives the family's rows whatever it is shown, the scores a little otherwise."""
    net = Net()
    rows = raw(family)
    mean = net.op("GlobalAveragePool", net.conv("images", 3, 8))
    small = net.op("Mul", net.op("ReduceMean", mean, keepdims=0), net.weight(np.float32(1e-3)))
    near = np.zeros_like(rows)
    near[:, :, 4:] = 1 if family != "yolov8" else 0
    near[:, 4:] = 1 if family == "yolov8" else near[:, 4:]
    change = net.op("Mul", net.weight(near), small)
    return net.save(path, net.op("Add", net.weight(rows), change), (1, 3, *SIZE))


@pytest.mark.parametrize("family", PREPARED)
def test_predict_draws_and_writes_what_an_independent_decode_finds(
    family: str, tmp_path: Path
) -> None:
    about = replace(PREPARED[family], task="detection", decode=family, class_names=NAMES)
    path = network(family, tmp_path / "net.onnx")
    pixels = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    model = pipeline.load(path, PredictOptions(about=about))
    found = model(tmp_path / "photo.png")
    batch = model.model.session.run({"images": model.model.contract().preprocess(pixels)[0][None]})
    theirs = expected(family, next(iter(batch.values())), OFFSETS[family])
    assert len(theirs) > 10
    np.testing.assert_allclose(found.scores, theirs[:, 4], rtol=1e-6)
    np.testing.assert_array_equal(found.classes, theirs[:, 5])
    np.testing.assert_allclose(found.boxes, theirs[:, :4], atol=1e-3)
    (made,) = pipeline.predict(
        path, [tmp_path / "photo.png"], tmp_path / "out", PredictOptions(about=about)
    )
    written = json.loads(made.data.read_text("utf-8"))["models"][0]["found"]["objects"]
    assert [each["class"] for each in written] == [NAMES[int(row[5])] for row in theirs]
    np.testing.assert_allclose([each["box"] for each in written], theirs[:, :4], atol=1e-3)
    with Image.open(made.picture) as picture:
        assert picture.size[0] >= WIDTH


def coco(folder: Path) -> Path:
    """Four images with annotations near some of the boxes that the files give."""
    rng = np.random.default_rng(3)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, objects = [], list[dict[str, Any]]()
    for number in range(4):
        name = f"{number}.png"
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        size = {"height": HEIGHT, "width": WIDTH}
        images.append({"id": number + 1, "file_name": name, **size})
        for cx, cy, w, h in boxes(126)[number::7]:
            x, y = (cx - w / 2) / GAIN - 10, (cy - h / 2) / GAIN
            box = [x, y, w / GAIN, h / GAIN]
            kind = {"category_id": int(rng.integers(1, 4)), "iscrowd": 0}
            ids = {"id": len(objects) + 1, "image_id": number + 1}
            objects.append({**ids, **kind, "bbox": box, "area": box[2] * box[3]})
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    data = {"images": images, "annotations": objects, "categories": categories}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(data), "utf-8")
    return folder


@pytest.mark.parametrize("family", PREPARED)
def test_a_described_file_scores_what_an_independent_decode_does(
    family: str, tmp_path: Path
) -> None:
    path, data = network(family, tmp_path / "net.onnx"), coco(tmp_path / "coco")
    said = PREPARED[family]
    about = Description(
        task="detection",
        decode=family,
        class_names=NAMES,
        preprocess=said.preprocess,
        resize=said.resize,
        channels=said.channels,
        scale=said.scale,
    )
    described = tmp_path / "described.onnx"
    made = pipeline.describe(path, described, about)
    assert any("objects, the best" in note for note in made.notes)
    options = pipeline.EvalOptions(f"coco:{data}")
    found = pipeline.evaluate(described, options)
    card = opened.read(described).card
    assert card is not None
    session = pipeline.open_model(described).session
    theirs = {}
    for number in range(4):
        pixels = np.asarray(Image.open(data / "images" / f"{number}.png"))
        image, place = card.preprocess(pixels)
        assert (place.scale_x, place.offset_x, place.offset_y) == (GAIN, *OFFSETS[family])
        (output,) = session.run({"images": image[None]}).values()
        theirs[number + 1] = expected(family, np.asarray(output), OFFSETS[family])
    ap = average_precision(data, theirs)
    assert 0.01 < ap < 0.9
    assert found.metrics["ap"] == pytest.approx(ap, abs=1e-6)
    assert found.task == "detection"
    assert pipeline.evaluate(path, pipeline.EvalOptions(f"coco:{data}", about=about)).metrics[
        "ap"
    ] == pytest.approx(ap, abs=1e-6)


@pytest.mark.parametrize("names", [("boxes", "labels", "scores"), ("a", "b", "c")])
def test_torchvisions_objects_are_in_the_image_and_counted_from_one(names: Any) -> None:
    frames = np.array([[0, 0, 10, 10], [20, 10, 40, 30], [1, 1, 5, 5]], np.float32)
    labels, found = np.array([1, 3, 2], np.float32), np.array([0.2, 0.9, 0.5], np.float32)
    outputs = dict(zip(names, (frames, labels, found), strict=True))
    place = Geometry(100, 100, 0.5, 0.5)
    reader = heads.Reader("torchvision", SIZE, CLASSES)
    (objects,) = reader(outputs, [place])
    np.testing.assert_array_equal(objects.classes, [2, 1, 0])
    np.testing.assert_allclose(objects.boxes, frames[[1, 2, 0]] * 2)
    with pytest.raises(ModelError, match="outputs of one image for 2 images"):
        reader(outputs, [place, place])
    with pytest.raises(ModelError, match="an object of class 2, counted from 0"):
        heads.Reader("torchvision", SIZE, 2)(outputs, [place])
    outputs[names[2]] = np.array([0.2, np.nan, 0.5], np.float32)
    with pytest.raises(ProofError, match="NaN"):
        reader(outputs, [place])


@pytest.mark.parametrize(
    ("head", "shape", "fix"),
    [
        ("yolov8", (1, 378, 8), "--decode yolov5"),
        ("yolov5", (1, 7, 126), "--decode yolov8"),
        ("yolox", (1, 7, 126), "--decode yolov8"),
        ("yolov5", (1, 126, 8), "--decode yolox"),
        ("yolov8", (1, 8, 126), ""),
        ("yolov8", (1, 1000), ""),
        ("yolov8", (1, 4, 126), ""),
        ("torchvision", (1, 7, 126), "--decode yolov8"),
    ],
)
def test_outputs_of_another_form_are_refused_and_the_right_head_is_named(
    head: str, shape: tuple[int, ...], fix: str
) -> None:
    with pytest.raises(ModelError, match=f"are no {head} head of 3 classes") as caught:
        heads.check(head, {"y": shape}, SIZE, CLASSES)
    assert fix in caught.value.fix
    outputs = {"y": np.zeros(shape, np.float32)}
    with pytest.raises(ModelError):
        heads.Reader(head, SIZE, CLASSES)(outputs, [Geometry(8, 8, 1, 1)])


def test_rows_that_are_suppressed_already_are_taken_as_they_are() -> None:
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, :2] = [[10, 10, 20, 30, 0.4, 1], [0, 0, 40, 40, 0.9, 2]]
    place = Geometry(HEIGHT, WIDTH, GAIN, GAIN, 8.0)
    (found,) = heads.Reader("end2end", SIZE, CLASSES)({"y": rows}, [place])
    np.testing.assert_allclose(found.boxes, [[0, 0, 64, 80], [4, 20, 24, 60]])
    np.testing.assert_array_equal(found.classes, [2, 1])
    assert heads.fitting({"y": ("n", 300, 6)}, SIZE) == {"end2end": 0}
    with pytest.raises(ModelError, match="an object of class 2, counted from 0"):
        heads.Reader("end2end", SIZE, 2)({"y": rows}, [place])


def test_rows_with_other_columns_than_classes_are_no_decoded_ones(tmp_path: Path) -> None:
    net = Net()
    shape = net.weight(np.array([0, -1, 8]))
    output = net.op("Reshape", net.conv("images", 3, 8), shape)
    path = net.save(tmp_path / "net.onnx", output, (1, 3, *SIZE))
    words = [f"class{i}" for i in range(80)]
    about = Description(task="detection", preprocess="yolo", class_names=tuple(words))
    with pytest.raises(ModelError, match="are no decoded rows of 80 classes"):
        pipeline.describe(path, tmp_path / "d.onnx", about)


def test_an_unknown_head_is_answered_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="unknown --decode 'yolov9'"):
        Description(decode="yolov9")
    with pytest.raises(OptionError, match="unknown --decode"):
        heads.check("yolov9", {}, SIZE)


@pytest.mark.parametrize("family", PREPARED)
def test_numbers_that_are_none_are_refused(family: str) -> None:
    output = raw(family)
    output[0, 2, 2] = np.inf
    with pytest.raises(ProofError, match="NaN or infinity"):
        heads.Reader(family, SIZE, CLASSES)({"y": output}, [Geometry(8, 8, 1, 1)])


@pytest.mark.parametrize("family", ["yolov8", "yolov5"])
def test_the_head_is_guessed_from_the_outputs_and_told(family: str, tmp_path: Path) -> None:
    path = network(family, tmp_path / "net.onnx")
    made = pipeline.describe(path, tmp_path / "d.onnx", Description(preprocess="yolo"))
    (note,) = [note for note in made.notes if note.startswith("guessed from the file's")]
    assert f"outputs of {family}, classes called class0 to class2, the task detection" in note


def test_rows_relative_to_a_grid_are_noticed(tmp_path: Path) -> None:
    path = network("yolox", tmp_path / "net.onnx")
    about = Description(task="detection", preprocess="yolo")
    made = pipeline.describe(path, tmp_path / "d.onnx", about)
    assert any("--decode yolox reads them relative to a grid" in note for note in made.notes)


@pytest.mark.parametrize("said", [["evil"], "evil", 3, None])
def test_a_card_that_names_no_head_is_refused(said: Any, tmp_path: Path) -> None:
    path = network("yolov8", tmp_path / "net.onnx")
    described = tmp_path / "d.onnx"
    pipeline.describe(path, described, Description(preprocess="yolo"))
    model = opened.read(described)
    properties = model.graph.metadata_props
    card = json.loads(properties["deploykit"])
    card["settings"]["decode"] = [said, "given"]
    properties["deploykit"] = json.dumps(card)
    opened.made(model.graph, described).write()
    with pytest.raises(ModelError, match="the card says that outputs are read as"):
        pipeline.open_model(described).task()


def test_the_preparation_of_each_family_is_what_the_test_assumes() -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    _, place = Preprocess(SIZE, "letterbox")(pixels)
    assert (place.offset_x, place.offset_y) == OFFSETS["yolov8"]


def test_a_bare_file_teaches_what_its_described_copy_knows(tmp_path: Path) -> None:
    path, data = network("yolov8", tmp_path / "net.onnx"), coco(tmp_path / "coco")
    described = tmp_path / "described.onnx"
    pipeline.describe(path, described, Description(preprocess="yolo", class_names=NAMES))
    options = pipeline.EvalOptions(f"folder:{data / 'images'}", against=path)
    ap = pipeline.evaluate(described, options).metrics["ap"]
    assert ap is not None
    assert ap > 0.95, "COCO counts 100 objects of an image, and these have more"


@pytest.mark.parametrize("task", ["keypoints", "instance_segmentation"])
def test_a_head_of_boxes_is_not_taken_for_masks_or_points(task: str, tmp_path: Path) -> None:
    path = network("yolov8", tmp_path / "net.onnx")
    about = Description(task=task, preprocess="yolo", decode="yolov8")
    with pytest.raises(OptionError, match=f"--decode yolov8 for the task {task}") as caught:
        pipeline.describe(path, tmp_path / "d.onnx", about)
    assert "--task detection" in caught.value.fix
