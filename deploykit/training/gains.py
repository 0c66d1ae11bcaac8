"""What a training brought: the loss on the same few images before it and after it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch

from deploykit.training import retraining

if TYPE_CHECKING:
    from deploykit.training.batches import Batches
    from deploykit.training.retraining import Run
    from deploykit.values import Progress

IMAGES = 32
"""As many as that, in whole batches of the first epoch, and at least one batch."""


class Gauge:
    """The loss of the averaged weights on images that stay the same."""

    def __init__(self, run: Run, batches: Batches, progress: Progress) -> None:
        """Take the loss of a training that has not made a step."""
        self._batches, self._progress = batches, progress
        self._count = min(-(-IMAGES // batches.size), batches.steps)
        self.images = self._count * batches.size
        self.before = self._loss(run)

    def notes(self, run: Run) -> list[str]:
        """Return what a user reads of a training at its end.

        Raises: OptionError where the loss is no number any more.
        """
        after = self._loss(run)
        losses = f"{self.before:.4g} as calibrated, {after:.4g} now"
        notes = [
            f"learnt in {run.total} steps: the loss on {self.images} of the images is {losses}"
        ]
        if after > self.before:
            notes.append(
                "the training made it worse: "
                "a lower --learning-rate, more --epochs, or the file as it was calibrated"
            )
        return notes

    @torch.no_grad()
    def _loss(self, run: Run) -> float:
        seen = islice(self._batches.epoch(0), self._count)
        told = self._progress(seen, "loss", self._count)
        found = sum(retraining.loss_of(run, run.average, fed)[1]["loss"] for fed in told)
        return found / self._count
