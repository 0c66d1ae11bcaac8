"""A trained checkpoint file -> its weights and what it says beside them; nothing in it is run.

`load` returns the weights that are most likely the network's; `candidates` yields all that the file
offers, and whoever knows the families takes the first that one of them accepts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from deploykit.errors import CheckpointError
from deploykit.files import artifacts
from deploykit.networks.checkpoint import _bounds, _containers, _layouts, _settings, _wrappers
from deploykit.networks.checkpoint._fitting import fit
from deploykit.networks.checkpoint._settings import PickledModule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from deploykit.networks.checkpoint._layouts import Holder, Leaf
    from deploykit.networks.checkpoint._wrappers import Part

__all__ = ["Checkpoint", "PickledModule", "candidates", "fit", "load"]


_FAKE = re.compile(r"_quantizer\.|\._amax$")
"""In the names of what fake quantisers of pytorch-quantization and ModelOpt hold."""


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights in a file, with all that the file says about it."""

    state: dict[str, Tensor]
    """Name -> values; all real numbers are float32, on the CPU, finite."""
    sha256: str
    notes: tuple[str, ...] = ()
    """What was chosen, removed or ignored on the way."""
    class_names: tuple[str, ...] | None = None
    around: tuple[PickledModule, ...] = ()
    """Pickled modules that hold nothing but the network, or one within: the outermost first."""
    modules: Mapping[str, PickledModule] = field(default_factory=lambda: MappingProxyType({}))
    """Dotted path -> module, where a module was pickled; "" is the network. Paths are those of the
    names in `state`: the weight "rpn.head.conv.weight" is of the module "rpn.head.conv". Empty for
    a bare state dict, which says nothing of this kind."""
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What stands beside the weights at the top of the file, e.g. "epoch", "args", "meta": plain
    values as in `PickledModule.values`."""
    place: str = ""
    """Where in the file the weights are: "ema.module", or nothing where they are the file."""
    scales: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    """Of fake quantisers, not in `state`: name -> magnitudes; what was never seen is NaN."""

    @property
    def kind(self) -> str | None:
        """Return the class of the pickled network with all around it, None for a state dict."""
        root = self.modules.get("")
        outermost = self.around[0] if self.around else root
        return outermost.kind if outermost else None


def load(path: Path) -> Checkpoint:
    """Return the weights in a file that are most likely the network's: see `candidates`.

    Raises: CheckpointError.
    """
    return next(candidates(path))


def candidates(path: Path) -> Iterator[Checkpoint]:
    """Yield each set of weights in a file, the likeliest first; the file stays open meanwhile.

    A plain state dict, one wrapped by a training script (averaged weights come first), or a pickled
    module of any package: of that only weights and settings are read. The kind of the file is told
    by its content: what torch.save has written in any version, safetensors, a pickle of arrays.

    Raises: CheckpointError where the file is missing, damaged, too large, holds code (with the
    name of what it wanted to run), no weights, or weights that are not finite. Where that is of a
    later set, it is raised at the end, and only if the set is larger than all before.
    """
    with _containers.opened(path) as saved:
        reader = _Reader(path.stat().st_size)
        said = _Said(saved, artifacts.sha256(path))
        largest, unread = 0, None
        for holder, part in reader.parts(_layouts.holders(saved)):
            try:
                fake = {k: leaf for k, leaf in part.leaves.items() if _FAKE.search(k)}
                state = reader.values({k: v for k, v in part.leaves.items() if k not in fake})
                scales = reader.values(fake, finite=False)
            except CheckpointError as error:
                if not largest:
                    raise
                unread = unread or (error if len(part.leaves) > largest else None)
                continue
            largest = max(largest, len(state))
            made = replace(said.checkpoint(holder, part, state), scales=scales)
            left = (f"{len(scales)} scales of fake quantisers are left to `quantize --amax`",)
            yield replace(made, notes=made.notes + left) if scales else made
        if unread:
            raise unread


class _Said:
    """What a file says beside its weights."""

    def __init__(self, saved: object, sha256: str) -> None:
        self._saved, self._sha256 = saved, sha256
        self._facts: dict[str | None, Mapping[str, Any]] = {}
        self._modules: dict[int, Mapping[str, PickledModule]] = {}
        self._names: dict[int, tuple[str, ...] | None] = {}

    def checkpoint(self, holder: Holder, part: Part, state: dict[str, Tensor]) -> Checkpoint:
        """Return one set of weights with all that is said about it."""
        place = ".".join((*holder.path, *part.prefix.split("."))).strip(".")
        key = id(holder.module)
        if key not in self._names:
            self._names[key] = _settings.class_names(self._saved, holder.module)
            self._modules[key] = _settings.modules(holder.module) if holder.module else {}
        return Checkpoint(
            state,
            self._sha256,
            (*holder.notes, *part.notes),
            self._names[key],
            _around(self._modules[key], part.prefix),
            _below(self._modules[key], part.prefix),
            self._beside(holder),
            place,
        )

    def _beside(self, holder: Holder) -> Mapping[str, Any]:
        """Return the facts beside one set of weights."""
        within = holder.path[0] if holder.path else None
        if within not in self._facts:
            self._facts[within] = _settings.facts(self._saved, within)
        return self._facts[within]


def _around(modules: Mapping[str, PickledModule], prefix: str) -> tuple[PickledModule, ...]:
    """Return the modules on the way to `prefix`, the outermost first."""
    parts = prefix.split(".")[:-1]
    paths = [".".join(parts[:count]) for count in range(len(parts))]
    return tuple(modules[path] for path in paths if path in modules)


def _below(modules: Mapping[str, PickledModule], prefix: str) -> Mapping[str, PickledModule]:
    """Return the modules below `prefix`, by the paths there."""
    if not prefix:
        return MappingProxyType(modules)
    start = prefix.removesuffix(".")
    inner = {p.removeprefix(prefix): m for p, m in modules.items() if p.startswith(prefix)}
    return MappingProxyType({"": modules[start], **inner} if start in modules else inner)


class _Reader:
    """Reads tensors once each, until they take more memory than the file has a reason to."""

    def __init__(self, size: int) -> None:
        """Keep the bound for a file of `size` bytes."""
        self._bytes = _bounds.FREE + _bounds.RATIO * size
        self._names = _bounds.OFFERED
        self._read: dict[int, Tensor] = {}

    def parts(self, holders: list[Holder]) -> Iterator[tuple[Holder, Part]]:
        """Yield what the network may be: at least one, and not more than families can look at."""
        count = 0
        for holder in holders:
            if len(holder.leaves) > _bounds.TENSORS:
                raise _bounds.swollen(
                    f"the file holds {len(holder.leaves)} weights", f"at most {_bounds.TENSORS}"
                )
            for part in _wrappers.parts(holder.leaves):
                yield holder, part
                self._names -= len(part.leaves)
                count += 1
                if self._names < 0 or count == _bounds.CANDIDATES:
                    return

    def values(self, leaves: Mapping[str, Leaf], *, finite: bool = True) -> dict[str, Tensor]:
        """Return every tensor in memory of its own, real numbers as float32; all are `finite`.

        Raises: CheckpointError.
        """
        read: dict[str, Tensor] = {}
        for name, leaf in sorted(leaves.items(), key=lambda item: item[1].place):
            if id(leaf) not in self._read:  # a storage is unpacked once, for all in it
                self._read[id(leaf)] = self._value(name, leaf)
            read[name] = self._read[id(leaf)]
        state = {name: read[name] for name in leaves}
        if finite:
            _check_finite(state)
        return state

    def _value(self, name: str, leaf: Leaf) -> Tensor:
        if leaf.odd:
            raise CheckpointError(
                f"weight {name!r} is {leaf.odd}",
                expected="plain tensors of real numbers",
                fix="save the network as it was trained, in half or single precision",
            )
        self._bytes -= max(leaf.nbytes, math.prod(leaf.size) * torch.float32.itemsize)
        if self._bytes < 0:
            raise _bounds.swollen(
                f"the weights would take more than {_bounds.RATIO} times the bytes of the file",
                "tensors with memory of their own",
            )
        tensor = leaf.read()
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return tensor.to(kind).contiguous()


def _check_finite(state: Mapping[str, Tensor]) -> None:
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{len(bad)} weight{'s' if len(bad) > 1 else ''} hold NaN or infinity: "
            + ", ".join(bad[:5])
            + (f" and {len(bad) - 5} more" if len(bad) > 5 else ""),
            expected="finite weights",
            fix="use an earlier checkpoint: training diverged, or half precision overflowed",
        )
