"""What the names and shapes in a state dict say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from deploykit.recipes.recipe import StateDict


COLOURS = 3
"""Channels of the images that a network gets."""


def outputs(state: StateDict, key: str) -> int | None:
    """Return the number of outputs of the weight or bias called `key`, None where there is none."""
    value = state.get(key)
    return value.shape[0] if value is not None and value.ndim else None


def inputs(state: StateDict, *keys: str) -> int | None:
    """Return the channels that the first of these convolutions takes, None where there is none."""
    found = (state[key].shape[1] for key in keys if key in state and state[key].ndim == 4)
    return next(found, None)


def check_colours(channels: int) -> None:
    """Raise CheckpointError where a network does not take images of three channels."""
    if channels != COLOURS:
        raise CheckpointError(
            f"the first convolution takes {channels} channel{'s' if channels != 1 else ''}",
            expected=f"{COLOURS}, red, green and blue: images are prepared so",
            fix="repeat or sum its weights over three channels and save them, or write a recipe",
        )


def children(state: StateDict, name: str) -> set[str]:
    """Return the names of the modules directly inside the module called `name`."""
    prefix = f"{name}."
    return {key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)}
