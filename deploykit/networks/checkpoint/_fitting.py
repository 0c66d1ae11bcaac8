"""A state dict into a module: every weight finds its place, or the user learns why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

_SHOWN = 5
_COUNTER, _VARIANCE = "num_batches_tracked", "running_var"


def fit(module: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Load `state` into `module`, which is a `name`; every weight must find its place.

    Only the counters `num_batches_tracked` may be missing or left over. Raises: CheckpointError
    that lists the missing, unexpected and wrongly shaped weights, whole numbers in the place of
    real ones, and variances below zero.
    """
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith(_COUNTER)]
    unexpected = [k for k in state if k not in wanted and not k.endswith(_COUNTER)]
    marks = [k for k in unexpected if state[k].numel() == 0]
    if marks:  # no weights: what a recipe notes about names that it has changed
        raise CheckpointError(
            f"the names of the checkpoint are those of {_shown(marks)}, and {name} has others",
            expected=f"the {len(wanted)} weights of {name}",
        )
    common = [k for k in wanted if k in state]
    misshapen = [
        f"{k} is {list(state[k].shape)}, not {list(wanted[k].shape)}"
        for k in common
        if state[k].shape != wanted[k].shape
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", misshapen))
    if any(names for _, names in problems):
        lists = [f"{len(names)} {kind} ({_shown(names)})" for kind, names in problems if names]
        share = len(common) / max(len(wanted), 1)
        raise CheckpointError(
            f"the checkpoint does not fit {name}: {', '.join(lists)}",
            expected=f"the {len(wanted)} weights of {name}; {share:.0%} of their names are there",
        )
    _check_values({k: state[k] for k in common}, wanted, name)
    module.load_state_dict({k: state[k] for k in common}, strict=False)


def _check_values(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> None:
    """Raise CheckpointError where `state` holds what no weight of a `name` can be."""
    whole = [k for k in state if wanted[k].is_floating_point() > state[k].is_floating_point()]
    if whole:
        raise CheckpointError(
            f"weights of {name} are stored as {state[whole[0]].dtype}: {_shown(whole)}",
            expected="real numbers: what whole numbers stand for, only their scales say",
            fix="save the network as it was trained, in half or single precision",
        )
    below = [k for k in state if k.endswith(_VARIANCE) and bool((state[k] < 0).any())]
    if below:
        raise CheckpointError(
            f"variances of batch norms are below zero: {_shown(below)}",
            expected="none below zero: their roots would be NaN",
            fix="use an earlier checkpoint, or get it again: these are no variances",
        )


def _shown(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
