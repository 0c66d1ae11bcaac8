"""Where the weights are in what training scripts save, and what their names should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from deploykit.errors import CheckpointError
from deploykit.networks.checkpoint._records import Instance
from deploykit.networks.checkpoint._tensors import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

Leaf = torch.Tensor | StoredTensor
_EMA = ("ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "params_ema")
_MODEL = ("model", "state_dict", "model_state_dict", "net", "network", "module", "weights")
_INNER = ("shadow", "params")
"""Where the averaged weights are in an EMA object."""
_PREFIXES = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "ema.": "an EMA wrapper",
    "model.": "a wrapper",
}
_COUNTERS = ("n_averaged",)
"""What torch's own averaging puts beside the weights."""
_CLASS_NAMES = ("names", "class_names", "classes", "CLASSES")
MAX_TENSORS = 100_000
"""Tensors and modules in one network; real ones have some thousands."""
_MAX_DEPTH = 100
"""Modules within modules; real networks have about ten levels."""


def find(saved: object) -> tuple[dict[str, Leaf], list[str]]:
    """Return the tensors of the network in a saved object, and notes on how they were found.

    Averaged weights are preferred to the last step's. Raises: CheckpointError.
    """
    if isinstance(saved, Instance):
        if "_modules" in saved.state:
            return collect(saved), [f"read from a pickled module {saved.of} without running it"]
        return find(saved.state)
    if isinstance(saved, dict):
        tensors = {k: v for k, v in saved.items() if isinstance(v, Leaf) and isinstance(k, str)}
        for key in (*_EMA, *_MODEL, *_INNER):
            if _may_hold(saved.get(key)):
                found, notes = find(saved[key])
                return found, [_choice(key, saved), *notes]
        if tensors:
            ignored = len(saved) - len(tensors)
            return tensors, [f"{ignored} entries that are no tensors ignored"] if ignored else []
    raise CheckpointError(
        f"no weights found: the file holds {_summary(saved)}",
        expected="a state dict, alone or under one of " + ", ".join((*_EMA, *_MODEL)),
        fix="save them with torch.save(model.state_dict(), FILE)",
    )


def _may_hold(value: object) -> bool:
    """Return whether a tensor is somewhere in `value`, a dictionary or an object."""
    pending, seen = [value], set[int]()
    while pending:
        current = pending.pop()
        entries = current.state if isinstance(current, Instance) else current
        if isinstance(entries, dict) and id(entries) not in seen:
            seen.add(id(entries))  # a shared part is looked at once
            if any(isinstance(entry, Leaf) for entry in entries.values()):
                return True
            pending += entries.values()
    return False


def _choice(key: str, saved: Mapping[Any, Any]) -> str:
    passed = [other for other in _MODEL if key in _EMA and _may_hold(saved.get(other))]
    return f"weights taken from {key!r}" + (
        f", the moving average, not from {passed[0]!r}" if passed else ""
    )


def _summary(saved: object) -> str:
    if isinstance(saved, dict):
        return "a dictionary with " + (", ".join(map(repr, list(saved)[:5])) or "no entries")
    return f"an object of {saved.of}" if isinstance(saved, Instance) else type(saved).__name__


def collect(module: Instance) -> dict[str, Leaf]:
    """Return the parameters and persistent buffers of a pickled module, as state_dict() would.

    Raises: CheckpointError where the modules contain each other, or are too many.
    """
    found: dict[str, Leaf] = {}
    pending, visits = [("", module)], 0
    while pending:
        prefix, current = pending.pop()
        for name, leaf in _own(current.state).items():
            found[prefix + name] = leaf
        children = _mapping(current.state, "_modules")
        visits += 1 + len(children)
        if len(found) > MAX_TENSORS or visits > MAX_TENSORS or prefix.count(".") > _MAX_DEPTH:
            raise CheckpointError(
                "the pickled module contains itself, or is of absurd size",
                fix="save its weights: torch.save(model.state_dict(), FILE)",
            )
        for name, child in reversed(children.items()):
            if isinstance(child, Instance):
                pending.append((f"{prefix}{name}.", child))
    return found


def _own(state: Mapping[str, Any]) -> dict[str, Leaf]:
    passing = state.get("_non_persistent_buffers_set", ())
    passing = passing if isinstance(passing, (list, tuple, set)) else ()
    buffers = {k: v for k, v in _mapping(state, "_buffers").items() if k not in passing}
    entries = {**_mapping(state, "_parameters"), **buffers}
    return {k: v for k, v in entries.items() if isinstance(k, str) and isinstance(v, Leaf)}


def _mapping(state: Mapping[str, Any], key: str) -> dict[Any, Any]:
    value = state.get(key)
    return value if isinstance(value, dict) else {}


def strip(state: Mapping[str, Leaf]) -> tuple[dict[str, Leaf], list[str]]:
    """Return `state` without the prefixes that wrappers put before every name, and notes.

    A prefix goes only where all names share it; torch.compile's goes wherever it is. Raises:
    CheckpointError where two names become one.
    """
    names, notes = {name: name for name in state if name not in _COUNTERS or len(state) == 1}, []
    if any("_orig_mod." in name for name in names):
        names = {name: short.replace("_orig_mod.", "") for name, short in names.items()}
        notes.append("'_orig_mod.' of torch.compile removed from the names")
    while prefix := next(
        (p for p in _PREFIXES if names and all(n.startswith(p) for n in names.values())), None
    ):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
        notes.append(f"{prefix!r} of {_PREFIXES[prefix]} removed from the names")
    if len(set(names.values())) < len(names):
        raise CheckpointError(
            "two weights have the same name once wrappers' prefixes are removed",
            fix="save the unwrapped model: torch.save(model.module.state_dict(), FILE)",
        )
    return {short: state[name] for name, short in names.items()}, notes


def class_names(saved: object) -> tuple[str, ...] | None:
    """Return the names of the classes where the checkpoint holds them, in order of their index."""
    for part in (saved, *(saved.values() if isinstance(saved, dict) else ())):
        entries = part.state if isinstance(part, Instance) else part
        if not isinstance(entries, dict):
            continue
        for key in _CLASS_NAMES:
            names = entries.get(key)
            if isinstance(names, dict) and all(type(index) is int for index in names):
                names = [names[index] for index in sorted(names)]
            if isinstance(names, (list, tuple)) and names and all(type(n) is str for n in names):
                return tuple(names)
    return None
