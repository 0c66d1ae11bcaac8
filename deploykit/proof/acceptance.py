"""Checks that a rewritten ONNX file passes before it takes its final name.

A detector's results are compared with its score threshold taken away, so that every row is filled
whatever the image shows: an empty result on both sides would prove nothing.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import onnx
import onnx_ir as ir

from deploykit import ops
from deploykit.backends import onnxruntime
from deploykit.errors import DeployError, ModelError, ProofError
from deploykit.files import onnxfile, soundness
from deploykit.graph import canvases
from deploykit.proof import random_inputs, structure, verification
from deploykit.recipes import opened
from deploykit.tasks.agreement import PaddedRows
from deploykit.tasks.matching import KEYS, Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploykit.backends import Arrays, Session
    from deploykit.backends.recorded import Recorded
    from deploykit.data.preprocess import Preprocess
    from deploykit.ops.plugin import Plugin, Suppression
    from deploykit.recipes.opened import Opened
    from deploykit.tasks.task import Arrays as Outputs
    from deploykit.tasks.task import Pair, Pairing
    from deploykit.values import Agreement, TensorSpec

    Watch: TypeAlias = Callable[[Mapping[str, Pair]], None]

MEND = (
    "check how images are prepared (--preprocess, --mean, --std, --scale), and the weights; "
    "where both are right the model must be mended: another precision changes nothing"
)
"""What to do about a float model that gives NaN or infinity."""
_SEED = 0
NO_THRESHOLD = -1.0
"""A score threshold that every box passes: scores are 0 or more."""


def selection(model: ir.Model) -> Selection:
    """Return how a detector chooses its rows; nothing is known of a model without an op for it."""
    found = _last_suppression(model)
    if found is None:
        return Selection()
    node, plugin, role = found
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    known = {a.name: given.get(a.name, a.default) for a in plugin.attributes}
    return Selection(
        float(known[role.score_threshold]),
        float(known[role.iou_threshold]),
        agnostic=bool(known.get(role.class_agnostic)),
    )


def open_filled(subject: Opened) -> tuple[Session, Selection]:
    """Return a model as ONNX Runtime runs it, and how it chooses rows.

    A detector's score threshold is `NO_THRESHOLD`, in a copy of the model. Raises: ModelError.
    """
    model = opened_filled(subject)
    chosen = Selection() if model is subject else selection(model.graph)
    return onnxruntime.open_model(model), chosen


def opened_filled(subject: Opened) -> Opened:
    """Return a detector as a file without its score threshold; another model as it is."""
    model = filled(subject.graph)
    return subject if model is subject.graph else opened.made(model, subject.path)


def filled(graph: ir.Model) -> ir.Model:
    """Return a detector's graph, copied, without its score threshold; another one as it is."""
    if _last_suppression(graph) is None:
        return graph
    model = graph.clone()
    found = _last_suppression(model)
    assert found is not None  # as in the model that this is a copy of
    node, _, role = found
    node.attributes[role.score_threshold] = ir.AttrFloat32(role.score_threshold, NO_THRESHOLD)
    ops.attach(model)
    return model


def feeds(
    model: Opened, inputs: tuple[TensorSpec, ...], *, seed: int = _SEED, batch: int = 1
) -> Arrays:
    """Return random inputs of a model, in the range that its card prescribes."""
    return random_inputs.feeds(inputs, seed=seed, batch=batch, preprocess=preprocess(model))


def preprocess(model: Opened) -> Preprocess | None:
    """Return how a model's images are prepared; None where it does not say, or not readably."""
    try:
        return None if model.card is None else model.card.preprocess
    except ModelError:
        return None


def interfaces(model: Opened) -> list[tuple[TensorSpec, ...]]:
    """Return the inputs of a model, once for each size of image that it takes.

    Raises: ModelError for a model without inputs.
    """
    inputs, _ = onnxfile.interface(model.graph)
    if not inputs:
        raise ModelError(
            "the model has no input, so it computes nothing of an image",
            expected="an input that is no initializer",
        )
    (first, *others), sizes = inputs, canvases.sizes(model.graph)
    if len(sizes) < 2:
        return [inputs]
    return [(replace(first, shape=(*first.shape[:2], *size)), *others) for size in sizes]


def _last_suppression(model: ir.Model) -> tuple[ir.Node, Plugin, Suppression] | None:
    """Return the node that chooses the rows of a detector's results, its op and what that declares.

    None where no op with such a role makes them.
    """
    outputs = {value.name: value for value in model.graph.outputs}
    if any(name not in outputs for name in KEYS):
        return None
    node = outputs["count"].producer()
    while node is not None and node.op_type in ("Cast", "Identity") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    plugin = None if node is None else ops.op_of(node)
    if node is None or plugin is None or plugin.suppression is None:
        return None
    return node, plugin, plugin.suppression


def accept(  # noqa: PLR0913 - two models, and four ways to look at what they gave
    candidate: Opened,
    reference: Opened,
    ran: Recorded | None = None,
    *,
    columns: bool = False,
    watch: Watch | None = None,
    own: str = "",
) -> tuple[Agreement, ...]:
    """Return how each output of `candidate` compares with `reference` on the same inputs.

    ran: what `opened_filled(reference)` gave on some inputs; by default both run on a random one.
    columns: compare the columns of rows one by one too, see `verification.verify`. watch: is shown
    the outputs of both on each input, rows paired. own: what is known of NaN and infinities that
    `reference` gives itself, and what to do about it, for errors.

    ONNX Runtime computes FP16 nodes in FP32 where its CPU kernels lack FP16, so this shows neither
    every overflow nor the full rounding of an FP16 engine: see `rewrites.prove_half`.

    Raises: ProofError where `candidate` alone breaks the ONNX specification, does not run in ONNX
    Runtime, gives infinities or NaN where `reference` gives numbers, or is not the same graph but
    for its precision.
    """
    broken = _broken(candidate)
    if broken and not _broken(reference):
        raise ProofError(
            f"the rewritten model breaks the ONNX specification: {broken}",
            expected="a valid model",
            fix="report the model it was made from",
        )
    with ThreadPoolExecutor(1) as pool:
        same = pool.submit(structure.check, candidate.graph, reference.graph)  # while both run
        agreements = _compare(candidate, reference, ran, columns=columns, watch=watch)
    for agreement in agreements:
        if not math.isfinite(agreement.max_abs):
            raise ProofError(
                f"output {agreement.output!r} of the rewritten model is not finite"
                + (f": {own}" if own else ""),
                expected="numbers" if own else "numbers, as the model it was made from gives",
                fix=MEND if own else "keep the layers that overflow in FP32, with a plan",
            )
    same.result()
    return agreements


@dataclass(frozen=True)
class _Watched:
    """A pairing that shows what it paired."""

    pairing: Pairing
    watch: Watch

    def pairs(self, found: Outputs, expected: Outputs, atol: float, rtol: float) -> dict[str, Pair]:
        """Return those of the pairing."""
        pairs = self.pairing.pairs(found, expected, atol, rtol)
        self.watch(pairs)
        return pairs

    def findings(self) -> tuple[Agreement, ...]:
        """Return those of the pairing."""
        return self.pairing.findings()


def _broken(model: Opened) -> str:
    """Return what ONNX's checker has against a model; empty: nothing.

    It cannot check every model that ONNX Runtime runs: not those with MeanVarianceNormalization.
    """
    try:
        onnx.checker.check_model(_checked(model), full_check=True)
    except Exception as error:  # noqa: BLE001 - the checker's errors have no common class
        return str(error)
    return ""


def _checked(candidate: Opened) -> bytes:
    """Return what the checker reads; weights that lie beside the file are inputs there."""
    if not onnxfile.has_data_beside(candidate.graph):
        return candidate.data
    bare = soundness.without_weights(onnx.ModelProto.FromString(candidate.data))
    found: bytes = bare.SerializeToString()
    return found


def _compare(
    candidate: Opened,
    reference: Opened,
    ran: Recorded | None,
    *,
    columns: bool,
    watch: Watch | None,
) -> tuple[Agreement, ...]:
    theirs: Session
    if ran is not None:
        theirs, chosen, given = ran, selection(filled(reference.graph)), list(ran.feeds)
    else:
        theirs, chosen = open_filled(reference)
        given = [feeds(reference, inputs) for inputs in interfaces(reference)]
    try:
        ours, _ = open_filled(candidate)
        return verification.verify(
            ours,
            theirs,
            given,
            atol=math.inf,
            rtol=math.inf,
            columns=columns,
            pairing=PaddedRows(chosen) if watch is None else _Watched(PaddedRows(chosen), watch),
        )
    except DeployError as error:
        raise ProofError(
            f"ONNX Runtime cannot run the rewritten model: {error.found}",
            expected="a model that runs wherever the one it was made from does",
            fix="report the model it was made from",
        ) from error
