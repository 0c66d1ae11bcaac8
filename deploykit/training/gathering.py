"""A data set read into memory by several processes."""

from __future__ import annotations

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from deploykit.data import sources

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.data.sources import Dataset

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
