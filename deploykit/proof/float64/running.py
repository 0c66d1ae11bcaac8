"""A session that computes an ONNX graph in float64, node by node."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import onnxruntime as ort
from onnx import helper, numpy_helper

from deploykit.backends import watching
from deploykit.errors import BackendError
from deploykit.graph import folding, opsets
from deploykit.proof.float64.kernels import KERNELS
from deploykit.proof.float64.widening import widened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]
    Arrays: TypeAlias = Mapping[str, Array]
    Watch: TypeAlias = Callable[[str, Array], Array]
    """(tensor, its value) -> the value that its readers get."""

_IR_VERSION = 10
_SILENT = 4
_NARROW = (np.float16, np.float32)


class Float64Session:
    """A model computed in float64 on the CPU."""

    def __init__(
        self, model: onnx.ModelProto, exact: Mapping[str, NDArray[np.float64]] | None = None
    ) -> None:
        """Take a model with all its weights; its local functions are written out.

        exact: weights as they were before they were rounded to what the model holds; where it
        holds another number its own is taken.

        Raises: BackendError where they cannot be.
        """
        try:
            proto = widened(onnx.inliner.inline_local_functions(widened(model)))
        except Exception as error:  # onnx's errors have no common class
            raise BackendError(f"the model has no form in float64: {error}") from error
        self._constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        for name, array in (exact or {}).items():
            if name in self._constants and _rounds_to(array, self._constants[name]):
                self._constants[name] = array
        self._steps = [_Step(node, proto.opset_import) for node in proto.graph.node]
        self._outputs = [value.name for value in proto.graph.output]
        self._dead = self._lifetimes()

    def _lifetimes(self) -> Mapping[int, Sequence[str]]:
        """Return step -> what no later one needs."""
        last = {name: i for i, step in enumerate(self._steps) for name in step.needed}
        dead: dict[int, list[str]] = defaultdict(list)
        for name, i in last.items():
            if name not in self._constants and name not in self._outputs:
                dead[i].append(name)
        return dead

    def run(self, feeds: Arrays, *, watch: Watch | None = None) -> dict[str, Array]:
        """Return output name -> array. `watch` sees every tensor and may replace it.

        Raises: BackendError for a node that nothing here computes in float64.
        """
        values: dict[str, Array] = dict(self._constants)
        for name, array in feeds.items():
            values[name] = array.astype(np.float64) if array.dtype in _NARROW else array
        if watch is not None:
            values = {name: watch(name, array) for name, array in values.items()}
        with np.errstate(all="ignore"):
            for i, step in enumerate(self._steps):
                for name, array in step.run(values).items():
                    values[name] = array if watch is None else watch(name, array)
                for name in self._dead.get(i, ()):
                    del values[name]
        return {name: values[name] for name in self._outputs}


class _Step:
    """One node, and what computes it."""

    def __init__(self, node: onnx.NodeProto, imports: Sequence[onnx.OperatorSetIdProto]) -> None:
        self._node, self._opsets = node, imports
        standard = node.domain in opsets.STANDARD
        self._kernel = KERNELS.get(node.op_type) if standard else None
        self._attributes = {
            a.name: helper.get_attribute_value(a)
            for a in node.attribute
            if a.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        }
        self._made: Callable[[dict[str, Array]], Sequence[Any]] | None = None
        inner = (_captured(a.g) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
        captured = set[str]().union(*inner)
        self.needed = tuple(dict.fromkeys([n for n in node.input if n] + sorted(captured)))

    def run(self, values: Arrays) -> dict[str, Array]:
        """Return the node's outputs by name."""
        try:
            found = self._compute(values)
        except Exception as error:  # numpy's, onnx's and the runtime's have no common class
            raise BackendError(
                f"node {self._node.name!r} ({self._node.op_type}) does not run in float64: {error}"
            ) from error
        names = [name for name in self._node.output if name]
        return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}

    def _compute(self, values: Arrays) -> Sequence[Any]:
        if self._kernel is not None:
            try:
                inputs = [values[name] if name else None for name in self._node.input]
                return [self._kernel(self._attributes, *inputs)]
            except NotImplementedError:
                self._kernel = None
        if self._made is None:
            self._made = self._make(values)
        return self._made({name: values[name] for name in self.needed})

    def _make(self, values: Arrays) -> Callable[[dict[str, Array]], Sequence[Any]]:
        """Return what runs the node alone: ONNX Runtime where it can, else onnx's evaluator."""
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(values[name].dtype), None
            )
            for name in self.needed
        ]
        outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in self._node.output]
        graph = helper.make_graph(
            [self._node], "node", inputs, [value for value in outputs if value.name]
        )
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=_IR_VERSION)
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = 1  # one pool of threads for each node would be too many
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # noqa: BLE001 - no kernel in float64, said in many ways
            if self._is_unlike():
                raise NotImplementedError("ONNX's evaluator computes it otherwise") from None
            evaluator = onnx.reference.ReferenceEvaluator(model)
            return lambda feeds: list(evaluator.run(None, feeds))
        if self._node.op_type == "Loop":
            names = [output.name for output in session.get_outputs()]
            return lambda feeds: watching.run(session, names, feeds)
        return lambda feeds: list(session.run(None, feeds))

    def _is_unlike(self) -> bool:
        """Return whether onnx's evaluator would compute something else."""
        versions = (each.version for each in self._opsets if each.domain in opsets.STANDARD)
        places = self._attributes.get("coordinate_transformation_mode", b"").decode()
        kind, standard = self._node.op_type, self._node.domain in opsets.STANDARD
        return standard and folding.is_unlike(kind, max(versions, default=1), places)


def _rounds_to(exact: NDArray[np.float64], held: Array) -> bool:
    """Return whether a weight in float64 is one that was float32 and is `exact`, rounded."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32).astype(np.float64)
    return held.dtype == np.float64 and np.array_equal(rounded, held)


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Return what a subgraph reads from outside."""
    own = {value.name for value in (*graph.input, *graph.initializer)}
    own |= {name for node in graph.node for name in node.output}
    used = {name for node in graph.node for name in node.input if name}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                used |= _captured(attribute.g)
    return used - own
