"""What the shapes in a state dict say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.recipes.recipe import StateDict


def outputs(state: StateDict, key: str) -> int | None:
    """Return the number of outputs of the weight or bias called `key`, None where there is none."""
    value = state.get(key)
    return value.shape[0] if value is not None and value.ndim else None
