"""Train the example Mask R-CNN on generated shapes: half-width ResNet-18-FPN, 320x320, 6 classes.

    python examples/shapes_masks/train.py --output examples/shapes_masks/mask_rcnn_light.pth

Runs on two CPU cores within an hour. Everything is seeded; the images are generated.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torchvision.models.detection.image_list import ImageList

from deploykit.data import sources
from deploykit.networks.detectors.light import light_mask_rcnn
from deploykit.recipes.recipe import RECIPES
from deploykit.training import loops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchvision.models.detection import MaskRCNN

    from deploykit.training.loops import Objects

    Targets = list[dict[str, Tensor]]

VARIANT, SIZE = "light", (320, 320)
HELD_OUT = "shapes:split=val,seed=1,count=500"
CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS, FINAL_RATE = 1.5e-3, 0.05, 400, 0.01
AVERAGE_DECAY, AVERAGE_RAMP = 0.9985, 500
"""The averaged weights follow with decay * (1 - exp(-step / ramp))."""
CANDIDATES, PROPOSALS, ANCHORS, BOXES = 400, 256, 128, 64
"""While training: anchors per level before and proposals after the NMS; anchors and proposals of
an image that the losses look at."""
GRADIENT_LIMIT = 10.0


def batches(
    images: Tensor, objects: list[Objects], size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Targets]]:
    """Yield one epoch of shuffled batches, each image flipped, turned and relit at random."""
    preprocess = RECIPES.load("mask_rcnn").variant(VARIANT).sized(SIZE)
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    order = rng.permutation([k for k, found in enumerate(objects) if len(found.boxes)])
    for start in range(0, len(order) - size + 1, size):
        pixels, targets = [], []
        for k in order[start : start + size]:
            planes = torch.cat([images[k], torch.from_numpy(objects[k].masks())])
            planes, boxes = loops.turned(planes, objects[k].boxes, rng)
            pixels.append(planes[:3])
            labels = torch.from_numpy(objects[k].classes) + 1
            targets.append(
                {"boxes": torch.from_numpy(boxes), "labels": labels, "masks": planes[3:]}
            )
        yield (loops.relit(torch.stack(pixels), rng) - mean) / std, targets


def losses(network: MaskRCNN, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Return torchvision's five losses; images and targets are as the network sees them."""
    batch = ImageList(images, [SIZE] * len(images))
    features = network.backbone(images)
    proposals, first = network.rpn(batch, features, targets)
    _, second = network.roi_heads(features, proposals, batch.image_sizes, targets)
    return {**first, **second}


@dataclass
class Run:
    """One process's share of a training run."""

    network: MaskRCNN
    average: MaskRCNN
    """The averaged weights."""
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0

    def learn(self, images: Tensor, targets: Targets, *, half: bool) -> dict[str, float]:
        """Take one step with the other processes; return the losses of this one."""
        factor = loops.rate(self.step, self.steps, warmup=WARMUP_STEPS, final=FINAL_RATE)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            parts = losses(self.network, images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([*parts.values()]).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
        loops.average_gradients(self.network)
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_LIMIT)
        self.optimizer.step()
        decay = AVERAGE_DECAY * (1 - math.exp(-(self.step + 1) / AVERAGE_RAMP))
        loops.follow(self.average, self.network, decay)
        self.step += 1
        return {name.removeprefix("loss_"): loss.item() for name, loss in parts.items()}


def begin(options: argparse.Namespace) -> Run:
    """Return a run whose weights follow from the seed, with what only training needs set."""
    torch.manual_seed(options.seed)
    network = light_mask_rcnn(len(CLASS_NAMES))
    network.rpn._pre_nms_top_n["training"] = CANDIDATES  # noqa: SLF001 - else the constructor's argument
    network.rpn._post_nms_top_n["training"] = PROPOSALS  # noqa: SLF001 - likewise
    network.rpn.fg_bg_sampler.batch_size_per_image = ANCHORS
    network.roi_heads.fg_bg_sampler.batch_size_per_image = BOXES
    network.train().to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval()
    optimizer = loops.optimizer(network, LEARNING_RATE, WEIGHT_DECAY)
    return Run(network, average, optimizer, options.epochs * epoch_steps(options))


def epoch_steps(options: argparse.Namespace) -> int:
    """Return the steps of one epoch; images without an object leave a batch or less over."""
    return int(options.images // options.batch_size - 1)


def train(rank: int, options: argparse.Namespace) -> None:
    """Train on every `processes`-th image from `rank` on, in step with the other processes."""
    torch.set_num_threads(1)
    run = begin(options)
    distributed.init_process_group(
        "gloo", init_method=meeting(options).as_uri(), rank=rank, world_size=options.processes
    )
    torch.manual_seed(options.seed + rank)
    rng = np.random.default_rng([options.seed, rank])
    started = time.perf_counter()
    data = sources.dataset(f"shapes:split=train,seed={options.seed},count={options.images}")
    mine = replace(data, samples=data.samples[rank :: options.processes])
    preprocess = RECIPES.load("mask_rcnn").variant(VARIANT).sized(SIZE)
    images, objects = loops.load(mine, preprocess, masks=True)

    def tell(line: str) -> None:
        if rank == 0:
            print(line, flush=True)

    tell(f"{options.images} images in {time.perf_counter() - started:.0f} s")
    for epoch in range(options.epochs):
        stream = batches(images, objects, options.batch_size // options.processes, rng)
        found = [
            run.learn(batch, targets, half=not options.float32)
            for batch, targets in itertools.islice(stream, epoch_steps(options))
        ]
        if rank == 0:
            save(run.average, options.output)
        log = " ".join(f"{k} {sum(f[k] for f in found) / len(found):.3f}" for k in found[0])
        tell(f"epoch {epoch + 1}/{options.epochs} {log} {time.perf_counter() - started:.0f} s")
    distributed.destroy_process_group()


def meeting(options: argparse.Namespace) -> Path:
    """Return the file by which the processes find each other."""
    return Path(f"{options.output.absolute()}.meeting")


def save(network: nn.Module, path: Path) -> None:
    """Write the weights in half precision, with the class names."""
    torch.save({"model": loops.half(network.state_dict()), "names": list(CLASS_NAMES)}, path)


def stored(path: Path) -> nn.Module:
    """Return the recipe's network with the weights that `save` wrote."""
    recipe = RECIPES.load("mask_rcnn")
    network = recipe.network(VARIANT, len(CLASS_NAMES))
    state = torch.load(path, weights_only=True)["model"]
    network.load_state_dict(state, strict=False)  # without the norms' counters
    return network.eval()


def main() -> None:
    """Train, save the checkpoint and print its AP."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Path(__file__).with_name("mask_rcnn_light.pth")
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the forward pass")
    options = parser.parse_args()
    started = time.perf_counter()
    meeting(options).unlink(missing_ok=True)
    multiprocessing.spawn(train, (options,), options.processes)  # type: ignore[attr-defined,no-untyped-call]  # torch
    meeting(options).unlink(missing_ok=True)
    taken = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    recipe = RECIPES.load("mask_rcnn")
    network = stored(options.output)
    print(
        json.dumps(
            {
                **loops.scores(network, recipe, VARIANT, sources.dataset(HELD_OUT), CLASS_NAMES),
                "epochs": options.epochs,
                "wall_seconds": round(taken),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
            }
        )
    )


if __name__ == "__main__":
    main()
