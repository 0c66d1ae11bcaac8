"""Where the weights are in what training scripts save."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import CheckpointError
from deploykit.networks.checkpoint import _bounds
from deploykit.networks.checkpoint._arrays import StoredArray
from deploykit.networks.checkpoint._records import FormatError, Record, describe
from deploykit.networks.checkpoint._tensors import OddTensor, StoredTensor
from deploykit.networks.checkpoint._words import AVERAGES, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Leaf = StoredTensor | OddTensor | StoredArray
_EMA = ("ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "params_ema")
_MODEL = ("model", "state_dict", "model_state_dict", "net", "network", "module", "weights")
_INNER = ("shadow", "params", "blobs")
"""Where the averaged weights are in an EMA object, and all in a file of Caffe2."""
_NOT_WEIGHTS = ("optim", "sched", "scaler", "rng", "random")
"""Parts of the names of what else training scripts save, with tensors in it."""
_EXCHANGED, _MMENGINE = "ema_state_dict", "message_hub"
"""mmengine saves the averaged weights as those of the model, and the model's as the average's."""
METADATA = "__metadata__"
"""Of a safetensors file, beside its tensors."""
_SHOWN, _LOOKED = 3, 32
"""Names in a note at most; entries that are looked at for what else could have been taken."""
_DEPTH = 8
"""Dictionaries and objects around the weights."""


@dataclass(frozen=True)
class Holder:
    """One set of tensors among those in a file."""

    leaves: Mapping[str, Leaf]
    path: tuple[str, ...]
    """The keys that lead to it."""
    module: Record | None
    """The pickled module that the tensors are of."""
    notes: tuple[str, ...]


def is_leaf(value: object) -> bool:
    """Return whether `value` is a tensor, or an array that can be a weight."""
    if isinstance(value, StoredArray):
        return not value.odd
    return isinstance(value, (StoredTensor, OddTensor))


def holders(saved: object) -> list[Holder]:
    """Return every set of tensors in a saved object, averaged weights before the last step's.

    Raises: CheckpointError where there is none, or a module is absurd; FormatError.
    """
    search = _Search()
    found = list(search.within(saved, (), frozenset()))
    found += _joined(found)
    if not found:
        raise CheckpointError(
            f"no weights found: the file holds {_summary(saved)}",
            expected="a state dict, alone or under one of " + ", ".join((*_EMA, *_MODEL)),
            fix="save them with torch.save(model.state_dict(), FILE)",
        )
    return found


class _Search:
    """Goes through a saved object; what is shared is looked at once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def within(
        self, saved: object, path: tuple[str, ...], around: frozenset[int]
    ) -> Iterator[Holder]:
        """Yield the sets of tensors in `saved`, which lies under `path` within `around`."""
        if id(saved) in around:
            raise FormatError("a dictionary contains itself")
        if id(saved) in self._seen or len(path) > _DEPTH or len(self._seen) > _bounds.LOOKS:
            return
        self._seen.add(id(saved))
        inside = around | {id(saved)} if isinstance(saved, dict) else frozenset()
        if isinstance(saved, Record) and "_modules" in saved.attributes:
            if leaves := collect(saved):
                note = f"read from a pickled module {saved.of} without running it"
                yield Holder(leaves, path, saved, (note,))
            return
        for key, value in _ordered(_entries(saved)):
            if key is None:
                yield Holder(value, path, None, _ignored(saved, value))
            else:
                for found in self.within(value, (*path, key), inside):
                    notes = (_choice(key, saved), *found.notes)
                    yield Holder(found.leaves, found.path, found.module, notes)


def _joined(found: list[Holder]) -> list[Holder]:
    """Return the parts of a network that were saved side by side, as one."""
    known = (*_EMA, *_MODEL, *_INNER)
    side = [h for h in found if len(h.path) == 1 and not h.module and h.path[0] not in known]
    if len(side) < 2:
        return []
    leaves = {f"{h.path[0]}.{name}": leaf for h in side for name, leaf in h.leaves.items()}
    note = "weights joined from " + ", ".join(repr(h.path[0]) for h in side[:_DEPTH])
    return [Holder(leaves, (), None, (note,))]


def _entries(saved: object) -> Mapping[Any, Any]:
    """Return what may be searched: of a dictionary, an object, or a list."""
    if isinstance(saved, Record):
        return saved.items if isinstance(saved.items, dict) else saved.attributes
    if isinstance(saved, (list, tuple)):
        return {f"[{i}]": value for i, value in enumerate(saved[:_DEPTH])}
    return saved if isinstance(saved, dict) else {}


def _ordered(entries: Mapping[Any, Any]) -> Iterator[tuple[str | None, Any]]:
    """Yield the entries that may hold weights, the likeliest first; None: its own tensors."""
    known: tuple[str, ...] = (*_EMA, *_MODEL, *_INNER)
    if _MMENGINE in entries:
        known = (*(key for key in known if key != _EXCHANGED), _EXCHANGED)
    yield from ((key, entries[key]) for key in known if _is_inner(entries.get(key)))
    tensors = {k: v for k, v in entries.items() if isinstance(k, str) and is_leaf(v)}
    if tensors:
        yield None, tensors
    others = [key for key, value in entries.items() if isinstance(key, str) and _is_inner(value)]
    for key in sorted(others, key=lambda k: not words(k) & AVERAGES):
        if key not in known and not _is_beside(key):
            yield key, entries[key]


def _is_beside(key: str) -> bool:
    return any(word in key.lower() for word in _NOT_WEIGHTS)


def _is_inner(value: object) -> bool:
    return isinstance(value, (dict, Record, list, tuple)) and bool(_entries(value))


def _ignored(saved: object, tensors: Mapping[str, Leaf]) -> tuple[str, ...]:
    names = [f"{key!r:.100}" for key in _entries(saved) if key not in tensors and key != METADATA]
    more = f" and {len(names) - _DEPTH} more" if len(names) > _DEPTH else ""
    return (f"beside the weights: {', '.join(names[:_DEPTH])}{more}",) if names else ()


def _choice(key: str, saved: object) -> str:
    entries = _entries(saved)
    first = itertools.islice(entries.items(), _LOOKED)
    others = [k for k, v in first if k != key and isinstance(k, str) and _offers(k, v)]
    if not others:
        return f"weights taken from {key!r}"
    exchanged = _MMENGINE in entries and _EXCHANGED in others
    average = exchanged or key in _EMA or (words(key) & AVERAGES and key != _EXCHANGED)
    return f"weights taken from {key!r}" + (
        f"{', the moving average' if average else ''}, not from "
        + ", ".join(f"{other!r:.100}" for other in others[:_SHOWN])
    )


def _offers(key: str, value: object) -> bool:
    """Return whether an entry is what else could have been taken."""
    if not _is_inner(value) or _is_beside(key):
        return False
    inside = _entries(value)
    named = key in (*_EMA, *_MODEL) or "_modules" in inside
    return named or sum(map(is_leaf, itertools.islice(inside.values(), _LOOKED))) > 1


def _summary(saved: object) -> str:
    if isinstance(saved, dict):
        return "a dictionary with " + (", ".join(map(repr, list(saved)[:5])) or "no entries")
    return describe(saved)


def modules(root: Record) -> Iterator[tuple[str, Record]]:
    """Yield the path and the record of a pickled module and of all modules in it.

    Raises: CheckpointError where the modules contain each other, or are too many.
    """
    _weigh(root, {}, 0)
    pending = [("", root)]
    while pending:
        path, current = pending.pop()
        yield path, current
        for name, child in reversed(mapping(current, "_modules").items()):
            if isinstance(child, Record):
                pending.append((f"{path}.{name}" if path else str(name), child))


def _weigh(module: Record, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return how much is looked at on all paths from a module, and how many levels it has.

    A module that many share is weighed once: its paths can be exponentially many.
    """
    if id(module) not in known:
        looks, levels = 1 + len(module.attributes), 0
        looks += sum(len(mapping(module, k)) for k in ("_modules", "_parameters", "_buffers"))
        if depth <= _bounds.DEPTH:
            for child in mapping(module, "_modules").values():
                if isinstance(child, Record):
                    more, below = _weigh(child, known, depth + 1)
                    looks, levels = looks + more, max(levels, below + 1)
        known[id(module)] = looks, levels
    looks, levels = known[id(module)]
    if looks > _bounds.LOOKS or depth + levels > _bounds.DEPTH:
        raise CheckpointError(
            "the pickled module contains itself, or is of absurd size",
            fix="save its weights: torch.save(model.state_dict(), FILE)",
        )
    return looks, levels


def collect(root: Record) -> dict[str, Leaf]:
    """Return the parameters and persistent buffers of a pickled module, as state_dict() would.

    Raises: CheckpointError.
    """
    found: dict[str, Leaf] = {}
    for path, module in modules(root):
        for name, leaf in _own(module).items():
            found[f"{path}.{name}" if path else name] = leaf
        if len(found) > _bounds.TENSORS:
            raise _bounds.swollen(
                f"more than {_bounds.TENSORS} weights in a pickled module", "a real network"
            )
    return found


def _own(module: Record) -> dict[str, Leaf]:
    passing = module.attributes.get("_non_persistent_buffers_set", ())
    buffers = mapping(module, "_buffers")
    known = passing[: len(buffers)] if isinstance(passing, (list, tuple)) else ()
    passed = {name for name in known if isinstance(name, str)}
    buffers = {k: v for k, v in buffers.items() if k not in passed}
    entries = {**mapping(module, "_parameters"), **buffers}
    return {k: v for k, v in entries.items() if isinstance(k, str) and is_leaf(v)}


def mapping(module: Record, key: str) -> dict[Any, Any]:
    """Return a dictionary among the attributes of a module, empty where there is none."""
    value = module.attributes.get(key)
    return value if isinstance(value, dict) else {}
