"""Train the example PointRend on made-up streets: `light`, 256x512, the 8 things of Cityscapes.

    python examples/streets_masks/train.py --seconds 3400

Ends by the clock, on a GPU or on two CPU cores. Everything is seeded; the images are generated. It
begins with the weights of the Mask R-CNN in `shapes_masks`, where the two are alike.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss

from deploykit.data import drawing
from deploykit.networks import checkpoint
from deploykit.networks.detectors import two_stage_models
from deploykit.recipes.recipe import RECIPES
from deploykit.tasks.cityscapes import labels
from deploykit.training import augmenting, gathering, loops, rendering, timed

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Preprocess
    from deploykit.data.sources import Dataset

VARIANT, SIZE = "light", (256, 512)
STREETS = "size={1}x{0}".format(*SIZE)
CLASS_NAMES = tuple(labels.THINGS.values())
START = Path(__file__).parent.parent / "shapes_masks" / "mask_rcnn_light.pth"
MOST, LEAST = 48, 3
"""Objects of an image; pixels of a side below which none is learnt from."""
CANDIDATES, PROPOSALS, ANCHORS, BOXES = 400, 256, 128, 64
"""While training: anchors per level before and proposals after the NMS; anchors and proposals of
an image that the losses look at."""


class Scenes(NamedTuple):
    """Images and the objects in them."""

    images: Any
    """uint8[N, 3, H, W]."""
    shown: Any
    """uint8[N, H, W]: which object each pixel shows, counted from 1; 0: none."""
    boxes: Any
    """float32[N, MOST, 4], xyxy."""
    classes: Any
    """int64[N, MOST]; -1: no object."""


def load(data: Dataset) -> Scenes:
    """Return every image of a set with its objects; groups are none."""
    count = len(data.samples)
    made = Scenes(
        np.empty((count, 3, *SIZE), np.uint8),
        np.zeros((count, *SIZE), np.uint8),
        np.zeros((count, MOST, 4), np.float32),
        np.full((count, MOST), -1, np.int64),
    )
    for row, sample in enumerate(data.samples):
        made.images[row] = sample.read().transpose(2, 0, 1)
        assert sample.truth is not None
        truth: Any = sample.truth()
        _objects(truth.instances, Scenes(*(values[row] for values in made)))
    return made


def _objects(instances: NDArray[np.int32], scene: Scenes) -> None:
    """Fill in what the map of instances of one scene says."""
    order, number = list(labels.THINGS), 0
    for value in np.unique(instances):
        if value // labels.GROUPED not in labels.THINGS or number == MOST:
            continue
        mask = instances == value
        box, _ = drawing.tight((0, 0, SIZE[1], SIZE[0]), mask)
        if min(box[2] - box[0], box[3] - box[1]) >= LEAST:
            scene.boxes[number] = box
            scene.classes[number] = order.index(value // labels.GROUPED)
            number += 1
            scene.shown[mask] = number


def batch(
    scenes: Scenes, preprocess: Preprocess, size: int, generator: torch.Generator
) -> tuple[Scenes, None]:
    """Return images, each flipped from left to right and relit at random, and their objects."""
    place = scenes.images.device
    chosen = torch.randint(len(scenes.images), (size,), generator=generator, device=place)
    images, shown, boxes, classes = (values[chosen] for values in scenes)
    flip = torch.rand((size, 1, 1, 1), generator=generator, device=place) < 0.5
    images = torch.where(flip, images.flip(-1), images)
    shown = torch.where(flip[:, 0], shown.flip(-1), shown)
    turned = torch.stack(
        [SIZE[1] - boxes[..., 2], boxes[..., 1], SIZE[1] - boxes[..., 0], boxes[..., 3]], -1
    )
    boxes = torch.where(flip[:, 0], turned, boxes)
    images = loops.normalised(augmenting.relit(images, generator), preprocess)
    return Scenes(images, shown, boxes, classes), None


class Learner(nn.Module):
    """The network while it learns: from scenes to losses."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401 - torchvision ships no types
        """Take torchvision's model, with what only training needs set."""
        super().__init__()
        network.rpn._pre_nms_top_n["training"] = CANDIDATES  # noqa: SLF001 - else the constructor's argument
        network.rpn._post_nms_top_n["training"] = PROPOSALS  # noqa: SLF001 - likewise
        network.rpn.fg_bg_sampler.batch_size_per_image = ANCHORS
        network.roi_heads.fg_bg_sampler.batch_size_per_image = BOXES
        self.network = network

    def forward(
        self, images: Tensor, shown: Tensor, boxes: Tensor, classes: Tensor
    ) -> dict[str, Tensor]:
        """Return six losses of a batch, see `Scenes`."""
        counts = (classes >= 0).sum(1).tolist()
        targets = [
            {"boxes": b[:count], "labels": c[:count] + 1}
            for b, c, count in zip(boxes, classes, counts, strict=True)
        ]
        seen = ImageList(images, [SIZE] * len(images))
        features, heads = self.network.backbone(images), self.network.roi_heads
        proposals, first = self.network.rpn(seen, features, targets)
        chosen, matched, found, moves = heads.select_training_samples(proposals, targets)
        x = heads.box_head(heads.box_roi_pool(features, chosen, seen.image_sizes))
        second = fastrcnn_loss(*heads.box_predictor(x), found, moves)
        known = objects(shown, chosen, matched, found)
        finest = next(iter(features.values()))
        stride = SIZE[0] / finest.shape[2]
        return {
            **{name.removeprefix("loss_"): value for name, value in first.items()},
            **dict(zip(("classifier", "box_reg"), second, strict=True)),
            **rendering.losses(heads.mask_head, finest, stride, known),
        }


def objects(
    shown: Tensor, boxes: list[Tensor], matched: list[Tensor], classes: list[Tensor]
) -> rendering.Objects:
    """Return the proposals that are objects; boxes, matched and classes of each image.

    matched: int64[n], the object. classes: int64[n], 0 the background.
    """
    counts = torch.tensor([len(each) for each in boxes], device=shown.device)
    image = torch.arange(len(boxes), device=shown.device).repeat_interleave(counts)
    label, number = torch.cat(classes), torch.cat(matched) + 1
    kept = label > 0
    return rendering.Objects(
        shown, image[kept], number[kept], label[kept] - 1, torch.cat(boxes)[kept]
    )


@dataclass
class Total:
    """The sum of the losses, which now and then says what they are."""

    every: int = 50
    """Steps from one line to the next."""
    step: int = 0

    def __call__(self, found: dict[str, Tensor], _: None) -> Tensor:
        """Return the sum of the losses."""
        if self.step % self.every == 0:
            words = [f"{name} {float(value.detach()):.3f}" for name, value in found.items()]
            print(f"step {self.step}:", ", ".join(words), flush=True)
        self.step += 1
        return torch.stack([*found.values()]).sum()


def begin(start: Path | None) -> Any:  # noqa: ANN401 - torchvision ships no types
    """Return torchvision's model, with what fits of the weights of `start`."""
    made = two_stage_models.model(VARIANT, two_stage_models.Sizes(len(CLASS_NAMES)), "mask_points")
    if start is not None:
        own = made.state_dict()
        given = checkpoint.load(start).state
        fits = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
        made.load_state_dict(fits, strict=False)
        print(f"{len(fits)} of {len(own)} tensors from {start.name}", flush=True)
    return made


def train(options: argparse.Namespace) -> None:
    """Train and save the checkpoint."""
    started = time.perf_counter()
    place = timed.device(options.device)
    torch.manual_seed(options.seed)
    spec = f"streets:split=train,seed={options.seed},count={options.images},{STREETS}"
    parts = gathering.gathered(load, f"{spec},truth=instance", options.processes)
    scenes = Scenes(
        *(torch.from_numpy(np.concatenate(each)).to(place) for each in zip(*parts, strict=True))
    )
    spent = time.perf_counter() - started
    print(f"{len(scenes.images)} images in {spent:.0f} s", flush=True)
    network = begin(options.start).to(place, memory_format=torch.channels_last)
    generator = torch.Generator(place).manual_seed(options.seed)
    preprocess = RECIPES.load("point_rend").variant(VARIANT).preprocess
    learnt = timed.fit(
        Learner(network),
        partial(batch, scenes, preprocess, options.batch_size, generator),
        Total(),
        timed.Pace(options.steps, options.seconds - spent, learning_rate=1.5e-3),
    )
    state = learnt.get_submodule("network").state_dict()
    state = {key: value.cpu() for key, value in state.items()}
    torch.save({"model": loops.half(state), "names": list(CLASS_NAMES)}, options.output)
    print(f"{options.output} after {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    """Read the options and train."""
    output = Path(__file__).with_name("point_rend_light.pth")
    parser = timed.parser(__doc__, output, images=6000, batch_size=16)
    parser.add_argument("--start", type=Path, default=START, help="weights to begin with")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
