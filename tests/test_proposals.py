"""Regions of images: from a file or selective search to the second input of a model."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from PIL import Image

from deploykit.data import feeding, samples, sources
from deploykit.data.preprocess import PROPOSALS, Preprocess
from deploykit.errors import DataError, OptionError
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = TensorSpec("images", "float32", ("batch", 3, 64, 128))
SPECS = (IMAGES, TensorSpec(PROPOSALS, "float32", ("batch", 3, 4)))
INNER = "shapes:count=2,size=96"


def boxes_of(path: Path, *each: list[list[float]]) -> str:
    """Write regions of the two images, and return the data set with them."""
    names = [sample.name for sample in sources.dataset(INNER).samples]
    path.write_text(json.dumps(dict(zip(names, each, strict=False))))
    return f"proposals:file={path},{INNER}"


def test_regions_are_moved_with_their_images_cut_and_padded(tmp_path: Path) -> None:
    folder, boxes = tmp_path / "images", {"a.png": [[0, 0, 48, 96]], "b.png": [[3, 6, 9, 12]] * 5}
    folder.mkdir()
    for name in boxes:
        Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(folder / name)
    (tmp_path / "b.json").write_text(json.dumps(boxes))
    spec = f"proposals:file={tmp_path / 'b.json'},folder:{folder}"
    preprocess = Preprocess((64, 128))  # 96x96 becomes 64x64, 32 pixels from the left
    (batch,) = samples.batches(sources.dataset(spec), preprocess, batch_size=2)
    found = feeding.feeds(SPECS, batch.images, batch.geometries)[PROPOSALS]
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found[0], [[32, 0, 64, 64], [0] * 4, [0] * 4], atol=1e-4)
    np.testing.assert_allclose(found[1], [[34, 4, 38, 8]] * 3, atol=1e-4)


def test_without_regions_a_model_that_takes_them_is_not_fed() -> None:
    (batch,) = samples.batches(sources.dataset(INNER), Preprocess((64, 128)), batch_size=2)
    with pytest.raises(DataError, match="images come without regions") as caught:
        feeding.feeds(SPECS, batch.images, batch.geometries)
    assert "proposals:" in caught.value.fix


def test_selective_search_gives_first_and_last_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    search = SimpleNamespace(
        setBaseImage=given.append,
        switchToSelectiveSearchFast=lambda: None,
        process=lambda: np.array([[2, 3, 10, 5], [0, 0, 1, 1]]),
    )
    made = SimpleNamespace(createSelectiveSearchSegmentation=lambda: search)
    monkeypatch.setattr(cv2, "ximgproc", SimpleNamespace(segmentation=made), raising=False)
    sample = sources.dataset(f"proposals:{INNER}").samples[0]
    assert sample.proposals is not None
    image = sample.read()
    assert sample.proposals(image).tolist() == [[2, 3, 11, 7], [0, 0, 0, 0]]
    np.testing.assert_array_equal(given[0], image[..., ::-1])


@pytest.mark.skipif(not hasattr(cv2, "ximgproc"), reason="OpenCV without contributed modules")
def test_selective_search_finds_the_shapes() -> None:
    sample = sources.dataset(f"proposals:{INNER}").samples[0]
    assert sample.proposals is not None
    image = sample.read()
    found = sample.proposals(image)
    assert len(found) > 5
    assert (found >= 0).all()
    assert (found < np.array([image.shape[1], image.shape[0]] * 2)).all()


def test_without_the_modules_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "ximgproc", raising=False)
    with pytest.raises(OptionError, match="no selective search") as caught:
        sources.dataset(f"proposals:{INNER}")
    assert "opencv-contrib-python-headless" in caught.value.fix


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    spec = boxes_of(tmp_path / "b.json", [[0, 0, 48, 96]])
    with pytest.raises(DataError, match="no regions for 1 images"):
        sources.dataset(spec)
    with pytest.raises(DataError, match=r"b\.json"):
        sources.dataset(boxes_of(tmp_path / "b.json", [[0, 0, 48]], []))
    with pytest.raises(OptionError, match="proposals for ''"):
        sources.dataset(boxes_of(tmp_path / "b.json", [], []).partition(",")[0])
