"""Checkpoints of every family, with the names of a real one and one thing wrong.

Each weight is one number seen as a whole tensor, so a file is small however large it says it is.
One weight is missing in each, which makes all of them wrong.
"""

from __future__ import annotations

import random
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from .case import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_CLASSES, _MANY = 4, 1 << 20
_SHAPES = ((), (0,), (1,), (3, 0), (2, 2, 2, 2, 2), (1 << 20, 1, 1, 1))


def cases(_: Path, seed: int = 0) -> Iterator[Case]:
    """Yield every case: of the first seed one variant of each family, then those by chance."""
    from deploykit.recipes.recipe import RECIPES

    for family in RECIPES.shipped():
        known = list(RECIPES.load(family).variants)
        variant = random.Random(f"{family} {seed}").choice(known) if seed else known[0]
        for harm in _HARMS:
            make = partial(_command, family=family, variant=variant, harm=harm, seed=seed)
            yield Case(f"layout: {variant} of {family}, {harm}", make, small=True)


def _command(
    folder: Path, _: Path, *, family: str, variant: str, harm: str, seed: int
) -> list[str]:
    import torch

    chance = random.Random(f"{family} {harm} {seed}")
    state = _HARMS[harm](_weights(family, variant), chance)
    del state[next(iter(state))]
    torch.save({"model": state}, folder / "model.pth")
    return ["export", "model.pth", "-o", "out.onnx"]


def _weights(family: str, variant: str) -> dict[str, Any]:
    """Return the weights of a network by name, each of one number."""
    import torch

    from deploykit.recipes.recipe import RECIPES

    with torch.device("meta"):
        state = RECIPES.load(family).network(variant, _CLASSES).state_dict()
    return {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}


def _half(state: Mapping[str, Any], _: random.Random) -> dict[str, Any]:
    return {key: state[key] for key in list(state)[::2]}


def _beginning(state: Mapping[str, Any], _: random.Random) -> dict[str, Any]:
    return {key: state[key] for key in list(state)[: len(state) // 2]}


def _bodiless(state: Mapping[str, Any], _: random.Random) -> dict[str, Any]:
    """Return all but the first half: heads without what they stand on."""
    return {key: state[key] for key in list(state)[len(state) // 2 :]}


def _one_shape(state: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    import torch

    key = chance.choice(list(state))
    return {**state, key: torch.zeros(()).expand(chance.choice(_SHAPES))}


def _transposed(state: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    keys = [key for key, value in state.items() if value.ndim > 1 and len({*value.shape[:2]}) > 1]
    key = chance.choice(keys)
    return {**state, key: state[key].transpose(0, 1)}


def _many(state: Mapping[str, Any], _: random.Random) -> dict[str, Any]:
    """Return the weights with layers that say a million of what they say few."""
    import torch

    few = {
        key: value
        for key, value in state.items()
        if value.ndim and value.shape[0] <= 8 * (_CLASSES + 1)
    }
    more = {k: torch.zeros(()).expand(_MANY, *v.shape[1:]) for k, v in few.items()}
    return {**state, **more}


def _wide(state: Mapping[str, Any], _: random.Random) -> dict[str, Any]:
    """Return the weights of a network whose every layer is 64 times as wide."""
    return {
        key: value.flatten()[:1]
        .reshape([1] * value.ndim)
        .expand([64 * side if i < 2 else side for i, side in enumerate(value.shape)])
        if value.numel()
        else value
        for key, value in state.items()
    }


def _deep(state: Mapping[str, Any], _: random.Random) -> dict[str, Any]:
    """Return the weights with each numbered block a second time, far behind the others."""
    far = {re.sub(r"\.\d+\.", ".99999.", key, count=1): value for key, value in state.items()}
    return {**state, **far}


def _huge_number(state: Mapping[str, Any], _: random.Random) -> dict[str, Any]:
    return {
        re.sub(r"\.\d+\.", f".{'9' * 5000}.", key, count=1): value for key, value in state.items()
    }


def _whole_numbers(state: Mapping[str, Any], _: random.Random) -> dict[str, Any]:
    import torch

    value = torch.zeros((), dtype=torch.int8)
    return {k: value.expand(v.shape) for k, v in state.items()}


def _complex_numbers(state: Mapping[str, Any], _: random.Random) -> dict[str, Any]:
    import torch

    value = torch.zeros((), dtype=torch.complex64)
    return {k: value.expand(v.shape) for k, v in state.items()}


def _texts(state: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    return {**state, chance.choice(list(state)): "\x1b[31mweights\udcff"}


def _crossed(state: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    """Return the beginning of a network with the end of one of another family."""
    from deploykit.recipes.recipe import RECIPES

    family = chance.choice(list(RECIPES.shipped()))
    other = _weights(family, next(iter(RECIPES.load(family).variants)))
    return {**_beginning(state, chance), **_bodiless(other, chance)}


_HARMS: dict[str, Callable[[Mapping[str, Any], random.Random], dict[str, Any]]] = {
    "every second weight": _half,
    "its beginning alone": _beginning,
    "its end alone": _bodiless,
    "a weight of another shape": _one_shape,
    "a weight transposed": _transposed,
    "a million classes": _many,
    "64 times as wide": _wide,
    "blocks far behind": _deep,
    "a number of 5,000 digits": _huge_number,
    "whole numbers": _whole_numbers,
    "complex numbers": _complex_numbers,
    "a text for a weight": _texts,
    "the end of another family": _crossed,
}
