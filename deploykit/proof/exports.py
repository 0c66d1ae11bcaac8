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
from deploykit.networks import reparam
from deploykit.proof import acceptance, proving, random_inputs, rewrites
from deploykit.proof.rule import DOUBLE, STRICT
from deploykit.tasks.agreement import PaddedRows
from deploykit.tasks.matching import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.backends import Arrays
    from deploykit.networks.loading import Network
    from deploykit.proof.proving import Reference
    from deploykit.recipes.opened import Opened
    from deploykit.tasks.outputs import Output
    from deploykit.values import Agreement

_SEED, _BATCH = 0, 2
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

    Raises: ProofError where folding the branches changed an output by more than rounding.
    """
    network = filled(trained)
    feed = random_inputs.feeds(
        network.inputs, seed=_SEED, batch=batch, preprocess=network.card.preprocess
    )
    known = trained.recipe.outputs
    chosen = Selection(score=acceptance.NO_THRESHOLD)
    reference = proving.measure(
        TorchSession(network),
        in_double(network),
        feed,
        lambda: PaddedRows(chosen, known),
        alone=True,
    )
    what = "folding the branches"
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

    ONNX Runtime is allowed an ulp of 1 where an output is smaller, for such are its kernels. Where
    that is what a verdict hangs on, the graph itself is judged without it, in float64. outputs:
    what the recipe says of them.

    Raises: ProofError where an output is wrong by more than rounding.
    """
    session, selection = acceptance.open_filled(candidate)
    judged = replace(reference, pairing=lambda: PaddedRows(selection, outputs))
    agreements = proving.compare(session, judged, STRICT)
    if not all(agreement.passed for agreement in agreements):
        _prove_graph(candidate, judged)
        agreements = proving.prove("the export", session, judged, fix=_FIX)
    return tuple(a for a in agreements if a.output in reference.form[0])


def _prove_graph(candidate: Opened, reference: Reference) -> None:
    """Judge a graph in float64, where it runs so. Raises: ProofError."""
    double = rewrites.in_double(candidate.graph) if reference.exact else None
    if double is None:
        return
    first = replace(reference, feeds=reference.feeds[:1])
    try:
        agreements = proving.compare(double, first, STRICT)
    except BackendError:  # an op that has no float64 here
        return
    proving.require("the export", agreements, fix=_FIX)


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
