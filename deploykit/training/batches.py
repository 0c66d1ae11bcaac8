"""Images in an order that a seed decides, whichever process, and from whichever step on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from deploykit.data import feeding, samples
from deploykit.errors import DataError, OptionError
from deploykit.training import processes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from deploykit.data.preprocess import Preprocess
    from deploykit.data.samples import Batch
    from deploykit.data.sources import Dataset
    from deploykit.training.objectives import Truth
    from deploykit.values import TensorSpec


class Fed(NamedTuple):
    """A part of a batch, for this process."""

    inputs: Mapping[str, Tensor]
    truth: Sequence[Truth]


@dataclass(frozen=True)
class Batches:
    """How a data set is taken, batch by batch."""

    dataset: Dataset
    preprocess: Preprocess
    inputs: tuple[TensorSpec, ...]
    """Of the model."""
    size: int
    """Images in a batch, all processes together."""
    seed: int = 0
    flips: bool = True
    """Mirror half of the images, at random: without truth a mirror image is as good as any."""

    def __post_init__(self) -> None:
        """Check that there are batches. Raises: DataError, OptionError."""
        together = processes.count()
        if not self.dataset.samples:
            raise DataError(f"{self.dataset.name} has no images to learn from")
        if self.size < 1 or self.size > len(self.dataset.samples):
            raise OptionError(
                f"a batch of {self.size} of {len(self.dataset.samples)} images",
                expected=f"1 to {len(self.dataset.samples)}",
            )
        if self.size % together:
            raise OptionError(
                f"a batch of {self.size} images for {together} processes",
                expected=f"a multiple of {together}",
            )
        fixed = feeding.batch(self.inputs[0])
        if isinstance(fixed, int) and fixed * together != self.size:
            raise OptionError(
                f"a batch of {self.size} images for the input {self.inputs[0]}",
                expected=f"{fixed * together}",
                fix="or a model with an open batch",
            )

    @property
    def steps(self) -> int:
        """Return the batches of an epoch; images that fill none are left out, others each time."""
        return len(self.dataset.samples) // self.size

    def epoch(self, number: int, start: int = 0) -> Iterator[Fed]:
        """Yield the batches of an epoch, from the step `start` on. Raises: DataError."""
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.dataset.samples))[: self.steps * self.size]
        together = processes.count()
        shares = order.reshape(self.steps, self.size)[start:, processes.number() :: together]
        mine: list[int] = shares.reshape(-1).tolist()
        if not mine:
            return
        chosen = [self.dataset.samples[place] for place in mine]
        part = replace(self.dataset, samples=chosen)
        each = self.size // together
        taken = samples.batches(part, self.preprocess, each)
        for k, batch in enumerate(taken):
            places = mine[k * each : (k + 1) * each]
            yield Fed(self._fed(batch, number, places), tuple(_truths(part, batch, k * each)))

    def _fed(self, batch: Batch, number: int, places: Sequence[int]) -> dict[str, Tensor]:
        """Return the model's inputs."""
        images = batch.images
        if self.flips:
            for i, place in enumerate(places):
                if np.random.default_rng([self.seed, number, place]).random() < 0.5:
                    images[i] = images[i, :, :, ::-1].copy()
        found = feeding.feeds(self.inputs, images, batch.geometries)
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in found.items()}


def _truths(dataset: Dataset, batch: Batch, start: int) -> Iterator[Truth]:
    for i, geometry in enumerate(batch.geometries):
        truth = dataset.samples[start + i].truth
        yield (None if truth is None else truth()), geometry


def check_truth(data: Dataset, classes: tuple[str, ...]) -> None:
    """Check that a loss has a truth, of the model's classes. Raises: DataError, OptionError."""
    if any(sample.truth is None for sample in data.samples):
        raise OptionError(
            f"{data.name} has images without truth, which the loss needs",
            expected="a source with truth, such as coco:DIR",
            fix="leave --loss out to learn from the FP32 self alone",
        )
    names = [*data.known(classes).values()]
    foreign = sorted({*names} - {*classes})
    if foreign:
        raise DataError(
            f"{data.name} has the class {foreign[0]!r}, which the model does not know",
            expected=f"{', '.join(classes[:8])}",
            fix="give the data set that the model was trained on",
        )
