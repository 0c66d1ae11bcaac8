"""The two proofs of an export: of folding a network's branches, and of the ONNX file.

Folding is proven twice. A copy of the network in float64, folded, must give what it gave before:
weights that are wrong in the last place show. Then the folded float32 network must err no more than
rounding explains, and the file no more than these two.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from deploykit.backends.pytorch import TorchSession
from deploykit.errors import BackendError, OptionError
from deploykit.graph import canvases
from deploykit.networks import reparam
from deploykit.proof import acceptance, hidden, proving, random_inputs, rewrites, trained_answers
from deploykit.proof.as_traced import AsTraced
from deploykit.proof.rule import DOUBLE, NUMBERS, SINGLE, STRICT
from deploykit.tasks.agreement import PaddedRows
from deploykit.tasks.matching import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.backends import Arrays
    from deploykit.networks.loading import Network
    from deploykit.proof.float64 import Float64Session
    from deploykit.proof.proving import Reference
    from deploykit.recipes.opened import Opened
    from deploykit.tasks.outputs import Output
    from deploykit.values import Agreement

_SEED, _BATCH = 0, 2
_IMAGES = 4
"""Dimensions of a batch of images."""
_NUDGES = 2
"""Runs that show what the rounding of a graph's own numbers changes."""
_THRESHOLD = "score_threshold"
"""Attribute of a detector's network: rows are boxes with a score above it."""
_FIX = "check that the recipe's network equals the one that was trained"


@dataclass(frozen=True)
class _Answers:
    """A session that has run already."""

    outputs: Mapping[str, NDArray[np.generic]]

    def run(self, _: Arrays) -> Mapping[str, NDArray[np.generic]]:
        """Return the outputs."""
        return self.outputs


def prove_fold(trained: Network, folded: Network, *, batch: int = _BATCH) -> Reference:
    """Return what the ONNX file of `folded` is to be judged by, the fold being right.

    Raises: ProofError where folding the branches changed an output by more than rounding,
    CheckpointError where the trained network itself gives nothing to compare with.
    """
    network, known = filled(trained), trained.recipe.outputs
    feed = random_inputs.feeds(
        network.inputs, seed=_SEED, batch=batch, preprocess=network.card.preprocess
    )
    changed = reparam.changes(trained.recipe, trained.module)
    traced = AsTraced(in_double(filled(folded)))
    reference = proving.measure(
        TorchSession(network),
        in_double(network) if changed else traced,
        feed,
        lambda: PaddedRows(Selection(score=acceptance.NO_THRESHOLD), known),
        alone=True,
    )
    trained_answers.check(reference, known)
    if changed:
        reference = _proven_fold(network, folded, reference)
    if not reference.exact:
        return reference
    answers = traced.run(reference.feeds[-1]) if changed else reference.truth[-1]
    scalars = None if traced.scalars is None else traced.scalars | _weights_of_one(folded)
    return replace(reference, traced=answers, scalars=scalars)


def _weights_of_one(network: Network) -> set[float]:
    """Return the weights that are scalars."""
    weights = network.module.state_dict().values()
    return {float(w) for w in weights if w.numel() == 1 and w.is_floating_point()}


def _proven_fold(network: Network, folded: Network, reference: Reference) -> Reference:
    """Return the reference with what the folded network rounds. Raises: ProofError."""
    what, feed = "folding the branches", reference.feeds[0]
    exact = _folded_in_double(network) if reference.exact else None
    if exact is not None:
        proving.prove(what, TorchSession(exact, torch.float64), reference, DOUBLE, fix=_FIX)
    answers = TorchSession(filled(folded)).run(feed)
    first = replace(reference, feeds=reference.feeds[:1])
    if exact is not None and not _agrees(answers, first):
        narrow = in_double(replace(exact, module=copy.deepcopy(exact.module).float()))
        first = replace(first, rounded=(*first.rounded, narrow.run(feed)))
    proving.prove(what, _Answers(answers), first, fix=_FIX)
    return replace(reference, rounded=(*reference.rounded, answers))


def _agrees(answers: Mapping[str, NDArray[np.generic]], reference: Reference) -> bool:
    """Return whether a folded network errs no more than 8 times what the trained one does.

    One of which every weight is right may err more: a batch norm that divides by little makes the
    rounding of the folded weights large. It is then judged by the rounding of such weights.
    """
    return all(agreement.passed for agreement in proving.compare(_Answers(answers), reference))


def prove_export(
    candidate: Opened, reference: Reference, outputs: tuple[Output, ...] = ()
) -> tuple[Agreement, ...]:
    """Return how an ONNX file agrees with the trained network, one agreement per output.

    The graph itself is judged in float64, beside the network that it was traced from: there the
    two differ by nothing but the rounding of float64. What ONNX Runtime makes of it is judged in
    float32. outputs: what the recipe says of them.

    Where the graph has numbers that only the exporter knows, see `hidden`, it may differ by what
    their rounding changes. Where the network computes a part of itself in float32, or an op
    has no float64 here, float32 is all there is; ONNX Runtime is then allowed an ulp of 1 for
    smaller outputs only where the graph does not need it.

    Raises: ProofError where an output is wrong by more than rounding.
    """
    session, selection = acceptance.open_filled(candidate)
    judged = replace(reference, pairing=lambda: PaddedRows(selection, outputs))
    proven = _prove_graph(candidate, judged)
    agreements = proving.compare(session, judged, SINGLE if proven else STRICT)
    if not all(agreement.passed for agreement in agreements):
        agreements = proving.prove("the export", session, judged, fix=_FIX)
    return tuple(a for a in agreements if a.output in reference.form[0])


def _prove_graph(candidate: Opened, reference: Reference) -> bool:
    """Return whether a graph was judged in float64 to the last digits. Raises: ProofError."""
    graph = _graph_for(candidate.graph, reference.feeds[0])
    double = None if reference.traced is None else rewrites.in_double(graph, candidate.graph)
    if double is None:
        return False
    assert reference.traced is not None
    last = replace(reference, truth=(*reference.truth[:-1], reference.traced))
    try:
        agreements = proving.compare(double, last, DOUBLE)
        right = all(agreement.passed for agreement in agreements)
        if not right and reference.scalars is None:
            agreements = proving.compare(double, last, replace(STRICT, one=True))
        elif not right:
            agreements = _but_for_numbers(candidate, double, reference) or agreements
    except BackendError:  # an op that has no float64 here
        return False
    proving.require("the export", agreements, fix=_FIX)
    return right


def _but_for_numbers(
    candidate: Opened, double: Float64Session, reference: Reference
) -> tuple[Agreement, ...]:
    """Return how a graph agrees whose own numbers are float32; nothing where it has none."""
    assert reference.scalars is not None
    assert reference.traced is not None
    numbers = hidden.numbers(candidate.graph, reference.scalars)
    if not numbers.size:
        return ()
    feed = reference.feeds[-1]
    moved = (hidden.nudging(numbers, seed) for seed in range(_NUDGES))
    beside = replace(
        reference,
        feeds=(feed,),
        truth=(double.run(feed),),
        rounded=tuple(double.run(feed, watch=watch) for watch in moved),
        form=reference.form[-1:],
    )
    return proving.compare(_Answers(reference.traced), beside, NUMBERS)


def _graph_for(model: ir.Model, feed: Arrays) -> ir.Model:
    """Return the graph that computes images of the feed's size."""
    found = canvases.split(model)
    sizes = {array.shape[2:] for array in feed.values() if array.ndim == _IMAGES}
    return next((graph for size, graph in found.items() if size in sizes), model)


def filled(network: Network) -> Network:
    """Return the network without a score threshold, where it has one: all its rows are filled."""
    if not hasattr(network.module, _THRESHOLD):
        return network
    module = copy.copy(network.module)
    setattr(module, _THRESHOLD, acceptance.NO_THRESHOLD)
    return replace(network, module=module)


def in_double(network: Network) -> TorchSession:
    """Return a session of a copy of the network that computes in float64."""
    module = copy.deepcopy(network.module).double()
    return TorchSession(replace(network, module=module), torch.float64)


def _folded_in_double(network: Network) -> Network | None:
    """Return the network folded in float64; None where its recipe folds float32 alone."""
    module = copy.deepcopy(network.module).double()
    try:
        module = reparam.deployed(network.recipe, module).double()
    except OptionError:  # torch cannot compute with numbers of two types
        return None
    return filled(replace(network, module=module))
