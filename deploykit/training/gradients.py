"""What INT8 in each layer does to the outputs, to first order: all layers by a few gradients.

With J the derivative of the outputs by a layer's result and d the change that INT8 makes in it,
the outputs change by J d. For random signs v the mean of (v . J d)^2 is |J d|^2, and v . J d is the
product of d with one gradient of v . outputs, which every layer has from the same backward pass.
The outputs count over their own spread, column by column.

Source: the Gauss-Newton form of the score in NVIDIA ModelOpt's `auto_quantize`, which takes
products element by element; the estimate of a trace by random signs is Hutchinson's (1990).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from deploykit.errors import ModelError
from deploykit.precision.appending import Appended
from deploykit.precision.sensitivity.work import Alones
from deploykit.training.fake_quant import FakeQuantized, Grid
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from deploykit.backends import Arrays
    from deploykit.precision.sensitivity.alone import Subject
    from deploykit.precision.sensitivity.work import Worker

MEASURES = ("gradient", "fisher")
"""Names of the two sums."""
DRAWS = 2
"""Random signs for each image."""
_ROWS = 3
"""Dimensions of an output of rows, whose columns are quantities of their own."""


class Score(NamedTuple):
    """Sums over images and draws."""

    outputs: float
    """Of (v . J d)^2: the energy of the change of the outputs."""
    elements: float
    """Of the squares of each element's part, as if no two of them acted together."""


@dataclass(frozen=True)
class Twins:
    """A float graph with a copy of each layer that reads INT8, and nothing reads the copies."""

    network: FakeQuantized
    layers: Mapping[str, tuple[str, str]]
    """Node -> its result, and that of its copy."""


def twins(subject: Subject, bits: int = 8) -> Twins:
    """Return the copies of all layers of a plan; fewer bits are for experiments.

    Raises: ModelError, see `graphs.module`.
    """
    placed, layers = subject.placed, subject.layers()
    add, copies = Appended(subject.model, "twin"), dict[str, str]()
    found: dict[str, tuple[str, str]] = {}
    for node in [node for node in add.graph if node.name in layers]:
        value = add.again(node, list(node.inputs))
        copy = value.producer()
        assert copy is not None  # it was just made
        copies[str(node.name)] = str(copy.name)
        found[str(node.name)] = (str(node.outputs[0].name), str(value.name))
    activations = (
        replace(a, readers=tuple((copies[name], i) for name, i in a.readers if name in copies))
        for a in placed.activations
    )
    moved = replace(
        placed,
        activations=tuple(a for a in activations if a.readers),
        weights=tuple(replace(w, node=copies[w.node]) for w in placed.weights),
    )
    grid = Grid(float_type=Precision.FP32, bits=bits)
    try:
        network = FakeQuantized(add.whole, moved, subject.table, grid=grid)
    except ModelError as error:
        raise ModelError(
            error.found,
            expected="a network with a gradient throughout, which two-stage detectors lack",
            fix="measure each layer's effect on the outputs: --metric output",
        ) from error
    return Twins(network.eval(), found)


def scores(given: Twins, feeds: Arrays, seed: int) -> dict[str, Score]:
    """Return the score of each layer on a batch of images, summed over them and the draws.

    Raises: ModelError where no output has a gradient.
    """
    network, random = given.network, torch.Generator().manual_seed(seed)
    ends = network.graph.outputs
    names = [*ends, *(name for pair in given.layers.values() for name in pair)]
    inputs = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
    with torch.enable_grad():
        found = network.tensors(inputs, names=names)
    results = [found[own] for own, _ in given.layers.values()]
    changes = [(found[copy] - found[own]).detach() for own, copy in given.layers.values()]
    outputs = [found[name] for name in ends if found[name].requires_grad]
    if not outputs:
        raise ModelError("no output of the model has a gradient by its layers")
    total = np.zeros((len(results), 2))
    for draw in range(DRAWS):
        value = sum(_projected(each, random) for each in outputs)
        assert isinstance(value, torch.Tensor)  # there are outputs
        kept = draw < DRAWS - 1
        gradients = torch.autograd.grad(value, results, allow_unused=True, retain_graph=kept)
        total += [_products(*pair) for pair in zip(gradients, changes, strict=True)]
    return {name: Score(*row) for name, row in zip(given.layers, total.tolist(), strict=True)}


def _projected(output: Tensor, random: torch.Generator) -> Tensor:
    """Return random signs times an output, over the spread of each of its columns."""
    width = output.shape[-1] if output.ndim == _ROWS else 1
    columns = output.reshape(-1, width)
    count = max(1, len(columns) // max(1, len(output)))
    spread = columns.detach().double().var(dim=0, unbiased=False)
    live = spread > 0
    weights = torch.where(live, (spread * count * max(1, int(live.sum()))).rsqrt(), 0.0)
    signs = torch.randint(0, 2, columns.shape, generator=random, dtype=output.dtype) * 2 - 1
    return (columns * signs * weights.to(output.dtype)).sum()


def _products(gradient: Tensor | None, change: Tensor) -> tuple[float, float]:
    """Return the sums over images of (g . d)^2 and of the squares of its terms."""
    if gradient is None:
        return 0.0, 0.0
    terms = (gradient.double() * change.double()).flatten(1)
    return float(terms.sum(1).square().sum()), float(terms.square().sum())


def answer(worker: Worker, number: int) -> Alones:
    """Return what a unit of the kind `gradient` gives: sums over the images of a chunk.

    Raises: as `twins` and `scores`.
    """
    given: dict[object, Twins] = {}
    total = {name: np.zeros(2) for name in worker.layers}
    images = 0
    for batch, feeds in worker.chunk(number):
        size = worker.size(batch)
        if size not in given:
            given[size] = twins(worker.subjects[size])
        count = len(next(iter(feeds.values())))
        for name, score in scores(given[size], feeds, seed=images + (number << 20)).items():
            total[name] += score
        images += count
    layers = {name: dict(zip(MEASURES, each.tolist(), strict=True)) for name, each in total.items()}
    return Alones(layers, {"images": float(images)}, "")
