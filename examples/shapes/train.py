"""Train the example detector on generated shapes: YOLOv6 `pico`, 320x320, 6 classes.

    python examples/shapes/train.py --output examples/shapes/yolov6_pico.pth
    python examples/shapes/train.py --variant pico_qa --output qa.pth
    python examples/shapes/train.py --variant pico_hs --epochs 4 --output scales.pth
    python examples/shapes/train.py --variant pico_repopt --scales scales.pth --output repopt.pth

Runs on two CPU cores within an hour, and goes on where it was ended. Everything is seeded; the
images are generated. The others are of equal form once folded: QARepVGG blocks, and RepOptimizer
with the scales that a hyper-search found.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from losses import Truth, loss, pad
from torch import Tensor, nn

from deploykit.data import sources
from deploykit.recipes.recipe import RECIPES
from deploykit.training import loops, rep_optimizer
from deploykit.training.snapshots import Snapshots

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from deploykit.recipes.recipe import Recipe
    from deploykit.training.loops import Objects

SIZE = (320, 320)
HELD_OUT = "shapes:split=val,seed=1,count=500"
CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS = 1.5e-3, 0.05, 500
FINAL_RATE = 0.01
"""Of the learning rate, at the end of the cosine."""
AVERAGE_DECAY, AVERAGE_RAMP = 0.9995, 1000
"""The averaged weights follow with decay * (1 - exp(-step / ramp))."""
GRADIENT_LIMIT = 10.0
"""Of the norm of all gradients; none with RepOptimizer, whose gradients are not those of the
branches that it stands for."""


class Detector(nn.Module):
    """What training needs of the network that the recipe builds."""

    backbone: Any

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return class logits, distances, anchors and strides."""
        raise NotImplementedError


def batches(
    images: Tensor, objects: list[Objects], size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Truth]]:
    """Yield one epoch of shuffled batches, each image flipped, turned and relit at random."""
    order = rng.permutation(len(images))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        pixels, boxes = zip(
            *(loops.turned(images[k], objects[k].boxes, rng) for k in chosen), strict=True
        )
        classes = [objects[k].classes for k in chosen]
        yield loops.relit(torch.stack(pixels), rng), pad(classes, boxes)


def train(recipe: Recipe, options: argparse.Namespace) -> nn.Module:
    """Return the averaged network after `options.epochs` epochs."""
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    network = cast("Detector", recipe.network(options.variant, len(CLASS_NAMES)).train())
    optimizer = learner(network, options.scales)
    network.to(memory_format=torch.channels_last)
    # PyTorch 2.15 corrupts memory in the backward pass of a channels-last 1x1 stride-2 stem.
    network.backbone.stem.to(memory_format=torch.contiguous_format)
    average = copy.deepcopy(network).eval()
    started = time.perf_counter()
    spec = f"shapes:split=train,seed={options.seed},count={options.images},size={SIZE[0]}"
    images, objects = loops.load(sources.dataset(spec), recipe.variant(options.variant).sized(SIZE))
    print(f"{len(images)} images in {time.perf_counter() - started:.0f} s", flush=True)

    per_epoch = len(images) // options.batch_size
    steps = per_epoch * options.epochs
    course = Course(options.epochs, (network, average, optimizer), rng)
    made_of = {name: str(value) for name, value in vars(options).items()}
    kept = Snapshots(options.output.with_suffix(".training"), made_of)
    kept.restore(course)
    for epoch in range(course.step, options.epochs):
        step = per_epoch * epoch
        sums: dict[str, float] = {}
        for batch, truth in batches(images, objects, options.batch_size, rng):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * loops.rate(
                    step, steps, warmup=WARMUP_STEPS, final=FINAL_RATE
                )
            with torch.autocast("cpu", torch.bfloat16, enabled=not options.float32):
                logits, distances, anchors, strides = network.raw(batch)
            total, parts = loss((logits.float(), distances.float(), anchors, strides), truth)
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
            if options.scales is None:
                nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_LIMIT)
            optimizer.step()
            decay = AVERAGE_DECAY * (1 - math.exp(-(step + 1) / AVERAGE_RAMP))
            loops.follow(average, network, decay)
            sums = {k: sums.get(k, 0.0) + v / per_epoch for k, v in parts.items()}
            step += 1
        save(average, options.output)
        course.step = epoch + 1
        kept.keep(course)
        log = " ".join(f"{k} {v:.3f}" for k, v in sums.items())
        print(
            f"epoch {epoch + 1}/{options.epochs} {log} {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    kept.path.unlink(missing_ok=True)
    return average


def learner(network: nn.Module, scales: Path | None) -> torch.optim.Optimizer:
    """Return AdamW; with the scales of a hyper-search, that which trains as if with branches."""
    plain = loops.optimizer(network, LEARNING_RATE, WEIGHT_DECAY)
    if scales is None:
        return plain
    found = rep_optimizer.read(scales)
    rep_optimizer.prepare(network, found)
    factors = rep_optimizer.multipliers(network, found, power=1)
    return rep_optimizer.RepAdamW(plain.param_groups, factors, lr=LEARNING_RATE)


@dataclass
class Course:
    """A training, as `Snapshots` takes it: `step` counts epochs."""

    total: int
    parts: Sequence[Any]
    """What has a state dict."""
    rng: np.random.Generator
    step: int = 0

    def state(self) -> dict[str, Any]:
        """Return where it is."""
        state = [part.state_dict() for part in self.parts]
        return {"step": self.step, "state": state, "rng": self.rng.bit_generator.state}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take it to where `state` says."""
        for part, known in zip(self.parts, state["state"], strict=True):
            part.load_state_dict(known)
        self.rng.bit_generator.state = state["rng"]
        self.step = state["step"]


def save(network: nn.Module, path: Path) -> None:
    """Write the weights in half precision, with the class names, branches unfolded."""
    torch.save(
        {"model": None, "ema": loops.half(network.state_dict()), "names": list(CLASS_NAMES)},
        path,
    )


def main() -> None:
    """Train, save the checkpoint and print its AP."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("yolov6_pico.pth"))
    parser.add_argument("--variant", default="pico")
    parser.add_argument(
        "--scales", type=Path, help="checkpoint of a hyper-search, for RepOptimizer"
    )
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the forward pass")
    options = parser.parse_args()
    started = time.perf_counter()
    recipe = RECIPES.load("yolov6")
    network = train(recipe, options)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                **loops.scores(
                    network, recipe, options.variant, sources.dataset(HELD_OUT), CLASS_NAMES
                ),
                "variant": options.variant,
                "epochs": options.epochs,
                "wall_seconds": round(time.perf_counter() - started),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
            }
        )
    )


if __name__ == "__main__":
    main()
