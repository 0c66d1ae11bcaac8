"""What a checkpoint says beside its weights, as plain values: settings of modules, facts, names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deploykit.files import class_lists
from deploykit.networks.checkpoint import _bounds, _layouts
from deploykit.networks.checkpoint._arrays import StoredArray
from deploykit.networks.checkpoint._layouts import is_leaf, mapping
from deploykit.networks.checkpoint._records import Name, Record
from deploykit.networks.checkpoint._tensors import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PATHS = ("pathlib.", "pathlib._local.")
_MACHINERY = ("_parameters", "_modules", "_buffers", "_non_persistent_buffers_set", "training")
"""Of every torch module; what its hooks are is left out as well."""
_DEPTH = 12
_SMALL = 4096
"""Numbers in a tensor, or in the storage behind it, that is a setting: anchors, means."""
_LONG = "..."
"""Stands for what is nested too deep, or is one of too many."""


@dataclass(frozen=True)
class PickledModule:
    """A module, or another object among its attributes, as it was pickled: never made."""

    kind: str
    """Its class: "torchvision.models.detection.rpn.AnchorGenerator"."""
    values: Mapping[str, Any]
    """Attribute -> None, bool, int, float, str, list or dict of such. Small tensors and arrays are
    nested lists; an object is a dict with its class under "class" beside its attributes; a class or
    a function is its qualified name."""


def modules(root: Record) -> dict[str, PickledModule]:
    """Return dotted path -> module; "" is `root` itself. Objects that a module holds are there too.

    Raises: CheckpointError where the modules are absurd.
    """
    plain, found = _Plain(), dict[str, PickledModule]()
    for path, module in _layouts.modules(root):
        values = {}
        for name, value in _settings(module):
            if isinstance(value, Record) and str(value.of) != "builtins.getattr":
                inner = f"{path}.{name}" if path else name
                found[inner] = PickledModule(str(value.of), plain.attributes(value))
            else:
                values[name] = plain(value)
        found[path] = PickledModule(str(module.of), values)
    return found


def _settings(module: Record) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a module that are no weights, modules or hooks."""
    passing = module.attributes.get("_non_persistent_buffers_set")
    for name, value in mapping(module, "_buffers").items():
        if isinstance(passing, (list, tuple)) and name in passing[:_DEPTH]:
            yield name, value
    for name, value in module.attributes.items():
        hook = isinstance(name, str) and "_hooks" in name
        if isinstance(name, str) and name not in _MACHINERY and not hook:
            yield name, value


def facts(saved: object, within: str | None) -> Mapping[str, Any]:
    """Return what stands beside the weights at the top of a saved object, by name.

    within: the name there of what holds the weights; None where they are at the top themselves.
    """
    entries = saved.attributes if isinstance(saved, Record) else saved
    if not isinstance(entries, dict) or (isinstance(saved, Record) and "_modules" in entries):
        return MappingProxyType({})
    plain = _Plain()
    beside = {k: v for k, v in entries.items() if k != within and (within or not is_leaf(v))}
    return MappingProxyType({k: plain(v) for k, v in beside.items() if isinstance(k, str)})


class _Plain:
    """Makes values readable, until a bound is reached."""

    def __init__(self) -> None:
        self._left, self._reads = _bounds.VALUES, _bounds.READS

    def __call__(self, value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - any plain value
        """Return `value` as plain values."""
        self._left -= 1
        if isinstance(value, (int, float, str, type(None))):
            return value
        if self._left < 0 or depth > _DEPTH:
            return _LONG
        if isinstance(value, (list, tuple)):
            return [self(item, depth + 1) for item in value[: max(self._left, 0)]]
        if isinstance(value, dict):
            return self._entries(value, depth)
        if isinstance(value, Record):
            return self._record(value, depth)
        self._reads -= isinstance(value, (StoredTensor, StoredArray))
        return _single(value, read=self._reads >= 0)

    def attributes(self, record: Record, depth: int = 0) -> dict[str, Any]:
        """Return an object's attributes, items and arguments by name."""
        found = self._entries(record.attributes, depth)
        if isinstance(record.items, dict):
            found |= self._entries(record.items, depth)
        elif record.items:
            found["items"] = self(record.items, depth + 1)
        if record.arguments:
            found["arguments"] = self(record.arguments, depth + 1)
        return found

    def _entries(self, entries: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        found = {}
        for key, value in entries.items():
            if self._left < 0:
                break
            found[str(key)] = self(value, depth + 1)
        return found

    def _record(self, record: Record, depth: int) -> object:
        if str(record.of).startswith(_PATHS):
            return "/".join(part for part in record.arguments if isinstance(part, str))
        if "_modules" in record.attributes:
            return {"class": str(record.of)}
        return {"class": str(record.of), **self.attributes(record, depth)}


def _single(value: object, *, read: bool) -> object:
    """Return a small tensor as nested lists, a class by its name, and of all else what it is."""
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, (StoredTensor, StoredArray)):
        within = value.data.count if isinstance(value, StoredTensor) else 0
        if read and not value.odd and max(math.prod(value.size), within) <= _SMALL:
            return value.read().tolist()
        return {"class": "tensor", "shape": list(value.size) if not value.odd else []}
    if isinstance(value, (bytes, bytearray)):
        return {"class": "bytes", "count": len(value)}
    return {"class": type(value).__name__}


def class_names(saved: object, module: Record | None) -> tuple[str, ...] | None:
    """Return the names of the classes where the checkpoint holds them, in order of their index."""
    pending: list[tuple[object, int]] = [(module, 0), (saved, 0)]
    for part, depth in pending:
        entries = part.attributes if isinstance(part, Record) else part
        if not isinstance(entries, dict):
            continue
        for key in class_lists.KEYS:
            if names := class_lists.in_order(entries.get(key)):
                return names
        if depth < 3 and len(pending) < _bounds.TENSORS:
            inner = [v for v in entries.values() if isinstance(v, (dict, Record))]
            pending += [(value, depth + 1) for value in inner[:_SMALL]]
    return None
