"""The network among the tensors of a state dict: what wrappers add to its names, and beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.errors import CheckpointError
from deploykit.networks.checkpoint._words import AVERAGES, BESIDE, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.networks.checkpoint._layouts import Leaf

_WITHIN = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
}
"""What is put into names, wherever a module was wrapped."""
_PREFIXES = {
    "module.": "DataParallel or DistributedDataParallel",
    "ema.": "an EMA wrapper",
    "model.": "a wrapper",
}
_COUNTERS = frozenset(
    ("n_averaged", "num_averaged", "steps", "step", "initted", "num_updates", "updates", "decay")
)
"""What averaging puts beside the weights: single numbers."""
_DEPTH = 6
"""Wrappers within wrappers."""
_BESIDES = 16
"""Names beside each other at most, where one may be the network and the others a loss or a copy."""


@dataclass(frozen=True)
class Part:
    """The tensors of one network under its own names."""

    leaves: Mapping[str, Leaf]
    prefix: str = ""
    """What was taken from the start of each name."""
    notes: tuple[str, ...] = ()


def parts(leaves: Mapping[str, Leaf]) -> Iterator[Part]:
    """Yield what the network may be, the likeliest first: some family knows one, or none does.

    A prefix that all names share may be a wrapper's. Where names differ in their first part, one
    is the network only if all others are copies of it, or named as a loss, an average, a metric.
    Raises: CheckpointError where two names become one.
    """
    first = _stripped(_unwrapped(leaves))
    pending = [(first, 0)]
    while pending:
        part, depth = pending.pop(0)
        groups = _groups(part.leaves)
        yield from _without_others(part, groups)
        yield part
        if depth < _DEPTH:
            pending += [(inner, depth + 1) for inner in _inner(part, groups)]


def _unwrapped(leaves: Mapping[str, Leaf]) -> Part:
    """Return the tensors without what wrappers put into the middle of names."""
    names, notes = {name: name for name in leaves}, []
    for mark, cause in _WITHIN.items():
        if any(mark in name for name in names.values()):
            names = {name: short.replace(mark, "") for name, short in names.items()}
            notes.append(f"{mark!r} of {cause} removed from the names")
    if len(set(names.values())) < len(names):
        raise CheckpointError(
            "two weights have the same name once wrappers' prefixes are removed",
            fix="save the unwrapped model: torch.save(model.module.state_dict(), FILE)",
        )
    return Part({short: leaves[name] for name, short in names.items()}, notes=tuple(notes))


def _stripped(part: Part) -> Part:
    """Return a part without the prefixes of known wrappers that all its names share."""
    counted = [k for k, leaf in part.leaves.items() if _counts(k, tuple(leaf.size))]
    rest = {k: leaf for k, leaf in part.leaves.items() if k not in counted}
    if counted and any(_all_start(rest, prefix) for prefix in _PREFIXES):
        note = f"left aside, as counters of a wrapper: {_listed(counted)}"
        part = Part(rest, part.prefix, (*part.notes, note))
    while prefix := next((p for p in _PREFIXES if _all_start(part.leaves, p)), None):
        note = f"{prefix!r} of {_PREFIXES[prefix]} removed from the names"
        part = _below(part, prefix, note)
    return part


def _all_start(leaves: Mapping[str, Leaf], prefix: str) -> bool:
    return bool(leaves) and all(name.startswith(prefix) for name in leaves)


def _below(part: Part, prefix: str, note: str) -> Part:
    leaves = {
        name.removeprefix(prefix): leaf
        for name, leaf in part.leaves.items()
        if name.startswith(prefix)
    }
    return Part(leaves, part.prefix + prefix, (*part.notes, note))


def _groups(leaves: Mapping[str, Leaf]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the first part of the names -> the rest of each name, and its tensor's shape."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, leaf in leaves.items():
        first, _, rest = name.partition(".")
        found.setdefault(first, {})[rest] = tuple(leaf.size)
    return found


def _without_others(part: Part, groups: Mapping[str, object]) -> Iterator[Part]:
    """Yield the part without what training keeps beside the network, where that is there."""
    beside = [name for name in groups if words(name) & BESIDE]
    if not beside or len(beside) == len(groups) or len(groups) - len(beside) == 1:
        return  # one group alone is found below
    leaves = {k: v for k, v in part.leaves.items() if k.partition(".")[0] not in beside}
    note = f"left aside, as no part of the network: {_listed(beside)}"
    yield Part(leaves, part.prefix, (*part.notes, note))


def _inner(part: Part, groups: Mapping[str, Mapping[str, tuple[int, ...]]]) -> Iterator[Part]:
    """Yield what lies under one first name, where all others are copies of it or beside it.

    Averages come first: they are what training scripts evaluate.
    """
    if len(groups) > _BESIDES:
        return
    able = [name for name, group in groups.items() if "" not in group]
    for name in sorted(able, key=lambda n: not words(n) & AVERAGES):
        others = [other for other in groups if other != name]
        if all(_may_stay(o, groups[o], groups[name]) for o in others):
            note = f"weights taken from the names that begin with {name!r}"
            yield _below(part, f"{name}.", f"{note}, not {_listed(others)}" if others else note)


def _may_stay(
    name: str, group: Mapping[str, tuple[int, ...]], network: Mapping[str, tuple[int, ...]]
) -> bool:
    """Return whether a group is a copy of the network, or of what training keeps beside it."""
    return group == network or bool(words(name) & BESIDE) or _counts(name, group.get("", (0,)))


def _counts(name: str, shape: tuple[int, ...]) -> bool:
    return name in _COUNTERS and shape in ((), (1,))


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
