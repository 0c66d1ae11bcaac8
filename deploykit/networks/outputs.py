"""What a network returns, whatever the form, under the names of its recipe."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from deploykit.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from deploykit.recipes.recipe import Recipe


def named(recipe: Recipe, result: object) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each output of `recipe`, in its order.

    result: a tensor, a tuple or list in that order, or a dict with those names, and more.

    Raises: OptionError where they are not what the recipe says.
    """
    names = [output.name for output in recipe.outputs]
    if isinstance(result, Mapping):
        absent = [name for name in names if name not in result]
        if absent:
            raise _wrong(recipe, f"a dict of {', '.join(map(str, result)) or 'nothing'}")
        values = [result[name] for name in names]
    else:
        values = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(values) != len(names) or not all(isinstance(value, Tensor) for value in values):
        kinds = ", ".join(type(value).__name__ for value in values)
        raise _wrong(recipe, f"{len(values)} values ({kinds})")
    yield from zip(names, values, strict=True)


def _wrong(recipe: Recipe, found: str) -> OptionError:
    return OptionError(
        f"the network of recipe {recipe.name} returned {found}",
        expected=f"tensors for its outputs: {', '.join(output.name for output in recipe.outputs)}",
        fix="name in `outputs` what the network returns, in its order or by the keys of its dict",
    )


def in_order(module: nn.Module, recipe: Recipe) -> nn.Module:
    """Return `module`, which returns its outputs as a tuple in the recipe's order from now on.

    Its submodules keep their paths, by which layers are named.
    """
    forward = module.forward

    @functools.wraps(forward)
    def ordered(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - the network's
        result = forward(*args, **options)
        if isinstance(result, (Tensor, tuple)):
            return result
        return tuple(value for _, value in named(recipe, result))

    module.forward = ordered
    return module
