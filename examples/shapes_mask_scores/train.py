"""Train what scores the masks of the example Mask R-CNN: the MaskIoU head alone, the rest frozen.

    python examples/shapes_mask_scores/train.py --seconds 3500
    python examples/shapes_mask_scores/train.py --seconds 480 --device cuda

The frozen network finds objects in images that it never saw; the head learns the IoU of each mask
with its object (arXiv 1903.00241, section 3.2). Ends when its time is over. The images are
generated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import ops
from torchvision.models.detection.image_list import ImageList

from deploykit.data import sources
from deploykit.networks.detectors import two_stage_contract, two_stage_models
from deploykit.networks.detectors.two_stage_models import LIGHT
from deploykit.training import augmenting, gathering, loops, timed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from deploykit.data.sources import Dataset
    from deploykit.training.loops import Objects

FROZEN = Path(__file__).parents[1] / "shapes_masks" / "mask_rcnn_light.pth"
HELD_OUT = "shapes:split=val,seed=1,count=500"
PREPROCESS = two_stage_contract.preprocess(LIGHT)
LEAST, SURE, BATCH = 0.5, 0.5, 8
"""IoU of a found box with that of its object, below which there is nothing to learn; share from
which a pixel is of the mask; images that the frozen network sees at once."""


def load(data: Dataset) -> tuple[NDArray[np.uint8], list[Objects]]:
    """Return every image of a set, uint8[N, 3, H, W], and its objects."""
    images, objects = loops.load(data, PREPROCESS, masks=True)
    return images.numpy(), objects


def batches(
    images: NDArray[np.uint8], objects: list[Objects], rng: np.random.Generator, place: torch.device
) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Yield random images without end, flipped, turned and relit at random, and their objects."""
    usable = [k for k, found in enumerate(objects) if len(found.boxes)]
    light = torch.Generator(place).manual_seed(int(rng.integers(2**31)))
    while True:
        pixels, truth = [], []
        for k in rng.choice(usable, BATCH):
            planes = torch.from_numpy(np.concatenate([images[k], objects[k].masks()]))
            planes, boxes = loops.turned(planes.to(place), objects[k].boxes, rng)
            pixels.append(planes[:3])
            labels = torch.from_numpy(objects[k].classes + 1).to(place)
            known = {"boxes": torch.from_numpy(boxes).to(place), "labels": labels}
            truth.append({**known, "masks": planes[3:]})
        lit = augmenting.relit(torch.stack(pixels), light)
        yield loops.normalised(lit, PREPROCESS), truth


@dataclass
class Rows:
    """Found objects: what the head reads of each, and what it shall say."""

    features: Tensor
    """float16[n, C, 14, 14]."""
    masks: Tensor
    """float16[n, 28, 28], 0 to 1."""
    classes: Tensor
    """int64[n], the background not among them."""
    iou: Tensor
    """float32[n], of the mask with the object."""

    def chosen(self, rows: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Return what the head reads of these rows, and what it shall say."""
        read = self.features[rows].float(), self.masks[rows].float(), self.classes[rows]
        return read, self.iou[rows]


@torch.no_grad()
def look(network: Any, images: Tensor, truth: list[dict[str, Tensor]]) -> Rows:  # noqa: ANN401 - torchvision ships no types
    """Return what the network finds in images and what its masks are worth."""
    sizes = [(int(images.shape[2]), int(images.shape[3]))] * len(images)
    maps = network.backbone(images)
    proposals, _ = network.rpn(ImageList(images, sizes), maps)
    found, _ = network.roi_heads(maps, proposals, sizes)
    features = network.roi_heads.mask_roi_pool(maps, [each["boxes"] for each in found], sizes)
    masks = torch.cat([each["masks"] for each in found]).squeeze(1)
    labels = torch.cat([each["labels"] for each in found])
    pairs = zip(found, truth, strict=True)
    iou = torch.cat([worth(each, known) for each, known in pairs])
    kept = iou >= 0
    return Rows(features[kept].half(), masks[kept].half(), labels[kept] - 1, iou[kept])


def worth(found: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Return the IoU of each found mask with its object's, float32[n], -1 where there is none.

    An object is the one of its class whose box fits best; what of it lies outside of the found box
    counts. Both are compared in the cells of the found mask, [n, 1, 28, 28].
    """
    boxes, masks = found["boxes"], found["masks"].squeeze(1) >= SURE
    fit = ops.box_iou(boxes, truth["boxes"])
    fit = fit.where(found["labels"][:, None] == truth["labels"], -1.0)
    best, own = fit.max(1)
    rows = torch.cat([own[:, None].to(boxes), boxes], 1)
    shown = truth["masks"].float().unsqueeze(1)
    inside = ops.roi_align(shown, rows, tuple(masks.shape[1:]), sampling_ratio=2, aligned=True)
    right = inside.squeeze(1) >= SURE
    cells = (boxes[:, 2:] - boxes[:, :2]).prod(1) / right[0].numel() if len(right) else boxes[:, 0]
    whole = torch.maximum(shown.sum((1, 2, 3))[own] / cells, right.sum((1, 2)))
    both = (masks & right).sum((1, 2))
    either = masks.sum((1, 2)) + whole - both
    return torch.where(best >= LEAST, both / either, -1.0)


def loss(found: Tensor, iou: Tensor) -> Tensor:
    """Return the mean squared error of what the head says, float32[n, 1]."""
    return nn.functional.mse_loss(found.squeeze(1), iou)


def gather(network: Any, options: argparse.Namespace, until: float) -> Rows:  # noqa: ANN401 - torchvision ships no types
    """Return as many rows as are asked for, or were found until `until` on the clock."""
    place = timed.device(options.device)
    spec = f"shapes:split=train,seed={options.seed},count={options.images}"
    parts = gathering.gathered(load, spec, options.processes)
    images = np.concatenate([each for each, _ in parts])
    objects = [found for _, each in parts for found in each]
    found: list[Rows] = []
    stream = batches(images, objects, np.random.default_rng(options.seed), place)
    while sum(len(rows.iou) for rows in found) < options.rows:
        found.append(look(network, *next(stream)))
        if time.perf_counter() > until:
            break
    columns = [torch.cat([getattr(rows, name) for rows in found]) for name in vars(found[0])]
    return Rows(*columns)


def frozen(place: torch.device) -> Any:  # noqa: ANN401 - torchvision ships no types
    """Return the network with the weights of the example Mask R-CNN, and a new head."""
    stored = torch.load(FROZEN, weights_only=True)
    names = stored["names"]
    network = two_stage_models.model(LIGHT, two_stage_models.Sizes(len(names)), "mask_scores")
    missing, unexpected = network.load_state_dict(stored["model"], strict=False)
    own = ("num_batches_tracked", "maskiou")
    assert not unexpected
    assert all(any(name in key for name in own) for key in missing)
    network.names = names
    return network.requires_grad_(False).to(place)


def train(options: argparse.Namespace) -> Any:  # noqa: ANN401 - torchvision ships no types
    """Return the network with the head trained until the time is over."""
    started = time.perf_counter()
    torch.manual_seed(options.seed)
    network = frozen(timed.device(options.device))
    until = started + options.looking * options.seconds
    rows = gather(network, options, until)
    spent, count = time.perf_counter() - started, len(rows.iou)
    print(f"{count} objects in {spent:.0f} s, IoU {rows.iou.mean():.3f}", flush=True)
    generator = torch.Generator(rows.iou.device).manual_seed(options.seed)

    def batch() -> tuple[tuple[Tensor, ...], Tensor]:
        size, place = (options.batch_size,), rows.iou.device
        return rows.chosen(torch.randint(count, size, generator=generator, device=place))

    network.roi_heads.maskiou = timed.fit(
        network.roi_heads.maskiou.requires_grad_(True),
        batch,
        loss,
        timed.Pace(
            min(options.steps, max(1, round(options.passes * count / options.batch_size))),
            options.seconds - spent,
            options.learning_rate,
        ),
    )
    return network.cpu()


def main() -> None:
    """Train and save the checkpoint, or print what one scores."""
    output = Path(__file__).with_name("mask_scoring_rcnn_light.pth")
    how = {"images": 3000, "batch_size": 64, "processes": 2}
    seed = 2  # not 1: the frozen network saw those images
    parser = timed.parser(__doc__, output, score="AP", seed=seed, **how)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, default=15_000, help="objects to learn from")
    parser.add_argument("--looking", type=float, default=0.4, help="share of the time, at most")
    parser.add_argument("--passes", type=float, default=10, help="over them, at most")
    names = list(sources.dataset(HELD_OUT).categories.values())
    timed.run(parser.parse_args(), train, HELD_OUT, names)


if __name__ == "__main__":
    main()
