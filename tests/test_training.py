"""Images and objects in memory, augmentation, rate and averages, against plain loops."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.data import sources
from deploykit.data.preprocess import Preprocess
from deploykit.data.sources import Dataset, Sample
from deploykit.errors import DataError
from deploykit.tasks.annotations import ImageAnnotations
from deploykit.training import loops

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (96, 96)
BLANK = np.zeros((9, 9, 3), np.uint8)


def marked(box: tuple[int, int, int, int], height: int, width: int) -> Dataset:
    """Return one image, black but for one white object, with its COCO truth."""
    x1, y1, x2, y2 = box
    mask = np.zeros((height, width), np.uint8)
    mask[y1:y2, x1:x2] = 1
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    item = {
        "id": 1,
        "image_id": 7,
        "category_id": 30,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "segmentation": {"size": [height, width], "counts": counts},
    }
    truth = ImageAnnotations(7, [item], (height, width))
    sample = Sample("a", lambda: np.repeat(255 * mask[..., None], 3, -1), lambda: truth)
    return Dataset("marked", [sample], {30: "b", 20: "a"})


@pytest.mark.parametrize("shape", [(96, 96), (192, 96), (64, 96), (50, 80)])
def test_boxes_and_masks_lie_where_the_preprocessing_puts_the_object(
    shape: tuple[int, int],
) -> None:
    data = marked((10, 20, 40, 44), *shape)
    images, objects = loops.load(data, Preprocess(SIZE, pad_value=0), masks=True)
    (found,) = objects
    assert found.classes.tolist() == [1]  # 30 is the second of the sorted categories
    lit = images[0, 0].numpy() >= 128
    assert np.array_equal(found.masks()[0].astype(bool), lit)
    rows, columns = np.nonzero(lit)
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(found.boxes[0] - tight).max() <= 1


def test_images_are_kept_as_levels_whatever_the_network_is_fed() -> None:
    data = sources.dataset("shapes:split=train,seed=3,count=2,size=96")
    plain, _ = loops.load(data, Preprocess(SIZE))
    fancy, _ = loops.load(data, Preprocess(SIZE, mean=(0.5,) * 3, std=(0.2,) * 3))
    assert plain.dtype == torch.uint8
    assert torch.equal(plain, fancy)
    pixels, _ = Preprocess(SIZE)(data.samples[1].read())
    assert np.abs(plain[1].numpy() / 255 - pixels).max() < 1e-6


def test_an_image_without_objects_has_empty_ones() -> None:
    data = marked((10, 20, 40, 44), 96, 96)
    empty = replace(data.samples[0], truth=lambda: ImageAnnotations(7, ()))
    _, (found,) = loops.load(Dataset("none", [empty]), Preprocess(SIZE), masks=True)
    assert found.boxes.shape == (0, 4)
    assert found.masks().shape == (0, *SIZE)


def test_a_set_without_truth_is_refused() -> None:
    with pytest.raises(DataError, match="no truth to learn from"):
        loops.load(Dataset("bare", [Sample("a", lambda: BLANK)]), Preprocess(SIZE))


def test_boxes_turn_with_their_planes() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(64):
        plane = torch.zeros(1, 32, 32)
        plane[0, 3:9, 5:20] = 1
        plane[0, 3, 5] = 2
        turned, boxes = loops.turned(plane, np.array([[5, 3, 20, 9]], np.float32), rng)
        x1, y1, x2, y2 = boxes[0].astype(int)
        assert (turned[0, y1:y2, x1:x2] > 0).all()
        assert int((turned > 0).sum()) == 6 * 15
        seen.add((x1, y1, x2, y2, tuple(torch.nonzero(turned[0] == 2)[0].tolist())))
    assert len(seen) == 8  # four corners for the mark, both ways round


def test_relit_images_stay_within_zero_and_one() -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    lit = loops.relit(images, np.random.default_rng(1))
    assert lit.dtype == torch.float32
    assert 0 <= float(lit.min()) < float(lit.max()) <= 1
    assert not torch.equal(lit, loops.relit(images, np.random.default_rng(2)))


def test_the_rate_warms_up_and_ends_at_its_final_value() -> None:
    rates = [loops.rate(step, 100, warmup=10, final=0.01) for step in range(101)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert rates[9] == max(rates) == 1
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[100] == pytest.approx(0.01)


def test_only_kernels_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(2, 2))
    decayed, kept = loops.optimizer(network, 1e-3, 0.05).param_groups
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    assert all(p.ndim == 1 for p in kept["params"])


def test_the_average_follows_weights_and_statistics() -> None:
    network = nn.BatchNorm2d(2)
    average = copy.deepcopy(network)
    assert network.running_mean is not None
    with torch.no_grad():
        network.weight.add_(1.0)
        network.running_mean.fill_(4.0)
    loops.follow(average, network, 0.75)
    assert average.weight.tolist() == [1.25, 1.25]
    assert average.running_mean is not None
    assert average.running_mean.tolist() == [1.0, 1.0]


def test_stored_weights_are_half_and_without_counters() -> None:
    state = loops.half(nn.BatchNorm2d(2).state_dict())
    assert set(state) == {"weight", "bias", "running_mean", "running_var"}
    assert {v.dtype for v in state.values()} == {torch.float16}


def _average(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    network = nn.Linear(2, 2)
    network.weight.grad = torch.full((2, 2), float(rank))
    network.bias.grad = torch.tensor([rank, 3.0])
    loops.average_gradients(network)
    assert network.weight.grad.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert network.bias.grad.tolist() == [0.5, 3.0]
    torch.distributed.destroy_process_group()


def test_processes_get_the_mean_of_their_gradients(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_average, (str(tmp_path),), 2)  # type: ignore[attr-defined,no-untyped-call]  # torch
