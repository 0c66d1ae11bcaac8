"""Generated images and their objects, varied where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploykit.data import sources
from deploykit.data.preprocess import Preprocess
from deploykit.training import loops, scenes

pytest.importorskip("skimage", reason="scikit-image is not installed")

SPEC, SIDE = "shapes:split=train,seed=5,count=12,size=96", 96
PREPROCESS = Preprocess((SIDE, SIDE), "stretch")


@pytest.fixture(scope="module")
def made() -> scenes.Scenes:
    return scenes.generated(SPEC, PREPROCESS, masks=True)


def tight(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def test_scenes_are_the_images_and_objects_that_are_read_one_by_one(made: scenes.Scenes) -> None:
    images, objects = loops.load(sources.dataset(SPEC), PREPROCESS, masks=True)
    assert torch.equal(made.images, images)
    for k, found in enumerate(objects):
        count = len(found.boxes)
        assert made.classes[k, :count].tolist() == found.classes.tolist()
        assert (made.classes[k, count:] == -1).all()
        assert np.array_equal(made.boxes[k, :count], found.boxes)
        for row, mask in enumerate(found.masks()):
            assert torch.equal(made.owners[k] == row + 1, torch.from_numpy(mask == 1))


def test_varied_boxes_are_tight_around_the_varied_masks(made: scenes.Scenes) -> None:
    generator = torch.Generator().manual_seed(1)
    varied = scenes.varied(made, (1.0, 1.3), generator)
    assert varied.images.shape == made.images.shape
    assert 0 <= varied.images.min() < varied.images.max() <= 1
    seen = 0
    for k, row in torch.nonzero(varied.classes >= 0).tolist():
        mask = varied.owners[k] == row + 1
        box = varied.boxes[k, row]
        if mask.any() and (box > 0).all() and (box < SIDE).all():
            assert (tight(mask) - box).abs().max() < 6, (k, row)  # thin tips fall between pixels
            seen += 1
    assert seen > 10


def test_without_a_zoom_an_image_is_one_of_its_eight_flips_and_turns(made: scenes.Scenes) -> None:
    bare = scenes.Scenes(made.images, made.boxes, made.classes, torch.full_like(made.owners, 1))
    for spot in ((3, 80), (50, 11)):
        bare.owners[:, spot[0], spot[1]] = 9
    varied = scenes.varied(bare, (1.0, 1.0), torch.Generator().manual_seed(2))
    found = set()
    for before, after in zip(bare.owners, varied.owners, strict=True):
        turns = [t.rot90(n, (0, 1)) for t in (before, before.T) for n in range(4)]
        same = [n for n, turn in enumerate(turns) if torch.equal(turn, after)]
        assert len(same) == 1
        found.add(same[0])
    assert len(found) > 3


def test_what_is_mostly_outside_is_left_out(made: scenes.Scenes) -> None:
    varied = scenes.varied(made, (2.0, 2.0), torch.Generator().manual_seed(3))
    assert (varied.classes >= 0).sum() < (made.classes >= 0).sum()
    inside = varied.boxes[varied.classes >= 0]
    assert (inside[:, 2:] > inside[:, :2]).all()
    assert inside.min() >= 0
    assert inside.max() <= SIDE


def test_channels_are_as_the_network_takes_them(made: scenes.Scenes) -> None:
    shares = scenes.Scenes(made.images / 255, made.boxes, made.classes, made.owners)
    bgr = Preprocess((SIDE, SIDE), "stretch", channels="BGR", scale=1.0, mean=(10.0, 20.0, 30.0))
    found = shares.normalised(bgr)
    assert torch.allclose(found[:, 0], made.images[:, 2].float() - 10, atol=1e-4)
    assert torch.allclose(found[:, 2], made.images[:, 0].float() - 30, atol=1e-4)
