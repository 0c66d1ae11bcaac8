"""What the names and shapes in a state dict say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.recipes.recipe import StateDict


def outputs(state: StateDict, key: str) -> int | None:
    """Return the number of outputs of the weight or bias called `key`, None where there is none."""
    value = state.get(key)
    return value.shape[0] if value is not None and value.ndim else None


def inputs(state: StateDict, *keys: str) -> int | None:
    """Return the channels that the first of these convolutions takes, None where there is none."""
    found = (state[key].shape[1] for key in keys if key in state and state[key].ndim == 4)
    return next(found, None)


def children(state: StateDict, name: str) -> set[str]:
    """Return the names of the modules directly inside the module called `name`."""
    prefix = f"{name}."
    return {key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)}
