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
from deploykit.errors import OptionError
from deploykit.networks import reparam
from deploykit.proof import acceptance, proving, random_inputs
from deploykit.proof.rule import DOUBLE
from deploykit.tasks.agreement import PaddedRows
from deploykit.tasks.matching import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.backends import Arrays, Session
    from deploykit.networks.loading import Network
    from deploykit.proof.proving import Reference
    from deploykit.tasks.outputs import Output
    from deploykit.values import Agreement

_BATCHES = (1, 2)
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


def prove_fold(
    trained: Network, folded: Network, *, batches: Sequence[int] = _BATCHES
) -> Reference:
    """Return what the ONNX file of `folded` is to be judged by, the fold being right.

    Raises: ProofError where folding the branches changed an output by more than rounding.
    """
    network = filled(trained)
    feeds = [
        random_inputs.feeds(
            network.inputs, seed=seed, batch=batch, preprocess=network.card.preprocess
        )
        for seed, batch in enumerate(batches)
    ]
    known = trained.recipe.outputs
    chosen = Selection(score=acceptance.NO_THRESHOLD)
    reference = proving.measure(
        TorchSession(network), in_double(network), feeds, lambda: PaddedRows(chosen, known)
    )
    what = "folding the branches"
    exact = _folded_in_double(network) if reference.exact else None
    if exact is not None:
        proving.prove(what, exact, reference, DOUBLE, fix=_FIX)
    answers = TorchSession(filled(folded)).run(feeds[0])
    first = replace(reference, feeds=reference.feeds[:1])
    proving.prove(what, _Answers(answers), first, fix=_FIX)
    return replace(reference, rounded=(*reference.rounded, answers))


def prove_export(
    session: Session, selection: Selection, reference: Reference, outputs: tuple[Output, ...] = ()
) -> tuple[Agreement, ...]:
    """Return how an ONNX file agrees with the trained network, one agreement per output.

    outputs: what the recipe says of them.

    Raises: ProofError where an output is wrong by more than rounding.
    """
    judged = replace(reference, pairing=lambda: PaddedRows(selection, outputs))
    agreements = proving.prove("the export", session, judged, fix=_FIX)
    return tuple(a for a in agreements if a.output in reference.form[0])


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


def _folded_in_double(network: Network) -> TorchSession | None:
    """Return the network folded in float64; None where its recipe folds float32 alone."""
    module = copy.deepcopy(network.module).double()
    try:
        module = reparam.deployed(network.recipe, module).double()
    except OptionError:  # torch cannot compute with numbers of two types
        return None
    return TorchSession(filled(replace(network, module=module)), torch.float64)
