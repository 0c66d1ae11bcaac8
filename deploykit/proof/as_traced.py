"""A network in float64, computed as its graph will: the reference of an exported graph.

A graph holds the scalars of a network's code (an epsilon, a limit, a slope) as float32, PyTorch as
float64. With both in float32, and the same weights on both sides, two right computations in float64
differ by the rounding of float64 alone: a fault of any size shows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.backends import Arrays
    from deploykit.proof.proving import Runs

_KNOWN = ("aten", "prim", "prims", "deploykit", "torchvision")
"""Whose ops compute in the type that they are given."""
_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST = float(np.finfo(np.float32).max)


class AsTraced:
    """A session of a network in float64 whose scalars are those of float32."""

    def __init__(self, session: Runs) -> None:
        """Take what runs the network in float64."""
        self._session = session
        self.scalars: frozenset[float] | None = frozenset()
        """The scalars of what ran so far; None where a part of it was not computed in float64."""

    def run(self, feeds: Arrays, /) -> Arrays:
        """Return the outputs."""
        with _Scalars() as mode:
            found = self._session.run(feeds)
        known = self.scalars if mode.exact else None
        self.scalars = None if known is None else known | mode.seen
        return found


class _Scalars(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Rounds to float32 what is no tensor, and what tensors are made of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.exact = True
        self.seen: set[float] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own
        """Return what `func` gives for such scalars."""
        del types
        kwargs = _defaults(func, args, kwargs or {}) | (kwargs or {})
        args, kwargs = pytree.tree_map_only(float, self._single, (args, kwargs))
        found = func(*args, **kwargs)
        given = _floats((args, kwargs))
        if not given or func is torch.ops.aten.lift_fresh.default:
            found = pytree.tree_map_only(torch.Tensor, _rounded, found)
            made = [tensor for tensor in _floats(found) if tensor.numel() == 1]
            self.seen.update(float(tensor) for tensor in made)
            return found
        wide = any(tensor.dtype is torch.float64 for tensor in given)
        lost = wide and any(tensor.dtype in _NARROW for tensor in _floats(found))
        self.exact &= not lost and func.namespace in _KNOWN
        return found

    def _single(self, number: float) -> float:
        """Return a number as float32 holds it; a finite one stays finite."""
        if not math.isfinite(number):
            return number
        rounded = float(np.float32(min(max(number, -_LARGEST), _LARGEST)))
        self.seen.add(rounded)
        return rounded


def _defaults(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, float]:  # noqa: ANN401 - torch's own
    """Return the numbers that an op takes where a call leaves them out, such as an epsilon.

    Those that float32 holds are left to the op.
    """
    left = [a for a in func._schema.arguments[len(args) :] if a.name not in kwargs]  # noqa: SLF001 - the only way to them
    found = {a.name: a.default_value for a in left if isinstance(a.default_value, float)}
    return {name: value for name, value in found.items() if float(np.float32(value)) != value}


def _floats(tree: object) -> list[torch.Tensor]:
    """Return the tensors of floats among arguments or results."""
    leaves = pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that was made of numbers alone, each as float32 holds it."""
    if tensor.dtype is not torch.float64:
        return tensor
    return tensor.clamp(-_LARGEST, _LARGEST).float().double().where(tensor.isfinite(), tensor)
