"""A float model run on a few inputs with questions about its tensors as further outputs.

The questions are nodes of the graph: how far a tensor reaches, and how much a step of INT8 changes
it. So no tensor leaves the runtime, and one run answers all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deploykit.backends import onnxruntime
from deploykit.backends.recorded import Recorded
from deploykit.graph.editing import is_op
from deploykit.precision.appending import SINGLE, Appended
from deploykit.precision.float16 import rules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import onnx_ir as ir

    from deploykit.backends import Arrays
    from deploykit.recipes.opened import Opened


class Stored(NamedTuple):
    """A tensor in INT8."""

    tensor: str
    step: float
    """Of the levels, in the tensor's unit."""


@dataclass(frozen=True)
class Probed:
    """A float32 model on some inputs."""

    magnitudes: Mapping[str, float] = field(default_factory=dict)
    """Tensor -> its largest magnitude over all inputs."""
    noise: Mapping[Stored, float] = field(default_factory=dict)
    """The energy of what storing changes over the energy of the tensor, over all inputs."""
    ran: Recorded | None = None
    """The inputs, and the outputs; None: it was not run."""


def probe(
    model: Opened,
    feeds: Iterable[Arrays],
    *,
    known: Collection[str] | None = (),
    stored: Iterable[Stored] = (),
) -> Probed:
    """Return what is asked of the float32 tensors of the main graph, over all `feeds`.

    known: tensors whose magnitude is not asked for; None: of none. Nor is that of tensors which
    only a Relu reads: what it leaves of one is its output, and what it takes away does no harm even
    as an infinity.

    Raises: ModelError, BackendError where the model does not run.
    """
    asked = _Questions(Appended(model, "probe"))
    own = [str(value.name) for value in asked.to.graph.outputs]
    if known is not None:
        asked.ask_largest(known)
    for each in stored:
        asked.ask_noise(each)
    session = onnxruntime.open_model(asked.to.opened())
    given, results = list(feeds), []
    found = dict.fromkeys(asked.largest, 0.0)
    energies = {each: np.zeros(2) for each in asked.noise}
    for feed in given:
        outputs = session.run(feed)
        results.append({name: outputs[name] for name in own})
        for tensor, output in asked.largest.items():
            found[tensor] = float(np.maximum(found[tensor], outputs[output]))  # keeps NaN
        for each, names in asked.noise.items():
            energies[each] += [float(outputs[name]) for name in names]
    noise = {each: float(error / energy) for each, (error, energy) in energies.items() if energy}
    specs = tuple(spec for spec in session.outputs if spec.name in own)
    return Probed(found, noise, Recorded(session.inputs, specs, given, results))


class _Questions:
    """Nodes of a graph that answer them, and the outputs in which the answers are."""

    def __init__(self, to: Appended) -> None:
        """Ask nothing of the graph yet that nodes are added to."""
        self.to = to
        self.largest: dict[str, str] = {}
        """Tensor -> output."""
        self.noise: dict[Stored, tuple[str, str]] = {}
        """-> outputs with the energy of the error, and of the tensor."""

    def ask_largest(self, known: Collection[str]) -> None:
        """Ask for the largest magnitude of each tensor that is not known."""
        for name, value in self.to.values.items():
            if rules.dtype(value) is SINGLE and name not in known and not _cut(value):
                self.largest[name] = self.to.answer(self._largest(value))

    def ask_noise(self, stored: Stored) -> None:
        """Ask how much INT8 changes a tensor."""
        value = self.to.values[stored.tensor]
        error = self.to.node("Sub", value, self.to.stored(value, stored.step))
        sums = (self.to.node("ReduceSumSquare", each, keepdims=0) for each in (error, value))
        first, second = map(self.to.answer, sums)
        self.noise[stored] = (first, second)

    def _largest(self, value: ir.Value) -> ir.Value:
        """Return the largest magnitude in a value; where that may be empty, a zero is added."""
        magnitudes = self.to.node("Abs", value)
        if not _has_values(value, self.to.graph):
            flat = self.to.constant("flat", np.array([-1], np.int64))
            zero = self.to.constant("zero", np.zeros(1, np.float32))
            magnitudes = self.to.node(
                "Concat", self.to.node("Reshape", magnitudes, flat), zero, axis=0
            )
        return self.to.node("ReduceMax", magnitudes, keepdims=0)


def _cut(value: ir.Value) -> bool:
    """Return whether nothing but a Relu reads a value."""
    readers = [node for node, _ in value.uses()]
    return len(readers) == 1 and is_op(readers[0], "Relu") and not value.is_graph_output()


def _has_values(value: ir.Value, graph: ir.Graph) -> bool:
    """Return whether a value is never empty: its sizes are known, or the images of the batch."""
    shapes = [each.shape for each in graph.inputs if each.shape is not None and len(each.shape)]
    batches = {str(shape[0]) for shape in shapes} - {"None"}
    sizes = () if value.shape is None else tuple(value.shape)
    known = [isinstance(size, int) and size > 0 for size in sizes]
    return len(sizes) > 1 and all(known[1:]) and (known[0] or str(sizes[0]) in batches)
