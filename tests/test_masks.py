from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import paste_masks_in_image

from deploykit.tasks import masks

HEIGHT, WIDTH = 37, 53


def objects(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks and boxes, some of them partly or wholly outside the image, some without area."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-20, 70, (count, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    boxes[::5, 2:] = boxes[::5, :2]
    return rng.random((count, 28, 28), np.float32), boxes


def torchvisions(values: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    pasted = paste_masks_in_image(
        torch.from_numpy(values)[:, None], torch.from_numpy(boxes), (HEIGHT, WIDTH)
    )
    whole: np.ndarray = pasted[:, 0].numpy()
    return whole


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_pasted_masks_are_torchvisions(seed: int) -> None:
    values, boxes = objects(seed, 10)
    inside = boxes[:, 2] >= 0  # torchvision fails on boxes left of or above the image
    inside &= (boxes[:, 3] >= 0) & (boxes[:, 0] < WIDTH - 2) & (boxes[:, 1] < HEIGHT - 2)
    expected = torchvisions(values[inside], boxes[inside])
    whole = np.zeros_like(expected)
    for canvas, (top, left, patch) in zip(
        whole, masks.patches(values[inside], boxes[inside], HEIGHT, WIDTH), strict=True
    ):
        canvas[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    assert np.abs(whole - expected).max(initial=0) < 1e-5
    clear = np.abs(expected - 0.5) > 1e-5
    pasted = masks.paste(values[inside], boxes[inside], HEIGHT, WIDTH)
    assert ((pasted == (expected > 0.5)) | ~clear).all()


def test_an_object_beside_the_image_or_with_nan_has_no_pixels() -> None:
    boxes = np.array(
        [
            [-90, 0, -50, 9],
            [0, -90, 9, -50],
            [900, 0, 950, 9],
            [np.nan, 0, 9, 9],
            [0, 0, np.inf, 9],
        ],
        np.float32,
    )
    pasted = masks.paste(np.ones((5, 28, 28), np.float32), boxes, HEIGHT, WIDTH)
    assert pasted.shape == (5, HEIGHT, WIDTH)
    assert not pasted.any()


def test_no_objects_have_no_pixels() -> None:
    empty = np.zeros((0, 28, 28), np.float32)
    none = np.zeros((0, 4), np.float32)
    assert masks.paste(empty, none, HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH)
    assert not list(masks.run_lengths(empty, none, HEIGHT, WIDTH))


@pytest.mark.parametrize("value", [0.4, 0.5, 0.6])
def test_a_pixel_belongs_where_the_mask_is_above_the_threshold(value: float) -> None:
    values, boxes = np.full((1, 28, 28), value, np.float32), np.array([[5, 5, 25, 25]], np.float32)
    assert masks.paste(values, boxes, HEIGHT, WIDTH)[0, 15, 15] == (value > 0.5)
    exact = masks.paste(values, boxes, HEIGHT, WIDTH, pasting="exact")
    assert exact[0, 15, 15] == (value >= 0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_an_exact_mask_is_read_at_the_centres_of_pixels(seed: int) -> None:
    """detectron2's rule, by torch's own sampling with zeros beside the mask."""
    values, boxes = objects(seed, 6)
    boxes[0] = -50, -50, 150, 150
    boxes[1] = 10.25, 12.5, 22.0, 23.75
    for mask, box, pixels in zip(
        values, boxes, masks.paste(values, boxes, HEIGHT, WIDTH, pasting="exact"), strict=True
    ):
        x, y = (
            (torch.arange(n) + 0.5 - float(low)) / float(high - low) * 2 - 1
            for n, low, high in ((WIDTH, box[0], box[2]), (HEIGHT, box[1], box[3]))
        )
        places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None].double()
        read = torch.nn.functional.grid_sample(
            torch.from_numpy(mask)[None, None].double(), places, align_corners=False
        )[0, 0].numpy()
        sure = np.abs(read - 0.5) > 1e-4
        assert (pixels == (read >= 0.5))[sure].all()


@pytest.mark.parametrize("size", [(37, 53), (16, 90)])
def test_a_mask_over_the_whole_input_is_resized_by_its_logits(size: tuple[int, int]) -> None:
    """DETR's own way, as torch resizes; what hangs over the image is cut off."""
    values = np.random.default_rng(0).random((3, 10, 14), np.float32)
    values[0] = values[0] > 0.5
    logits = torch.from_numpy(values).double().clip(masks.LEAST, 1 - masks.LEAST).logit()
    read = torch.nn.functional.interpolate(logits[None], (37, 90), mode="bilinear")[0].numpy()
    boxes = np.array([[0, 0, 90, 37]] * 3, np.float32)
    made = masks.paste(values, boxes, *size, pasting="whole")
    sure = np.abs(read) > 1e-4
    part = np.s_[:, : size[0], : size[1]]
    assert (made == (read > 0)[part])[sure[part]].all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_run_lengths_are_those_of_the_pasted_mask(seed: int) -> None:
    api = pytest.importorskip("faster_coco_eval.core.mask")
    values, boxes = objects(seed, 6)
    boxes[0] = -50, -50, 150, 150  # touches every edge
    values[0] = 1
    whole = masks.paste(values, boxes, HEIGHT, WIDTH)
    for pixels, counts in zip(whole, masks.run_lengths(values, boxes, HEIGHT, WIDTH), strict=True):
        assert sum(counts) == HEIGHT * WIDTH
        assert 0 not in counts[1:]
        coded = api.frPyObjects({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)
        assert (api.decode(coded).astype(bool) == pixels).all()
        assert coded == api.encode(np.asfortranarray(pixels.astype(np.uint8)))
