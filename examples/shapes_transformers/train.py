"""Train a small transformer on generated shapes: Swin or MPViT `light`, 64x64, 6 classes.

    python examples/shapes_transformers/train.py --recipe swin --seconds 3500
    python examples/shapes_transformers/train.py --recipe mpvit --seconds 3500 --device cuda

Ends when its time is over, on two CPU cores within an hour. The images are generated.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.recipes.recipe import RECIPES
from deploykit.training import augmenting, gathering, loops, timed

if TYPE_CHECKING:
    import argparse

VARIANT, SIZE = "light", 64
HELD_OUT = f"shapes:split=val,seed=1,count=2000,size={SIZE},truth=class"
CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
PREPROCESS = RECIPES.load("swin").variant(VARIANT).preprocess
"""The same for both."""
ZOOM, SHIFT = 1.2, 0.08
"""How far training images are scaled, and moved in shares of their sides."""


class Batches:
    """Random images, changed at random, and their classes; all of them where the network is."""

    def __init__(self, images: Tensor, classes: Tensor, size: int, seed: int) -> None:
        """Keep uint8[N, 3, H, W] and int64[N]; size: of a batch."""
        self.images, self.classes, self.size = images, classes, size
        self.generator = torch.Generator(images.device).manual_seed(seed)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Return float32[size, 3, H, W], normalised, and int64[size]."""
        place, count = self.images.device, len(self.images)
        chosen = torch.randint(count, (self.size,), generator=self.generator, device=place)
        turned = augmenting.flipped(self.images[chosen].float(), self.generator)
        warped = augmenting.warped(turned, self.generator, zoom=ZOOM, shift=SHIFT)
        lit = augmenting.relit(warped, self.generator)
        return loops.normalised(lit, PREPROCESS), self.classes[chosen]


def train(options: argparse.Namespace) -> nn.Module:
    """Return the network, trained until the time is over."""
    started, place = time.perf_counter(), timed.device(options.device)
    torch.manual_seed(options.seed)
    spec = f"shapes:split=train,seed={options.seed},count={options.images},size={SIZE},truth=class"
    load = partial(gathering.classified, preprocess=PREPROCESS)
    parts = gathering.gathered(load, spec, options.processes)
    images, classes = (
        torch.from_numpy(np.concatenate(each)).to(place) for each in zip(*parts, strict=True)
    )
    spent = time.perf_counter() - started
    print(f"{len(images)} images in {spent:.0f} s", flush=True)
    return timed.fit(
        RECIPES.load(options.recipe).network(VARIANT, len(CLASS_NAMES)).to(place),
        Batches(images, classes, options.batch_size, options.seed),
        nn.CrossEntropyLoss(label_smoothing=0.05),
        timed.Pace(options.steps, options.seconds - spent, options.learning_rate),
    ).cpu()


def main() -> None:
    """Train and save the checkpoint, or print what one scores."""
    parser = timed.parser(__doc__, None, score="top-1", images=20_000, batch_size=64, processes=2)
    parser.add_argument("--recipe", choices=("swin", "mpvit"), default="swin")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    options.output = options.output or Path(__file__).with_name(f"{options.recipe}_{VARIANT}.pth")
    timed.run(options, train, HELD_OUT, CLASS_NAMES)


if __name__ == "__main__":
    main()
