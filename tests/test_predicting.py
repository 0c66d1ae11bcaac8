"""What a model finds, drawn and written, and a model as a function of an image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from counting import Counting
from foreign_nets import Net
from PIL import Image
from segmenters import DATA, NAMES, SIDE, picture, segmenter, truth
from test_tasks_own import counter, dotted

import deploykit
from deploykit import DataError, OptionError, OutputError, PredictOptions
from deploykit.recipes.describing import Description
from deploykit.tasks import sheets
from deploykit.tasks.detections import Detections
from deploykit.tasks.semantic import LabelMap

if TYPE_CHECKING:
    from pathlib import Path


def shown(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(picture(1)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_loaded_model_is_a_function_of_an_image(tmp_path: Path, photo: Path) -> None:
    found = deploykit.load(segmenter(tmp_path / "m.onnx"))
    assert found.class_names == NAMES
    for given in (picture(1), Image.fromarray(picture(1)), photo, str(photo)):
        result = found(given)
        assert isinstance(result, LabelMap)
        assert (result.labels == truth(1)).all()
    assert found.said(found(picture(2))) == "background 50.0%, dog 50.0%"
    drawn = found.draw(photo, found(photo))
    assert drawn.shape[2] == 3
    assert drawn.shape[1] % (2 * SIDE) == 0


def test_a_loaded_model_is_one_line_and_takes_images_alone(tmp_path: Path) -> None:
    found = deploykit.load(segmenter(tmp_path / "m.onnx"))
    size = f"{SIDE}x{SIDE}"
    said = f"<Predictor m.onnx, semantic_segmentation, {len(NAMES)} classes, {size}, onnxruntime>"
    assert repr(found) == said
    with pytest.raises(DataError, match="the image is a float32 array"):
        found(picture(1).astype(np.float32))
    with pytest.raises(DataError, match="the image is a int"):
        found(5)  # type: ignore[arg-type]  # that is the point


def test_objects_are_said_in_one_line() -> None:
    none = np.zeros((0, 4), np.float32)
    assert repr(Detections(none, none[:, 0], none[:, 0].astype(np.int64))) == (
        "<Detections 0 objects>"
    )
    one = Detections(
        np.ones((1, 4), np.float32),
        np.array([0.5], np.float32),
        np.array([2]),
        masks=np.ones((1, 28, 28), np.float32),
    )
    assert repr(one) == "<Detections 1 objects, best score 0.500, masks>"


def test_a_detector_finds_the_same_objects_as_its_network_decoded_by_hand(
    model: Path, photos: Path
) -> None:
    from deploykit.pipeline.opening import open_model
    from deploykit.tasks.decoding import objects

    path = min(photos.iterdir())
    found = deploykit.load(model)(path)
    opened = open_model(model)
    pixels, place = opened.contract().preprocess(shown(path))
    (expected,) = objects(opened.session.run({"images": pixels[None]}), [place])  # type: ignore[arg-type]  # float32
    assert (found.boxes == expected.boxes).all()
    assert (found.scores == expected.scores).all()
    assert len(found.to_json((), (1, 1))["objects"]) == len(expected.boxes)


def test_a_picture_and_a_json_file_of_each_image_are_written(tmp_path: Path, photo: Path) -> None:
    path, out = segmenter(tmp_path / "m.onnx"), tmp_path / "new" / "out"
    (one,) = deploykit.predict(path, [photo], out)
    assert (one.image, one.differs) == ("photo.png", None)
    assert sorted(p.name for p in out.iterdir()) == ["photo.json", "photo.png"]
    data = json.loads(one.data.read_text("utf-8"))
    assert data["size"] == [16, 16]
    (row,) = data["models"]
    assert (row["model"], row["task"]) == ("m.onnx", "semantic_segmentation")
    found = row["found"]
    labels = np.repeat(found["labels"], found["lengths"]).reshape(found["size"])
    assert (labels == truth(1)).all()
    drawn = shown(one.picture)
    loaded = deploykit.load(path)
    assert (drawn == loaded.draw(photo, loaded(photo))).all()


def test_two_models_are_drawn_side_by_side_with_what_only_one_finds(
    tmp_path: Path, photo: Path
) -> None:
    path, other = segmenter(tmp_path / "m.onnx"), segmenter(tmp_path / "o.onnx", bias=9)
    (same,) = deploykit.predict(path, [photo], tmp_path / "a", PredictOptions(against=path))
    (apart,) = deploykit.predict(path, [photo], tmp_path / "b", PredictOptions(against=other))
    assert (same.differs, apart.differs) == (False, True)
    first, second = (shown(one.picture).shape for one in (same, apart))
    assert second[1] == first[1]
    assert second[0] > 1.7 * first[0], "a second row"
    rows = json.loads(apart.data.read_text("utf-8"))["models"]
    assert [row["only_here_said"] for row in rows] == ["cat 50.0%", "background 50.0%"]


def test_models_of_two_tasks_are_not_compared(tmp_path: Path, photo: Path) -> None:
    net = Net()
    pooled = net.op("GlobalAveragePool", net.conv("images", 3, 4))
    net.save(tmp_path / "c.onnx", net.op("Flatten", pooled), (1, 3, SIDE, SIDE))
    about = Description(task="classification", preprocess="unit", class_names=("a", "b", "c", "d"))
    deploykit.describe(tmp_path / "c.onnx", tmp_path / "d.onnx", about)
    options = PredictOptions(against=tmp_path / "d.onnx")
    with pytest.raises(OptionError, match=r"m\.onnx is for semantic\w*, and d\.onnx is for cl"):
        deploykit.predict(segmenter(tmp_path / "m.onnx"), [photo], tmp_path / "out", options)
    assert not list((tmp_path / "out").iterdir())


def test_folders_and_sources_are_taken_and_no_two_files_are_one(
    tmp_path: Path, photo: Path
) -> None:
    path = segmenter(tmp_path / "m.onnx")
    for name in ("in/a/x.png", "in/b/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(picture(2)).save(tmp_path / name)
    found = deploykit.predict(path, [tmp_path / "in", photo], tmp_path / "out")
    assert [one.picture.name for one in found] == ["x.png", "x-2.png", "photo.png"]
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    drawn = deploykit.predict(path, ["shapes:count=2,size=64"], tmp_path / "out")
    assert len(drawn) == 2


def test_what_cannot_be_read_or_written_is_an_error(tmp_path: Path, photo: Path) -> None:
    path = segmenter(tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"no such image: absent\.png"):
        deploykit.predict(path, ["absent.png"], tmp_path / "out")
    with pytest.raises(OptionError, match=r"is .*photo\.png itself"):
        deploykit.predict(path, [photo], tmp_path)
    with pytest.raises(OutputError, match="cannot make the folder"):
        deploykit.predict(path, [photo], photo)
    photo.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"photo\.png is not an image"):
        deploykit.predict(path, [photo], tmp_path / "out")


def test_a_task_of_ones_own_is_predicted_and_its_numbers_are_written(tmp_path: Path) -> None:
    path = counter(tmp_path / "c.onnx")
    Image.fromarray(dotted(3)).save(tmp_path / "dots.png")
    options = PredictOptions(against=path)
    (one,) = deploykit.predict(
        path, [tmp_path / "dots.png"], tmp_path / "out", options, task=Counting()
    )
    assert one.differs is None
    rows = json.loads(one.data.read_text("utf-8"))["models"]
    assert [row["found"]["value"] for row in rows] == pytest.approx([3, 3], abs=1e-3)
    assert DATA.samples


def test_pictures_of_a_sheet_stand_in_two_columns_under_their_captions() -> None:
    cell = np.full((40, 400, 3), (10, 200, 90), np.uint8)
    assert (sheets.sheet([("", cell)]) == cell).all()
    made: Any = sheets.sheet([("a" * 500, cell), ("b", cell), ("c", cell)])
    assert made.shape[1] == 2 * 400 + 3 * 12
    assert (made == cell[0, 0]).all(2).sum() == 3 * 40 * 400, "no caption lies on a picture"
