"""A state dict into a module: every weight finds its place, or the user learns why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

_SHOWN = 5
_COUNTER = "num_batches_tracked"


def fit(module: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Load `state` into `module`, which is a `name`; every weight must find its place.

    Only the counters `num_batches_tracked` may be missing or left over. Raises: CheckpointError
    that lists the missing, unexpected and wrongly shaped weights.
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
    module.load_state_dict({k: state[k] for k in common}, strict=False)


def _shown(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
