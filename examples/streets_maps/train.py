"""Train the example HRNet on made-up streets: `w18_small`, 256x512, the 19 classes of Cityscapes.

    python examples/streets_maps/train.py --seconds 3400

Ends by the clock, on a GPU or on two CPU cores. Everything is seeded; the images are generated.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.recipes.recipe import RECIPES
from deploykit.tasks.cityscapes import labels
from deploykit.training import augmenting, gathering, loops, timed

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Preprocess
    from deploykit.data.sources import Dataset

VARIANT, SIZE = "w18_small", (256, 512)
STREETS = "size={1}x{0}".format(*SIZE)
CLASS_NAMES = tuple(labels.CLASSES.values())
ZOOM = 0.6
"""The least share of the sides that a training image shows."""


def load(data: Dataset) -> NDArray[np.uint8]:
    """Return every image of a set, and the class of each pixel, uint8[N, 4, H, W]; 255: none."""
    planes, table = np.empty((len(data.samples), 4, *SIZE), np.uint8), labels.to_train()
    for found, sample in zip(planes, data.samples, strict=True):
        found[:3] = sample.read().transpose(2, 0, 1)
        assert sample.truth is not None
        truth: Any = sample.truth()
        found[3] = table[truth.labels]
    return planes


def batch(
    planes: Tensor, preprocess: Preprocess, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return images, each cut, flipped and relit at random, and the class of each pixel."""
    place = planes.device
    chosen = planes[torch.randint(len(planes), (size,), generator=generator, device=place)]
    share, x, y, flip = torch.rand((4, size), generator=generator, device=place)
    share = ZOOM + (1 - ZOOM) * (2 * share).clamp(max=1)  # half of them whole
    nothing = torch.zeros_like(share)
    across = [share * torch.where(flip < 0.5, -1.0, 1.0), nothing, (1 - share) * (2 * x - 1)]
    down = [nothing, share, (1 - share) * (2 * y - 1)]
    turned = torch.stack([torch.stack(across, 1), torch.stack(down, 1)], 1)
    grid = functional.affine_grid(turned, [size, 3, *planes.shape[2:]], align_corners=False)
    cut = partial(functional.grid_sample, grid=grid, padding_mode="border", align_corners=False)
    images = augmenting.relit(cut(chosen[:, :3].float()), generator)
    truth = cut(chosen[:, 3:].float(), mode="nearest")[:, 0].long()
    return loops.normalised(images, preprocess), truth


def loss(found: Tensor, truth: Tensor) -> Tensor:
    """Return the cross entropy at the size of the input, and how badly classes overlap (Dice)."""
    scores = functional.interpolate(
        found.float(), truth.shape[1:], mode="bilinear", align_corners=False
    )
    counts = (truth != labels.IGNORED).unsqueeze(1)
    right = functional.one_hot(torch.where(counts[:, 0], truth, 0), len(CLASS_NAMES))
    right = right.permute(0, 3, 1, 2) * counts
    shares = scores.softmax(1) * counts
    both, either = (shares * right).sum((0, 2, 3)), (shares + right).sum((0, 2, 3))
    overlap = (2 * both + 1) / (either + 1)
    entropy = nn.functional.cross_entropy(scores, truth, ignore_index=labels.IGNORED)
    return entropy + (1 - overlap).mean()


def train(options: argparse.Namespace) -> None:
    """Train and save the checkpoint."""
    started = time.perf_counter()
    place = timed.device(options.device)
    torch.manual_seed(options.seed)
    recipe = RECIPES.load("hrnet_seg")
    spec = f"streets:split=train,seed={options.seed},count={options.images},{STREETS}"
    parts = gathering.gathered(load, spec, options.processes)
    planes = torch.cat([torch.from_numpy(part) for part in parts]).to(place)
    spent = time.perf_counter() - started
    print(f"{len(planes)} images in {spent:.0f} s", flush=True)
    network = recipe.network(VARIANT, len(CLASS_NAMES)).to(place)
    generator = torch.Generator(place).manual_seed(options.seed)
    preprocess = recipe.variant(VARIANT).preprocess
    learnt = timed.fit(
        network.to(memory_format=torch.channels_last),
        partial(batch, planes, preprocess, options.batch_size, generator),
        loss,
        timed.Pace(options.steps, options.seconds - spent, learning_rate=2e-3),
    )
    state = {key: value.cpu() for key, value in learnt.state_dict().items()}
    torch.save({"state_dict": loops.half(state), "names": list(CLASS_NAMES)}, options.output)
    print(f"{options.output} after {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    """Read the options and train."""
    output = Path(__file__).with_name("hrnet_small.pth")
    parser = timed.parser(__doc__, output, images=6000, batch_size=16)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
