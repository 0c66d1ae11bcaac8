"""A data set read into memory by several processes."""

from __future__ import annotations

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from deploykit.data import sources
from deploykit.training import loops

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Preprocess
    from deploykit.data.sources import Dataset

    Levels = NDArray[np.uint8]

Part = TypeVar("Part")


def gathered(make: Callable[[Dataset], Part], spec: str, processes: int) -> list[Part]:
    """Return what `make` gives for consecutive parts of a data set, in order.

    make: A function of a module, which other processes can find, and what it gives is pickled: of
    numpy arrays rather than tensors, which would go through shared memory. processes: 1: this one.

    Raises: as `sources.dataset` and `make`.
    """
    count = len(sources.dataset(spec).samples)
    if processes <= 1:
        return [part(make, spec, (0, count))]
    ends = [count * i // processes for i in range(processes + 1)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _alone) as pool:
        started = [pool.submit(part, make, spec, place) for place in itertools.pairwise(ends)]
        return [each.result() for each in started]


def part(make: Callable[[Dataset], Part], spec: str, place: tuple[int, int]) -> Part:
    """Return what `make` gives for the samples from one place to another."""
    data = sources.dataset(spec)
    return make(replace(data, samples=data.samples[slice(*place)]))


def _alone() -> None:
    torch.set_num_threads(1)


def classified(data: Dataset, preprocess: Preprocess) -> tuple[Levels, NDArray[np.int64]]:
    """Return every image of a set, uint8[N, 3, H, W], and its class, int64[N] from 0.

    The truth of each image must be the id of its class, from 1, as the `shapes` source gives it.
    """
    placed = loops.levels(preprocess)
    images = [np.round(placed(sample.read())[0]).astype(np.uint8) for sample in data.samples]
    truth = [sample.truth() for sample in data.samples if sample.truth is not None]
    return np.stack(images), np.array([int(str(number)) - 1 for number in truth])
